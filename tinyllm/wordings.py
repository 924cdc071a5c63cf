"""Questions written as data: problems_*.txt holds their wordings, numbers and steps; read, drawn and worded here.

The notation is that of world_plots.txt, explained in problems_stories.txt and problems_scenes.txt. In: a schema and a
random generator. Out: its roles, and sentences about them; telling.py makes whole problems of these. Explained by
tests/test_problems.py.
"""

import contextlib
import functools
import math
import random
import re
from dataclasses import dataclass, field
from fractions import Fraction

from tinyllm.arithmetic import value_of
from tinyllm.grammar import polished, template
from tinyllm.lexicon import LANGUAGES, Concept, concepts, data_lines, members, number, plurals, word

FILES = ("problems_stories.txt", "problems_scenes.txt", "problems_school.txt", "problems_upper.txt",
         "problems_measures.txt", "problems_sixth.txt", "problems_steps.txt", "problems_forms.txt",
         "problems_accounts.txt", "problems_groups.txt", "problems_chances.txt", "problems_asks.txt",
         "problems_instructions.txt")
MONEY = {"$": "dollar", "£": "pound", "dollar": "dollar", "yuan": "yuan", "euro": "euro", "coin": "coin"}
OWNED = ("fruit", "vegetable", "flower", "treat", "toy", "stationery", "keepsake", "reading", "clothing", "ware")
FRACTIONS = {3: "third", 4: "quarter", 5: "fifth", 6: "sixth"}
PLACES = {"c.": 2, "p.": 2, "t.": 1}                             # behind the point: {a.c} of 350 is 3.5, {a.p} 3.50
NO_CHOICE = random.Random(0)                                     # for templates without choices


# ---- schemas: problems_*.txt ---------------------------------------------------------------------------------------

@dataclass(eq=False)
class Schema:
    """One `==` section: roles, steps and groups of wordings, each {"en": [templates], "zh": [templates]}."""
    name: str
    roles: list[tuple[str, str]]                                 # ("A", "child"), ("a", "3..9"), ("b", "a*2")
    steps: list[tuple[str, str, dict]] = field(default_factory=list)     # result, expression, label by language
    needs: list[str] = field(default_factory=list)               # conditions such as `a<b`; of reading, the label of
                                                                 # the answer: `place|地方`
    leaves: str = ""                                             # "left" or "all": the story may go on from its result
    letters: str = ""                                            # of an account: the roles that have a number
    facts: list[dict] = field(default_factory=list)              # - sentences, in order
    asks: dict = field(default_factory=dict)                     # ? the question
    wholes: dict = field(default_factory=dict)                   # * facts and question in one
    answers: dict = field(default_factory=dict)                  # > the answer; without it, the last result
    file: str = ""                                               # `upper` of problems_upper.txt


@dataclass(eq=False)
class Scene:
    """One row of a table of problems_tables.txt: the kinds of things it is about, and its cells as templates."""
    things: str
    cells: dict[str, dict[str, list]]                            # language -> column -> template


@functools.cache
def scenes() -> dict[str, list[Scene]]:
    """The tables of problems_tables.txt: name -> rows."""
    tables: dict[str, list[Scene]] = {}
    for line in data_lines("problems_tables.txt"):
        if line.startswith("@ "):
            name, *columns = line[2:].split()
            split = columns.index("|")
            heads, rows = {"en": columns[:split], "zh": columns[split + 1:]}, tables.setdefault(name, [])
        else:
            things, _, cells = line.partition(":")
            cells = {language: [cell.strip() for cell in half.split(",")]
                     for language, half in zip(LANGUAGES, cells.split("|"))}
            assert all(len(cells[language]) == len(heads[language]) for language in LANGUAGES), f"tables: {line!r}"
            rows.append(Scene(things.replace("+", "|"), {
                language: {head: template(cell, language, {}) for head, cell in zip(heads[language], cells[language])}
                for language in LANGUAGES}))
    return tables


@functools.cache
def schemas() -> dict[str, list[Schema]]:
    """Every section of the data files by name and, as `kind/`, by what stands before the slash."""
    table: dict[str, list[Schema]] = {}
    phrases: dict[str, dict] = {}
    for file, line in ((name, line) for name in FILES for line in data_lines(name)):
        mark, _, rest = line.partition(" ")
        if mark == "==":
            title, *roles = rest.split()
            schema = Schema(title, [tuple(role.split("=", 1)) for role in roles],
                            file=file.removeprefix("problems_").removesuffix(".txt"))
            table.setdefault(title, []).append(schema)
            table.setdefault(title.split("/")[0] + "/", []).append(schema)
        elif mark == "=":
            step, english, chinese = (part.strip() for part in (rest + "||").split("|")[:3])
            result, _, expression = step.partition("=") if re.match(r"\w+=", step) else ("", "", step)
            schema.steps.append((result, expression, {"en": english, "zh": chinese}))
        elif mark == "!":
            schema.needs.append(rest)
        elif mark == "+":
            setattr(schema, "letters" if schema.name.startswith("account/") else "leaves", rest)
        elif mark in ("-", "?", "*", ">"):
            texts = {"en": [], "zh": []}
            if mark == "-":
                schema.facts.append(texts)
            else:
                setattr(schema, {"?": "asks", "*": "wholes", ">": "answers"}[mark], texts)
        elif mark == ":":
            texts = phrases.setdefault(rest, {"en": [], "zh": []})
        else:
            assert mark in LANGUAGES, f"problems data: cannot read {line!r}"
            texts[mark].append(template(rest, mark, phrases))
    return table


