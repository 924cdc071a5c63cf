"""The embedded corpus: a small bilingual world, simulated and told through a grammar; nothing to download.

The lexicon says what exists, the grammar what can happen and how it is told. This module draws the roles of a plot,
runs it on a state (who holds what, who is where) and has every step worded in English or Chinese. A hash of the premise
divides train from test. Explained by tests/test_world.py.
"""

import contextlib
import functools
import json
import os
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyllm.config import Settings, command, opt, read_settings
from tinyllm.grammar import Plot, Step, grammar, polished, wording
from tinyllm.lexicon import LANGUAGES, Concept, concepts, members

TEST_SHARE = 20                       # one premise in TEST_SHARE belongs to the test split
SPLITS = ("train", "test")


# ---- the simulation: from a plot to events -------------------------------------------------------------------------

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


@dataclass
class Story:
    """A told story and the record that questions about it are made from."""
    plot: str
    language: str
    sentences: list[str]
    events: list[Event]
    facts: dict
    premises: list[tuple]
    text: str = ""


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
def ways(title: str, given: tuple) -> list[Plot]:
    """The plots called `title` (or, with a final slash, of that kind) that accept `given`."""
    plots = roots(title[:-1]) if title.endswith("/") else grammar().plots[title]
    return [plot for plot in plots if accepts(plot, given)]


# ---- telling: from events to text ----------------------------------------------------------------------------------

def word_steps(simulation: Simulation, language: str, rng: random.Random) -> list[str]:
    sentences = []
    for step, roles, event, pick in simulation.plan:
        if not step.texts[language]:                             # a second side of the event before: nothing to say
            event.text = simulation.events[event.order - 1].text
            continue
        wordings = step.texts[language]
        text = polished(wording(wordings[int(pick * len(wordings))], roles, language, rng), language)
        if event:
            event.text = text.strip()
        sentences.append(text)
    return sentences


def join(sentences: list[str], language: str) -> str:
    """The sentences as running text; a document never holds a blank line."""
    return re.sub(r"\s*\n\s*", "\n", (" " if language == "en" else "").join(sentences)).strip()


@functools.cache
def roots(kind: str) -> list[Plot]:
    """The plots a document of this kind may start from: those named kind/..."""
    return [plot for title, ways in grammar().plots.items() if title.startswith(kind + "/") for plot in ways]


def _fragment(simulation: Simulation, title: str, given: list) -> None:
    simulation.tell(Plot("", [("A", "")], [Step(include=title, arguments=["A"])]), {"A": given[0]})


def _episodes(simulation: Simulation, most: int) -> Plot:
    """Play one to `most` story plots about the same hero between an opening and a close; return the first plot."""
    rng, seen, hero, friend = simulation.rng, [], None, None
    for episode in range(most):
        given = [hero] if episode else []
        plots = [plot for plot in ways("story/", tuple(value[0] for value in given))
                 if plot not in seen and not (episode and opens(plot))]
        if not plots:
            break
        plot = rng.choice(plots)
        if episode and isinstance(friend, tuple) and rng.random() < 0.7 and accepts(plot, (hero[0], friend[0])):
            given.append(friend)
        roles = simulation.cast(plot, given, simulation.split)
        if roles is None:
            break
        if not episode:
            hero, friend = (list(roles.values()) * 2)[:2]
        if not opens(plot):
            _fragment(simulation, "then" if episode else "opening", [hero])
        simulation.tell(plot, roles)
        seen.append(plot)
        if len(simulation.plan) > 22 or rng.random() < 0.25:
            break
    if rng.random() < 0.6:
        _fragment(simulation, "closing", [hero])
    return seen[0]


def opens(plot: Plot) -> bool:
    """Whether a plot brings its own opening (a snowman needs snow)."""
    return plot.steps[0].include.startswith("opening")


def story(index: int, seed: int = 0, split: str = "train", language: str = "en") -> Story:
    """Story `index` with its record. Both languages tell the same events."""
    simulation = Simulation(random.Random(f"story {seed} {split} {index}"), split)
    plot = _episodes(simulation, 3)
    sentences = word_steps(simulation, language, random.Random(f"{language} {seed} {split} {index}"))
    people = sorted({key for event in simulation.events for key in (event.actor, event.recipient) if key})
    holdings: dict = {}
    for (owner, thing), count in simulation.holds.items():
        holdings.setdefault(owner, {})[thing] = count
    record = {"people": people, "places": dict(simulation.where), "holdings": holdings}
    return Story(plot.name, language, sentences, simulation.events, record, simulation.premises,
                 join(sentences, language))


