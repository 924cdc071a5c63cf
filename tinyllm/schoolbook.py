"""Pages of a schoolbook: exercises with their solutions, lists, instructions with their answers, as plain text.

What pretraining reads beside the stories of the world, so that numbers and steps are no news to the later stages. In: a
number and a seed. Out: a page. Explained by tests/test_schoolbook.py.
"""

import random
from collections.abc import Iterator

from tinyllm.chat import rationale
from tinyllm.lexicon import LANGUAGES, word
from tinyllm.problems import instruction, problem
from tinyllm.wordings import choices


def page(index: int, seed: int = 0) -> str:
    """Page `index` of the schoolbook: of six, three are exercises with solutions, two lists to copy out, one
    instructions. All from the train split.

    Lists teach to look back and to copy, which every written step needs. Pages of nothing but sums teach the opposite,
    for what followed a digit the last time says nothing about what follows it now.
    """
    rng, language, kind = random.Random(f"page {seed} {index}"), LANGUAGES[index // 6 % 2], index % 6
    if kind in (0, 3):
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


def pages(n: int, seed: int = 0) -> Iterator[str]:
    """The first `n` pages of the schoolbook."""
    return (page(index, seed) for index in range(n))
