"""Questions written as data: problems_*.txt holds their wordings, numbers and steps; drawn, worked and worded here.

The notation is that of world_plots.txt, explained in problems_stories.txt. In: a schema and a random generator. Out: a
question, the lines that work it out, and the answer. Explained by tests/test_problems.py.
"""

import contextlib
import functools
import math
import random
import re
from dataclasses import dataclass, field
from fractions import Fraction

from tinyllm.arithmetic import value_of, worked
from tinyllm.grammar import polished, template
from tinyllm.lexicon import LANGUAGES, Concept, data_lines, members, number, plurals, word

FILES = ("problems_stories.txt", "problems_chances.txt", "problems_asks.txt", "problems_instructions.txt")
MONEY = {"$": "dollar", "£": "pound", "dollar": "dollar", "yuan": "yuan", "euro": "euro", "coin": "coin"}
FRACTIONS = {3: "third", 4: "quarter", 5: "fifth", 6: "sixth"}
START, END = {"en": "start: ", "zh": "开始："}, {"en": "end: ", "zh": "最后："}
Exercise = tuple[str, list[str], str]                             # question, steps, answer
NO_CHOICE = random.Random(0)                                     # for templates without choices


# ---- schemas: problems_*.txt ---------------------------------------------------------------------------------------

@dataclass(eq=False)
class Schema:
    """One `==` section: roles, steps and groups of wordings, each {"en": [templates], "zh": [templates]}."""
    name: str
    roles: list[tuple[str, str]]                                 # ("A", "child"), ("a", "3..9"), ("b", "a*2")
    steps: list[tuple[str, str, dict]] = field(default_factory=list)     # result, expression, label by language
    needs: list[str] = field(default_factory=list)               # conditions such as `a<b`
    leaves: str = ""                                             # "left" or "all": the story may go on from its result
    facts: list[dict] = field(default_factory=list)              # - sentences, in order
    asks: dict = field(default_factory=dict)                     # ? the question
    wholes: dict = field(default_factory=dict)                   # * facts and question in one
    answers: dict = field(default_factory=dict)                  # > the answer; without it, the last result


@functools.cache
def schemas() -> dict[str, list[Schema]]:
    """Every section of the data files by name and, as `kind/`, by what stands before the slash."""
    table: dict[str, list[Schema]] = {}
    phrases: dict[str, dict] = {}
    for line in (line for name in FILES for line in data_lines(name)):
        mark, _, rest = line.partition(" ")
        if mark == "==":
            title, *roles = rest.split()
            schema = Schema(title, [tuple(role.split("=", 1)) for role in roles])
            table.setdefault(title, []).append(schema)
            table.setdefault(title.split("/")[0] + "/", []).append(schema)
        elif mark == "=":
            step, english, chinese = (part.strip() for part in (rest + "||").split("|")[:3])
            result, _, expression = step.partition("=") if re.match(r"\w+=", step) else ("", "", step)
            schema.steps.append((result, expression, {"en": english, "zh": chinese}))
        elif mark == "!":
            schema.needs.append(rest)
        elif mark == "+":
            schema.leaves = rest
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
def _people() -> list[Concept]:
    """The children of the world and many more names, for questions only."""
    rows = [line.split("\t") for line in data_lines("problems_names.tsv")]
    return members("child") + [
        Concept(english, english, "", chinese, "个", ("child", "human", "living"), {"proper": ["1"], "sex": [sex]})
        for english, chinese, sex in rows]


@functools.cache
def choices(spec: str) -> list[Concept]:
    """What a role may be: `person`, or the concepts of a class that can be counted one by one."""
    if spec == "person":
        return _people()
    return [concept for concept in members(spec.rstrip("!")) if spec[-1] == "!" or concept.plural[:1] not in ("~", "=")]


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


def draw_next(name: str, rng: random.Random, hard: bool, given: dict, used: set) -> tuple[Schema, dict]:
    """A section of the kind `name`, not `used`, whose conditions can be met with the roles `given`, and its roles."""
    options = [schema for schema in schemas()[name] if schema not in used]
    rng.shuffle(options)
    for schema in options:
        with contextlib.suppress(ValueError):
            return schema, draw(schema, rng, hard, given)
    raise AssertionError(f"no {name} for {given}")


