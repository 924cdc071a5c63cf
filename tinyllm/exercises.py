"""Nine families of exercises: a question, the lines that work it out one small operation at a time, and the answer.

In: a random generator, a language and a split ("harder" means longer and larger). Wordings come from problems_*.txt
through wordings.py, sums from sums.py. Used by problems.py; explained by tests/test_problems.py.
"""

import collections
import functools
import itertools
import random
from collections.abc import Callable

from tinyllm.accounts import tell_account
from tinyllm.grammar import polished
from tinyllm.groups import tell_groups
from tinyllm.lexicon import name, word
from tinyllm.reading import reading
from tinyllm.sums import column, expression
from tinyllm.telling import Exercise, listed, spaced, tell, tell_chain, tell_relations
from tinyllm.typed import as_typed
from tinyllm.wordings import Schema, ask, choices, pick, schemas

# ---- 3, 4, 5, 6: problems that are all data ------------------------------------------------------------------------

def story(rng: random.Random, language: str, split: str, kinds: str = "") -> Exercise:
    """3: word problems, as people type them: scenes, stories, accounts, equal groups, chains of changes, people in a
    row; or only those of `kinds`."""
    if kinds:
        hard = split == "harder"
        question, steps, answer = tell(rng.choice(_longer(named(kinds), hard) or named(kinds)), rng, language, hard)
    else:
        question, steps, answer = _word_problem(rng, language, split)
    return as_typed(question, language, rng), steps, answer


@functools.cache
def named(kinds: str) -> list[Schema]:
    """The scenes and stories of `percent,upper`: those with `percent` in their name, and all of problems_upper.txt.
    ValueError for a word that fits none."""
    told = schemas()["scene/"] + schemas()["story/"]
    fits = lambda schema, kind: kind == schema.file or kind in schema.name.split("/")[1]
    for kind in kinds.split(","):
        if not kind or not any(fits(schema, kind) for schema in told):
            words = collections.Counter(schema.name.split("/")[1].split("-")[0] for schema in told)
            raise ValueError(f"no kind of word problem is called {kind!r}; there are, among others, "
                             f"{', '.join(word for word, n in words.most_common(12))}, and as a whole "
                             f"{', '.join(dict.fromkeys(schema.file for schema in told))}")
    return [schema for schema in told if any(fits(schema, kind) for kind in kinds.split(","))]


def _word_problem(rng: random.Random, language: str, split: str) -> Exercise:
    kind, hard = rng.random(), split == "harder"
    share = 0.24 if hard else 0.1
    if kind < share:
        return tell_chain(rng, language, hard)
    if kind < 2 * share:
        return tell_relations(rng, language, hard)
    if kind < 2 * share + 0.23:
        return tell_account(rng, language, hard)
    if kind < 2 * share + 0.39:
        return tell_groups(rng, language, hard)
    told = _longer(schemas()["scene/" if rng.random() < 0.7 else "story/"], hard)
    if rng.random() < 0.2:                                       # what may go on goes on: two relations in one problem
        return tell(rng.choice([schema for schema in told if schema.leaves]), rng, language, hard, longer=True)
    return tell(rng.choice(told), rng, language, hard)


def _longer(options: list[Schema], hard: bool) -> list[Schema]:
    """For the harder split: only schemas with larger numbers and at least two computed steps."""
    return [schema for schema in options if any("^" in spec for _, spec in schema.roles)
            and sum(bool(result) for result, _, _ in schema.steps) > 1] if hard else options


def chance(rng: random.Random, language: str, split: str) -> Exercise:
    """4: the probability of a draw as a reduced fraction."""
    return tell(rng.choice(_longer(schemas()["chance/"], split == "harder")), rng, language, split == "harder")


def rate(rng: random.Random, language: str, split: str) -> Exercise:
    """5: rates with a letter: `8x`, `40x`, `8x+5`."""
    return tell(rng.choice(_longer(schemas()["rate/"], split == "harder")), rng, language, split == "harder")


def equation(rng: random.Random, language: str, split: str) -> Exercise:
    """6: linear equations with a whole solution; each line keeps the balance or works out a number."""
    return tell(rng.choice(schemas()["equation-hard/" if split == "harder" else "equation/"]), rng, language,
                split == "harder")


# ---- 7: order ------------------------------------------------------------------------------------------------------

