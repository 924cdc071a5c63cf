"""Exact arithmetic on a parsed expression, for a model that reasons well and multiplies badly.

No eval: characters, digits and depth are bounded before anything is computed, so a hostile expression costs nothing.
Built on it: the right side of a step while it is written, the false steps of a text, one spelling for equal answers.
Explained by tests/test_calculator.py.
"""

import json
import re
import sys
from dataclasses import dataclass
from fractions import Fraction

from tinyllm.config import Settings, command, opt, read_settings

MAX_CHARS = 1000                      # of an expression; none that a person writes is longer
MAX_DEPTH = 50                        # of brackets and signs
WINDOW = 120                          # characters searched on either side of "="
SIGNS = str.maketrans("０１２３４５６７８９＋－＊／（）．＝×÷−\u3000\u00a0", "0123456789+-*/().=*/-  ")
NUMBER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
TOKEN = re.compile(rf"{NUMBER}|\*\*|[-+*/()]")


def calculate(expression: str, max_digits: int = 100) -> Fraction:
    """The exact value of an expression of numbers, + - * / ** and brackets, half-width or full-width, × and ÷.

    As in algebra, ** binds tighter than a sign and groups from the right: -2**2 = -4, 2**3**2 = 512. No number on the
    way may have more than `max_digits` digits, no part be nested deeper than MAX_DEPTH.
    """
    if len(expression) > MAX_CHARS:
        raise ValueError(f"the expression has {len(expression)} characters; at most {MAX_CHARS} are allowed")
    parser = _Parser(expression, max_digits)
    value = parser.sum(0)
    if parser.at < len(parser.tokens):
        raise parser.wrong("an operator")
    return value


class _Parser:
    """Recursive descent: one method for each level of precedence, all reading from the same list of tokens."""

    def __init__(self, expression: str, max_digits: int) -> None:
        self.max_digits = max_digits
        plain = expression.translate(SIGNS)
        self.tokens, self.at, self.shown = TOKEN.findall(plain), 0, repr(expression)[:60]
        if foreign := TOKEN.sub("", plain).strip():
            raise ValueError(f"cannot calculate {self.shown}: {foreign[0]!r} is not a number, + - * / ** or a bracket")

    def wrong(self, wanted: str) -> ValueError:
        found = repr(self.tokens[self.at]) if self.at < len(self.tokens) else "its end"
        return ValueError(f"cannot calculate {self.shown}: expected {wanted}, found {found}")

    def too_long(self) -> ValueError:
        return ValueError(f"a number in {self.shown} has more than {self.max_digits} digits")

    def take(self, *wanted: str) -> str:
        """The next token if it is one of `wanted`, else ""."""
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return self.tokens[self.at - 1]
        return ""

    def bounded(self, value: Fraction) -> Fraction:
        if max(abs(value.numerator), value.denominator) >= 10 ** self.max_digits:
            raise self.too_long()
        return value

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+", "-"):
            right = self.product(depth)
            value = self.bounded(value + right if sign == "+" else value - right)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*", "/"):
            right = self.signed(depth)
            if sign == "/" and not right:
                raise ValueError(f"division by zero in {self.shown}")
            value = self.bounded(value * right if sign == "*" else value / right)
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ValueError(f"{self.shown} is nested deeper than {MAX_DEPTH}")
        if sign := self.take("-", "+"):
            value = self.signed(depth + 1)
            return -value if sign == "-" else value
        base = self.atom(depth)
        return self.power(base, self.signed(depth + 1)) if self.take("**") else base

    def atom(self, depth: int) -> Fraction:
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise self.wrong("')'")
            return value
        if self.at == len(self.tokens) or not self.tokens[self.at][-1].isdigit():
            raise self.wrong("a number")
        digits = self.tokens[self.at].replace(",", "")
        self.at += 1
        if len(digits.replace(".", "")) > self.max_digits:           # counted as text: long numbers are slow to read
            raise self.too_long()
        return Fraction(digits)

    def power(self, base: Fraction, exponent: Fraction) -> Fraction:
        if exponent.denominator != 1:
            raise ValueError(f"the exponent {show(exponent)} in {self.shown} is not a whole number")
        if not base and exponent < 0:
            raise ValueError(f"division by zero in {self.shown}")
        bits = max(abs(base.numerator), base.denominator).bit_length() - 1           # |base| or 1/|base| >= 2 ** bits
        if bits * abs(exponent) > self.max_digits * 4:                               # 4 bits hold more than a digit
            raise self.too_long()
        return self.bounded(base ** int(exponent))