def _draw_role(name: str, spec: str, roles: dict, rng: random.Random, hard: bool) -> bool:
    if name.isupper():
        options = choices(spec)
        free = [option for option in rng.sample(options, min(4, len(options))) if option not in roles.values()]
        roles[name] = free[0] if free else rng.choice(options)
    elif spec[0] == "'":
        roles[name] = say(template(spec[1:].replace("_", " "), "en", {}), roles, "en", NO_CHOICE, words=0)
    elif spec == "letter":
        roles[name] = rng.choice("xxxxxxynabmk")
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
    """Put the results of the steps among the roles; False when one is not a positive number or not whole."""
    for result, expression, _ in schema.steps:
        if result and expression[0] != "'":
            value = roles[result] = value_of(expression, roles)
            if value <= 0 or value > 99999 or (isinstance(value, Fraction) and not schema.name.startswith("chance")):
                return False
    return True


# ---- wording -------------------------------------------------------------------------------------------------------

def say(template: list, roles: dict, language: str, rng: random.Random, words: float = 0.25) -> str:
    """The wording of `template`; a share `words` of the small numbers is spelled out."""
    parts = []
    for part in template:
        if type(part) is str:
            parts.append(part)
        elif type(part) is list:
            parts.append(say(part[int(rng.random() * len(part))], roles, language, rng, words))
        else:
            role, path, plain = part
            value = roles[role]
            if plain is None:
                parts.append(quantity(value, roles[path], language, rng, words))
            elif path in ("th.", "w."):                          # one third, 三分之一
                parts.append(FRACTIONS[value] if path == "th." else number(value, language))
            elif isinstance(value, (int, Fraction)):
                parts.append(str(value) if path or not _spelled(value, rng, words) else
                             "两" if value == 2 and language == "zh" else number(value, language))
            elif isinstance(value, Concept):
                parts.append(_form(value, path.rstrip("."), language))
            elif role == "$":
                parts.append("元" if language == "zh" else "yuan" if value == "yuan" else MONEY[value] + "s")
            else:
                parts.append(value)
    return "".join(parts)


def _spelled(value: int | Fraction, rng: random.Random, words: float) -> bool:
    return words > 0 and isinstance(value, int) and 0 <= value <= 100 and rng.random() < words


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


# ---- whole problems ------------------------------------------------------------------------------------------------

def tell(schema: Schema, rng: random.Random, language: str, hard: bool = False, longer: float = 0.0) -> Exercise:
    """(question, steps, answer) of one drawing of `schema`; a share `longer` of those that can go on does."""
    roles = draw(schema, rng, hard)
    steps = steps_of(schema.steps, roles, language)
    if schema.leaves and rng.random() < longer:
        given = {"A": roles["A"], "X": roles["X"], "$": roles["$"], "n": roles[schema.steps[-1][0]]}
        further, drawn = draw_next("then/", rng, hard, given, set())
        sentences = [pick(fact, roles, language, rng) for fact in schema.facts]
        sentences.append(pick(further.facts[schema.leaves == "all"], drawn, language, rng))
        sentences.append(pick(further.asks, drawn, language, rng))
        return joined(sentences, language), steps + steps_of(further.steps, drawn, language), str(drawn["r"])
    return worded(schema, roles, rng, language), steps, answer_of(schema, roles, language, rng)


def worded(schema: Schema, roles: dict, rng: random.Random, language: str) -> str:
    """The question: in one piece, or sentence by sentence, now and then with one that does not matter."""
    if schema.wholes.get(language) and (not schema.facts or rng.random() < 0.3):
        return polished(pick(schema.wholes, roles, language, rng), language)
    sentences = [pick(fact, roles, language, rng) for fact in schema.facts]
    question = pick(schema.asks, roles, language, rng)
    if schema.name.startswith("story") and rng.random() < 0.2:
        place = rng.choice([0, len(sentences)])                  # never between a noun and its pronoun
        sentences.insert(place, beside_the_point(roles["A"], schema.name, language, rng))
    if sentences and rng.random() < 0.1:
        return joined([question, *sentences], language)
    return joined([*sentences, question], language)


def beside_the_point(person: Concept, topic: str, language: str, rng: random.Random) -> str:
    """A sentence with a number that the answer does not need, about something else than `topic`."""
    extra = rng.choice([extra for extra in schemas()["extra/"] if extra.name.split("/")[1] not in topic])
    return pick(extra.facts[0], draw(extra, rng, given={"A": person}), language, rng)


