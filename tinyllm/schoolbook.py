"""Pages of a schoolbook: sums, exercises with their solutions, instructions with their answers, as plain text.

What pretraining reads beside the stories of the world, so that numbers and steps are no news to the later stages. In: a
number and a seed. Out: a page. Explained by tests/test_schoolbook.py.
"""

import random
import re
from collections.abc import Iterator

from tinyllm.arithmetic import value_of
from tinyllm.chat import rationale
from tinyllm.lexicon import LANGUAGES, word
from tinyllm.problems import instruction, problem
from tinyllm.wordings import choices


def page(index: int, seed: int = 0) -> str:
    """Page `index` of the schoolbook: of six, two are sums, two exercises with solutions, one lists copied out, one
    instructions. All from the train split.

    Sums are dense: half of their tokens follow from the others, so a page of them teaches more arithmetic than any
    story, and reading numbers besides. Lists teach to look up and to copy, which every written step needs.
    """
    rng, language, kind = random.Random(f"page {seed} {index}"), LANGUAGES[index // 6 % 2], index % 6
    if kind in (0, 3):
        return "\n".join(_sum(rng, seed) for _ in range(24))
    if kind == 5:
        return "\n".join(_list(rng) for _ in range(8))
    start = rng.randrange(10 ** 6)
    if kind == 4:
        rows = (instruction(start + k, seed, language=language) for k in range(4))
        return "\n\n".join(f"{row['user']}\n{row['assistant']}" for row in rows)
    chosen = (problem(start + 10 * k, seed, language=language) for k in range(3))       # the next family each time
    return "\n\n".join(f"{one.user}\n{rationale(one.cot, one.final, language)}" for one in chosen)


def _list(rng: random.Random) -> str:
    """A list of names, things and numbers, and what becomes of it.

    Copied: `a, b, c -> a, b, c`; turned round: `a, b, c <- c, b, a`; or the one behind another: `a, b, c; b: c`.
    """
    things = [*choices("person"), *choices("animal"), *choices("fruit"), *choices("toy"), *choices("place")]
    item = lambda: str(rng.randint(0, 999)) if rng.random() < 0.4 else \
        word(rng.choice(things), "", rng.choice(LANGUAGES), None)
    items = list(dict.fromkeys(item() for _ in range(rng.randint(3, 8))))
    line, kind = ", ".join(items), rng.random()
    if kind < 0.5 or len(items) < 2:
        return f"{line} -> {line}"
    if kind < 0.7:
        return f"{line} <- {', '.join(reversed(items))}"
    at = rng.randrange(len(items) - 1)
    return f"{line}; {items[at]}: {items[at + 1]}"


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