def order(rng: random.Random, language: str, split: str) -> Exercise:
    """7: who is tallest, second, or taller: a row of comparisons put in order; or numbers sorted.

    The row is numbered, so that the question is answered in two small steps: which number, and who has it.
    """
    hard = split == "harder"
    if rng.random() < (0.45 if split == "train" else 0.25):      # what takes long to learn is practised more often
        return _sorted_numbers(rng, language, hard)
    schema, n = rng.choice(schemas()["order/"]), 5 if hard else rng.choice((3, 3, 4, 4))
    people = _apart(rng, choices(schema.roles[0][1]), n, language)   # from the most to the least
    pairs = list(itertools.pairwise(people))
    rng.shuffle(pairs)
    facts, most, least, place, whole, compare = schema.facts
    sentences = [pick(facts, {"A": a, "B": b}, language, rng) for a, b in pairs]
    called = lambda person: word(person, "", language, None)
    row = list(map(called, people))
    steps = _walk(row, [(called(a), called(b)) for a, b in pairs], sentences, language)
    k, kind = rng.randint(2, n - 1), rng.choice(("most", "least", "place", "whole", "compare"))
    over, comma, gap = (spaced(sign, language) for sign in (" > ", ", ", " "))
    if kind == "whole":
        roles, final = {}, comma.join(row)
        steps += [over.join(row)]
    elif kind == "compare":
        i, j = rng.sample(range(n), 2)
        roles, final = {"A": people[i], "B": people[j]}, {"en": ("no", "yes"), "zh": ("不是", "是")}[language][i < j]
        ranked = [f"{one}{gap}{rank}" for rank, one in enumerate(row, 1)]
        steps += [over.join(ranked), comma.join([ranked[i], ranked[j]])]
    else:
        rank = {"most": 1, "least": n, "place": k}[kind]
        roles, final = {"k": ORDINALS[language][k - 1]}, row[rank - 1]
        ranked = [f"{at}{gap}{one}" for at, one in enumerate(row, 1)]
        steps += [over.join(ranked), ranked[rank - 1]]
    question = {"most": most, "least": least, "place": place, "whole": whole, "compare": compare}[kind]
    question = pick(question, roles, language, rng)
    sentences = [question, *sentences] if rng.random() < 0.15 else [*sentences, question]
    return polished((" " if language == "en" else "").join(sentences), language), steps, final


def _walk(people: list[str], pairs: list[tuple[str, str]], sentences: list[str], language: str) -> list[str]:
    """The lines that find who is first in a row: every fact as it is told and the other way round, then up from the
    name just written until nobody stands above.

    Both ways round, because a model that writes `A > ` finds what stood behind the `A > ` above, but not what stood
    before `> A`.
    """
    over, under, comma = (spaced(sign, language) for sign in (" > ", " < ", ", "))
    lines = []
    for (a, b), sentence in zip(pairs, sentences):
        told_down = sentence.lower().index(a.lower()) < sentence.lower().index(b.lower())
        down, up = a + over + b, b + under + a
        lines.append(comma.join((down, up) if told_down else (up, down)))
        last = a if told_down else b
    return [*lines, under.join(people[people.index(last)::-1])]


def _apart(rng: random.Random, options: list, n: int, language: str) -> list:
    """`n` of the options, drawn until no name is part of another: 鸡 and 母鸡 would confuse."""
    while True:
        drawn = rng.sample(options, n)
        called = [word(one, "", language, None) for one in drawn]
        if not any(a in b for a, b in itertools.permutations(called, 2)):
            return drawn


def _sorted_numbers(rng: random.Random, language: str, hard: bool) -> Exercise:
    """Compare one number after the other with those that are kept, until its place is found; keep as many as are asked
    for. The sign before a row says which way it is sorted."""
    top = rng.choice((200, 1000, 2000) if hard else (20, 100, 1000))
    low, n = -top // 4 if rng.random() < 0.2 else 1, 6 if hard else rng.randint(3, 5)
    numbers = rng.sample(range(low, top), n)
    down, kind = rng.random() < 0.5, rng.choice(("all", "all", "ends", "second"))
    ranked = sorted(numbers, reverse=down)
    shown = listed([str(number) for number in numbers], language) if rng.random() < 0.5 else \
        spaced(", ", language).join(map(str, numbers))
    question = ask(f"sort/{kind}-{'down' if down else 'up'}", {"e": shown}, language, rng)
    needed = {"all": len(numbers), "ends": 1, "second": 2}[kind]
    best, steps, (colon, comma) = [], [], (spaced(sign, language) for sign in (": ", ", "))
    for value in numbers:
        signs = []                                               # 15: 7<, 11<, 17>: < 7 11 15 17
        for other in best:
            signs.append(f"{other}{'<' if other < value else '>'}")
            if (other < value) == down:
                break
        best = sorted([*best, value], reverse=down)[:needed]
        row = " ".join(["<>"[down], *map(str, best)])
        steps.append(colon.join([str(value), *([comma.join(signs)] if signs else []), row]))
    return question, steps, spaced(", ", language).join(map(str, ranked)) if kind == "all" else str(ranked[needed - 1])