@functools.cache
def _people() -> dict[str, list[Concept]]:
    """Who a question may be about. A vocabulary has room for some names as one token each: where names are written out
    again and again it is a `person`, in a scene also a `pupil` of other names, or `anyone`, grown-ups too."""
    named = lambda file: [
        Concept(english, english, "", chinese, "个", (*(kind or ["child"]), "human", "living"),
                {"proper": ["1"], "sex": [sex]})
        for english, chinese, sex, *kind in (line.split("\t") for line in data_lines(file))]
    persons, more = members("child") + named("problems_names.tsv"), named("problems_people.tsv")
    return {"person": persons, "pupil": persons + [one for one in more if "child" in one.kinds],
            "anyone": persons + more}


@functools.cache
def _things() -> list[Concept]:
    """More things to count than the world has, for questions only."""
    rows = [line.split("\t") for line in data_lines("problems_things.tsv")]
    return [Concept(english, english, plural, chinese, measure, (kind,), {})
            for kind, english, plural, chinese, measure in rows]


@functools.cache
def choices(spec: str) -> list[Concept | Scene]:
    """What a role may be: `person`, `pupil`, `anyone`, `@place` (a row of that table), or the concepts of classes
    (`fruit|toy`) that can be counted one by one; `any`, alone or among classes, is all that people own."""
    if spec in _people():
        return _people()[spec]
    if spec[0] == "@":
        return scenes()[spec[1:]]
    kinds = [kind for part in spec.rstrip("!").split("|") for kind in (OWNED if part == "any" else (part,))]
    more = [thing for thing in _things() if thing.kinds[0] in kinds]
    known = {kind for concept in concepts().values() for kind in concept.kinds}
    listed = [kind for kind in kinds if kind in known or kind in concepts() or not more]
    found = members("|".join(listed)) if listed else []
    countable = [one for one in found if spec[-1] == "!" or one.plural[:1] not in ("~", "=")]
    return countable + [thing for thing in more if all(thing.english != one.english for one in countable)]


@functools.cache
def _all_of(spec: str) -> frozenset[str]:
    """The words of choices(spec): a stamp is a stamp, whichever class it was drawn from."""
    return frozenset(thing.english for thing in choices(spec))


# ---- drawing -------------------------------------------------------------------------------------------------------

def draw(schema: Schema, rng: random.Random, hard: bool = False, given: dict | None = None) -> dict:
    """Roles for `schema` that meet its conditions, with the results of its steps; `given` roles stay.

    ValueError when no draw of 300 (30 with `given`) meets the conditions: an odd number cannot be halved.
    """
    for _ in range(300 if given is None else 30):
        roles = dict(given or {})
        roles.setdefault("$", rng.choice(list(MONEY)))
        if all(_draw_role(name, spec, roles, rng, hard) for name, spec in schema.roles if name not in roles) \
                and all(_holds(need, roles) for need in schema.needs) and _solve(schema, roles):
            return roles
    raise ValueError(f"{schema.name}: no draw met its conditions")


def draw_next(name: str, rng: random.Random, hard: bool, given: dict, used: set = frozenset()) -> tuple[Schema, dict]:
    """A section of the kind `name`, not `used`, whose roles and conditions allow those `given`, and its roles."""
    options = [schema for schema in schemas()[name] if schema not in used
               and all(given[role] in choices(spec) for role, spec in schema.roles if role.isupper() and role in given)]
    rng.shuffle(options)
    for schema in options:
        with contextlib.suppress(ValueError):
            return schema, draw(schema, rng, hard, given)
    raise AssertionError(f"no {name} for {given}")               # each kind has sections without conditions


def _draw_role(name: str, spec: str, roles: dict, rng: random.Random, hard: bool) -> bool:
    if ";" in spec:
        spec = rng.choice(spec.split(";"))
    if name.isupper():
        options = choices(roles[spec].things if spec in roles else spec)
        if spec[0] == "@" and "X" in roles:                      # what goes on with X needs a row about such things
            options = [row for row in options if not row.things or roles["X"].english in _all_of(row.things)]
        free = [option for option in rng.sample(options, min(4, len(options))) if option not in roles.values()]
        roles[name] = free[0] if free else rng.choice(options)
    elif spec[0] == "'":
        roles[name] = say(template(spec[1:].replace("_", " "), "en", {}), roles, "en", NO_CHOICE, words=0)
    elif spec == "letter":
        roles[name] = rng.choice("xxxxxxynbmk")
    elif ".." in spec:
        low, high = (value_of(side, roles) for side in spec.rstrip("^").split(".."))
        if spec[-1] == "^" and hard:
            low, high = high, 4 * high
        if low > high:
            return False
        roles[name] = rng.randint(math.ceil(low), math.floor(high))
    elif "," in spec:
        roles[name] = int(rng.choice(spec.split(",")))
    else:
        roles[name] = value_of(spec, roles)
    return True


