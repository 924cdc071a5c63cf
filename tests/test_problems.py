"""The exercises: every answer is worked out a second time here, by other means than the generator's."""

import ast
import collections
import itertools
import json
import math
import operator
import random
import re
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction

import pytest

from tinyllm import exercises, problems, reading, telling
from tinyllm.arithmetic import in_digits, operation, rewritten
from tinyllm.config import start_worker
from tinyllm.grammar import polished
from tinyllm.lexicon import LANGUAGES, concepts, name, number, plurals
from tinyllm.overlap import overlap, shape
from tinyllm.problems import FAMILIES, instruction, normalise, problem, split_of
from tinyllm.telling import aside, folded, opening, spaced, tell, worded
from tinyllm.typed import without_separators
from tinyllm.wordings import choices, draw, draw_next, pick, scenes, schemas

N = 60                                # problems of each family and language that are checked
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: Fraction,
             ast.Mod: operator.mod}


def exact(text, **letters):
    """The value of an expression by a small parser of its own; `3x` means 3*x."""
    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        return letters[node.id] if isinstance(node, ast.Name) else Fraction(str(node.value))
    return walk(ast.parse(re.sub(r"(?<=\d)(?=[a-z(])", "*", text.strip()), mode="eval").body)


@pytest.fixture(scope="module")
def sample():
    """{(family, language, split): problems}; the stories behind the passages are kept as `problem.told`."""
    rows, original, told = {}, reading._story, []
    reading._story = lambda *key: told.append(original(*key)) or told[-1]
    try:
        for family in FAMILIES:
            for language in LANGUAGES:
                for split, n in (("train", N), ("harder", 12)):
                    rows[family, language, split] = [problem(i, 0, split, family, language) for i in range(n)]
                    for row in rows[family, language, split]:
                        row.told = [story for story in told if family == "reading" and story.sentences[0] in row.user]
                    told.clear()
    finally:
        reading._story = original
    return rows


def of(sample, family, split=None):
    return [row for (kind, _, part), rows in sample.items() if kind == family and split in (None, part) for row in rows]


def equalities(step):
    """The sides of a step `label: a+b=c`, if all of it is numbers."""
    found = re.search(r"(?:^|[:：] ?)(-?[\d(][-+*/().\d]*)=(-?\d+(?:[/.]\d+)?)$", step)
    return found.groups() if found else None


# ---- answers -------------------------------------------------------------------------------------------------------

def test_every_step_is_true_and_the_last_one_gives_the_answer(sample):
    """A model that learns from a false line learns to write false lines."""
    checked = 0
    for row in itertools.chain(*sample.values()):
        for step in row.steps:
            if sides := equalities(step):
                assert exact(sides[0]) == exact(sides[1]), (step, row)
                assert not re.search(r"/(?!/)", sides[1]) or sides[1] == str(exact(sides[1])), f"not reduced: {step}"
                checked += 1
        if row.family not in ("order", "series", "reading"):
            assert re.split(r"[=:：]", row.steps[-1])[-1].strip() == row.final, row
    assert checked > 1500


@pytest.mark.parametrize("family", ["expression", "column"])
def test_a_sum_is_what_python_makes_of_it(sample, family):
    for row in of(sample, family):
        if re.search(r"\d ?[-+*/×÷]", row.user):                  # else told in words, and solved again below
            assert exact(normalise(row.user)) == int(row.final), row
        if family == "expression":
            assert all(abs(exact(step.split("=")[-1])) <= 9999 for step in row.steps), row


def test_the_line_between_two_steps_is_what_remains_of_the_expression(sample):
    """Half worked out, an expression is still worth the same; and the next step stands in the line above it."""
    whole = "2*(3+4)-6/3"
    assert rewritten(whole) == ([whole, "3+4=7", "2*7-6/3", "2*7=14", "14-6/3", "6/3=2", "14-2=12"], 12)
    whole = "2-(3-9)*2"
    assert rewritten(whole) == ([whole, "3-9=-6", "2-(-6)*2", "-6*2=-12", "2-(-12)", "12+2=14", "2-(-12)=14"], 14)
    remaining, operations = 0, 0
    for row in of(sample, "expression"):
        for place, line in enumerate(row.steps):
            if "=" in line:
                continue
            if exact(line) == int(row.final):
                remaining += 1
                continue
            operations += 1                                       # one operation whose lines follow
            after = itertools.takewhile(lambda step: "=" in step, row.steps[place + 1:])
            assert exact(line) in [exact(step.split("=")[1]) for step in after], (line, row)
    assert remaining > 20 and operations > 20


def test_in_a_column_every_digit_is_the_last_one_of_what_is_left(sample):
    """Which digit is the third from the right, and whether to borrow, are hard to say in one go: so what is left of
    both numbers stands above each pair of digits, and the digits stand side by side before the loan."""
    checked = {"+": 0, "-": 0, "*": 0}
    for row in of(sample, "column"):
        x, sign, y = re.split(r"([-+*])", row.steps[0])
        x, y, last = int(x), int(y), row.steps[-1]
        if sign == "*" and y > 9:
            continue                                              # a product of two-digit numbers goes place by place
        assert last == f"{row.steps[0]}={row.final}"
        carry, digits, lines = 0, "", iter(row.steps[1:-1])
        while x or (y and sign != "*"):
            a, b = x % 10, y % 10
            if sign == "+":
                total = a + b + carry
                assert next(lines) == f"{a}+{b}{'+1' * carry}={total}", row
                x, y, carry = x // 10, y // 10, total // 10
                assert max(x, y) < 10 or next(lines) == f"{x}+{y}{'+1' * carry}", row
            elif sign == "-":
                assert next(lines) == (f"{a}-{b}={a - b}" if a >= b else f"{a}-{b}, {a + 10}-{b}={a + 10 - b}"), row
                total, x, y = (a - b) % 10, x // 10 - (a < b), y // 10
                assert max(x, y) < 10 or next(lines) == f"{x}-{y}", row
            else:
                assert next(lines) == f"{a}*{y}={a * y}", row
                total = a * y + carry
                assert not carry or next(lines) == f"{a * y}+{carry}={total}", row
                x, carry = x // 10, total // 10
                assert (x < 10 and not (x and carry)) or next(lines) == f"{x}*{y}{f'+{carry}' if carry else ''}", row
            digits = str(total % 10) + digits
            checked[sign] += 1
        assert int(f"{carry}{digits}") == int(row.final) and next(lines, None) is None, row
    assert min(checked.values()) > 20


def test_a_step_needs_one_digit_at_a_time():
    """A model learns the tables of one-digit numbers soon and those of two-digit numbers late: no step of a sum has
    two digits other than 0 on both sides."""
    assert in_digits("+", 347, 58, 405) == ["347+50=397", "397+8=405"]
    assert in_digits("-", 405, 5, 400) == ["405-5=400"]
    assert in_digits("*", 78, 6, 468) == ["70*6=420", "8*6=48", "420+40=460", "460+8=468"]
    rng = random.Random(0)
    for _ in range(500):
        sign, a, b = rng.choice("+-*"), rng.randint(0, 999), rng.randint(0, 99)
        a, b = (a, b) if sign != "-" else (max(a, b), min(a, b))
        lines = operation(sign, a, b, exact(f"{a}{sign}{b}"))
        assert int(lines[-1].split("=")[1]) == exact(f"{a}{sign}{b}")
        if len(lines) > 1:
            assert lines.pop(0) == f"{a}{sign}{b}"                # the whole operation, for the digits to be found in
        for line in lines:
            left, does, right = re.split(r"([-+*])", line.split("=")[0])
            simple = [number for number in (left, right) if len(number.rstrip("0")) < 2]
            needed = {"+": simple, "-": right in simple, "*": len(simple) == 2}[does]
            assert needed or min(a, b) < 2, (a, sign, b, line)


def test_a_long_division_takes_away_one_place_after_the_other():
    """What is left gets smaller until nothing is; the tables of one-digit numbers suffice, and division is no guess."""
    assert operation("/", 84, 7, 12) == ["84/7=12"]                # known by heart
    assert operation("/", 9, 20, Fraction(9, 20)) == ["9/20"]      # there is nothing to work out
    assert operation("/", 615, 15, 41) == ["615/15", "10*40=400", "5*40=200", "400+200=600", "615-600=15", "15*1=15",
                                           "40+1=41", "615/15=41"]
    rng = random.Random(0)
    for _ in range(300):
        b, result = rng.randint(13, 99), rng.randint(10, 999)
        first, *lines, last = operation("/", b * result, b, result)
        assert (first, last) == (f"{b * result}/{b}", f"{b * result}/{b}={result}")
        assert all(exact(left) == int(right) for left, right in (line.split("=") for line in lines)), lines
        pieces = [digit + "0" * place for place, digit in enumerate(reversed(str(result))) if digit != "0"][::-1]
        assert len(pieces) == 1 or lines[-1] == f"{'+'.join(pieces)}={result}"
        factors = {number for line in lines if "*" in line for number in re.findall(r"\d+", line)}
        assert factors >= set(pieces), lines


