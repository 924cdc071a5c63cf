"""The embedded corpus: a small bilingual world, simulated and told through a grammar; nothing to download.

`world_words.tsv` says what exists, `world_plots.txt` what can happen and how it is told. This module draws the roles
of a plot, runs it on a state (who holds what, who is where) and words every step in English or Chinese. A hash of the
premise divides train from test. Explained by tests/test_world.py.
"""

import contextlib
import functools
import importlib.resources
import json
import os
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm.config import Settings, command, opt, read_settings

TEST_SHARE = 20                       # one premise in TEST_SHARE belongs to the test split
SPLITS, LANGUAGES = ("train", "test"), ("en", "zh")


# ---- what exists: world_words.tsv ----------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Concept:
    """One row of world_words.tsv: a thing, person, place, quality or activity with its name in both languages."""
    key: str
    english: str
    plural: str                       # "" regular, "~glass" uncountable and its unit, "=pair" always plural
    chinese: str
    measure: str                      # Chinese measure word: 一[本]书
    kinds: tuple[str, ...]            # its class and the classes above it
    features: dict[str, list[str]]    # relation -> keys of other concepts (or plain values)


def _lines(name: str) -> list[str]:
    text = (importlib.resources.files("tinyllm") / name).read_text(encoding="utf-8")
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@functools.cache
def concepts() -> dict[str, Concept]:
    """Every concept by its key. A row starting with `@` opens a class; the rows below inherit its features."""
    table: dict[str, Concept] = {}
    parent = None
    for line in _lines("world_words.tsv"):
        name, plural, chinese, measure, given = (line.split("\t") + [""] * 4)[:5]
        key = name.lstrip("@").replace(" ", "_")
        features = {relation: values.split(",") for relation, values in (item.split("=") for item in given.split())}
        above = table[features.pop("is")[0]] if name.startswith("@") and "is" in features else \
            None if name.startswith("@") else parent
        kinds = ((above.key,) + above.kinds) if above else ()
        features = (above.features if above else {}) | features
        measure = measure or (above.measure if above else "个")
        assert key not in table, f"world_words.tsv: {key} stands twice"
        english = key.split("#")[0].replace("_", " ")
        table[key] = Concept(key, english, plural, chinese, measure, kinds, features)
        parent = table[key] if name.startswith("@") else parent
    return table


@functools.cache
def members(spec: str) -> list[Concept]:
    """The concepts a role may take: `toy`, `child|critter`, `food&.sold-at` (has it), `animal&size=big`."""
    def fits(concept: Concept, test: str) -> bool:
        relation, _, value = test.partition("=")
        if test[0] == ".":
            return test[1:] in concept.features
        return value in concept.features.get(relation, []) if value else test in (concept.key, *concept.kinds)
    classes = {kind for concept in concepts().values() for kind in concept.kinds}
    found = [concept for concept in concepts().values() if concept.key not in classes and any(
        all(fits(concept, test) for test in option.split("&")) for option in spec.split("|"))]
    assert found, f"no concept fits {spec!r}"
    return found


def facts(language: str = "en") -> list[tuple[str, str, str]]:
    """Everything the world holds true, as (subject, relation, object): `("apple", "is-a", "fruit")`."""
    table = concepts()
    classes = {kind for concept in table.values() for kind in concept.kinds}
    triples = []
    for concept in table.values():
        if concept.key not in classes and concept.kinds[0] != "relation":
            triples.append((concept.key, "is-a", concept.kinds[0]))
            triples += [(concept.key, relation, value) for relation, values in concept.features.items()
                        if f"{relation}#relation" in table for value in values]
    return [(name(subject, language), name(f"{relation}#relation", language), name(value, language))
            for subject, relation, value in triples]


# ---- words: one concept in one form of one language ----------------------------------------------------------------

SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
DIGITS = "零一二三四五六七八九"


