"""Baselines: what a rule without a head gets, ties shared fairly."""

import pytest
import torch

from tinyllm.options import Question
from tinyllm.shortcuts import accuracies, baselines, credit, overlap, table


def question(options, answer, context="the red kite flew"):
    return Question(context, "What flew?", options, answer, 1, {})


def test_a_tie_counts_as_a_fair_coin():
    """Otherwise the first option would win every tie, and a file with answers in front would look easy."""
    assert credit([1, 3, 2], 1) == 1 and credit([1, 3, 2], 2) == 0
    assert credit([2, 2, 2, 2], 3) == 0.25 and credit([2, 2, 1], 0) == 0.5


def test_overlap_is_the_share_of_bigrams_in_the_context():
    """`kits` has ki, it, ts; the context `kite` has the first two."""
    assert overlap("kits", "kite") == pytest.approx(2 / 3)
    assert overlap("k", "kite") == 1 and overlap("z", "kite") == 0


def test_baselines_know_their_shortcut():
    """A question whose answer is the longest option and one whose answer repeats the context."""
    questions = [question(["xx", "a long answer", "yy"], 1), question(["zzzz", "kite"], 1)]
    measured = baselines(questions, lambda i, normalised: [0.0, float(normalised)] + [0.0] * (i == 0))
    assert measured["chance"]["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert measured["longest option"]["accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert measured["bigrams shared with context"]["accuracy"] == pytest.approx((1 / 3 + 1) / 2)
    assert measured["language model, log-probability"]["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert measured["language model, per token"]["accuracy"] == 1


def test_without_a_context_the_question_is_searched():
    assert baselines([question(["flew", "swam"], 0, context="")], lambda i, n: [0.0, 0.0])[
        "bigrams shared with context"]["accuracy"] == 1


def test_the_table_has_the_head_beside_every_baseline():
    text = table({"val": accuracies([question(["a", "b"], 1)], [torch.tensor([0.0, 1.0])], lambda i, n: [0.0, 0.0])})
    assert "head" in text and "chance" in text and "language model, per token" in text and "100.0% [" in text