def test_in_chinese_a_word_of_a_step_is_the_token_it_was_in_the_question(sample):
    """A space before it would make another token of it, and what a model has not read it cannot copy."""
    for row in itertools.chain(*(sample[family, "zh", split] for family in FAMILIES for split in ("train", "harder"))):
        assert not re.search(r" [\u3400-\u9fff]", row.cot + row.final), row


def test_a_solution_fulfils_its_equation(sample):
    """Putting the answer in place of the letter makes both sides equal."""
    for row in of(sample, "equation"):
        assert all(not said.endswith(f"={line}") for said, line in itertools.pairwise(row.steps)), row       # not twice
        left, right = normalise(row.user).split("=")
        assert exact(left, x=int(row.final)) == exact(right, x=int(row.final)), row


REFERENCE = """
give a-b | start b+c | missing r-a | share a/k | groups a/r | times k*r | compare a-b | change m-k*p
two-goods a*p+b*q | unit-price t/k*m | save (p-s)/w | afford (m-c)/p | discount (p-d)*k | wage w*h-c
profit n*(p-c) | split-bill (a+b)/k | spent-twice b+c+e | twice 3*a | more-together 2*a+b | fewer-together 2*a-b
make-equal (a-b)/2 | times-sum s-s/(k+1) | sum-difference (s-d)/2 | gave-some (b+k)-(a-k) | rates-apart (a-b)*k
together-rate (a+b)*h | age-now a+b+n | age-past (b-n)/(a-n) | age-times a*k-a | age-sum a+b+c+3*n
boxes-loose k*r+s | boxes-minus k*r-s | rest-shared (a-b)/k | left-over a-k*q | half-then a/2-b | fraction a-a/k
percent a*q/100 | eaten-daily a-k*d | pages p-n*d | pages-days (p-b)/n | seats r*s-o | class-groups (g+b)/k
score p*a-b | average (a+b+c)/3 | queue m+n-1 | trees l/g+1 | machine m*h*d | journey v*t+w*u | arrive (d-b)/v
tank (f-o)*t | candle l-b*h | stairs (f-g)*s | bus n-a+b | bus-start r+a-b | temperature m+a-b | minutes 60*h+m+k
holiday (7*w+d)*k | legs 2*a+4*b | eggs h*e*d | rectangle 2*(l+w) | area l*w*k | basket w*k+b | jar 2*(f-e)
rope l-k*p | garden-rows r*k-d | album (a+b)/k | harvest a+k*a-c | think-number (e-b)/k | toys-week 3*a+3*b
three a/(a+b+c) | not (b+c)/(a+b+c) | either (a+b)/(a+b+c) | two-kinds a/(a+b) | rest (t-a)/t | cards 1/k
two-months n+n/2 | three-parts a+a*k+a*k+d | weekly-money w*n-p*k | bakery b*k*p-c
meeting (v+w)*t | meeting-time d/(v+w) | catch-up d/(v-w) | heads-legs (l-2*h)/2 | ducks-both s*k/(k+1)
dozen 12*k-b | two-shops k*q | days-left (n+s)/a | fill-boxes (a+b)/k
class-trip c*(k+t) | quarter-half a/4 | backwards-half 2*(r+b) | old-new-work e*d
earn-two w*h+v*k | need-more p-a-b | chairs-tables n*k-t | shared-cost (p-d)/k | water c*(k-b) | pupils-more 2*g-d
beads a*k | hour-pay-week w*h*d*n | then (a+b)*c | minus a-b+c | product a*b-c | difference (a-b)*c | quotient a/b+c
minus-times a-k*b
half a/2+b | two-products a*b+c*d | more a*b+c | last a+d-1 | between b-a | weeks 7*w+d | hours 60*h+m
saw (n-1)*m | array n*n+k | both a+b-c | outfits a*b*c | handshakes n*(n-1)/2 | percent-off p-p*q/100
clock-strikes t/(a-1)*(b-1) | surplus (b+d)/(c-a) | third-value 3*m-a-b | centimetres 100*a+b-c | taxi b+c*(n-k)
boats (n-n%k)/k+1 | every-days n/k*a | recipe n/k*a | map (a+b)*k | fuel d/k*p | consecutive s/3+1 | fence l/c*p
growth a+k*w | tickets a*p+b*q | third-quarter a/3 | letters n*(a+b) | lent a-c | leave-some a/m-k
above (n-k)/n | raffle k/n | class g/(g+b) | socks (a-d)/(a-d+b) | added b/(a+b+d)
"""

