"""Batches: labels are shifted once, and step s always learns from the same rows."""

import json

import numpy as np
import pytest
import torch

from tinyllm.data import PackedRows, TokenFiles, held_out, next_token_batch


def write(folder, lengths=(40, 25, 36), split="train"):
    """Token files of the given lengths that count 0, 1, 2 ... across all files."""
    meta, start = {"vocab_size": 1000}, 0
    for name in ("train", "val"):
        files = []
        for i, length in enumerate(lengths if name == split else ()):
            files.append(f"{name}-{i:05d}.bin")
            np.arange(start, start + length, dtype="<u2").tofile(folder / files[-1])
            start += length
        meta[name] = {"files": files, "tokens": sum(lengths) if name == split else 0, "bytes": 300}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenFiles(folder, split)


def test_a_target_is_the_next_token():
    """The only shift there is, against a hand-written vector."""
    batch = next_token_batch(torch.tensor([[5, 6, 7, 8]]))
    assert batch.tokens.tolist() == [[5, 6, 7]] and batch.targets.tolist() == [[6, 7, 8]]
    batch.targets[0, 0] = -100                                       # masking a label must not mask what is read
    assert batch.tokens.tolist() == [[5, 6, 7]]


def test_reading_across_files_is_seamless(tmp_path):
    """Files are only a way to store one long row."""
    tokens = write(tmp_path)
    assert tokens.read(30, 60).tolist() == list(range(30, 90))
    assert tokens.read(40, 25).tolist() == list(range(40, 65))
    assert tokens.read(100, 1).tolist() == [100]


def test_every_window_comes_once_before_any_comes_again(tmp_path):
    """An epoch is a permutation, so a short run wastes nothing on repeats; the next epoch has another order."""
    rows = PackedRows(write(tmp_path), context=10, rows=2, seed=3)
    assert rows.n_windows == 10
    starts = [[int(row[0]) for step in range(5) for row in rows(epoch * 5 + step).tokens] for epoch in range(2)]
    assert sorted(starts[0]) == sorted(starts[1]) == list(range(0, 100, 10))
    assert starts[0] != starts[1]


@pytest.mark.parametrize(("length", "windows"), [(100, 9), (101, 10), (110, 10)])
def test_the_last_token_of_every_row_has_a_target(tmp_path, length, windows):
    """A row of 10 needs 11 tokens: what does not fill one is left out, never made up."""
    rows = PackedRows(write(tmp_path, lengths=(length,)), context=10, rows=1, seed=0)
    assert rows.n_windows == windows
    for batch in map(rows, range(windows)):
        assert batch.tokens.shape == (1, 10) and torch.equal(batch.targets, batch.tokens + 1)


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    """So resuming needs no loader state and no replay."""
    tokens = write(tmp_path)
    first, again, other = (PackedRows(tokens, 10, 2, seed)(7).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_cutting_rows_keeps_every_token_and_target():
    """The sequence-length curriculum changes what a token can look back at, not what is learnt."""
    batch = next_token_batch(torch.arange(18).view(2, 9))
    short = batch.cut(4)
    assert short.tokens.shape == (4, 4) and short.tokens.flatten().tolist() == batch.tokens.flatten().tolist()
    assert torch.equal(short.targets, short.tokens + 1)
    with pytest.raises(ValueError, match="rows of 8 tokens cannot be cut into rows of 3"):
        batch.cut(3)


def test_validation_rows_are_fixed_and_spread_over_the_split(tmp_path):
    """Two runs are compared on the same text, and not only on its beginning."""
    tokens = write(tmp_path, split="val")
    batches = held_out(tokens, context=10, rows=2, max_tokens=40)
    starts = [int(row[0]) for batch in batches for row in batch.tokens]
    assert len(starts) == 4 and starts[0] == 0 and starts[-1] == 90
    assert held_out(tokens, context=500, rows=2, max_tokens=40)[0].tokens.shape == (1, 100)


def test_missing_and_damaged_token_files_are_one_sentence(tmp_path):
    """What is wrong, where, and what to run."""
    with pytest.raises(ValueError, match=r"meta.json is missing.*python -m tinyllm.prepare"):
        TokenFiles(tmp_path, "train")
    write(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="is not what prepare writes .*; run prepare again"):
        TokenFiles(tmp_path / "foreign", "train")
    for damaged in ("", '{"vocab_size": 9, "train": {"bytes": 1, "tokens": 1, "files": "train-00000.bin"}}'):
        (tmp_path / "foreign" / "meta.json").write_text(damaged)
        with pytest.raises(ValueError, match="is not what prepare writes .*; run prepare again"):
            TokenFiles(tmp_path / "foreign", "train")
    for content in (b"\x00\x00", b"", b"\x00"):                     # cut off, anywhere
        (tmp_path / "train-00001.bin").write_bytes(content)
        with pytest.raises(ValueError, match="do not hold the 101 tokens that meta.json promises"):
            TokenFiles(tmp_path, "train")


def test_too_little_text_for_one_row_is_refused(tmp_path):
    """Silently training on nothing would look like success."""
    with pytest.raises(ValueError, match="101 training tokens do not fill one row of context=512"):
        PackedRows(write(tmp_path), 512, 1, 0)
