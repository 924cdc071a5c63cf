"""The first two families of exercises: expressions with precedence, and one operation on longer numbers in columns.

In: a random generator, a language and a split ("harder" means longer and larger). Out: the question, the lines that
work it out one small operation at a time, and the answer. Used by exercises.py; explained by tests/test_problems.py.
"""

import random
import re

from tinyllm.arithmetic import rewritten, value_of, worked
from tinyllm.telling import Exercise, tell
from tinyllm.wordings import ask, choices, schemas


def _expression(rng: random.Random, n: int, hard: bool) -> str:
    """A random expression of `n` numbers, written with the parentheses it needs."""
    if n == 1:
        low, high = (1, 99) if rng.random() < 0.6 else (50, 999) if hard else (1, 9)
        return str(rng.randint(low, high))
    sign = rng.choice("++--**/" if n == 2 else "++--**")
    if sign == "/":                                              # exact: the left side is a multiple of the right
        divisor = rng.randint(2, 9)
        return f"{divisor * rng.randint(2, 99 if hard else 30)}/{divisor}"
    left = rng.randint(1, n - 1)
    a, b = _expression(rng, left, hard), _expression(rng, n - left, hard)
    loose = lambda text: any(char in "+-" for char in re.sub(r"\(.*\)", "()", text))
    if sign == "*" and loose(a):
        a = f"({a})"
    if (sign == "*" and not b.isdigit()) or (sign == "-" and loose(b)):
        b = f"({b})"
    return a + sign + b


def expression(rng: random.Random, language: str, split: str) -> Exercise:
    """1: precedence and parentheses; no result beyond four digits."""
    hard = split == "harder"
    if not hard and rng.random() < 0.12:                         # told in words
        return tell(rng.choice(schemas()["sum-words/"]), rng, language)
    while True:
        text = _expression(rng, rng.randint(5, 6) if hard else rng.choice((2, 3, 3, 4, 4, 4)), hard)
        steps, value = rewritten(text)
        results = [value_of(step.rsplit("=", 1)[-1]) for step in steps]
        if not steps or any(abs(result) > 9999 or result != int(result) for result in results):
            continue
        shown = text.replace("*", "×").replace("/", "÷") if rng.random() < 0.3 else text
        shown = re.sub(r"([-+*/×÷])", r" \1 ", shown) if rng.random() < 0.25 else shown
        return ask("sum/ask", {"e": shown, **_pupil(rng)}, language, rng), steps, str(value)


def _pupil(rng: random.Random) -> dict:
    return {"A": rng.choice(choices("person"))}


def column(rng: random.Random, language: str, split: str) -> Exercise:
    """2: one operation on longer numbers: lowest digit first, with carries and with what is left between the digits; a
    factor of two digits in two parts, the tens first."""
    hard = split == "harder"
    sign, low, digits = rng.choice("+-*"), 1000 if hard else 11, rng.randint(4, 5) if hard else rng.randint(2, 4)
    a, b = (rng.randint(low, 10 ** digits - 1) for _ in range(2))
    if sign == "*":
        a = rng.randint(*((100, 999) if hard else rng.choice([(11, 99), (100, 999)])))
        b = rng.randint(11, 99) if a < 100 or hard else rng.randint(2, 9)
    elif sign == "-" and a < b:
        a, b = b, a
    steps = {"+": _add_columns, "-": _subtract_columns, "*": _multiply_columns}[sign](a, b)
    result = value_of(f"{a}{sign}{b}")
    shown = sign.replace("*", rng.choice("*×"))
    if rng.random() < 0.15:
        return ask("column/stacked", {"e": f"  {a:>6}\n{shown} {b:>6}"}, language, rng), steps, str(result)
    space = rng.choice(["", "", " "])
    return ask("column/ask", {"e": f"{a}{space}{shown}{space}{b}", **_pupil(rng)}, language, rng), steps, str(result)


def _add_columns(a: int, b: int) -> list[str]:
    steps, x, y, carry = [f"{a}+{b}"], a, b, 0
    while x or y:
        total = x % 10 + y % 10 + carry
        steps.append(f"{x % 10}+{y % 10}{'+1' if carry else ''}={total}")
        x, y, carry = x // 10, y // 10, total // 10
        if max(x, y) > 9:
            steps.append(f"{x}+{y}{'+1' if carry else ''}")
    return [*steps, f"{a}+{b}={a + b}"]


def _subtract_columns(a: int, b: int) -> list[str]:
    steps, x, y = [f"{a}-{b}"], a, b
    while x or y:
        top, low = x % 10, y % 10
        borrow = top < low
        steps.append(f"{top}-{low}, {top + 10}-{low}={top + 10 - low}" if borrow else f"{top}-{low}={top - low}")
        x, y = x // 10 - borrow, y // 10
        if max(x, y) > 9:
            steps.append(f"{x}-{y}")
    return [*steps, f"{a}-{b}={a - b}"]


def _multiply_columns(a: int, b: int) -> list[str]:
    if b > 9:
        return worked(f"{a}*{b}")[0]
    steps, x, carry = [f"{a}*{b}"], a, 0
    while x:
        product, total = x % 10 * b, x % 10 * b + carry
        steps += [f"{x % 10}*{b}={product}", *([f"{product}+{carry}={total}"] if carry else [])]
        x, carry = x // 10, total // 10
        if x > 9 or (x and carry):
            steps.append(f"{x}*{b}" + (f"+{carry}" if carry else ""))
    return [*steps, f"{a}*{b}={a * b}"]