SCENES = """
come a+b | go a-b | come-go a+b-c | go-come a-b+c | go-go a-b-c | some-come c-a | some-go a-c | start-come c-b
start-go b+c | gain-or-loss a-b | loss-or-gain a-b | turn-over n+c-b | get a+b | lose a-b | lose-get a-c+b
get-lose a+c-b | some-get c-a | some-lost a-c | start-got c-b
start-lost b+c | money a-b | pocket-money a+b | pair a+b | pair-three a+b+c | pair-rest n-a | pair-more a-b
pair-larger a+d | pair-smaller a-d | pair-sum 2*a+d | pair-times a*k | pair-times-sum a+a*k
pair-how-many-times a/b | pair-teams (a+b)/k | both a+b | both-more a-b | larger a+d | smaller a-d | twice a*k
larger-sum 2*a+d | smaller-sum 2*a-d | elder a+d | younger a-d | gap a-b | age-later a+k | age-parent a*k+y
deed-two a+b | deed-three a+b+c | deed-more a-b | deed-next-more 2*a+d | deed-next-fewer 2*a-d | deed-second a+d
deed-to-do n-a | deed-two-left n-a-b | deed-people a+b | deed-average t/k | deed-rate a*k | deed-time t/a
deed-rate-left n-a*k | speed v*k | speed-time t/v | speed-rate t/k | holders a*k | holders-each a/k
holders-number n/a | share a/k | left-over a%k | pieces n/k | pieces-number n/a | cloth (n-n%k)/k
holders-less a*k-b | holders-more a*k+b | two-holders a*k+b*m | rest-share (a-b)/k | rest-number (a-b)/k
sum-number (a+b)/k | cost p*k | price t/k | afford t/p | cost-two a+b | dearer a-b | price-up b+d | basket a*p+b*q
basket-one a*p+q | cost-change m-p*k | rest-afford (m-b)/p | wages w*(h+k) | area l*w | perimeter 2*(l+w)
square 4*a | square-area a*a | side s/w | dozens 12*k | capacity n-a | half a/2 | one-times c*k
rest-minutes (n-a)*k | points (a+b)*k | shared-work (n-a)/k | meet (v+w)*h | two-classes n*(a+b)
two-kinds-less a-b | two-kinds-more a+b | pair-plant a+b | pair-gone a-b | recipe n-a | sum-less a+b-c
pair-less a+b-c | spend-two m-a-b | trips (a+b)/k | points-for (a+b)/k | wages-three w*(h+k+m)
box-two-kinds k*(a+b) | way n*k | average-three (a+b+c)/3 | per-item n/k | unit-more t/k*m | same-way v*k/m
sum-of-times s/(k+1) | equal-after s/2+b
kin-younger a-d | kin-older a+d | kin-times a*k | group a+b | group-more a-b | group-rest n-a | colours a+b
colours-rest n-a | people-rest n-a | cannot n-a | note a-b | walk-time t/v | price-times a*k*m | square-side s/4
for-each n*k | each-left a-n*k | library a-b+c | seats a*k | seats-each a/k | seats-number n/a | seats-less a*k-b
seats-sum (a+b)/k | which-more a-d | which-fewer a+d | which-times a/k | which-dearer a-d | which-cheaper a+d
cost-three a+b+c | both-one-kind a+b | one-kind-more a-b | place-more a+b | place-less a-b | full-holders (n-n%k)/k
part-of n*a/b | part-rest n-n*a/b | part-whole m*b/a | part-second n*a/b | percent-of n*p/100 | percent-second n*p/100
percent-more n+n*p/100 | percent-less n-n*p/100 | ratio n*a/(a+b) | three-times a*b*c | box-volume l*w*h
base-volume s*h | cube a*a*a | triangle l*h/2 | trapezoid (a+b)*h/2 | other-side s/2-l | faster n/a-n/(a+b)
per-day-left (a-b)/k | price-of-one (a-b)/k | average-missing 3*m-a-b | times-needed a*k-b | boxes-weight (n-a*p)/b
around n/l | per-minute 60*v | number-minus c+b | number-plus n-b | number-times n/k | number-over a*k
in-boxes a*k | cost-of p*k | after-giving a-b | after-getting a+b | deed-in a*k | three-people a+b+c | third-part n-a-b
third-sum m-a-b
amounts a+b | amounts-three a+b+c | amounts-rest a-b | amounts-more a-b | amounts-gap a-b | amounts-each a*k
rows-seats a*k | holders-kinds (a+b)*k | needed-up (n-n%k)/k+1 | trip-up (n-n%k)/k+1 | tickets a*p+b*q
bills n-a*p-b*q | saving n+k*m | two-legs v*h+w*g | share-gap a/k-b/m | times-more a*k-a | units-100 k*100+a
units-1000 k*1000+a | units-60 k*60+a | discount-tenths n*k/10 | in-packs n/k | each-time-list a+b+c
three-kinds a+b+c | three-kinds-rest n-a-b | still-needed n-a-b | pair-each (a+b)*k | meals (a+b)*k
absent-groups (n-a)/k | bad-bags (n-a)/k | joined-groups (a+b)/k | lives a-b+c | temperature a-b+c | start-two a+b+c
money-start a+b | more-to a-b | two-places a+b | large-rest a-b | difference-year a-b | growth a+d | how-long t/a
together-each (a+b)*k | left-each (n-c)/k | sets n/k-p | packs-price n/(k*m) | ratio-three n*b/(a+b+c)
ton k*1000-a-b | metres k*100-a | work-days a*d/e | edges (s/12)*(s/12)*(s/12)
perimeter-ratio p*p*a*b/(4*(a+b)*(a+b)) | cents-sum (a+b)/100 | cents-more (a-b)/100 | cents-gap (a-b)/100
cents-change n-b/100 | cents-times a*k/100 | cents-share a/(100*k) | tenths-sum (a+b)/10 | tenths-rest (a-b)/10
tenths-times a*k/10 | parallelogram l*h | spaces l*h/k | hand-moves (b-a)*5 | whole-heavy a*k
undone-two a+b-c | undone-worlds a+b-c | rest-buys (n-b)/k | rest-fills (n-b)/k | jobs-but k*(n-b)
targets-but k*(n-b) | pack-both (a+b)/k | pack-pair (a+b)/k | first-load (n-c)/k | rest-equal (n-c)/k
has-parts k*m | parts-number n/k | parts-each n/k | gains-two a+b+c | loss-and-gain a-b+c | loses-twice a-b-c
start-gain-loss d+c-b | kind-known n-a | kinds-three n-a-b | before-now-more c-a | before-now-fewer a-c
match-winner b+d | match-loser a-d | match-gap a-b | note-cost n-c | off-price p-d | price-drop a-b
including n+m | friends-and-self n/(k+1) | times-as a*k | times-together a+a*k | half-together a+a/2
chapters-sum a+b | chapters-rest n-a | chapter-more a-b | count-not-price k*m | price-not-count p*m
change-beside a-b | packs-more (n-a)/k | weeks-minus k*n-b | weeks-plus k*n+b | friends-remain a-k*m
rows-of k*a | weeks-days 7*k | pairs-of 2*k | dozen-rest 12*k-b | measure-more a-b | measure-sum a+b
measure-cut a-b | each-and-self k*(m+1) | including-each n*k | including-others k*(n-1) | start-spent k*p+b
jobs-forgot n-t/k | other-kind k*m-a | times-back a/k
fraction-sum n*a/(a+b) | fraction-sum-gap n*(b-a)/(a+b) | road-fraction m*b/(b-a) | book-fraction m*a/(b-a)
road-percent m*100/(100-p) | part-more n*a/b+c | part-less n*a/b-c | part-more-back (m-c)*b/a
part-less-back (m+c)*b/a | percent-over (n-m)*100/m | percent-under (n-m)*100/n | percent-rate a*100/n
discount-half n*p/100 | discount-saved n*(10-k)/10 | discount-back m*10/k | interest n*p*y/100
interest-sum n+n*p*y/100 | tax-above (n-b)*p/100 | stock-profit k*q-t | stock-price k*m*p
around-area l*(p/2-l) | square-around-area (p/4)*(p/4) | area-around 2*(s/w+w) | parallelogram-height s/l
triangle-height 2*s/l | circle-around d*314/100 | circle-area a*a*314/100 | hectares l*w/10000
average-four (a+b+c+d)/4 | average-parts (t+b*m)/(k+m) | month-long a*31 | month-short a*30 | year-month n/12
common-multiple a*b/(b-a) | common-rest a*b/(b-a)+c | longest-piece b%a | largest-square b%a
squares-number (a/(b%a))*(b/(b%a)) | fewest-pieces (a+b)/(b%a)
plan-days a*d/c | plan-earlier d-a*d/c | plan-rate a*d/e | rest-rate (n-a*d)/e | rest-days (n-a*d)/c
work-hours n/(a+b) | work-left n-(a+b)*k | two-teams a*b/(a+b) | saw-again t/(a-1)*(b-1) | saw-length (a/b-1)*m
trees-two-sides 2*(l/g+1) | trees-between l/g-1 | trees-length (n-1)*g | meet-hours d/(v+w) | meet-speed d/h-v
meet-left (v+w)*h+c | chase g/(v-w) | bridge (l+b)/v
times-plus a*k+c | times-minus a*k-c | times-plus-back (n-c)/k | times-minus-back (n+c)/k | times-plus-sum (n-c)/(k+1)
three-days a+2*a*k-c | day-times-left n-a-a*k | ratio-gap d*a/(a-b) | ratio-known n*b/a | salt-water n/(k+1)
map-hours d*k/v | map-back n/k | clock-span (i-h)*60+n-m | big-boats (t-n*b)/(a-b) | quiz-wrong (n*a-s)/(a+b)
tank-depth v/(l*w) | box-depth v/s | cube-surface 6*a*a | box-edges 4*(l+w+h) | box-surface 2*(l*w+l*h+w*h)
used-more (n+c)/2 | share-fewer n/m-n/k | km-left a*100-b | ton-bags a*100/k
words-less-quotient a-b/c | words-plus-quotient a+b/c | words-equal-product a*b/c | words-sum-over (a+b)/c
words-over-gap a/(b-c) | words-sum-gap (a+b)*(c-d) | words-product-gap a*b-c*d | words-times-plus (n-c)/k
words-times-minus (n+c)/k | words-part m*b/a | words-part-plus n*a/b+c | words-percent m*100/p | words-divided c*q+d
form-sum-more a+b+c | form-sum-less a+b-c | form-more-all 2*a+c | form-to-do n-a-b | form-same-price (a+b)*p
form-price-gap a*p-b*p | form-two-goods a*p+b*q | form-paid n-k*p | form-each-boxes 2*k*n | form-share-twice n/(k*m)
queue-ends a+b-1 | queue-beside a+b+1 | corners-three 3*n | corners-two 3*n+4*m | legs-each n*k | form-bundles n/k
storey-move a-2*c | storey-level (a-b)/2 | storey-more 2*a+c | line-on-off a+c-b | weeks-used a+b+c
form-times-plus k*a+c | form-times-minus k*a-c | form-times-plus-back (n-c)/k | form-times-minus-back (n+c)/k
ages-sum-then (a+n)+(b+n) | ages-was a-(b+n) | form-average (a+b+c)/3 | form-daily a*d+b*d | form-daily-gap a*d-b*d
form-rows n*k+c | form-boys n-2*b | crew-sum-less n-a-b | crew-days-rest n/(a+b) | crew-extra 3*a+2*c
piece-of n*a/b | pieces-two n*a/b-c | piece-left n-n*a/b | piece-more n+n/b | piece-fewer n-n/b
piece-more-back n/(1+1/b)
percent-part n*p/100 | percent-not n-n*p/100 | percent-up n*(100+p)/100 | percent-down n*(100-p)/100
ratio-parts n*a/(a+b+c) | ratio-two n*a/(a+b) | map-scale d*s/100000 | kilo-change n-a*k/10 | mean-third 3*m-a-b
type-together 1/(1/a+1/b) | plan-ahead a*d/(d-e) | plan-quicker a*d/(a+c) | same-rate m*t/k | same-rate-time n*k/t
sets-cost k*p+k*q | sum-gap-larger s-(s-d)/2 | sum-gap-smaller s-(s+d)/2 | gap-times d/(k-1) | trees-one-end l/g
trees-both-ends l/g+1 | wall-fence 2*w+l | wall-area (n-2*w)*w | field-wider l*w+c*w | water-rise l*w*h
open-box l*w+2*l*h+2*w*h | meet-head-start v*(e+t)+w*t | catch-up-head-start w*e/(v-w)
percent-girls n*(100-p)/100 | gallon-miles n/k | gallon-cost p*n/k | coins-dimes n*100/10 | coins-quarters n*100/25
coins-nickels n*100/5 | coins-worth 25*a+10*b | dozen-cost k*p*12 | times-altogether (k+1)*a | cut-grown a-b+c
degrees-day a+b-c | change-two n-a/100-b/100 | all-but n-b | twice-three 7*a | half-as-many 3*a/2
hours-two-days h*w+k*w-c | seats-empty n*k-a-b | budget-tenths 1-a/10-b/10 | pounds-less (a-b)/100
weights-box (a*k+b)/10 | bill-three (a+b+c)/100 | tip-bill n*(100+p)/100 | more-than-three a+b+c
fraction-of a/n | fraction-of-both a/(a+b) | percent-of-all a*100/n | percent-right 100-b*100/n
up-sixty n/60 | up-hundred n/100 | up-ten n/10 | up-thousand n/1000 | up-days n/24 | up-years n/12 | up-weeks n/7
fraction-of-two (a+b)/n | fraction-of-others (n-a-b)/n | fraction-of-unlike 1/a+1/b | fraction-of-gap 1/a-1/b
fraction-of-fraction a*c/(b*d) | tenths-price p*k/100 | tenths-area l*w/100 | percent-up-back m*100/(100+p)
percent-down-back m*100/(100-p) | percent-two-left m*100/(100-p-q) | parts-two-left m/(1-1/a-1/b)
salt-percent 100*a/(a+b) | proportion b*c/d | tickets-two (t-n*q)/(p-q) | two-lists (m-n)/(a-b) | below-zero a+b
units-10 k*10+a
over-sixty n-60*q | over-hundred n-100*q | overnight 12-a+b | months-long 31-a+b | months-short 30-a+b
age-becomes (m-a)/(k-1)-a | age-was a-(m-a)/(k-1) | angle-third 180-a-b | angle-right 90-a | angle-top 180-2*a
angle-base (180-a)/2 | round-down n-(n+k/2)%k+k/2 | round-up n-(n+k/2)%k+k/2 | digit-hundreds 0*n+100*b
digit-tens 0*n+10*c | number-of-digits 1000*a+100*b+10*c+d | box-plus s-a | box-minus s+a | box-from a-s
percent-planned 100*d/(n-d) | percent-lowered 100*n/(n+d) | percent-of-both 100*a/(a+b) | percent-sprout 100*a/(a+b)
percent-absent 100-100*b/n | percent-read k*m*100/(100-p) | percent-kinds (a+b)*100/(100-p)
price-marked n*k/10-d | price-drop-lot (a-b)*n | misread-factor c/(a-b) | misread-divisor q*b/a | misread-sum s+x-y
misread-tens s-10*y+10*x | nought-dropped s*10/11 | numerator-plus b*c/a | storeys-time t/(a-1)*(b-1)
storeys-steps (a-1)*s | turned-back l+2*a | echo v*t/2 | echo-sea v*t/2 | stream n/(n/h-2*c)
meet-first-alone (n-a*h)/(a+b) | met-and-past (a+b)*t-d
speed-gap b/y-a/x | sooner v*t/(t-x)-v | more-hands a*t/(t-x)-a | trucks-again t/(k*m)*j*n
less-cloth a*n/b | money-for-chairs (p*n+m)/k | dearer-now n*p/(p+d) | each-short (c+d)/(b-a)
each-short-all (c+d)/(b-a)*b-d | halves-taken 4*(c+b)-2*a | part-of-part m*a*c/(b*d)
days-uneven (2*a+b+2*k*a+2*c)/4 | sun-and-rain (t-b*n)/(a-b) | three-in-a-row s/3
three-in-a-row-largest s/3+1 | three-even-smallest s/3-2 | half-used (a-b)/5 | water-bill (a*k+c*(n-k))/10
taxi-tenths b+c*(n-k)/10 | tax-paid n-(n-b)*p/100 | wider-field s*x/w | field-grown (l+w+x)*x | tiles-floor l*w/(d*d)
tiles-area s/(d*d) | cube-recast a*a*a/(w*h) | cube-weighs k*a*a*a | log-cut s*l/(2*k-2)
cylinder-volume 314*a*a*h/100 | cone-volume 314*a*a*h/300 | cylinder-side 314*d*h/100 | ring-area 314*(b*b-a*a)/100
flower-bed-path 314*w*(d+w)/100 | field-tenths l*h*k/100 | surely-same k*m-k+1 | surely-each (n-n%k)/k+1
ways-two a*b | ways-road a*b | ways-three a*b*c | handshakes n*(n-1)/2 | cards-sent n*n-n | knock-out n-1
middle-of-five c+0*(a+b+d+e) | largest-gap d-a+0*(b+c) | about-product (n-n%100)*(m+1) | places-left a
about-sum (n+50)-(n+50)%100+(m+50)-(m+50)%100
box-times s/a | box-divided s*a | box-remainder q*a+c | remainder-of n%k | most-fewest a-c+0*b
"""


