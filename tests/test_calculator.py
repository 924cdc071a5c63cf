"""The calculator: exact, bounded, and careful about what it takes for a step."""

import json
import random
from fractions import Fraction

import pytest
from conftest import cpu_seconds

from tinyllm.calculator import calculate, complete, false_steps, main, normalise_answer, show


def random_expression(rng, depth):
    """(text, value, level): level 0 a sum, 1 a product, 2 a power or sign, 3 a number or brackets.

    The value is computed with Fraction while the text is put together, so nothing parses the text a second time.
    """
    def operand(level):
        text, value, own = random_expression(rng, depth - 1)
        return (text if own >= level and rng.random() < 0.8 else f"({text})"), value

    kind = rng.choice(["+", "-", "*", "/", "sign", "**"]) if depth else "number"
    space = rng.choice(["", " "])
    if kind in ("+", "-"):                                           # a - b - c is (a - b) - c
        (left, a), (right, b) = operand(0), operand(1)
        return f"{left}{space}{kind}{space}{right}", a + b if kind == "+" else a - b, 0
    if kind in ("*", "/"):
        (left, a), (right, b) = operand(1), operand(2)
        if kind == "/" and not b:
            kind = "*"
        return f"{left}{space}{kind}{space}{right}", a * b if kind == "*" else a / b, 1
    if kind == "sign":
        text, value = operand(2)
        return f"-{text}", -value, 2
    if kind == "**":                                                 # the base is tighter, the exponent a signed number
        (base, a), n = operand(3), rng.randrange(-2 if depth == 1 else 0, 4)
        return (f"{base}{space}**{space}{n}", a ** n, 2) if a or n >= 0 else (base, a, 3)
    whole, part = rng.randrange(100), rng.randrange(100)
    return *rng.choice([(f"{whole}", Fraction(whole)), (f"{whole}.{part:02}", whole + Fraction(part, 100)),
                        (f"{whole or 1},{part:03}", Fraction(1000 * (whole or 1) + part))]), 3


@pytest.mark.parametrize("seed", range(4))
def test_random_expressions_have_the_value_they_were_built_with(seed):
    """Thousands of expressions with every operator, sign, decimals, separators and needed or needless brackets."""
    rng, wide = random.Random(seed), str.maketrans("0123456789+-*/().", "０１２３４５６７８９＋－×÷（）．")
    for _ in range(1000):
        text, value, _ = random_expression(rng, rng.randrange(5))
        assert calculate(text, max_digits=1000) == value, text
        if "**" not in text:
            assert calculate(text.translate(wide), max_digits=1000) == value, text


