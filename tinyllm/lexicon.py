"""What the world knows: every thing, person and place with its name in two languages, and how to inflect it.

`world_words.tsv` holds the concepts; this module reads them and gives a concept in any form a sentence needs.
Explained by tests/test_world.py.
"""

import functools
import importlib.resources
import re
from dataclasses import dataclass

LANGUAGES = ("en", "zh")


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


def data_lines(name: str) -> list[str]:
    """The lines of a data file of this package, without comments and blank ones."""
    text = (importlib.resources.files("tinyllm") / name).read_text(encoding="utf-8")
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@functools.cache
def concepts() -> dict[str, Concept]:
    """Every concept by its key. A row starting with `@` opens a class; the rows below inherit its features."""
    table: dict[str, Concept] = {}
    parent = None
    for line in data_lines("world_words.tsv"):
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


def alike(one: Concept, other: Concept) -> bool:
    """Whether the name of one stands in that of the other, so that they can be confused: Lou, Louis; 球, 红球."""
    return any(a.english in b.english or a.chinese in b.chinese for a, b in ((one, other), (other, one)))


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


@functools.lru_cache(2 ** 14)                                    # bounded, for questions that invent names
def word(concept: Concept, path: str, language: str, look: Concept | None) -> str:
    """`concept` in the form that `path` names: `a`, `the`, or after a relation, `job.a`; `look` is its adjective."""
    head, _, rest = path.partition(".")
    if head == "kind":
        return word(concepts()[concept.kinds[0]], rest, language, None)
    if head in concept.features:                                 # {A.job.a}: follow the relation, then choose the form
        return word(concepts()[concept.features[head][0]], rest, language, None)
    return (_english if language == "en" else _chinese)(concept, head, look)


def name(key: str, language: str, form: str = "") -> str:
    """The concept `key` as a word: name("apple", "en", "a") -> "an apple", name("apple", "zh") -> "苹果"."""
    return word(concepts()[key], form, language, None)


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