def solutions(text: str) -> dict[str, str]:
    """`give a-b | start b+c`: the formula of every section."""
    return dict(item.split(" ", 1) for item in re.split(r"\s*\|\s*|\n", text.strip()))


def test_a_word_problem_means_what_its_steps_compute():
    """Each story has a second solution here, in one formula, and every number of the formula stands in the question."""
    told, in_scenes = solutions(REFERENCE), solutions(SCENES)
    kinds = ("story/", "scene/", "chance/", "sum-words/", "dates/")
    for schema in itertools.chain(*(schemas()[kind] for kind in kinds)):
        kind, title = schema.name.split("/")
        formula = (in_scenes if kind == "scene" else told)[title].strip()
        for seed in range(6):
            rng = random.Random(seed)
            state, roles = rng.getstate(), draw(schema, rng, hard=seed > 3)
            rng.setstate(state)
            for language in LANGUAGES:
                question, steps, final = tell(schema, random.Random(seed), language, hard=seed > 3)
                numbers = {role: value for role, value in roles.items() if role.islower()}
                assert Fraction(final.rstrip("%")) == exact(formula, **numbers), (schema.name, question)
                for sides in filter(None, map(equalities, steps)):
                    assert exact(sides[0]) == exact(sides[1]), (schema.name, sides)
                letters = set(re.findall("[a-z]", formula))
                for letter in letters:
                    assert stands(roles[letter], question, language), (letter, roles[letter], question)
                if schema.leaves:                                # the story goes on from this result
                    question, more, final = tell(schema, random.Random(seed), language, seed > 3, longer=True)
                    assert more[:len(steps)] == steps and equalities(more[-1])[1] == final
                    assert all(stands(roles[letter], question, language) for letter in letters)
    assert len([schema for schema in schemas()["scene/"] if schema.leaves]) > 20


NEXT = """
holder n/k | holder-each n/k | seat n/k | seat-each n/k | share n/k | price n*p | minutes n*k | weight n*k | give n*k
pay n*p | points n*k | food n*k | carry n*k | needed m-n | day-more n-b | day-fewer b-n | times n*k | more n+b
fewer n-b | half n/2 | together n+b | days n/k
"""


def test_what_comes_next_computes_with_the_result_of_what_came_before():
    """Two relations in one problem, each met behind every other: neither can be told from the other's words alone."""
    formulas = solutions(NEXT)
    assert formulas.keys() == {schema.name.split("/")[1] for schema in schemas()["next/"]}
    for schema in schemas()["next/"]:
        name, thing = schema.name.split("/")[1], random.Random(0).choice(choices(dict(schema.roles).get("X", "any")))
        for n, language, kind in itertools.product((24, 60), LANGUAGES, range(len(schema.facts))):
            rng = random.Random(n)
            roles = draw(schema, rng, given={"X": thing, "n": n, "$": "yuan"})
            numbers = {role: value for role, value in roles.items() if role.islower()}
            assert roles["r"] == exact(formulas[name], **numbers), schema.name
            told = pick(schema.facts[kind], roles, language, rng)
            assert all(stands(roles[letter], told, language) for letter in set("bkmp") & set(formulas[name])), told