@pytest.mark.parametrize(("text", "value"), [
    ("12*(3+4)-10", 74), ("2+3*4", 14), ("10-4-3", 3), ("24/4/2", 3), ("24/(4/2)", 12), ("2*-3", -6), ("--5", 5),
    ("-2**2", -4), ("(-2)**2", 4), ("2**3**2", 512), ("2**-2", Fraction(1, 4)), ("0**0", 1), ("1**(9**9)", 1),
    ("+5", 5), ("1/3+1/6", Fraction(1, 2)), ("0.1+0.2", Fraction(3, 10)), (".5*2", 1), ("1,000+1", 1001),
    (" 3\t* ( 4 ) ", 12), ("１２×（３＋４）－１０", 74), ("６÷４", Fraction(3, 2)), ("３．５−１", Fraction(5, 2)),
    ("007", 7), ("(" * 50 + "1" + ")" * 50, 1),
])
def test_precedence_is_that_of_algebra(text, value):
    """Brackets, powers (from the right), signs, products and quotients (from the left), sums."""
    assert calculate(text) == value


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected a number, found its end"), ("1+", "expected a number, found its end"),
    ("*2", r"expected a number, found '\*'"), ("(1", r"expected '\)', found its end"),
    ("1)", r"expected an operator, found '\)'"), ("2(3)", r"expected an operator, found '\('"),
    ("1 2", "expected an operator, found '2'"), ("2* *3", "expected a number"), ("1..2", "'.' is not a number"),
    ("1,00", "',' is not a number"), ("2x+3", "'x' is not a number"), ("1=1", "'=' is not"), ("2^3", r"'\^' is not"),
    ("1_000", "'_' is not"), ("1e9", "'e' is not"), ("٣+1", "'٣' is not"), ("²", "'²' is not"), ("inf", "'i' is not"),
    ("__import__('os')", "'_' is not"), ("1/0", "division by zero"), ("1/(2-2)", "division by zero"),
    ("0**-1", "division by zero"), ("2**0.5", "the exponent 1/2 in '2\\*\\*0.5' is not a whole number"),
    ("9**9**9", "has more than 100 digits"), ("2**-9999", "has more than 100 digits"),
    ("9" * 101, "has more than 100 digits"), ("9" * 99 + "*99", "has more than 100 digits"),
    ("(" * 51 + "1" + ")" * 51, "nested deeper than 50"), ("-" * 900 + "1", "nested deeper than 50"),
    ("2**" * 300 + "1", "nested deeper than 50"), ("1+" * 500 + "1", "has 1001 characters; at most 1000"),
])
def test_anything_else_is_one_sentence(text, message):
    """What the model wrote is at fault, not the program."""
    with pytest.raises(ValueError, match=message) as caught:
        calculate(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("text", [
    "9**9**9", "9**9**9**9**9", "2**(2**(2**(2**(2**2))))", "(9**99)**(9**99)", "1**(9**99)", "(-1)**(9**99)",
    "(1/3)**(9**99)", "9" * 10_000_000, "(" * 10_000_000, "-" * 999, "(" * 999, "1/" * 499 + "7",
    "+".join(f"1/{n}" for n in range(100, 260)), "*".join(["99999"] * 160), "(9**50/7**50)*" * 60 + "1", "1" * 1000,
])
def test_a_hostile_expression_costs_nothing(text):
    """Size is checked before the work is done; a model may write anything."""
    def attempt() -> None:
        try:
            value = calculate(text)
            assert max(abs(value.numerator), value.denominator) < 10 ** 100
        except ValueError:
            pass
    assert cpu_seconds(attempt) < 0.1


def test_values_are_shown_exactly():
    """Whole numbers as such, else a reduced fraction, or a decimal that ends."""
    values = [Fraction(7), Fraction(-2), Fraction(6, 16), Fraction(-1, 8), Fraction(1, 3), Fraction(5, 2), Fraction(0)]
    assert [show(value) for value in values] == ["7", "-2", "3/8", "-1/8", "1/3", "5/2", "0"]
    assert [show(value, decimal=True) for value in values] == ["7", "-2", "0.375", "-0.125", "1/3", "2.5", "0"]
    rng = random.Random(0)
    for _ in range(500):
        value = Fraction(rng.randrange(-10 ** 6, 10 ** 6), rng.choice([1, 2, 4, 5, 8, 10, 125, 1000, 3, 7]))
        assert Fraction(show(value)) == Fraction(show(value, decimal=True)) == value


@pytest.mark.parametrize(("text", "right"), [
    ("3+4=", "7"), ("so 12*(3+4)-10 =", " 74"), ("3+4 = ", "7"), ("0.1*3=", "0.3"), ("1/3+1/6=", "1/2"),
    ("共有3×4＝", "12"), ("（3+4=", "7"), ("2*(3+4=", "7"), ("第1步：3-8=", "-5"), ("x=10/2=", "5"),
    ("a\n-5*2=", "-10"), ("1. 3+4=", "7"), ("costs $12*5=", "60"), ("<<48/2=", "24"), ("3*4=10+2=", "12"),
    ("1,200+300=", "1500"), ("We have 5, 3+4=", "7"),
    ("", None), ("3+4", None), ("=", None), ("7=", None), ("x=7=", None), ("3/4=", None), ("1/0=", None),
    ("9**9**9=", None), ("2x+3=", None), ("x +3*2=", None), ("3x*2=", None), ("x2+1=", None), ("50%*4=", None),
    ("2^3+1=", None), ("$3+$4*2=", None), ("3个+4*2=", None), ("12 x 2+1=", None), ("5加3*4=", None),
    ("5 plus 3*4=", None), ("at 3:30+45=", None), ("√9+1=", None), ("1 1/2+1=", None), ("5! + 3*2=", None),
])
def test_a_step_is_completed_only_where_it_stands_alone(text, right):
    """A wrong right side would be worse than none: 2x+3= is not 3, and $3+$4*2= is not 8."""
    assert complete(text) == right
    assert complete("a long story. " * 50 + "\n" + text) == right


@pytest.mark.parametrize(("text", "steps"), [
    ("3+4=7", []), ("3+4=8", [("3+4=8", "7")]), ("so 3 + 4 = 8.", [("3 + 4 = 8", "7")]),
    ("3+4=8-1=6", [("8-1=6", "7")]), ("3+4=8=9", [("3+4=8", "7"), ("8=9", "8")]), ("6=2+3", [("6=2+3", "5")]),
    ("（3＋4）×2＝15元", [("（3＋4）×2＝15", "14")]), ("3-8=5", [("3-8=5", "-5")]), ("3-8=-5", []),
    ("12/60 = $0.3 each", [("12/60 = $0.3", "0.2")]), ("<<48/2=25>>25", [("48/2=25", "24")]),
    ("5*3=16km, 2*2=5.", [("5*3=16", "15"), ("2*2=5", "4")]), ("1. 2+2=5\n2. 2+2=4", [("2+2=5", "4")]),
    ("1,000+1=1,002", [("1,000+1=1,002", "1001")]), ("1/2=0.5", []), ("1/2=2/4", []), ("1/2=2/5", [("1/2=2/5", "1/2")]),
    ("10/3=3.33", [("10/3=3.33", "10/3")]), ("5*3=16 a day", [("5*3=16", "15")]), ("3+4=8 -> 8", [("3+4=8", "7")]),
    ("2x+3=7, x=2", []), ("x+2=5", []), ("7-3=4x", []), ("2*3=7x", []), ("7+1=2 x 3", []), ("2*(x+1)=9", []),
    ("x=7-3=5", [("7-3=5", "4")]), ("17÷5=3……2", []), ("17÷5=3 余 2", []), ("17/5=3 remainder 2", []),
    ("1/2=50%", []), ("3+4==8", []), ("3+4!=8", []), ("3+4>=8", []), ("3+4=>8", []), ("Day 3 = 12", []), ("7=8", []),
    ("1/0=3", []), ("9**9**9=1", []), ("3+4=", []), ("=7", []), ("3+4=seven", []), ("2+3=5+4", [("2+3=5+4", "5")]),
])
def test_false_steps_are_found_and_others_left_alone(text, steps):
    """Only arithmetic that can be read whole is judged: no unknowns, no remainders, no labels."""
    assert false_steps(text) == steps


def test_every_random_step_is_judged_rightly():
    """What complete() writes is true, and one more than that is false."""
    rng = random.Random(0)
    for _ in range(500):
        text = random_expression(rng, rng.randrange(1, 4))[0] + "="
        if right := complete(text):
            assert Fraction(right) == calculate(text[:-1])
            assert false_steps(text + right) == []
            wrong = text + show(Fraction(right) + 1)
            assert false_steps(wrong) == [(wrong, right if "." in wrong else show(Fraction(right)))]


def test_a_hostile_text_is_searched_quickly():
    """Only a window beside each "=" is read."""
    def search() -> None:
        for piece in ("=", "1=", "(", "1+", "9**9**9=", "-", " ", "(1+1", "1 ", "1=1 "):
            text = piece * (3000 // len(piece))
            false_steps(text)
            complete(text + "=")
    assert cpu_seconds(search) < 2


@pytest.mark.parametrize("same", [
    ["1", "1.0", "１", " 1 ", "1.", "１。", "+1", "01", "2/2", "**1**"], ["1/2", "2/4", "0.5", ".5", "０．５", "1 / 2"],
    ["1000", "1,000", "１，０００", "1000.00"], ["-3", "－3", "−3", "-3.0", "- 3"], ["3/2", "1 1/2", "1.5"],
    ["5 km", "5km", "5.0 KM", "５ｋｍ。"], ["12个", "12 个", "12 个。", "１２个"], ["$5", "$ 5.00", "＄5", "5$", "5 $"],
    ["-$5", "$-5", "- $ 5"],
    ["50%", "50 %", "50％"], ["8x", "8 x", "8.0x"], ["2x + 3", "2x+3"],
    ["Tom and Mia", "tom  and mia.", "“Tom and Mia”"], ["小明", " 小 明。", "小明！"],
    ["3, 5, 7", "3,5,7", "3， 5， 7", "3，5，7"], ["77, 192", "77，192"], ["yes", "Yes.", "YES!"], ["", " ", "。"],
])
def test_equal_answers_are_spelled_alike(same):
    """Otherwise two samples that agree would vote against each other."""
    assert len({normalise_answer(text) for text in same}) == 1
    assert normalise_answer(normalise_answer(same[0])) == normalise_answer(same[0])


def test_different_answers_stay_different():
    """Units are part of the answer, and so are a sign, an order and the space in a mixed number."""
    different = ["5 km", "5 m", "5", "$5", "5%", "-5", "1/2", "1 1/2", "11/2", "2/1/3", "1/2/2024", "2/4/2024",
                 "3:30", "330", "3, 500", "3,500", "104，860，874", "104860874", "0,125", "125", "-$5",
                 "8x", "8y", "x", "1/0", "", "yes", "no", "小明", "小红",
                 "9" * 200, "9" * 201]
    assert len({normalise_answer(text) for text in different}) == len(different)


def test_the_command_prints_the_value(capsys):
    """Results on stdout; a user's mistake is one line on stderr and exit code 2."""
    assert main(["12*(3+4)-10"]) == 0 and capsys.readouterr().out == "74\n"
    assert main(["--json", "1/3+1/6"]) == 0
    assert json.loads(capsys.readouterr().out) == {"expression": "1/3+1/6", "value": "1/2"}
    assert main(["--", "-2**2"]) == 0 and capsys.readouterr().out == "-4\n"
    with pytest.raises(SystemExit) as left:
        main(["9**9**9"])
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == "" and err.count("\n") == 1 and "more than 100 digits" in err
