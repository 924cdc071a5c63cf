"""The schoolbook: its lists can only be learnt by looking back, and none of its exercises is a question of a test."""

import itertools
import re

from tinyllm import schoolbook
from tinyllm.problems import SPLITS, normalise, problem, split_of
from tinyllm.schoolbook import page, pages


def test_pages_take_turns_and_repeat_by_seed():
    """Exercises in the format of the later stages, lists, instructions; in both languages."""
    made = list(itertools.islice(pages(24), 24))
    assert made == [page(index) for index in range(24)] and made != [page(index, seed=1) for index in range(24)]
    headings = [re.findall(r"\[Reasoning\]|【推理过程】", text) for text in made]
    assert [bool(found) for found in headings] == [index % 6 in (1, 2, 5) for index in range(24)]
    assert set(itertools.chain(*headings)) == {"[Reasoning]", "【推理过程】"}


def test_lists_are_copied_reversed_or_looked_up():
    """What stands behind the sign follows from what stands before it, so it can only be learnt by looking back."""
    lines = [line for index in range(0, 120, 3) for line in page(index).split("\n")]
    signs = {sign: [line.split(sign) for line in lines if sign in line] for sign in (" -> ", " <- ", "; ")}
    assert sum(map(len, signs.values())) == len(lines) == 40 * 8 and min(map(len, signs.values())) > 30
    assert all(left == right for left, right in signs[" -> "])
    assert all(left.split(", ") == right.split(", ")[::-1] for left, right in signs[" <- "])
    assert all(", " + right.replace(": ", ", ") in ", " + left for left, right in signs["; "])


def test_no_question_of_a_test_is_printed(monkeypatch):
    """A page shows solutions; those of held-out questions would make the test worthless."""
    asked = []
    def watched(*arguments, **settings):
        asked.append(problem(*arguments, **settings))
        return asked[-1]
    monkeypatch.setattr(schoolbook, "problem", watched)
    text = "".join(page(index) for index in range(400) if index % 6 in (1, 2, 5))
    assert len(asked) == 600 and all(one.user in text for one in asked)
    assert {split_of(one.user) for one in asked} == {"train"}
    held_out = {normalise(problem(index, split=split).user) for split in SPLITS for index in range(360)}
    assert not held_out & {normalise(one.user) for one in asked}