def test_what_several_have_together_may_be_sold_packed_or_shared(monkeypatch):
    """Comparisons, then the sum of all, then one relation more: `Ann has 3, Ben twice as many; each costs 5`."""
    formulas, went_on, original = solutions(NEXT), [], telling.draw_next

    def recorded(name, *arguments):
        schema, roles = original(name, *arguments)
        went_on.extend([(schema.name.split("/")[1], roles)] if name == "next/" else [])
        return schema, roles

    monkeypatch.setattr(telling, "draw_next", recorded)
    met = set()
    for seed, language in itertools.product(range(300), LANGUAGES):
        went_on.clear()
        question, steps, final = telling.tell_relations(random.Random(seed), language, False)
        for kind, roles in went_on:
            assert Fraction(final) == exact(formulas[kind], **{key: n for key, n in roles.items() if key.islower()})
            sums = [sides[1] for sides in filter(None, map(equalities, steps))]
            assert str(roles["n"]) in sums and equalities(steps[-1])[1] == final, question
            met.add(kind)
    assert len(met) > 8, met


def test_a_fact_may_be_part_of_the_question():
    """Others write `If she buys 8 more, how many ...?`; names keep their capitals, numbers and meaning stay."""
    always = random.Random(0)
    always.random = lambda: 0.0
    assert folded(["Mia has 7 pens.", "She buys 8 more."], "How many pens does Mia have?", "en", always) == (
        ["Mia has 7 pens."], "If she buys 8 more, how many pens does Mia have?")
    assert folded(["Mia has 7 pens."], "How many?", "en", always) == ([], "If Mia has 7 pens, how many?")
    for last in ("After that 8 are left.", "It costs 3. It is red.", ""):
        assert folded([last], "How many?", "en", always) == ([last], "How many?")
    assert folded(["米娅有7支笔。"], "几支？", "zh", always) == (["米娅有7支笔。"], "几支？")


def test_people_are_not_put_into_boxes():
    """What goes on with a thing needs a sentence, and a row of its table, about such things."""
    for kind, forbidden in (("crowd", {"holder", "price", "food"}), ("toy", {"seat", "pay", "food", "give"})):
        met = set()
        for seed in range(300):
            given = {"X": choices(kind)[seed % len(choices(kind))], "n": 12 + seed % 60}
            schema, roles = draw_next("next/", random.Random(seed), False, given, set())
            met.add(schema.name.split("/")[1])
            for row in (roles[role] for role, spec in schema.roles if spec[0] == "@"):
                assert given["X"] in choices(row.things), (given["X"], row)
        assert len(met) > 8 and not met & forbidden, met


def test_every_row_of_a_table_can_be_told():
    """The same relations between numbers in ever other scenes: a model that has met `less` on buses, branches and
    shelves finds it in a pond. So every row must fit every section that names its table."""
    sections = collections.defaultdict(list)
    for schema in schemas()["scene/"]:
        for role, spec in schema.roles:
            if spec[0] == "@":
                sections[spec[1:]].append((schema, role))
    frames = [*schemas()["account/"], *schemas()["group/"]]       # their tables: tests/test_accounts.py, test_groups.py
    assert sections.keys() | {spec[1:] for one in frames for _, spec in one.roles if spec[0] == "@"} == scenes().keys()
    for table in sections:
        for place, row in enumerate(scenes()[table]):
            schema, role = sections[table][place % len(sections[table])]
            for language in LANGUAGES:
                rng = random.Random(place)
                question = worded(schema, draw(schema, rng, given={role: row}), rng, language)
                assert not re.search(r"[{}\[\]|@+]|  ", question), question
                assert not re.search("[\u3400-\u9fff]" if language == "en" else "[a-z]{2}", question), question
    assert sum(map(len, scenes().values())) > 1000 and len(schemas()["scene/"]) > 400


def test_a_number_that_does_not_matter_is_of_somebody_and_something_else():
    """Else "Sean has 4 apples" in the middle of a story about Sean's apples would change the answer."""
    schema, rng = next(one for one in schemas()["scene/"] if one.name == "scene/both"), random.Random(0)
    for _ in range(300):
        roles = draw(schema, rng, given={"A": choices("pupil")[0], "X": choices("toy")[0]})
        said = aside(roles, "en", rng)
        assert roles["A"].english not in said and not re.search(rf"\b{roles['X'].english}s\b", said), said
        assert not re.search(r"\d", opening(roles, "en", rng))


def test_a_library_is_not_getting_ready_for_a_party():
    """Openings are about people; whoever is no `he` or `she` gets one about nobody."""
    rng, named = random.Random(0), {}
    for sex in ("girl", "it"):
        someone = next(one for one in choices("anyone") if one.features["sex"] == [sex])
        known = {"A": replace(someone, english="Zzyx", plural="Zzyx", chinese="奇奇奇")}
        said = [opening(known, language, rng) for language in LANGUAGES for _ in range(100)]
        named[sex] = sum("Zzyx" in text or "奇奇奇" in text for text in said)
    assert named["girl"] > 20 and named["it"] == 0


def test_things_and_people_of_questions_have_one_name_each():
    """A name of two people, or of somebody and something, would be a riddle of its own."""
    for spec in ("any|digital", "pupil"):
        names = [one.english for one in choices(spec)]
        assert len(names) == len(set(names)) > 200, collections.Counter(names).most_common(5)
    rare = {one.english for one in choices("pupil")} - {one.english for one in choices("person")}
    order = [problem(i, family="order", language="en").user for i in range(60)]       # its steps write names out thrice
    assert not any(re.search(rf"\b({'|'.join(rare)})\b", question) for question in order)
    things = {concept.chinese for concept in concepts().values() if "human" not in concept.kinds}
    assert not things & {pupil.chinese for pupil in choices("pupil")}


