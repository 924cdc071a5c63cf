"""Word problems of equal groups: so many groups, so many in each, so many in all; any of the three may be asked for.

What is told may have to be worked out first, and the same sentences stand before every question. In: the sentences of
problems_groups.txt. Out: an exercise. Used by exercises.py; explained by tests/test_groups.py.
"""

import random
from dataclasses import replace

from tinyllm.arithmetic import value_of
from tinyllm.telling import Exercise, Lines, around, noted, running
from tinyllm.unheard import renamed, told_as
from tinyllm.wordings import Schema, draw, pick, schemas

# The pronouns of somebody; what has none here, such as `the factory`, keeps its name.
HE = {"boy": ("he", "他"), "girl": ("she", "她")}
CHANGES = {"loss": ("less", "left", "-"), "gain": ("more", "now", "+")}
LARGE, WORKED_OUT, BESIDE = 0.2, 0.45, 0.16                      # shares of problems


class Groups:
    """What is told: the roles of a frame, `number` groups of `each`, which makes `total`, and the sentences so far."""

    def __init__(self, frame: Schema, rng: random.Random, language: str, hard: bool):
        self.name, self.rng, self.language, self.hard = frame.name.split("/")[1], rng, language, hard
        self.roles, self.sentences = draw(frame, rng), []
        self.names = renamed(self.roles, set(), rng)
        self.number_told = ""                                    # in which way: decides how `each` is told
        self.number, self.each = self.sizes()
        self.total = self.number * self.each

    def sizes(self) -> tuple[int, int]:
        """How many groups, and how many in each; a frame may say what is usual for these."""
        low, high = (3, 99) if self.hard or self.rng.random() < LARGE else (2, 12)
        return self.roles.get("g", self.rng.randint(low, high)), self.roles.get("e", self.rng.randint(low, high))

    def can(self, *kinds: str) -> bool:
        """Whether this frame has sentences of these kinds."""
        return all(f"{self.name}/{kind}" in schemas() for kind in kinds)

    def wants_more(self) -> bool:
        """Whether a number is to be worked out instead of told."""
        return self.rng.random() < (0.9 if self.hard else WORKED_OUT)

    def tell(self, kind: str, **given: object) -> str:
        """A sentence of the kind; somebody who has been named, and nobody else has, may be `he` or `she` in it."""
        roles, texts = told_as(self.roles | given, self.names), schemas()[f"{self.name}/{kind}"][0].facts[0]
        before, who = "".join(self.sentences), roles.get("A")
        named = lambda one: one and (one.english in before or one.chinese in before)
        if named(who) and not named(roles.get("B")):
            english, chinese = HE.get(who.features["sex"][0], (who.english, who.chinese))
            he = self.rng.choice((who, replace(who, english=english, plural=english, chinese=chinese)))
            said = pick(texts, roles | {"A": he}, self.language, self.rng)
            if "he's" not in said:                               # Tom's must not become he's
                return said
        return pick(texts, roles, self.language, self.rng)

    def add(self, kind: str, **given: object) -> None:
        """One sentence more."""
        self.sentences.append(self.tell(kind, **given))

    # ---- each tells one of the three numbers and returns the lines that have it as their last result ----

    def two_parts(self, kind: str, n: int, label: str, unit: int = 1) -> Lines:
        """A number told as the sum of two, each so many times `unit`."""
        a = self.rng.randrange(max(unit, 2), n - 1, unit)
        self.add(kind, a=a, b=n - a)
        return [("first", f"{a}"), ("second", f"{n - a}"), (label, f"{a}+{n - a}")]

    def tell_total(self, kind: str = "total", regrouped: bool = False) -> Lines:
        """How many in all: told, a sum, or what came and went (`regrouped`: the next sentence says who {R} are)."""
        t, ways = self.total, ["totals"] if self.can("totals") else []
        ways += [way for way in CHANGES if regrouped and self.can(way, "rest")]
        way = self.rng.choice(ways) if ways and self.wants_more() else ""
        if way in CHANGES:
            size, result, sign = CHANGES[way]
            b = self.rng.randint(2, max(t // 2, 3) if way == "loss" else t - 2)
            start = t + b if way == "loss" else t - b
            self.add(kind, t=start)
            self.add(way, b=b)
            lines = [("start", f"{start}"), (size, f"{b}"), (result, f"{start}{sign}{b}")]
        else:
            unit = 1 if self.can("into") else self.each          # nobody pays half a ticket
            lines = self.two_parts(way, t, "in all", unit) if way else [("in all", f"{t}")]
            if not way:
                self.add(kind, t=t)
        if self.can("rest"):
            self.roles["R"] = self.tell("rest" if way == "loss" else "all")
        return lines

    def tell_number(self, *ways: str) -> Lines:
        """How many groups: told, or in one of the `ways`: the sum of two, or all but some."""
        g, possible = self.number, [way for way in ways if self.can(way) and self.number > 3]
        way = self.number_told = self.rng.choice(possible) if possible and self.wants_more() else "number"
        if way == "numbers":
            return self.two_parts("numbers", g, "number")
        if way == "number":
            self.add("number", g=g)
            return [("number", f"{g}")]
        b = self.rng.randint(2, g // 2 + 1)
        self.add("field" if way == "missed" else "number", g=g + b)
        self.add(way, b=g if way == "fewer-but" else b)
        if way == "fewer-but":                                   # how many there were first does not matter
            return [("number", f"{g}")]
        return [("start", f"{g + b}"), ("less", f"{b}"), ("number", f"{g + b}-{b}")]

    def tell_each(self) -> Lines:
        """How many in each group, or in each of those that the number of groups was about: told, or two kinds."""
        e, kind = self.each, {"fewer": "each-full", "fewer-but": "each-but"}.get(self.number_told, "each")
        kind = kind if self.can(kind) else "each"
        if kind == "each" and e > 3 and self.can("eaches") and self.wants_more():
            return self.two_parts("eaches", e, "each")
        self.add(kind, e=e)
        return [("each", f"{e}")]


# ---- the questions: each tells what it needs, and returns its question and the lines that answer it ----------------

def ask_total(groups: Groups) -> tuple[str, Lines]:
    """How many in all, or what has become of them since."""
    g, e, rng = groups.number, groups.each, groups.rng
    if not groups.wants_more():
        groups.add("both", g=g, e=e)
        lines = [("each", f"{e}"), ("number", f"{g}")]
    elif rng.random() < 0.3:                                     # what holds for each comes first
        lines = groups.tell_each()
        lines += groups.tell_number("numbers", "missed")
    else:
        number = groups.tell_number("numbers", "missed", "fewer", "fewer-but")
        lines = [*groups.tell_each(), *number]
    lines.append(("in all", f"{e}*{g}"))
    ways = [way for way in ("loss ask-left", "gain ask-now") if groups.can(*way.split())]
    if not ways or rng.random() > (0.7 if groups.hard else 0.3):
        return groups.tell("ask-total"), lines
    (way, asked), b = rng.choice(ways).split(), rng.randint(2, max(groups.total // 2, 2))
    groups.add(way, b=b)
    size, result, sign = CHANGES[way]
    return groups.tell(asked), [*lines, (size, f"{b}"), (result, f"{groups.total}{sign}{b}")]


def ask_share(groups: Groups) -> tuple[str, Lines]:
    """How many groups, or how many in each, when one of these and the total are known."""
    rng, e, g = groups.rng, groups.each, groups.number
    asked, size, action, known = rng.choice((("number", "each", "by", {"e": e}), ("each", "number", "into", {"g": g})))
    (divisor,) = known.values()
    planned = groups.can("plan", action) and rng.random() < 0.6  # it is still to be done
    acted = planned or (groups.can(action) and not groups.can("plan") and rng.random() < 0.8)
    inside = not planned and groups.can(f"with-{asked}") and rng.random() < 0.2      # told in the question
    apart = not acted and not inside and action == "by"          # the size in a sentence of its own, perhaps the first
    told = groups.tell_each() if apart and rng.random() < 0.4 else []
    lines = groups.tell_total("plan" if planned else "total", regrouped=acted and not inside) + told
    saying = "took" if action == "into" and not planned and groups.can("took") else action
    if apart:
        lines += [] if told else groups.tell_each()
    elif inside or groups.can(saying):
        if not inside:
            groups.add(saying, **known)
        lines.append((size, f"{divisor}"))
    else:                                                        # nothing is put into groups: they are there
        lines += groups.tell_number("numbers", "missed")
    lines.append((asked, f"{groups.total}/{divisor}"))
    kind = f"with-{asked}" if inside else f"ask-{asked}-plan" if planned else f"ask-{asked}"
    return groups.tell(kind, **known), lines


def ask_whole(groups: Groups) -> tuple[str, Lines]:
    """Everything in one sentence, the question."""
    e, g, t = groups.each, groups.number, groups.total
    asked, told, lines = groups.rng.choice((
        ("total", {"g": g, "e": e}, [("each", f"{e}"), ("number", f"{g}"), ("in all", f"{e}*{g}")]),
        ("number", {"t": t, "e": e}, [("in all", f"{t}"), ("each", f"{e}"), ("number", f"{t}/{e}")]),
        ("each", {"t": t, "g": g}, [("in all", f"{t}"), ("number", f"{g}"), ("each", f"{t}/{g}")])))
    return groups.tell(f"whole-{asked}", **told), lines


def ask_given(groups: Groups) -> tuple[str, Lines]:
    """How many each got, or all of them, when some were left over."""
    g, t, left = groups.number, groups.total, groups.rng.randint(2, max(groups.total // 2, 3))
    for kind, told in (("total", {"t": t + left}), ("give", {"g": g}), ("over", {"l": left})):
        groups.add(kind, **told)
    lines = [("start", f"{t + left}"), ("left", f"{left}"), ("less", f"{t + left}-{left}")]
    if groups.can("ask-gone") and groups.rng.random() < 0.4:
        return groups.tell("ask-gone"), lines
    return groups.tell("ask-each"), [*lines, ("number", f"{g}"), ("each", f"{t}/{g}")]


def ask_rounded(groups: Groups) -> tuple[str, Lines]:
    """How many groups are needed for all, how many are full, or how many stay over, when it does not come out even."""
    g, e = groups.number, max(groups.each, 3)
    n = g * e + groups.rng.randint(1, e - 1)
    groups.add("total", t=n)
    groups.add("hold", e=e)
    asked = groups.rng.choice([kind for kind in ("ask-up", "ask-full", "ask-over") if groups.can(kind)])
    lines = [("in all", f"{n}"), ("each", f"{e}"), ("full", f"{g}"), ("used", f"{e}*{g}"), ("left", f"{n}-{g * e}")]
    number = {"ask-up": [f"{g}+1"], "ask-full": [f"{g}"], "ask-over": []}[asked]
    return groups.tell(asked, e=e), lines + [("number", expression) for expression in number]


def ask_two(groups: Groups) -> tuple[str, Lines]:
    """Two groupings: together, or how much more the one is."""
    e, g, t, (h, f) = groups.each, groups.number, groups.total, groups.sizes()
    groups.add("both", g=g, e=e)
    groups.add("other", h=h, f=f)
    lines = [("each", f"{e}"), ("number", f"{g}"), ("first", f"{e}*{g}"),
             ("each", f"{f}"), ("number", f"{h}"), ("second", f"{f}*{h}")]
    if groups.can("ask-gap") and h * f != t and groups.rng.random() < 0.4:
        (small, minor), (large, major) = sorted([(t, "X"), (h * f, "Y")])
        question = groups.tell("ask-gap", M=groups.roles[major], N=groups.roles[minor])
        return question, [*lines, ("difference", f"{large}-{small}")]
    return groups.tell("ask-sum" if groups.can("ask-sum") else "ask-total"), [*lines, ("in all", f"{t}+{h * f}")]


def ask_rates(groups: Groups) -> tuple[str, Lines]:
    """Two who do the same for as long: together, or how much more the one does."""
    a, g, rng = groups.each, groups.number, groups.rng
    b = rng.choice([n for n in range(max(a - 12, 2), a + 12) if n != a])
    told = [groups.tell("rates", a=a, b=b), groups.tell("rates-number", g=g)]     # both with the name: `he` could be B
    groups.sentences += told
    if groups.can("ask-apart") and rng.random() < 0.5:
        (less, minor), (more, major) = sorted([(a, "A"), (b, "B")])
        question = groups.tell("ask-apart", M=groups.roles[major], N=groups.roles[minor])
        return question, [("first", f"{more}"), ("second", f"{less}"), ("difference", f"{more}-{less}"),
                          ("number", f"{g}"), ("in all", f"{more - less}*{g}")]
    return groups.tell("ask-together"), [("first", f"{a}"), ("second", f"{b}"), ("each", f"{a}+{b}"),
                                         ("number", f"{g}"), ("in all", f"{a + b}*{g}")]


# Every question, the sentences that a frame must have for it, and how often it is asked.
QUESTIONS = {ask_total: ("both", 6), ask_share: ("total", 10), ask_whole: ("whole-total", 3), ask_given: ("over", 3),
             ask_rounded: ("hold", 3), ask_two: ("other", 3), ask_rates: ("rates", 3)}


def tell_groups(rng: random.Random, language: str, hard: bool) -> Exercise:
    """One question about equal groups; in one of six problems a number of something else is told besides."""
    answer = 0
    while not 0 < answer < 10000:
        groups = Groups(rng.choice(schemas()["group/"]), rng, language, hard)
        options = {ask: share for ask, (kind, share) in QUESTIONS.items() if groups.can(kind)}
        question, lines = rng.choices(list(options), list(options.values()))[0](groups)
        answer = value_of(lines[-1][1])
    idle = around(told_as(groups.roles, groups.names), language, rng)
    if rng.random() < BESIDE:
        rng.choice(idle).append(beside(groups))
    return running(groups.sentences, question, idle, language, rng), noted(lines, language), str(answer)


def beside(groups: Groups) -> str:
    """A sentence with a number that does not matter, about somebody in the problem or about nobody."""
    human = "A" in groups.roles and groups.roles["A"].features["sex"][0] in HE
    schema = groups.rng.choice([schema for schema in schemas()["beside/"] if human or not schema.roles])
    roles = draw(schema, groups.rng, given=groups.roles | {"c": groups.rng.randint(6, 14)})
    return pick(schema.facts[0], told_as(roles, groups.names), groups.language, groups.rng)
