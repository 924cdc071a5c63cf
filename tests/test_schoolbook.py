"""The schoolbook: what pretraining reads about numbers is true, and none of it is a question of a test."""

import itertools
import re

from tinyllm.arithmetic import value_of
from tinyllm.problems import SPLITS, normalise, problem, split_of
from tinyllm.schoolbook import page, pages


def test_every_sum_is_right():
    """Half of the pages are sums, and half of the sums are small; a wrong one would be learnt as willingly."""
    lines = [line for index in range(0, 40, 2) for line in page(index).split("\n")]
    assert len(lines) == 20 * 24
    for line in lines:
        left, right = line.rsplit("=", 1)
        assert value_of(left) == value_of(right), line
    small = [line for line in lines if re.fullmatch(r"\d{1,2}[-+*]\d=-?\d+", line)]
    assert 0.4 < len(small) / len(lines) < 0.8


def test_pages_take_turns_and_repeat_by_seed():
    """Sums, exercises in the format of the later stages, sums, instructions; in both languages."""
    made = list(itertools.islice(pages(24), 24))
    assert made == [page(index) for index in range(24)] and made != [page(index, seed=1) for index in range(24)]
    headings = [re.findall(r"\[Reasoning\]|【推理过程】", text) for text in made]
    assert [bool(found) for found in headings] == [index % 4 == 1 for index in range(24)]
    assert set(itertools.chain(*headings)) == {"[Reasoning]", "【推理过程】"}


def test_no_question_of_a_test_is_printed():
    """A page shows solutions; those of held-out questions would make the test worthless."""
    held_out = {normalise(problem(index, split=split).user) for split in SPLITS for index in range(360)}
    asked = [block.split("\n[Reasoning]")[0].split("\n【推理过程】")[0] for index in range(1, 400, 4)
             for block in page(index).split("\n\n") if "[Reasoning]" in block or "【推理过程】" in block]
    assert len(asked) > 250 and not held_out & set(map(normalise, asked))
    assert {split_of(question) for question in asked} == {"train"}