def show(value: Fraction, decimal: bool = False) -> str:
    """"7", "-3/8"; with `decimal` "-0.375" for what ends after the point."""
    for places in range(1, value.denominator.bit_length() if decimal else 0):
        if 10 ** places % value.denominator == 0:
            whole, part = divmod(abs(int(value * 10 ** places)), 10 ** places)
            return "-" * (value < 0) + f"{whole}.{part:0{places}}"
    return str(value)


# --- steps inside a text ---

# Beside an expression, the signs that it is only a part: of a larger one, a name, a time, a quotient with remainder.
_BEFORE = re.compile(r"(?:[0-9A-Za-zα-ωΑ-Ω_.,^√%!°)]|[0-9]:|[-+*/^√%)0-9][ \t]*[$¥￥€£]?[ \t]*|\b[A-Za-z][ \t]+"
                     r"|(?:plus|minus|times|by|[加减乘除以])[ \t]*)\Z")
_AFTER = re.compile(r"[0-9_%^°(]|[.,][0-9]|[ \t]*(?:[+*/^]|-(?!>)|[0-9]|…|\.\.|余|remainder"
                    r"|(?!a |A )[A-Za-zα-ωΑ-Ω](?![A-Za-z]))")
_CLAUSE = re.compile(r"(?:\A|[\n:：;；。，、=→>(])[ \t]*\Z|[,.][ \t]+\Z")              # where a clause begins
_OPERATION = re.compile(r"[0-9)]\s*[-+*/]")
_CHARS = "0123456789+-*/()., \t"


def complete(text: str) -> str | None:
    """The right side to feed in when `text` ends with `expression=`, else None.

    It is exact, a decimal if the expression has a point, and repeats a space before "=". Nothing is offered where the
    expression may be a part of something larger (2x+3=), holds no operation (7=) or is its own value (3/4=).
    """
    plain = text[-2 * WINDOW:].translate(SIGNS)
    sign = len(plain.rstrip(" ")) - 1
    if sign < 0 or plain[sign] != "=" or not (found := _left(plain, sign)):
        return None
    start, value = found
    expression = plain[start:sign].rstrip()
    result = show(value, decimal="." in expression)
    if not _OPERATION.search(expression) or result == expression:
        return None
    return " " * (plain.endswith("=") and plain[sign - 1] == " ") + result


def false_steps(text: str) -> list[tuple[str, str]]:
    """(step as written, correct value) of every `a=b` in `text` whose arithmetic is false, chains a=b=c link by link.

    Equations with unknowns, remainders and lone equal signs are not judged.
    """
    plain, steps = text.translate(SIGNS), []
    for sign in (match.start() for match in re.finditer(r"(?<![!<>=])=(?!=)", plain)):
        left, right = _left(plain, sign), _right(plain, sign + 1)
        if not left or not right or left[1] == right[1]:
            continue
        (start, value), (end, other) = left, right
        computed, claimed = _OPERATION.search(plain, start, sign), _OPERATION.search(plain, sign, end)
        in_chain = plain[:start].rstrip(" \t").endswith("=")
        if computed or claimed or in_chain:
            correct = other if claimed and not computed else value   # 6=2+3: the sum is what was computed
            steps.append((text[start:end], show(correct, decimal="." in text[start:end])))
    return steps