def _holds(need: str, roles: dict) -> bool:
    left, sign, right = re.split(r"(<|!=|%)", need)
    left, right = value_of(left, roles), value_of(right, roles)
    return left < right if sign == "<" else left != right if sign == "!=" else left % right == 0


def _solve(schema: Schema, roles: dict) -> bool:
    """Put the results of the steps among the roles; False when one is not a positive number, or not whole where no
    fraction is asked for."""
    fractions = schema.name.startswith(("chance", "scene/fraction-of"))
    for result, expression, _ in schema.steps:
        if result and expression[0] != "'":
            value = roles[result] = value_of(expression, roles)
            if value <= 0 or value > 999999 or (isinstance(value, Fraction) and not fractions):
                return False
    return True


# ---- wording -------------------------------------------------------------------------------------------------------

def say(parsed: list, roles: dict, language: str, rng: random.Random, words: float = 0.25) -> str:
    """What template() made, as text; a share `words` of the numbers up to 100 is spelled, a third of it up to 999."""
    parts = []
    for part in parsed:
        if type(part) is str:
            parts.append(part)
        elif type(part) is list:
            parts.append(say(part[int(rng.random() * len(part))], roles, language, rng, words))
        else:
            role, path, plain = part
            value = roles[role]
            if plain is None:
                parts.append(quantity(value, roles[path], language, rng, words))
            elif path in PLACES:                                 # 345 cents: 3.45
                figure = f"{value / 10 ** PLACES[path]:.{PLACES[path]}f}"
                parts.append(figure if path == "p." else figure.rstrip("0").rstrip("."))
            elif path in ("th.", "w."):                          # one third, 三分之一
                parts.append(FRACTIONS[value] if path == "th." else number(value, language))
            elif isinstance(value, (int, Fraction)):
                parts.append(str(value) if path or not _spelled(value, rng, words) else
                             "两" if value == 2 and language == "zh" else number(value, language))
            elif isinstance(value, Scene):
                parts.append(say(value.cells[language][path.rstrip(".")], roles, language, rng, words))
            elif isinstance(value, Concept):
                parts.append(_form(value, path.rstrip("."), language))
            elif role == "$":
                parts.append("元" if language == "zh" else "yuan" if value == "yuan" else MONEY[value] + "s")
            else:
                parts.append(value)
    return "".join(parts)


def _spelled(value: int | Fraction, rng: random.Random, words: float) -> bool:
    if words <= 0 or not isinstance(value, int) or not 0 <= value <= 999:
        return False
    return rng.random() < (words if value <= 100 else words / 3)


def _form(concept: Concept, form: str, language: str) -> str:
    if form == "m":                                              # 多少[个苹果]
        return concept.measure + concept.chinese
    if form == "u":                                              # 每[个]
        return concept.measure
    if form == "other":
        return word(concept, "", LANGUAGES[1 - LANGUAGES.index(language)], None)
    return word(concept, form, language, None)


def quantity(value: int, unit: Concept | str, language: str, rng: random.Random, words: float) -> str:
    """`3 apples`, `three apples`, 3个苹果, 两个苹果; with a currency `$3`, `3 dollars`, 3元."""
    spelled = _spelled(value, rng, words)
    if isinstance(unit, str):
        if language == "zh":
            return ("两" if value == 2 and spelled else number(value, "zh") if spelled else str(value)) + "元"
        if unit in "$£":
            return f"{unit}{value}"
        figure = number(value, "en") if spelled else str(value)
        return f"{figure} {unit}{'' if value == 1 or unit == 'yuan' else 's'}"
    if language == "zh":
        figure = str(value) if not spelled else "两" if value == 2 else number(value, "zh")
        return figure + unit.measure + unit.chinese
    return f"{number(value, 'en') if spelled else value} {unit.english if value == 1 else plurals(unit)}"


def pick(texts: dict, roles: dict, language: str, rng: random.Random, words: float = 0.25) -> str:
    """One of the wordings in `texts`."""
    options = texts[language]
    return say(options[int(rng.random() * len(options))], roles, language, rng, words)


def ask(name: str, roles: dict, language: str, rng: random.Random, words: float = 0.0) -> str:
    """The question of section `name`, worded for `roles`."""
    return polished(pick(rng.choice(schemas()[name]).asks, roles, language, rng, words), language)


def joined(sentences: list[str], language: str) -> str:
    """The sentences as running text."""
    return polished((" " if language == "en" else "").join(sentences), language)