# ---- 8: sequences, clock, calendar ---------------------------------------------------------------------------------

def series(rng: random.Random, language: str, split: str) -> Exercise:
    """8: the next number of a sequence, times of day, days of the week."""
    hard, kind = split == "harder", rng.random()
    if kind < 0.5:
        options = schemas()["series/"] if kind < 0.4 else _longer(schemas()["dates/"], hard)
        return tell(rng.choice(options), rng, language, hard)
    return (_clock if kind < 0.78 else _weekday)(rng, language, hard)


def _clock(rng: random.Random, language: str, hard: bool) -> Exercise:
    """When something ends, when it began, or how long it took: one time above the other, then minutes, then hours."""
    start, long = rng.randrange(6 * 12, 18 * 12) * 5, rng.randint(3, 65 if hard else 30) * 5
    end = min(start + long, 23 * 60 + 55)
    long = end - start
    (h, m), (i, n) = divmod(start, 60), divmod(end, 60)
    hours, minutes = divmod(long, 60)
    time = lambda hour, minute: f"{hour}:{minute:02}"
    kind, steps, shown = rng.choice(("end", "start", "long")), [], _duration(hours, minutes, language, rng)
    taken = time(hours, minutes)
    if kind != "long" and hours and str(long) in shown:              # 75 minutes: an hour and the rest
        steps = [f"{long}-60={minutes}"]
    if kind == "end":
        steps += [f"{time(h, m)}+{taken}", f"{m}+{minutes}={m + minutes}"]
        if m + minutes > 59:
            steps += [f"{m + minutes}-60={n}", f"{h}+1={h + 1}"]
        steps += [f"{i - hours}+{hours}={i}"] if hours else []
    else:                                                        # minutes first; short of minutes, borrow an hour
        take, fewer, gone = (minutes, hours, m) if kind == "start" else (m, h, minutes)
        borrow = n < take
        steps += [f"{time(i, n)}-{taken if kind == 'start' else time(h, m)}",
                  f"{n}-{take}, {n + 60}-{take}={gone}" if borrow else f"{n}-{take}={gone}"]
        steps += [f"{i}-1={i - 1}"] if borrow else []
        steps += [f"{i - borrow}-{fewer}={i - borrow - fewer}"] if fewer else []
        if kind == "long" and hours:
            steps += [f"{hours}*60={hours * 60}", f"{hours * 60}+{minutes}={long}"]
    roles = {"s": time(h, m), "e": time(i, n), "A": rng.choice(choices("person")), "n": long,
             "d": shown}
    final = {"end": time(i, n), "start": time(h, m), "long": str(long)}[kind]
    return ask(f"clock/{kind}", roles, language, rng, words=0), [*steps, final], final


def _duration(hours: int, minutes: int, language: str, rng: random.Random) -> str:
    if not hours or (rng.random() < 0.2 and hours < 2):
        return f"{hours * 60 + minutes}" + {"en": " minutes", "zh": "分钟"}[language]
    if language == "zh":
        return f"{hours}小时" + (f"{minutes}分钟" if minutes else "")
    return f"{hours} hour{'s' * (hours > 1)}" + (f" and {minutes} minutes" if minutes else "")


def _weekday(rng: random.Random, language: str, hard: bool) -> Exercise:
    """The day of the week some days from now or ago: whole weeks taken out, the rest counted."""
    day, n, back = rng.randrange(7), rng.randint(30, 90) if hard else rng.randint(3, 30), rng.random() < 0.35
    days = [name(key, language) for key in DAYS]
    sign = "-" if back else "+"
    steps = [days[day] + spaced(f" {sign} ", language) + str(n)]
    steps += [f"{n // 7}*7={n // 7 * 7}", f"{n}-{n // 7 * 7}={n % 7}"] if n > 6 else []
    row = [days[(day + (-k if back else k)) % 7] for k in range(n % 7 + 1)]
    counted = [f"{sign}{k}{spaced(' ', language)}{step}" for k, step in enumerate(row)]
    steps += [spaced(", ", language).join([row[0], *counted[1:]])]
    roles = {"D": days[day], "n": n, "A": rng.choice(choices("person"))}
    return ask(f"calendar/{'back' if back else 'on'}", roles, language, rng), steps, row[-1]


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ORDINALS = {"en": ["first", "second", "third", "fourth", "fifth", "sixth"], "zh": ["一", "二", "三", "四", "五", "六"]}


FAMILIES: dict[str, Callable] = {"expression": expression, "column": column, "story": story, "chance": chance,
                                 "rate": rate, "equation": equation, "order": order, "series": series,
                                 "reading": reading}