def stands(value, question, language):
    """Whether a number stands in a question: in digits, in words, or hidden in a word such as `half` or `twice`."""
    spelled = [without_separators(number(value, language))] if value <= 999 else []
    hidden = {"third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "两": 2}
    spelled += [word for word, meant in hidden.items() if meant == value]
    text = without_separators(question.lower())
    figures = {Fraction(figure) for figure in re.findall(r"\d+(?:\.\d+)?", text)}
    units = (1, 10, 100) if re.search(r"\d\.\d", text) else (1,)      # 345 cents stand there as 3.45
    return any(Fraction(value, unit) in figures for unit in units) or any(word.lower() in text for word in spelled)


def test_a_probability_is_a_reduced_fraction_below_one(sample):
    for row in of(sample, "chance"):
        above, below = map(int, row.final.split("/"))
        assert 0 < above < below and str(Fraction(above, below)) == row.final


RATES = """
hours n*x | days h*d*x | price n*x+b | left b-n*x | two (a+b)*n*x | changing (a+b*k)*x | share a/k*x | way n*x+b
minus (n-d)*x
"""


def test_a_rate_with_a_letter_is_right_for_every_number(sample):
    """`8*x=8x` stays true whatever x is, the letter is the one of the question, and each answer has a second solution
    here, worked out for two numbers in place of the letter."""
    formulas = solutions(RATES)
    assert formulas.keys() == {schema.name.split("/")[1] for schema in schemas()["rate/"]}
    for schema, seed, language in itertools.product(schemas()["rate/"], range(8), LANGUAGES):
        rng = random.Random(seed)
        state, roles = rng.getstate(), draw(schema, rng, hard=seed > 5)
        rng.setstate(state)
        question, _, final = tell(schema, rng, language, hard=seed > 5)
        numbers = {role: value for role, value in roles.items() if isinstance(value, int)}
        formula = formulas[schema.name.split("/")[1]]
        for x in (3, 11):
            assert exact(final, **{roles["x"]: x}) == exact(formula, **numbers | {"x": x}), (question, final)
    for row in of(sample, "rate"):
        letter = re.search("[a-z]", row.final)[0]
        assert re.search(rf"(?<![A-Za-z]){letter}(?![a-z])", row.user), row
        for step in row.steps:
            if re.fullmatch(r".*[:：]? ?\d+\*[a-z]=\d+[a-z]", step):
                left, right = step.split("=")
                assert exact(left, **{letter: 7}) == exact(right, **{letter: 7})


MORE = r"taller|older|heavier|faster|stronger|before|earlier|more stamps|costs more|dearer|bigger|larger|" \
    r"比.*(?:高|年纪大|重|跑得快|力气大|先到|早|多|贵|大)|花的钱多"
LESS = r"shorter|younger|lighter|slower|weaker|later|after|fewer|cheaper|costs less|smaller|not as|not .* as|" \
    r"没有|比.*(?:矮|年纪小|轻|跑得慢|力气小|后到|晚|少|便宜|小)"


def test_an_order_follows_from_the_sentences(sample):
    """The sentences are read again here: who is above whom; then the only possible row is found by sorting. It is
    numbered, and the question answered from it in two steps: which rank is asked for, and who has it."""
    known = {language: [name(concept.key, language) if concept.key in concepts() else
                        (concept.english if language == "en" else concept.chinese)
                        for concept in choices("person") + choices("toy|furniture|clothing|instrument|animal")]
             for language in LANGUAGES}
    inside = lambda word, other: f" {word} " in f" {other} ".replace("-", " ") if word.isascii() else word in other
    kinds = set()
    for row in of(sample, "order"):
        if re.match(r"-?\d", row.steps[0]):                      # numbers: the next test
            continue
        above = {}
        for sentence in re.split(r"(?<=[.?。？])\s*", row.user):
            if "?" in sentence or "？" in sentence or not sentence:
                continue
            named = sorted({word: sentence.find(word) for word in known[row.language] if re.search(
                rf"\b{re.escape(word)}\b" if row.language == "en" else re.escape(word), sentence)}.items(),
                key=lambda item: (item[1], -len(item[0])))
            named = [word for word, _ in named if not any(word != other and inside(word, other) for other, _ in named)]
            if len(named) != 2:
                continue
            bare = sentence.replace(named[0], "@").replace(named[1], "@")        # 小 may be part of a name
            less = re.search(LESS, bare)
            assert less or re.search(MORE, bare), sentence
            first, second = reversed(named) if less else named
            above.setdefault(first, []).append(second)
        n = sum(map(len, above.values()))
        facts, (climb, ranked, *read_off) = row.steps[:n], row.steps[n:]
        ranked = re.split(" ?> ?", ranked)
        chain = [re.sub(r"^\d ?| ?\d$", "", one) for one in ranked]
        row_names = [chain[0]]
        while row_names[-1] in above:
            below, = above[row_names[-1]]
            row_names.append(below)
        assert row_names == chain, row
        climb = re.split(" ?< ?", climb)                         # from the name just written up to the first of the row
        assert climb == chain[:len(climb)][::-1] and re.split(" ?[<>] ?", facts[-1])[-1] == climb[0], row
        for fact in facts:                                       # both ways round, as it is told first
            once, again = (re.split(" ?([<>]) ?", way) for way in re.split(", |，", fact))
            assert once == [again[2], {">": "<", "<": ">"}[again[1]], again[0]], row
            assert row.user.lower().index(once[0].lower()) >= 0 and once[::2 if once[1] == ">" else -2] in [
                list(pair) for pair in itertools.pairwise(chain)], row
        comma = spaced(", ", row.language)
        if row.final in ("yes", "no", "是", "不是"):                   # which ranks, then which is smaller
            one, other = read_off[0].split(comma)
            first, second = (ranked.index(asked) for asked in (one, other))
            assert (row.final in ("yes", "是")) == (first < second) and one[-1] == str(first + 1), row
        elif comma in row.final:
            assert (row.final, read_off) == (comma.join(ranked), []), row
        else:                                                    # which rank, then who has it
            rank = chain.index(row.final)
            assert read_off == [ranked[rank]] and read_off[0][0] == str(rank + 1), row
        kinds.add((row.final in ("yes", "no", "是", "不是"), comma in row.final))
    assert len(kinds) == 3


def test_numbers_are_sorted_as_python_sorts_them(sample):
    """Each line compares the next number with the ones that are kept, until it is clear where it belongs."""
    for row in of(sample, "order"):
        if not re.match(r"-?\d", row.steps[0]):
            continue
        lines = [re.split(": |：", step) for step in row.steps]
        given = [int(line[0]) for line in lines]
        assert given == list(map(int, re.findall(r"-?\d+", row.user))), row
        down = bool(re.search("large to small|descending|largest|从大|由大|最大|第二大", row.user)) and not re.search(
            "to the largest", row.user)
        place = 1 if re.search("second|第二", row.user) else 0
        comma, best = spaced(", ", row.language), []
        kept = len(given) if comma in row.final else place + 1
        for read, (value, *signs, after) in enumerate(lines, 1):
            compared = [(int(text[:-1]), text[-1]) for text in (signs[0].split(comma) if signs else [])]
            further = "<" if not down else ">"                   # the sign that says: look at the next one
            assert [other for other, _ in compared] == best[:len(compared)], row
            assert all((sign == "<") == (other < int(value)) for other, sign in compared), row
            assert all(sign == further for _, sign in compared[:-1]), row
            assert len(compared) == len(best) or (compared and compared[-1][1] != further), row
            ranked = sorted(given[:read], reverse=down)
            best = ranked[:kept]
            assert after == f"{further} " + " ".join(map(str, best)), row      # the sign says which way
        assert row.final == (comma.join(map(str, ranked)) if comma in row.final else str(ranked[place])), row


def test_a_comparison_is_written_as_told_before_it_is_turned_round(sample):
    """"Eric has 3 more than Yan. Eric has 27": a model that must say at once what Yan has adds half of the time."""
    turned = 0
    for row in of(sample, "story"):
        values, equations = {}, []
        for step in row.steps:
            if told := re.match(r"([^\d:：=]+?) ?= ?([^\d:：=]+?) ?([-+*/].*)$", step):
                equations.append(told.groups())
                turned += told[1] in values
                continue
            if named := re.match(r"([^\d:：]+)[:：] ?(-?[\d(][-+*/()\d]*)", step):
                values.setdefault(named[1], exact(named[2]))
        for left, right, rest in equations:
            assert values[left] == exact(str(values[right]) + rest.replace(" ", "")), row
            assert any(left in (before := sentence[:sentence.rfind(right)]) and right not in before.replace(left, "")
                       for sentence in re.split("[.．。?？] ?", row.user) if right in sentence), row
    assert turned > 3


def test_a_chain_of_changes_is_noted_before_it_is_worked_out(sample):
    """`20, *2, +12` stands in the order of the sentences, and says what comes next when one is done."""
    chains, backward = 0, 0
    for row in of(sample, "story"):
        comma = spaced(", ", row.language)
        start, *changes = row.steps[0].split(comma)
        if not (re.fullmatch(r"\d+|\?", start) and changes):
            continue
        end = changes.pop() if start == "?" else row.final
        n = Fraction(row.final if start == "?" else start)
        for change in changes:
            n = n - n / 3 if change == "-1/3" else Fraction(exact(f"{n}{change}"))
        assert n == int(end), row
        chains, backward = chains + 1, backward + (start == "?")
    assert chains > backward > 0


def continuations(a):
    """What simple rules make of a sequence; a question is fair only if all rules that fit agree."""
    steps = [y - x for x, y in itertools.pairwise(a)]
    if len(set(steps)) == 1:
        yield a[-1] + steps[0]
    if len({Fraction(y, x) for x, y in itertools.pairwise(a)}) == 1:
        yield Fraction(a[-1] * a[-1], a[-2])
    if len({y - x for x, y in itertools.pairwise(steps)}) == 1:
        yield a[-1] + steps[-1] + steps[1] - steps[0]
    if len(a) > 3 and all(x + y == z for x, y, z in zip(a, a[1:], a[2:])):
        yield a[-2] + a[-1]
    if len(a) > 4 and steps[::2] == steps[:1] * 2 and steps[1::2] == steps[1:2] * 2:
        yield a[-1] + steps[0]


def test_sequences_clocks_and_weekdays_are_right(sample):
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    seen = set()
    for row in of(sample, "series"):
        times = [datetime.strptime(text, "%H:%M") for text in re.findall(r"\d+:\d+", row.user)]
        if len(times) == 2:
            assert int(row.final) == (times[1] - times[0]).seconds // 60, row
        elif times:
            rest = re.sub(r"\d+:\d+", "", row.user)
            units = {"hours": r"(\d+) ?(?:hour|小时)", "minutes": r"(\d+) ?(?:minutes|分钟)"}
            long = timedelta(**{unit: int(re.search(pattern, rest)[1]) for unit, pattern in units.items()
                                if re.search(pattern, rest)})
            back = re.search("ago|did|must|以前|几点开始|什么时候开始|出发", row.user)
            assert row.final == f"{(end := times[0] - long if back else times[0] + long).hour}:{end.minute:02}", row
            hours, minutes = divmod(long.seconds // 60, 60)
            whole = f"{times[0].hour}:{times[0].minute:02}{'-' if back else '+'}{hours}:{minutes:02}"
            assert whole in row.steps[:2], row                   # both times side by side before any minute
        elif row.final in days or row.final.startswith("星期"):
            shown = days if row.language == "en" else [name(day, "zh") for day in days]
            start, = [i for i, day in enumerate(shown) if day in row.user]
            n = int(re.search(r"\d+", row.user)[0])
            back = re.search(r"ago|before|天前|以前|往前", row.user)
            assert row.final == shown[(start - n if back else start + n) % 7], row
            assert row.steps[0].replace(" ", "") == f"{shown[start]}{'-' if back else '+'}{n}", row    # before counting
            seen.add("day")
        elif len(given := [int(text) for text in re.findall(r"\d+", row.user)]) > 2:
            assert {int(value) for value in continuations(given)} == {int(row.final)}, row
            assert row.steps[0].startswith(f"{max(given[:2])}-{min(given[:2])}"), row       # before a rule is chosen
            for line in row.steps:
                if re.match(r"[-+]\d", line):                    # the rule, and where it leads
                    *rule, further = map(int, re.split(", ?", line))
                    assert rule == [y - x for x, y in itertools.pairwise(given)], row
                    assert given[-1] + further == int(row.final), row
                    seen.add("rule")
            seen.add("sequence")
    assert seen == {"day", "sequence", "rule"}


def test_minutes_that_are_more_than_an_hour_are_taken_apart_first():
    """75 minutes after 15:30: that 75 is an hour and 15 would else be done in the head, between two tokens."""
    checked = 0
    for index in range(800):
        row = problem(index, family="series", language="en")
        long = re.search(r"(?<!and )\b(\d+) minutes", row.user)
        if long and "hour" not in row.user and re.search(r"\d:\d\d$", row.final):
            assert row.steps[0].endswith(f"-60={int(long[1]) - 60}") == (int(long[1]) > 59), row
            checked += int(long[1]) > 59
    assert checked > 3


def test_reading_answers_come_from_the_record_of_events(sample):
    """The quoted sentence belongs to an event that holds the answer; of two deeds the first one has the lower order."""
    for row in of(sample, "reading"):
        events = [event for told in row.told for event in told.events]
        assert row.told, row
        mark = spaced(": ", row.language)
        if row.steps[0].startswith(f"1{mark}"):
            first, second = (step.split(mark, 1)[1] for step in row.steps)
            assert row.final == first and first in row.user and second in row.user
            continue
        if len(row.steps) == 3:
            counts = {event.count for event in events}
            had, gave = (int(step.split(mark)[1]) for step in row.steps[:2])
            assert {had, gave} <= counts and int(row.final) == had - gave
            continue
        quoted = [event for event in events if event.text == row.steps[0]]
        assert quoted and row.steps[0] in row.user, row
        fields = {str(event.count) for event in quoted} | {name(key, row.language) for event in quoted for key in (
            event.actor, event.object, event.recipient, event.place) if key}
        assert row.final in fields, (row, fields)


# ---- wording -------------------------------------------------------------------------------------------------------

def test_every_family_has_at_least_thirty_wordings_in_each_language():
    """Variety of wording is what carries over to questions written by others (Liu et al. 2023, arXiv:2312.09241).
    Counted in the data: each way through the alternatives of a section is one, whatever names, things and numbers."""
    ways = lambda text: math.prod(sum(map(ways, part)) for part in text if isinstance(part, list))
    count = lambda texts, language: sum(map(ways, texts.get(language, [])))
    kinds = {"expression": "sum sum-words", "column": "column", "story": "scene story", "chance": "chance",
             "rate": "rate", "equation": "equation", "series": "series clock calendar dates",
             "reading": "read deed first left"}
    for language, (family, names) in itertools.product(LANGUAGES, kinds.items()):
        found = [schema for name in names.split() for schema in schemas()[f"{name}/"]]
        told = sum(math.prod(count(fact, language) for fact in schema.facts) * count(schema.asks, language)
                   + count(schema.wholes, language) for schema in found)
        assert told >= 30, (family, language, told)
    for language in LANGUAGES:                                       # a comparison, and one of five kinds of questions
        told = sum(count(schema.facts[0], language) * sum(count(fact, language) for fact in schema.facts[1:])
                   for schema in schemas()["order/"])
        assert told >= 30 and {*kinds, "order"} == FAMILIES.keys(), (language, told)


def test_questions_that_differ_in_names_and_numbers_alone_have_one_shape():
    """The report counts how many are left when both are masked; other things make another shape."""
    assert shape("Tom has 12 apples.") == shape("Lucy has 307 apples.") != shape("Tom has 12 pears.")
    assert shape("小明有12个苹果。") == shape("小丽有三个苹果。") != shape("小明吃了12个苹果。")


def test_a_numeral_in_a_name_counts_nothing():
    """二年 is two years and becomes 两年; 二年级 is the second form and stays what it is."""
    assert polished("二年级种了二年，又种了二棵", "zh") == "二年级种了两年，又种了二棵"
    for text in ("二年级", "第二天", "十二个"):
        assert polished(text, "zh") == text


def rows_of_all(sample):
    yield from ((row.user, row.cot + row.final, row.language, row.family) for rows in sample.values() for row in rows)
    for i in range(600):
        row = instruction(i)
        yield row["user"], row["assistant"], row["language"], row["family"]


def test_no_slot_is_left_open_and_no_language_leaks_into_the_other(sample):
    for user, answer, language, family in rows_of_all(sample):
        text = user + answer
        flat = re.sub(r"\n *[-+×*]? *", "\n", user)                # a sum written in columns keeps its spaces
        assert not re.search(r"[{}\[\]|_<]|  |(?<!=) [.,?!]( |$)|[。，？]{2}", flat), user
        if family != "translate":
            if language == "zh":
                assert not re.search("[A-Za-z]{2}", text), text
            else:
                assert not re.search("[\u3400-\u9fff]", text), text


def test_nothing_looks_like_a_control_word(sample):
    for user, answer, _, _ in rows_of_all(sample):
        assert not re.search(r"<\||\|>|<eos>|<pad>|【|】|\[Reasoning|\[Final|推理过程|最终答案", user + answer)


def test_refusals_refuse_and_nothing_else_does():
    """A harmful request is declined in words that say so; a harmless one never is."""
    declined = re.compile("cannot help|will not help|help with that|No, I|No\\. I|不能帮")
    kinds = {True: 0, False: 0}
    for i in range(500):
        row = instruction(i)
        assert bool(declined.search(row["assistant"])) == (row["family"] == "refuse"), row
        kinds[row["family"] == "refuse"] += 1
    assert min(kinds.values()) > 20


def test_facts_and_translations_are_those_of_the_world():
    """What is answered of a thing is its kind or one of its features; exchanged among the questions, answers are
    mostly neither."""
    words = {(name(key, "en"), name(key, "zh")) for key in concepts()}
    words |= {(thing.english, thing.chinese) for thing in choices("any")}
    things = [*concepts().values(), *choices("any"), *choices("tool|furniture|vehicle|instrument|bird|insect")]

    def fits(row, answer):
        """Whether `answer` has a word for a kind or feature of something that the question names."""
        english = row["language"] == "en"
        names = lambda one: (one.english.lower(), plurals(one).lower()) if english else (one.chinese,)
        asked = [one for one in things if any(word in row["user"].lower() for word in names(one))]
        known = {key for one in asked for key in (*one.kinds, *itertools.chain(*one.features.values()))}
        stems = lambda one: [part[:max(3, len(part) - 3)] for part in one.english.lower().split()] if english else \
            [one.chinese]                                            # bake of baked, baking
        return any(stem in answer.lower() for key in known & concepts().keys() for stem in stems(concepts()[key]))

    facts = [row for row in map(instruction, range(600)) if row["family"] == "facts"]
    assert all(fits(row, row["assistant"]) for row in facts) and len(facts) > 150
    exchanged = [fits(row, other["assistant"]) for row, other in zip(facts, facts[2:])
                 if row["language"] == other["language"]]
    assert sum(exchanged) < 0.4 * len(exchanged)
    for i in range(600):
        row = instruction(i)
        if row["family"] == "translate":
            assert any({one, other} & {row["assistant"]} and (one in row["user"] or other in row["user"])
                       for one, other in words), row


# ---- splits and files ----------------------------------------------------------------------------------------------

def test_a_problem_is_a_pure_function_of_its_arguments():
    for family in FAMILIES:
        assert problem(5, 3, "val", family, "zh") == problem(5, 3, "val", family, "zh")
        assert problem(5, 3, "train", family, "en") != problem(6, 3, "train", family, "en")
        assert problem(5, 3, "train", family, "en") != problem(5, 4, "train", family, "en")
    assert instruction(9, 2, "test") == instruction(9, 2, "test")
    assert [problem(i).language for i in (0, 9, 18)] == ["en", "zh", "en"]


def test_the_splits_share_no_question_however_it_is_spelled():
    """The hash is taken of what makes the question, so another spelling or another letter stays in its split."""
    assert normalise("What is 12 × (3 + 4)?") == normalise("计算：12*(3+4)=") == "12*(3+4)"
    assert normalise("Solve for n: 3n + 5 = 20") == normalise("解方程：3x+5=20")
    assert normalise("□ + 5 = 20. Find the missing number.") == normalise("□+5=20。方框里的数是多少？") == "x+5=20"
    assert normalise("□ - 5 = 20. Find the missing number.") == "x-5=20"
    assert normalise("Tom has ３ apples.") == normalise("tom has 3 APPLES")
    assert normalise("Tom has 3 apples.") != normalise("Tom has 4 apples.")
    assert normalise("У Маши 3 яблока.") == normalise("у маши 3 ЯБЛОКА") != normalise("У Маши 3 груши.")
    assert len({normalise(text) for text in ("りんごは？", "사과는?", "كم تفاحة؟", "👍", "👎")}) == 5
    for split in ("train", "val", "test", "harder"):
        for i in range(18):
            assert split_of(problem(i, 0, split).user) == split
            assert split == "harder" or split_of(instruction(i, 0, split)["user"]) == split


def test_the_harder_split_is_harder(sample):
    """Longer reasons, larger numbers: each family beyond what it was trained on."""
    mean = lambda values: sum(values) / len(values)
    largest = lambda row: max((len(text) for text in re.findall(r"\d+", row.cot)), default=0)
    for family in FAMILIES:
        plain, hard = of(sample, family, "train"), of(sample, family, "harder")
        longer = mean([len(row.user + row.cot) for row in hard]) / mean([len(row.user + row.cot) for row in plain])
        assert longer > 1.03 or mean(map(largest, hard)) > mean(map(largest, plain)) + 0.4, (family, longer)


def test_most_problems_are_short_and_have_few_steps(sample):
    """nano reads 256 tokens: question, steps and answer should fit."""
    for (family, language, split), rows in sample.items():
        steps = [len(row.steps) for row in rows]
        assert max(steps) <= (20 if split == "harder" else 16), (family, language, split)
        assert sum(steps) / len(steps) >= 1.9, (family, language)


def test_overlap_counts_runs_of_thirteen_tokens():
    train = ["a b c d e f g h i j k l m n"]
    assert overlap(train, ["x b c d e f g h i j k l m n y", "a b c d e f g h i j k l x", "a b"]) == [True, False, False]
    assert overlap(["小明有三个苹果又买了两个梨子"], ["小明有三个苹果又买了两个香蕉"]) == [False]
    assert overlap(["Tom has 1234567890123 nuts"], ["Ben has 1234567890123 nuts"]) == [True]


def test_the_command_writes_files_in_the_formats_of_the_book(tmp_path, capsys):
    flags = ["--cot", "72", "--direct", "36", "--sft", "60", "--val", "18", "--test", "18", "--harder", "18", "--json"]
    problems.main(["--out", str(tmp_path), *flags])
    facts = json.loads(capsys.readouterr().out)
    questions = {}
    for file in sorted(path.stem for path in tmp_path.iterdir()):
        rows = [json.loads(line) for line in (tmp_path / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
        plain = {"system", "user", "assistant"}
        wanted = {"cot": {"system", "user", "cot", "final"}, "sft": plain, "direct": plain}[file.split("_")[0]]
        for row in rows:
            assert set(row) == wanted | {"family", "language"} and all(isinstance(row[key], str) for key in row)
            assert all(row[key].strip() for key in wanted - {"system"})
        assert facts[file]["rows"] == len(rows) == {"cot_train": 72, "direct_train": 36, "sft_train": 60}.get(file, 18)
        questions[file] = [normalise(row["user"]) for row in rows]
        assert file.endswith("train") or len(set(questions[file])) == len(rows)
    assert len(questions) == 10
    for kind in ("cot", "direct", "sft"):
        parts = [set(values) for file, values in questions.items() if file.startswith(kind)]
        assert sum(map(len, parts)) == len(set().union(*parts))
    assert 0 <= facts["cot_test"]["share_with_13_gram_in_train"] <= 1


def test_many_rows_are_those_that_one_core_would_write(monkeypatch):
    """Work is shared out in thousands; each row is a function of its number. Slow families are drawn more often."""
    config = problems.ProblemsConfig(families="1,2,5")
    pools, original = [], problems.ProcessPoolExecutor
    monkeypatch.setattr(problems, "ProcessPoolExecutor",
                        lambda *args, **more: pools.append(more) or original(*args, **more))
    rows = problems.rows_of("cot", 2100, config, "train")
    assert pools == [{"initializer": start_worker}]                  # no worker outlives a command that was killed
    assert len(rows) == 2100 and all(rows[i] == problems.cot_row(i, config, "train") for i in (0, 999, 1000, 2099))
    counts = collections.Counter(row["family"] for row in rows)
    assert counts["expression"] > counts["column"] > 1.5 * counts["rate"] > 0
    first_line = lambda split, seed: exercises.order(random.Random(seed), "en", split)[1][0]
    sorts = {split: sum(first_line(split, seed)[0].isdigit() for seed in range(400)) for split in ("train", "test")}
    assert sorts["train"] > 1.5 * sorts["test"] > 0                  # the slow kind of this family
    asked = problems.rows_of("cot", 90, config, "test")
    assert set(collections.Counter(row["family"] for row in asked).values()) == {30}


def test_families_and_language_are_chosen_by_flags_and_mistakes_are_one_sentence(capsys):
    problems.main(["--families", "1,6", "--language", "zh", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["family"] for row in rows} == {"expression", "equation"} and {row["language"] for row in rows} == {"zh"}
    with pytest.raises(SystemExit) as stop:
        problems.main(["--families", "12"])
    assert stop.value.code == 2 and "from 1 to 9" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        problems.main(["--families", "1;2"])
    with pytest.raises(SystemExit) as stop:
        problems.main(["--kinds", "percent,algebra"])
    assert stop.value.code == 2 and "'algebra'" in (said := capsys.readouterr().err) and "percent" in said
    with pytest.raises(SystemExit):
        problems.main(["--kinds", "percent", "--families", "1"])
    assert "leave out --families" in capsys.readouterr().err
    with pytest.raises(ValueError, match="split must be"):
        problem(0, split="exam")
    with pytest.raises(ValueError, match="family must be one of"):
        problem(0, family="algebra")


def test_a_sentence_beside_the_point_is_about_other_things(monkeypatch):
    """`How many strawberries?` beside somebody else's strawberries would have two answers."""
    berry = next(thing for thing in choices("fruit") if thing.english == "strawberry")
    said = [aside({"X": berry}, "en", random.Random(seed)) for seed in range(400)]
    assert not any("strawberr" in sentence for sentence in said) and len(set(said)) > 100


def test_no_number_is_added_to_a_sign():
    """`7b+-83` is no equation of a schoolbook."""
    for i, language in itertools.product(range(150), LANGUAGES):
        assert "+-" not in problem(i, 4, "harder", "equation", language).user


def test_a_teacher_asks_for_one_kind_of_word_problems(capsys):
    """`--kinds percent`: sections with the word in their name; `--kinds upper`: all of problems_upper.txt."""
    problems.main(["--kinds", "percent", "--language", "zh", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 8 == len({row["user"] for row in rows}) and {row["family"] for row in rows} == {"story"}
    assert all(re.search("%|百分|率", row["user"]) for row in rows)
    upper = exercises.named("upper")
    assert len(upper) > 80 and {schema.file for schema in upper} == {"upper"}
    assert set(exercises.named("upper,percent")) > set(upper)
    assert problem(5, kinds="cylinder", language="en") == problem(5, family="story", kinds="cylinder", language="en")
    assert "3.14" in problem(5, kinds="cylinder", language="en").user
    assert problem(3, split="harder", kinds="pairs,upper").family == "story"


def test_whatever_is_counted_has_a_row_in_every_table_its_section_goes_with():
    """One thing in 60,000 stories without a row would end the writing of all of them."""
    pairs = set()
    for schema in itertools.chain.from_iterable(schemas().values()):
        roles = list(dict(schema.roles))
        for spec in [spec for role, spec in schema.roles[roles.index("X"):] if spec[0] == "@"] if "X" in roles else []:
            kind = dict(schema.roles)["X"]
            kinds = {row.things for row in choices(dict(schema.roles)[kind])} - {""} if kind in roles else {kind}
            pairs |= {(one, spec) for one in kinds}
    rng, drawn = random.Random(0), 0
    for kind, table in sorted(pairs):
        for thing in choices(kind):
            row = draw(replace(schema, roles=[("T", table)], needs=[], steps=[]), rng, given={"X": thing})["T"]
            drawn += not row.things or thing.english in {one.english for one in choices(row.things)}
    assert drawn == sum(len(choices(kind)) for kind, _ in pairs) > 1000
