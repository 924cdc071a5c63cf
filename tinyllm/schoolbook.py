"""Pages of a schoolbook: sums, exercises with their solutions, instructions with their answers, as plain text.

What pretraining reads beside the stories of the world, so that numbers and steps are no news to the later stages. In: a
number and a seed. Out: a page. Explained by tests/test_schoolbook.py.
"""

import random
import re
from collections.abc import Iterator

from tinyllm.arithmetic import value_of
from tinyllm.chat import rationale
from tinyllm.lexicon import LANGUAGES
from tinyllm.problems import instruction, problem


def page(index: int, seed: int = 0) -> str:
    """Page `index` of the schoolbook: every other one sums, then three exercises with solutions, or four instructions.

    All from the train split. Sums are dense: half of their tokens follow from the others, so a page of them teaches
    more arithmetic than any story, and reading numbers besides.
    """
    rng, language = random.Random(f"page {seed} {index}"), LANGUAGES[index // 4 % 2]
    if index % 2 == 0:
        return "\n".join(_sum(rng, seed) for _ in range(24))
    start = rng.randrange(10 ** 6)
    if index % 4 == 1:                                           # 10 apart: the next family each time
        chosen = (problem(start + 10 * k, seed, language=language) for k in range(3))
        return "\n\n".join(f"{one.user}\n{rationale(one.cot, one.final, language)}" for one in chosen)
    rows = (instruction(start + k, seed, language=language) for k in range(4))
    return "\n\n".join(f"{row['user']}\n{row['assistant']}" for row in rows)


def _sum(rng: random.Random, seed: int) -> str:
    """A line such as 7*8=56: half of the time a small one, a quarter with two digits, a quarter out of an exercise."""
    kind, sign = rng.random(), rng.choice("++--**")
    if kind < 0.5:
        a, b = rng.randint(0, 9 if sign == "*" else rng.choice((18, 99))), rng.randint(0, 9)
    elif kind < 0.75:
        a, b = rng.randint(10, 99), rng.randint(2, 9) if sign == "*" else rng.randint(10, 99)
    else:
        while True:
            one = problem(rng.randrange(10 ** 6), seed, family=rng.choice(("expression", "column", "story")))
            if found := [step for step in one.steps if re.fullmatch(r"-?[\d(][-+*/()\d]*=-?\d+", step)]:
                return rng.choice(found)
    return f"{a}{sign}{b}={value_of(f'{a}{sign}{b}')}"


def pages(n: int, seed: int = 0) -> Iterator[str]:
    """The first `n` pages of the schoolbook."""
    return (page(index, seed) for index in range(n))
