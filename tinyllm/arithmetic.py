"""Exact arithmetic written out: an expression -> lines of one small operation each, as a small model can learn them.

Expressions are parsed, never run. Used by telling.py and exercises.py; explained by tests/test_problems.py.
"""

import ast
import functools
import math
import operator
from fractions import Fraction

OPERATORS = {ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
             ast.Div: ("/", lambda a, b: Fraction(a) / b)}


@functools.cache
def parsed(expression: str) -> ast.expr:
    """The syntax tree of an expression; nothing is ever run."""
    return ast.parse(expression.strip(), mode="eval").body


def value_of(expression: str, values: dict | None = None) -> int | Fraction:
    """The exact value of an expression of numbers, names, + - * / and parentheses."""
    return _walk(parsed(expression), values or {}, None)


def worked(expression: str, values: dict | None = None) -> tuple[list[str], int | Fraction]:
    """The lines `a+b=c` that work out `expression`, innermost and leftmost first, and its value."""
    lines: list[str] = []
    return lines, _walk(parsed(expression), values or {}, lines)


def _walk(node: ast.expr, values: dict, lines: list[str] | None) -> int | Fraction:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        return -_walk(node.operand, values, lines)
    left, right = _walk(node.left, values, lines), _walk(node.right, values, lines)
    sign, apply = OPERATORS[type(node.op)]
    result = apply(left, right)
    result = int(result) if result == int(result) else result
    if lines is not None:
        lines += operation(sign, left, right, result)
    return result


def operation(sign: str, left: int, right: int, result: int | Fraction) -> list[str]:
    """The lines of one operation: long products digit by digit, fractions reduced by their common divisor, and where
    signs differ the sum or difference of the plain numbers first."""
    line = f"{left}{sign}{right if right >= 0 else f'({right})'}={result}"
    if sign == "*" and min(abs(left), abs(right)) > 10:
        large, small = sorted((abs(left), abs(right)), key=lambda n: (len(str(n).replace("0", "")), n), reverse=True)
        parts = [int(digit) * 10 ** place for place, digit in enumerate(reversed(str(small))) if digit != "0"]
        if len(parts) > 1:
            lines, total = [], 0
            for part in parts:
                lines.append(f"{large}*{part}={large * part}")
                if total:
                    lines.append(f"{total}+{large * part}={total + large * part}")
                total += large * part
            return lines + [line] * (left < 0 or right < 0)
    if sign == "/" and isinstance(result, Fraction):
        common = math.gcd(left, right)
        if common > 1:
            return [f"{left}/{common}={left // common}", f"{right}/{common}={right // common}", line]
    if sign in "+-" and max(abs(left), abs(right)) > 10 and min(left, result) < 0:
        small, large = sorted((abs(left), abs(right)))
        plain = f"{large}-{small}={large - small}" if abs(result) < large else f"{large}+{small}={large + small}"
        return [plain, line]
    return [line]