def document(index: int, seed: int = 0, split: str = "train") -> str:
    """Document `index` of an endless corpus: a pure function of its arguments; even is English, odd Chinese."""
    return told(index, seed, split)[0]


def told(index: int, seed: int = 0, split: str = "train") -> tuple[str, str, list[tuple]]:
    """(text, name of its plot, premises) of document `index`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    rng, language = random.Random(f"{seed} {split} {index}"), LANGUAGES[index % 2]
    kind = rng.choices(list(grammar().weights), grammar().weights.values())[0]
    simulation = Simulation(rng, split)
    if kind in ("story", "pairs") and (kind == "story" or rng.random() < 0.5):
        plot = _episodes(simulation, 3 if kind == "story" else 1)
    else:
        plot = rng.choice(roots(kind))
        simulation.tell(plot, simulation.cast(plot, split=split))
    if kind == "pairs":                                          # every sentence in one language, then in the other
        simulation.plan = simulation.plan[:10]
        sides = [word_steps(simulation, side, rng) for side in (language, LANGUAGES[1 - index % 2])]
        sentences = [f"{one.strip()}\n{other.strip()}\n" for one, other in zip(*sides)]
    else:
        sentences = word_steps(simulation, language, rng)
    return join(sentences, language), ("pairs:" if kind == "pairs" else "") + plot.name, simulation.premises


def documents(n: int, seed: int = 0, split: str = "train") -> Iterator[str]:
    """The first `n` documents."""
    return (document(index, seed, split) for index in range(n))


# ---- command -------------------------------------------------------------------------------------------------------

@dataclass
class WorldConfig(Settings):
    """Write documents of the generated world, separated by blank lines: the corpus everything else learns from.

    Without flags it prints a few to read. The same seed always gives the same documents. The two splits share no
    premise: no plot with the same people, things and places stands in both.
        python -m tinyllm.world --documents 50000 --out data/world.txt
        python -m tinyllm.world --documents 1000 --split test --out data/world_test.txt
    """
    documents: int = opt(5, "how many documents", low=1)
    out: str = opt("", "file to write; empty prints the documents")
    seed: int = opt(0, "another seed gives another corpus")
    split: str = opt("train", "which share of the premises", choices=SPLITS)
    language: str = opt("both", "keep only documents of one language", choices=("en", "zh", "both"))
    json: bool = opt(False, "print statistics as JSON instead of the documents")


def write(config: WorldConfig) -> dict:
    """Write or print the documents of `config`; return their statistics."""
    step = 1 if config.language == "both" else 2
    first = LANGUAGES.index(config.language) if step == 2 else 0
    counts, kinds, words, characters = Counter(), Counter(), set(), 0
    target = Path(config.out + ".part") if config.out else None
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", encoding="utf-8") if target else contextlib.nullcontext(sys.stdout) as sink:
        for n, index in enumerate(range(first, first + step * config.documents, step)):
            text, plot, _ = told(index, config.seed, config.split)
            if target or not config.json:
                print(text, end="\n\n", file=sink)
            kinds[re.split("[:/]", plot)[0]] += 1
            counts[plot] += 1
            words.update(re.findall(r"[a-z'-]+|[\u4e00-\u9fff]", text.lower()))
            characters += len(text)
            if (n + 1) % 10000 == 0:
                print(f"{n + 1} of {config.documents} documents", file=sys.stderr)
        sink.flush()
        if target:
            os.fsync(sink.fileno())
    if target:
        os.replace(target, config.out)
    return {"documents": sum(counts.values()), "characters": characters, "distinct_words": len(words),
            "plots": len(counts), "kinds": dict(kinds)}


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(WorldConfig, "python -m tinyllm.world", argv)
    stats = write(config)
    if config.json:
        print(json.dumps(stats, ensure_ascii=False))
    elif config.out:
        print(f"{config.out}: {stats['documents']} documents, {stats['characters']} characters", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