def _left(plain: str, end: int) -> tuple[int, Fraction] | None:
    """(start, value) of the longest expression that ends at `end` and is all that stands there."""
    window = plain[max(0, end - WINDOW):end]
    for start in range(end - len(window) + len(window.rstrip(_CHARS)), end):
        before = plain[max(0, start - 20):start]
        if plain[start] not in "0123456789(-" or _BEFORE.search(before):
            continue
        if (plain[start] == "-" or not _OPERATION.search(plain, start, end)) and not _CLAUSE.search(before):
            continue
        if (value := _value(plain[start:end])) is not None:
            return start, value
    return None


def _right(plain: str, start: int) -> tuple[int, Fraction] | None:
    """(end, value) of the longest expression that begins at `start`, after spaces and a currency sign."""
    start += len(plain[start:start + WINDOW]) - len(plain[start:start + WINDOW].lstrip(" \t$¥￥€£"))
    window = plain[start:start + WINDOW]
    for end in range(start + len(window) - len(window.lstrip(_CHARS)), start, -1):
        value = None if plain[end - 1] not in "0123456789)" or _AFTER.match(plain, end) else _value(plain[start:end])
        if value is not None:
            return end, value
    return None


def _value(expression: str) -> Fraction | None:
    try:
        return calculate(expression)
    except ValueError:
        return None


# --- equal answers, one spelling ---

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x2212: "-", 0x3002: ".", 0xFFE5: "¥"}
_QUANTITY = re.compile(r"(?P<sign>[-+]?) ?(?P<currency>[$¥€£]?) ?(?P<minus>-?)(?:(?P<whole>[0-9]+) (?=[0-9]+ ?/))?"
                       rf"(?P<number>{NUMBER})(?: ?/ ?(?P<below>[0-9]*[1-9][0-9]*))?"
                       r" ?(?P<unit>(?!/ ?[0-9])[^0-9 ].*)?")          # 1/2/2024 is a date, not half a "/2024"


def normalise_answer(text: str) -> str:
    """The one spelling of all equal answers, for voting: 1.0 = １ = 1, 2/4 = 0.5 = 1/2, 1,000 = 1000, "5km." = "5 km".

    A unit or currency stays: 5 km, 5 m and 5 are three answers; `3，15` are two numbers. Words lose case, spaces at
    punctuation and Chinese characters, and the full stop.
    """
    text = re.sub(r"(?<=[0-9])，(?=[0-9])", ", ", text)              # a Chinese comma never sets thousands apart
    text = " ".join(text.translate(_HALF_WIDTH).casefold().split()).strip("*`'\"“”‘’ ").rstrip(".,;:!、 *`'\"“”‘’")
    quantity = _QUANTITY.fullmatch(text) if len(text) <= WINDOW else None
    if not quantity:
        return _tight(text)
    value = Fraction(quantity["number"].replace(",", "")) / int(quantity["below"] or 1) + int(quantity["whole"] or 0)
    amount = show(-value if (quantity["sign"] == "-") != (quantity["minus"] == "-") else value)
    currency, unit = quantity["currency"], _tight(quantity["unit"] or "")
    if not currency and unit in ("$", "¥", "€", "£"):                # 5$ is $5
        currency, unit = unit, ""
    return " ".join(filter(None, [currency, amount, unit]))


def _tight(text: str) -> str:
    """Spaces stay only between two words in Latin letters or digits."""
    return re.sub(r"(?<![a-z0-9]) | (?![a-z0-9])", "", text)


# --- python -m tinyllm.calculator ---

@dataclass
class CalculatorConfig(Settings):
    """Compute an expression exactly: numbers, + - * / ** and brackets.

    Examples:
      python -m tinyllm.calculator "12*(3+4)-10"
      python -m tinyllm.calculator --json "1/3+1/6"
      python -m tinyllm.calculator -- "-2**2"              (-- because it begins with a minus)
    """

    expression: str = opt("", "what to compute", positional=True)
    json: bool = opt(False, "print JSON")


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(CalculatorConfig, "python -m tinyllm.calculator", argv)
    value = show(calculate(config.expression))
    print(json.dumps({"expression": config.expression, "value": value}, ensure_ascii=False) if config.json else value)


if __name__ == "__main__":
    sys.exit(main())
