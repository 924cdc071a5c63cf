"""What happens: a plot is cast with people and things and played on a state of who holds what and who is where.

In: a plot of the grammar and a random generator. Out: events, free of language, and the plan by which world.py words
them. A hash of the premise divides train from test. Explained by tests/test_world.py.
"""

import functools
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass

from tinyllm.grammar import Plot, Step, grammar
from tinyllm.lexicon import Concept, concepts, members

TEST_SHARE = 20                       # one premise in TEST_SHARE belongs to the test split


@dataclass
class Event:
    """Something that happened, free of language: the fields hold keys of concepts."""
    order: int
    action: str
    actor: str | None = None
    object: str | None = None
    recipient: str | None = None
    place: str | None = None
    count: int | None = None
    cause: int | None = None                                     # order of the event that brought this one about
    text: str = ""                                               # how this telling words it


def premise_split(premise: tuple) -> str:
    """The split that owns a premise: a hash of what the document is about, never of how it is worded."""
    return "test" if zlib.crc32(repr(premise).encode()) % TEST_SHARE == 0 else "train"


class Simulation:
    """The state of one document while its plots are being told."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng, self.split = rng, split
        self.holds: Counter = Counter()                          # (person, thing) -> how many
        self.where: dict[str, str] = {}
        self.latest: dict[str, int] = {}                         # action -> order of its latest event
        self.events: list[Event] = []
        self.plan: list[tuple[Step, dict, Event | None, float]] = []    # the float picks a wording
        self.used: set[Concept] = set()
        self.premises: list[tuple] = []

    def draw(self, spec: str, roles: dict) -> tuple | int:
        """A value for a role: a number (`2..9`, `N+M`), a relation (`X.sold-at`), a sibling (`~X`) or a class."""
        form = _form_of(spec)
        if form == "range":
            low, high = (_sum(side, roles) for side in spec.split(".."))
            return self.rng.randint(low, high)
        if form == "relation":
            role, relation = spec.split(".")
            return concepts()[self.rng.choice(roles[role][0].features[relation])], None
        if form == "sum":
            return _sum(spec, roles)
        if form == "sibling":
            spec = roles[spec[1:]][0].kinds[0]
        options = members(spec)
        for _ in range(30):
            concept = options[int(self.rng.random() * len(options))]
            if concept not in self.used:
                break
        self.used.add(concept)
        looks = concept.features.get("adj")
        look = self.rng.choice(members(self.rng.choice(looks))) if looks and self.rng.random() < 0.6 else None
        return concept, look

    def cast(self, plot: Plot, given: list = (), split: str = "") -> dict | None:
        """Values for all roles of `plot`, the first ones `given`; with `split`, a premise that belongs to it.

        None when 1000 draws found no such premise (the given roles may leave too little choice).
        """
        for _ in range(1000):
            before = set(self.used)
            roles = dict(zip((role for role, _ in plot.roles), given))
            self.used |= {value[0] for value in given if isinstance(value, tuple)}
            for role, spec in plot.roles[len(given):]:
                roles[role] = self.draw(spec, roles)
            premise = (plot.name, *(value if isinstance(value, int) else value[0].key for value in roles.values()))
            if not split or premise_split(premise) == split:
                if split:
                    self.premises.append(premise)
                return roles
            self.used = before
        return None

    def tell(self, plot: Plot, roles: dict, causes: str = "") -> None:
        """Play the steps of `plot` in order; `causes` name what brought them about unless they say so themselves."""
        for step in plot.steps:
            if step.optional and self.rng.random() < 0.5:
                continue
            if step.include:
                given = [roles[argument] for argument in step.arguments]
                possible = ways(step.include, tuple(value if isinstance(value, int) else value[0] for value in given))
                if step.optional and not possible:
                    continue
                assert possible, f"{plot.name}: no {step.include} for {given}"
                way = possible[int(self.rng.random() * len(possible))]
                self.tell(way, self.cast(way, given), step.marks.get("<", causes))
            else:
                self.plan.append((step, roles, self.happen(step, roles, causes) if step.action else None,
                                  self.rng.random()))

    def happen(self, step: Step, roles: dict, causes: str = "") -> Event:
        """Record the event and change the state; nobody gives away or loses what they do not have."""
        key = lambda role: None if not role else roles[role][0].key if role in roles else concepts()[role].key
        actor, thing = ([*step.arguments, None, None])[:2]
        causes = [self.latest[label] for label in step.marks.get("<", causes).split(",") if label in self.latest]
        count = roles[step.marks["#"]] if "#" in step.marks else None
        event = Event(len(self.events), step.action, key(actor), key(thing), key(step.marks.get(">")),
                      key(step.marks.get("@")), count, max(causes, default=None))
        effect, amount = grammar().effects.get(step.action), 1 if count is None else count
        if effect in ("lose", "pass"):
            assert self.holds[event.actor, event.object] >= amount, f"{event} without having it"
            self.holds[event.actor, event.object] -= amount
        if effect in ("gain", "pass", "grant"):
            self.holds[event.actor if effect == "gain" else event.recipient, event.object] += amount
        if effect == "go":
            self.where[event.actor] = event.place
        self.latest[step.action] = event.order
        self.events.append(event)
        return event


def _sum(expression: str, roles: dict) -> int:
    """The value of `N+M-1`, read from left to right."""
    total = 0
    for sign, term in re.findall(r"([-+*]?)(\w+)", expression):
        value = roles[term] if term in roles else int(term)
        total = total * value if sign == "*" else total - value if sign == "-" else total + value
    return total


@functools.cache
def _form_of(spec: str) -> str:
    """What kind of role this is: `2..9` range, `~X` sibling, `X.sold-at` relation, `N+M` sum, else class."""
    forms = {"range": r".*\w\.\.\w", "sibling": "~", "relation": r"[A-Z]\d?\.", "sum": r"([A-Z]\d?|\d+)([-+*]|$)"}
    return next((form for form, pattern in forms.items() if re.match(pattern, spec)), "class")


@functools.cache
def _member_set(spec: str) -> frozenset[Concept]:
    return frozenset(members(spec))


def accepts(plot: Plot, given: tuple) -> bool:
    """Whether the values `given` (concepts or numbers) fit the first roles of `plot`."""
    return len(given) <= len(plot.roles) and all(
        not spec or (isinstance(value, Concept) and _form_of(spec) == "class" and value in _member_set(spec))
        for (_, spec), value in zip(plot.roles, given))


@functools.cache
def roots(kind: str) -> list[Plot]:
    """The plots a document of this kind may start from: those named kind/..."""
    return [plot for title, ways in grammar().plots.items() if title.startswith(kind + "/") for plot in ways]


@functools.cache
def ways(title: str, given: tuple) -> list[Plot]:
    """The plots called `title` (or, with a final slash, of that kind) that accept `given`."""
    plots = roots(title[:-1]) if title.endswith("/") else grammar().plots[title]
    return [plot for plot in plots if accepts(plot, given)]
