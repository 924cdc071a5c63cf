"""Questions as people type them: 12,500, two hundred five, signs of another width or left out.

In: a tidy question. Out: the same one, now and then less tidy; its numbers and words are untouched. Used by
exercises.py; explained by tests/test_typed.py.
"""

import random
import re

from tinyllm.lexicon import SMALL, TENS

SEPARATED, BARE, WIDTH = 0.3, 0.08, 0.2                          # shares of the questions
NARROW = str.maketrans("，？：；（）", ",?:;()")
HUNDREDS = re.compile(rf"(?<=hundred) and (?={'|'.join(filter(None, [*SMALL, *TENS]))})")     # two hundred and five


def as_typed(question: str, language: str, rng: random.Random) -> str:
    """`question` with thousands in threes, without commas or its last sign; in Chinese with signs of another width."""
    if language == "zh":
        if rng.random() < WIDTH:
            return question.replace("。", "．") if rng.random() < 0.4 else question.translate(NARROW)
        return question
    if rng.random() < SEPARATED:                                 # 61921 yards, $1234.50: not what follows a point
        question = re.sub(r"(?<![\d.])\d{4,}", lambda number: f"{int(number[0]):,}", question)
    if HUNDREDS.search(question) and rng.random() < 0.5:
        question = HUNDREDS.sub(" ", question)
    if rng.random() < BARE:
        question = re.sub(r"(?<!\d), (?!\d)", " ", question) if rng.random() < 0.6 else question.rstrip("?.")
    return question


def without_separators(text: str) -> str:
    """61,921 as 61921, `hundred and five` as `hundred five`: what as_typed() may have changed inside a number."""
    return HUNDREDS.sub(" ", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text))