@functools.cache
def number(n: int, language: str) -> str:
    """A whole number below 1000 in words: 21 -> twenty-one, 二十一."""
    if language == "en":
        if n < 20:
            return SMALL[n]
        if n < 100:
            return TENS[n // 10] + (f"-{SMALL[n % 10]}" if n % 10 else "")
        return f"{SMALL[n // 100]} hundred" + (f" and {number(n % 100, 'en')}" if n % 100 else "")
    if n < 10:
        return DIGITS[n]
    if n < 100:
        return (DIGITS[n // 10] if n >= 20 else "") + "十" + (DIGITS[n % 10] if n % 10 else "")
    rest = n % 100
    return DIGITS[n // 100] + "百" + ("" if not rest else f"零{DIGITS[rest]}" if rest < 10 else
                                     ("一" if rest < 20 else "") + number(rest, "zh"))


def with_article(phrase: str) -> str:
    """`an apple`, `a ball`: the article follows the sound, not the letter."""
    vowel = re.match(r"[aeio]|u(?!ni|se)|hour|honest", phrase) and not phrase.startswith("one")
    return ("an " if vowel else "a ") + phrase


def plural(noun: str) -> str:
    """The regular English plural: ball -> balls, box -> boxes, city -> cities, loaf -> loaves."""
    if noun.endswith("af"):
        return noun[:-1] + "ves"
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


PRONOUNS = {"boy": ("he", "him", "his", "himself"), "girl": ("she", "her", "her", "herself"),
            "it": ("it", "it", "its", "itself"), "many": ("they", "them", "their", "themselves")}
AGREE = {"are": "are", "is": "are", "was": "were", "has": "have", "does": "do", "this": "these", "s-verb": ""}


def _english(concept: Concept, form: str, look: Concept | None) -> str:
    noun, proper = concept.english, "proper" in concept.features
    full = f"{look.english} {noun}" if look else noun
    unit, many = concept.plural[1:] if concept.plural[:1] in ("~", "=") else "", concept.plural.startswith("=")
    if form in ("he", "him", "his", "himself"):
        sex = "many" if many else concept.features.get("sex", ["it"])[0]
        return PRONOUNS[sex][("he", "him", "his", "himself").index(form)]
    if form == "are":                                            # after the plural: balls are, milk is
        return "is" if unit and not many else "are"
    if form in AGREE:
        return AGREE[form] if many else form
    if form in ("past", "ing"):                                  # activities: "flew a kite|flying a kite"
        return concept.plural.split("|")[form == "ing"]
    place = noun if proper else f"the {noun}"
    forms = {"": noun, "full": full, "the": place, "to": f"to {place}", "s": noun if unit else plurals(concept),
             "at": f"{concept.features.get('prep', ['at'])[0]} {place}",
             "one": noun if proper else with_article(f"{unit} of {noun}" if unit else noun),
             "a": noun if proper else with_article(f"{unit} of {full}" if unit else full)}
    return forms[form]


def plurals(concept: Concept) -> str:
    """The English plural of a countable concept."""
    return concept.plural or plural(concept.english)


def _chinese(concept: Concept, form: str, look: Concept | None) -> str:
    noun = concept.chinese
    full = (look.chinese + ("的" if len(look.chinese) > 1 else "") if look else "") + noun
    if form in ("he", "him", "his", "himself"):
        sex = concept.features.get("sex", ["it"])[0] if "human" in concept.kinds else "it"
        return {"boy": "他", "girl": "她"}.get(sex, "它") + {"his": "的", "himself": "自己"}.get(form, "")
    if form == "one":
        return f"一{concept.measure}{noun}"
    forms = {"full": full, "a": noun if "proper" in concept.features else f"一{concept.measure}{full}",
             "at": noun + concept.features.get("loc", ["里"])[0]}
    return forms.get(form, noun)


@functools.cache
def _word(concept: Concept, path: str, language: str, look: Concept | None) -> str:
    head, _, rest = path.partition(".")
    if head == "kind":
        return _word(concepts()[concept.kinds[0]], rest, language, None)
    if head in concept.features:                                 # {A.job.a}: follow the relation, then choose the form
        return _word(concepts()[concept.features[head][0]], rest, language, None)
    return (_english if language == "en" else _chinese)(concept, head, look)


def name(key: str, language: str, form: str = "") -> str:
    """The concept `key` as a word: name("apple", "en", "a") -> "an apple", name("apple", "zh") -> "苹果"."""
    return _word(concepts()[key], form, language, None)


@functools.cache
def counted(n: int, key: str, language: str) -> str:
    """A number of things: three apples, 三个苹果, two glasses of milk, 两杯牛奶."""
    concept = concepts()[key]
    if language == "zh":
        return ("两" if n == 2 else number(n, "zh")) + concept.measure + concept.chinese
    if concept.plural[:1] in ("~", "="):
        unit = concept.plural[1:]
        return f"{number(n, 'en')} {unit if n == 1 else plural(unit)} of {concept.english}"
    return f"{number(n, 'en')} {concept.english if n == 1 else plurals(concept)}"


# ---- what can happen: world_plots.txt ------------------------------------------------------------------------------

@dataclass(eq=False)
class Step:
    """One line of a plot: something that happens (or is only said), or another plot to tell here."""
    include: str = ""                                            # name of the plot to tell, else an event
    optional: bool = False
    action: str = ""                                             # "" says something without anything happening
    arguments: list[str] = field(default_factory=list)           # role names: actor, object; or what include is given
    marks: dict[str, str] = field(default_factory=dict)          # > recipient, @ place, # count, < causes
    texts: dict[str, list] = field(default_factory=lambda: {"en": [], "zh": []})


@dataclass(eq=False)
class Plot:
    """A named sequence of steps and the roles it needs: [("A", "child"), ("N", "2..9")]."""
    name: str
    roles: list[tuple[str, str]]
    steps: list[Step]


@dataclass
class Grammar:
    """Everything in world_plots.txt."""
    plots: dict[str, list[Plot]]                                 # name -> the ways it can go
    effects: dict[str, str]                                      # action -> gain, lose, pass or go
    weights: dict[str, int]                                      # kind of document -> how often


@functools.cache
def grammar() -> Grammar:
    """world_plots.txt, parsed; its first lines explain the notation."""
    rules, phrases = Grammar({}, {}, {}), {}
    for line in _lines("world_plots.txt"):
        mark, _, rest = line.partition(" ")
        if mark == "!":
            effect, *actions = rest.split()
            rules.effects |= dict.fromkeys(actions, effect)
        elif mark == "%":
            rules.weights[rest.split()[0]] = int(rest.split()[1])
        elif mark == "==":
            title, *roles = rest.split()
            plot = Plot(title, [tuple((role + "=").split("=", 1)) for role in roles], [])
            plot.roles = [(role, spec.rstrip("=")) for role, spec in plot.roles]
            rules.plots.setdefault(title, []).append(plot)
        elif mark == ":":
            texts = phrases.setdefault(rest, {"en": [], "zh": []})
        elif mark in ("+", "?+", "-", "?-"):
            plot.steps.append(_step(mark, rest.split()))
            texts = plot.steps[-1].texts
        else:
            assert mark in LANGUAGES, f"world_plots.txt: cannot read {line!r}"
            texts[mark].append(_template(rest, mark, phrases))
    return rules


def _step(mark: str, words: list[str]) -> Step:
    step = Step(optional=mark[0] == "?")
    plain = [word for word in words if word[0] not in ">@#<"]
    step.marks = {word[0]: word[1:] for word in words if word[0] in ">@#<"}
    if mark[-1] == "+":
        step.include, step.arguments = plain[0], plain[1:]
    elif plain:
        step.action, step.arguments = plain[0], plain[1:]
    return step


def _template(text: str, language: str, phrases: dict) -> list:
    """A wording as a list of strings, slots (tuples) and choices (lists of templates)."""
    stack: list[list] = [[[]]]                                   # each level holds the alternatives read so far
    for token in re.findall(r"[\[\]|]|\{[^}]*\}|<[^>]*>|[^\[\]|{<]+", text.replace("\\n", "\n")):
        if token == "[":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == "]":
            choice = stack.pop()
            stack[-1][-1].append(choice)
        elif token[0] == "{":
            first, _, second = token[1:-1].partition(" ")
            stack[-1][-1].append((first, second, None) if second else (*(first + ".").split(".", 1), ""))
        elif token[0] == "<":
            stack[-1][-1].append(phrases.setdefault(token[1:-1], {"en": [], "zh": []})[language])
        else:
            stack[-1][-1].append(token)
    assert len(stack) == 1, f"world_plots.txt: brackets do not match in {text!r}"
    return [stack[0]] if len(stack[0]) > 1 else stack[0][0]


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

def _wording(template: list, roles: dict, language: str, rng: random.Random) -> str:
    parts = []
    for part in template:
        if type(part) is str:
            parts.append(part)
        elif type(part) is list:
            parts.append(_wording(part[int(rng.random() * len(part))], roles, language, rng))
        else:
            role, path, plain = part
            value = roles[role]
            if plain is None:                                    # {N X}: a number of things
                parts.append(counted(value, roles[path][0].key, language))
            elif isinstance(value, int):
                parts.append(str(value) if path else number(value, language))
            else:
                parts.append(_word(value[0], path.rstrip("."), language, value[1]))
    return "".join(parts)


def _polished(text: str, language: str) -> str:
    """English with a capital at each start of a sentence; Chinese with 两 for a counted two."""
    if language == "zh":
        return re.sub(r"(?<![十百第期零一二三四五六七八九])二(?=[天个点条只枚岁年次篮块步])", "两", text)
    return re.sub(r'(^"?|[.]" "?|[.!?] "?|[:] "|\n"?)([a-z])', lambda found: found[1] + found[2].upper(), text)


def word_steps(simulation: Simulation, language: str, rng: random.Random) -> list[str]:
    sentences = []
    for step, roles, event, pick in simulation.plan:
        if not step.texts[language]:                             # a second side of the event before: nothing to say
            event.text = simulation.events[event.order - 1].text
            continue
        wordings = step.texts[language]
        text = _polished(_wording(wordings[int(pick * len(wordings))], roles, language, rng), language)
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
