"""What an untidy hand changes in a question, and what it must not: a number is worth what it was."""

import random
import re

from tinyllm.lexicon import LANGUAGES
from tinyllm.overlap import shape
from tinyllm.problems import normalise, problem
from tinyllm.typed import as_typed

ROUNDS = range(300)


def ways(question, language="en"):
    """All that becomes of a question."""
    return {as_typed(question, language, random.Random(seed)) for seed in ROUNDS}


def test_a_number_is_worth_what_it_was():
    question = "Of 61921 yards, 950 are pink, at $1234.50 a roll and 0.12345 a yard. How many are green?"
    worth = lambda text: [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*(?<!,)", text)]
    assert all(worth(way) == worth(question) == [61921, 950, 1234.5, 0.12345] for way in ways(question))


def test_thousands_are_set_apart_and_nothing_else_is():
    assert ways("They sold 61921 of 450 at $1234.50") == {
        "They sold 61921 of 450 at $1234.50", "They sold 61,921 of 450 at $1,234.50"}


def test_an_and_inside_a_number_may_be_left_out_and_no_other():
    question = "Two hundred and five birds and a hundred and one cats saw a hundred and more dogs"
    assert ways(question) == {question, question.replace("hundred and five", "hundred five").replace(
        "hundred and one", "hundred one")}


def test_only_signs_are_left_out_or_changed():
    letters = lambda text: re.sub(r"[^\w]", "", text.replace("．", "。"))
    for language, question in (("en", "If Tom, who is 9, has 3, 4 and 5 pens, how many is that?"),
                               ("zh", "小明（9岁）有3支笔，又买了4支。他一共有多少支？")):
        found = ways(question, language)
        assert {letters(way) for way in found} == {letters(question)} and len(found) == 3, found
        assert language == "zh" or all("3, 4 and 5" in way for way in found)


def test_a_question_is_the_same_question_however_it_is_typed():
    """Else one could stand in training with a comma in its number, and in the test without."""
    for index in range(300):
        for language in LANGUAGES:
            question = problem(index, family="story", language=language).user
            for seed in range(4):
                typed = as_typed(question, language, random.Random(seed))
                assert normalise(typed) == normalise(question), typed
    assert shape("61,921 pens, 500 ribbons") == shape("7 pens, 5 ribbons")


def test_most_questions_stay_tidy():
    for language, question in (("en", "If he has 3, how many?"), ("zh", "他有3支，又有4支。一共多少？")):
        tidy = sum(as_typed(question, language, random.Random(seed)) == question for seed in ROUNDS)
        assert 0.7 * len(ROUNDS) < tidy < len(ROUNDS)
