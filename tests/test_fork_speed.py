"""The speed table: both ways find the same states, and the ideal is counted in tokens."""

import pytest

from tinyllm.fork_speed import ForkSpeedConfig, ideal, measure, speed_table


def test_the_ideal_counts_tokens():
    """Five options of 16 tokens behind 256: 5 * 272 tokens against 256 + 5 * 16."""
    assert ideal(256, 5, 16) == pytest.approx(4.05, abs=0.005)


def test_a_row_for_every_case():
    """Small shapes, to see that it runs; the states of both ways are compared inside."""
    config = ForkSpeedConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, context=32, vocab_size=99,
                             prefixes=[8, 40], n_options=[2, 3], option_tokens=4, repeats=1)
    rows = measure(config)
    assert [(row["prefix_tokens"], row["options"]) for row in rows] == [(8, 2), (8, 3), (40, 2), (40, 3)]
    assert rows[0]["cache_mb"] == pytest.approx((2 * 8 + 2 * 12) * 2 * 2 * 8 * 4 / 1e6)     # 2 layers, 2 heads of 8
    assert all(row["ratio"] == pytest.approx(row["reread_ms"] / row["cached_ms"]) for row in rows)
    assert len(speed_table(rows).splitlines()) == 6
