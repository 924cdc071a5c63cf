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


@functools.lru_cache(2 ** 14)
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

    `2*(3+4)-6/3`: itself, 3+4=7, 2*7-6/3, 2*7=14, 14-6/3, 6/3=2, 14-2=12. Each step is found in the line above it.
    """
    lines, tree = [], parsed(expression)
    while isinstance(tree, ast.BinOp):
        if any(isinstance(side, ast.BinOp) for side in (tree.left, tree.right)):
            lines.append(written(tree))
        tree = _step(tree, lines)
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
    """The lines of one operation; the last one has the result. Several lines begin with the whole operation, so that
    each of them finds its digits near by.

    Sums, differences and products go digit by digit. Where signs differ, that of the plain numbers comes first; a
    fraction is reduced by the common divisor; a division that comes out even is one line, or a long division.
    """
    whole = f"{left}{sign}{right if right >= 0 else f'({right})'}"
    line = f"{whole}={result}"
    if sign == "/":
        common = math.gcd(left, right) if isinstance(result, Fraction) else 1
        lines = [f"{n}/{common}={n // common}" for n in (left, right)] * (common > 1)
        lines.append(whole if whole == str(result) else line)        # 9/20 is 9/20
        if isinstance(result, int) and right > 1 and result > (9 if right > 12 else 99):
            lines = [*in_places(left, right, result), line]
    elif min(left, right, result) >= 0:
        lines = in_digits(sign, left, right, result)
    else:
        small, large = sorted((abs(left), abs(right)))
        plain = "*" if sign == "*" else "-" if abs(result) < large else "+"
        lines = [*in_digits(plain, large, small, abs(result)), line] if large > 10 else [line]
    return lines if len(lines) == 1 else [whole, *lines]


def in_digits(sign: str, a: int, b: int, result: int) -> list[str]:
    """One operation on plain numbers as one does it in the head: each line needs the tables of one-digit numbers and
    perhaps a carry.

    347+58: 347+50=397, 397+8=405. 405-58: 405-50=355, 355-8=347. 78*35: 70*30=2100, 70*5=350, 2100+300=2400 ...
    The number with fewer digits is taken apart, of equal ones the second: which is larger need not be known.
    """
    large, small = (b, a) if sign != "-" and len(str(a)) < len(str(b)) else (a, b)
    lines, total = [], large if sign != "*" else 0
    if sign == "*":
        pieces = [(x, y) for x in place_values(large) for y in place_values(small)]
        for x, y in pieces:
            lines.append(f"{x}*{y}={x * y}")
            lines += in_digits("+", total, x * y, total + x * y) if total else []
            total += x * y
    else:
        pieces = place_values(small)
        for piece in pieces:
            after = total + piece if sign == "+" else total - piece
            lines.append(f"{total}{sign}{piece}={after}")
            total = after
    one_line = len(pieces) < 2 or (sign == "*" and 1 in (a, b))
    return [f"{a}{sign}{b}={result}"] if one_line else lines


def in_places(a: int, b: int, result: int) -> list[str]:
    """A long division, the highest place first: 615/15: 10*40=400, 5*40=200, 400+200=600, 615-600=15,
    15*1=15, 40+1=41."""
    lines, rest, pieces = [], a, place_values(result)
    for piece in pieces:
        product = b * piece
        lines += in_digits("*", b, piece, product)
        lines += in_digits("-", rest, product, rest - product) if rest > product else []
        rest -= product
    return lines + [f"{'+'.join(map(str, pieces))}={result}"] * (len(pieces) > 1)


def place_values(n: int) -> list[int]:
    """What the digits of a number are worth: 305 -> [300, 5]."""
    digits = str(n)
    return [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits) if digit != "0"]
