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


def rewritten(expression: str) -> tuple[list[str], int | Fraction]:
    """As worked(), and while more than one operation is left, a line with the whole expression that remains.

    `2*(3+4)-6/3`: 3+4=7, 2*7-6/3, 2*7=14, 14-6/3, 6/3=2, 14-2=12. The next step is then found in the line above it.
    """
    lines, tree = [], parsed(expression)
    while isinstance(tree, ast.BinOp):
        tree = _step(tree, lines)
        if isinstance(tree, ast.BinOp) and any(isinstance(side, ast.BinOp) for side in (tree.left, tree.right)):
            lines.append(written(tree))
    return lines, _walk(tree, {}, None)


def _step(node: ast.BinOp, lines: list[str]) -> ast.expr:
    """The tree in which the first operation is worked out: innermost, then leftmost."""
    if isinstance(node.left, ast.BinOp):
        return ast.BinOp(_step(node.left, lines), node.op, node.right)
    if isinstance(node.right, ast.BinOp):
        return ast.BinOp(node.left, node.op, _step(node.right, lines))
    return ast.Constant(_walk(node, {}, lines))


def written(node: ast.expr, above: ast.operator | None = None, side: str = "left", first: bool = True) -> str:
    """A tree as text, with the parentheses it needs as the left or right side of the operation `above`; a negative
    number needs them unless it comes `first`."""
    if not isinstance(node, ast.BinOp):
        value = _walk(node, {}, None)
        return f"({value})" if value < 0 and not first else str(value)
    binds = lambda operation: isinstance(operation, (ast.Mult, ast.Div))
    inside = above and (binds(above) > binds(node.op) or (side == "right" and binds(above) == binds(node.op)))
    left = written(node.left, node.op, "left", first or bool(inside))
    text = left + OPERATORS[type(node.op)][0] + written(node.right, node.op, "right", False)
    return f"({text})" if inside else text


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
    """The lines of one operation, each of which needs no more than the tables of one-digit numbers and a carry.

    Where signs differ, the sum or difference of the plain numbers comes first; fractions are reduced by their common
    divisor. The last line has the result.
    """
    line = f"{left}{sign}{right if right >= 0 else f'({right})'}={result}"
    if sign == "/":
        common = math.gcd(left, right) if isinstance(result, Fraction) else 1
        return [f"{left}/{common}={left // common}", f"{right}/{common}={right // common}", line] if common > 1 else \
            [line]
    if min(left, right, result) >= 0:
        return in_digits(sign, left, right) or [line]
    small, large = sorted((abs(left), abs(right)))
    if large <= 10:
        return [line]
    plain = "*" if sign == "*" else "-" if abs(result) < large else "+"
    return [*(in_digits(plain, large, small) or [f"{large}{plain}{small}={abs(result)}"]), line]


def in_digits(sign: str, a: int, b: int) -> list[str]:
    """One operation on plain numbers digit by digit, as one does it in the head; [] where one line is enough.

    347+58: 347+50=397, 397+8=405. 405-58: 405-50=355, 355-8=347. 78*35: 70*30=2100, 70*5=350, 2100+300=2400 ...
    """
    if sign == "*":
        pairs = [(x, y) for x in parts(max(a, b)) for y in parts(min(a, b))]
        lines, total = [], 0
        for x, y in pairs if min(a, b) > 1 and len(pairs) > 1 else []:
            lines.append(f"{x}*{y}={x * y}")
            lines += operation("+", total, x * y, total + x * y) if total else []
            total += x * y
        return lines
    whole, other = (max(a, b), min(a, b)) if sign == "+" else (a, b)
    lines = []
    for part in parts(other) if len(parts(other)) > 1 else []:
        after = whole + part if sign == "+" else whole - part
        lines.append(f"{whole}{sign}{part}={after}")
        whole = after
    return lines


def parts(n: int) -> list[int]:
    """What the digits of a number are worth: 305 -> [300, 5]."""
    return [int(digit) * 10 ** place for place, digit in reversed([*enumerate(reversed(str(n)))]) if digit != "0"]