def steps_of(steps: list, roles: dict, language: str) -> list[str]:
    """The written steps: `label: value`, `label: a+b=c`, or a quoted line as it stands."""
    lines = []
    for _, expression, label in steps:
        prefix = labelled(label[language], roles, language)
        if expression[0] == "'":
            lines.append(prefix + say(template(expression[1:], language, {}), roles, language, NO_CHOICE, words=0))
            continue
        work, value = worked(expression, roles)
        lines += [*work[:-1], prefix + work[-1]] if work else [f"{prefix}{value}"]
    return lines


def labelled(label: str, roles: dict, language: str) -> str:
    """What a step is about, with its colon; empty stays empty."""
    text = say(template(label, language, {}), roles, language, NO_CHOICE, words=0) if label else ""
    return text + (": " if language == "en" else "：") if text else ""


def answer_of(schema: Schema, roles: dict, language: str, rng: random.Random) -> str:
    """The answer as the section words it; without a wording, the last result."""
    if schema.answers.get(language):
        return pick(schema.answers, roles, language, rng, words=0)
    return str(roles[schema.steps[-1][0]])


def tell_chain(rng: random.Random, language: str, hard: bool) -> Exercise:
    """Someone's number of things changes several times; asked for is the end, or (undoing each change) the start."""
    frame, back, undo = rng.choice(schemas()["chain"]), rng.random() < 0.35, []
    told, hidden, end, ask_end, ask_start = frame.facts
    roles = draw(frame, rng, hard)
    start = roles["n"]
    sentences, steps = [pick(hidden if back else told, roles, language, rng)], [f"{START[language]}{start}"]
    told_before: set[Schema] = set()
    for _ in range(rng.randint(4, 5) if hard else rng.randint(2, 3)):
        schema, roles = draw_next("change/", rng, hard, roles, told_before)
        told_before.add(schema)
        sentences.append(pick(schema.facts[0], roles, language, rng))
        last = [result for result, _, _ in schema.steps].index("r") + 1
        steps += steps_of(schema.steps[:last], roles, language)
        undo = steps_of(schema.steps[last:], roles, language) + undo
        roles = {"A": roles["A"], "X": roles["X"], "n": roles["r"]}
    if back:
        sentences.append(pick(end, roles, language, rng))
        steps = [f"{END[language]}{roles['n']}", *undo]
    if rng.random() < 0.1:
        sentences.insert(0, beside_the_point(roles["A"], "", language, rng))
    sentences.append(pick(ask_start if back else ask_end, roles, language, rng))
    return joined(sentences, language), steps, str(start if back else roles["n"])


def tell_relations(rng: random.Random, language: str, hard: bool) -> Exercise:
    """Each has more, fewer or so many times as many as the one before; asked for: the last, all, or a difference."""
    frame = rng.choice(schemas()["relations"])
    roles = draw(frame, rng, hard)
    told, ask_last, ask_all, ask_more = frame.facts
    people, totals = [roles["A"]], [roles["n"]]
    sentences = [pick(told, roles, language, rng)]
    steps = steps_of([("", "n", {"en": "{A}", "zh": "{A}"})], roles, language)
    for _ in range(rng.randint(3, 4) if hard else rng.randint(1, 2)):
        given = {"A": people[-1], "X": roles["X"], "n": totals[-1]}
        given["B"] = rng.choice([person for person in choices("person") if person not in people])
        schema, drawn = draw_next("relation/", rng, hard, given, set())
        sentences.append(pick(schema.facts[0], drawn, language, rng))
        steps += steps_of(schema.steps, drawn, language)
        people.append(drawn["B"])
        totals.append(drawn["r"])
    if rng.random() < 0.25:
        sentences.reverse()
    if rng.random() < 0.1:
        sentences.insert(0, beside_the_point(rng.choice(people), "", language, rng))
    less, more = sorted([0, -1], key=lambda place: totals[place])
    kind = rng.choice(("last", "all", "more" if totals[less] < totals[more] else "last"))
    question = {"last": ask_last, "all": ask_all, "more": ask_more}[kind]
    roles |= {"A": people[more], "B": people[less]} if kind == "more" else {"B": people[-1]}
    sentences.append(pick(question, roles, language, rng))
    work, total = worked({"last": str(totals[-1]), "all": "+".join(map(str, totals)),
                          "more": f"{totals[more]}-{totals[less]}"}[kind])
    return joined(sentences, language), steps + work, str(total)


def listed(items: list[str], language: str) -> str:
    """`a, b and c` / a、b和c."""
    comma, last = {"en": (", ", " and "), "zh": ("、", "和")}[language]
    return comma.join(items[:-1]) + last + items[-1]
