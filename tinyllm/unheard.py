"""Names and things nobody has heard of, because a reader of word problems meets some in each.

Who answers a question about 7 marbles but not one about 7 wugs has learnt the word and not the rule (the idea of the
wug test, Berko 1958, doi:10.1080/00437956.1958.11659661). In: the people and things of a problem. Out: the same with
other names. Used by telling.py, accounts.py and groups.py; explained by tests/test_unheard.py.
"""

import functools
import random
from dataclasses import replace

from tinyllm.lexicon import SMALL, TENS, Concept, alike, concepts, data_lines, plural, plurals
from tinyllm.wordings import OWNED

PEOPLE, THINGS = 0.45, 0.4                                       # share that is renamed
TITLED = 0.5                                                     # of the grown-ups among them: Mrs. Hill, 王老师
RENAMED = {*OWNED, "dish", "staple", "bird", "waterbird", "swimmer", "crawler", "tree", "vehicle"}     # kinds of things
MADE = {"toy", "stationery", "keepsake", "reading", "clothing", "ware", "vehicle"}       # kinds that people make
NUMERALS = set("零一二两三四五六七八九十百千万半几多少每个")


@functools.cache
def parts(name: str, language: str) -> list[str]:
    """The parts of words kept as `name` in problems_unheard.txt."""
    rows = (line.split(": ") for line in data_lines("problems_unheard.txt"))
    return next(items.replace("_", "").split(" ") for kind, items in rows if kind == f"{name} {language}")


@functools.cache
def characters() -> list[str]:
    """What Chinese words for things are made of, without the numerals."""
    return sorted({char for one in concepts().values() for char in one.chinese} - NUMERALS)


def invented(language: str, rng: random.Random) -> str:
    """A word of two or three syllables, or of two or three characters."""
    while True:
        if language == "zh":
            word = "".join(rng.sample(characters(), rng.choice((2, 2, 3))))
        else:
            word = "".join(rng.choice(parts(part, "en")) for _ in range(rng.choice((1, 2, 2, 3))) for part in
                           ("onset", "vowel")) + rng.choice(parts("coda", "en"))
        clean = not any(rude in word for rude in parts("rude", language))
        if clean and (language == "zh" or (len(word) > 3 and word not in SMALL + TENS)):
            return word


def person(one: Concept, rng: random.Random) -> Concept:
    """`one` under another name; she remains she."""
    sex = one.features["sex"][0]
    english = rng.choice(parts(sex, "en")) if rng.random() < 0.8 else invented("en", rng).capitalize()
    chinese, given = rng.choice(parts("surname", "zh")), rng.choice(parts(sex, "zh"))
    if rng.random() < TITLED and "child" not in one.kinds:           # no child is a Mrs. Hill
        english, given = f"{rng.choice(parts(f'{sex} title', 'en'))} {english}", rng.choice(parts(f"{sex} title", "zh"))
    return replace(one, english=english, plural=english, chinese=chinese + given)


def thing(one: Concept, rng: random.Random) -> Concept:
    """Something else that is counted as `one` is: big pencils, dax pencils, wugs, Wugs."""
    english, chinese, kind = invented("en", rng), invented("zh", rng), rng.random()
    if kind < 0.3:
        english = english.capitalize() if rng.random() < 0.3 else english
        return replace(one, english=english, plural=plural(english), chinese=chinese)
    if kind < 0.7 and " of " not in one.english:                     # no rubber fruit, no tiny litres of milk
        fit = lambda language: parts("modifier", language) + (parts("goods", language) if one.kinds[0] in MADE else [])
        english = rng.choice([word for word in fit("en") if word not in one.english.split()])
        chinese = rng.choice([word for word in fit("zh") if word[0] not in one.chinese])
    return replace(one, english=f"{english} {one.english}", plural=f"{english} {plurals(one)}",
                   chinese=chinese + one.chinese)


def renamed(roles: dict, fixed: set[str], rng: random.Random) -> dict[Concept, Concept]:
    """New names for some of the people and countable things in `roles`; those in `fixed` keep theirs."""
    names = {}
    for role, one in roles.items():
        if role in fixed or not isinstance(one, Concept):
            continue
        human = "proper" in one.features and one.features.get("sex", [""])[0] in ("boy", "girl")      # no `the factory`
        counted = one.kinds[0] in RENAMED and one.plural[:1] not in ("~", "=")
        if rng.random() < (PEOPLE if human else THINGS if counted else 0):
            new = (person if human else thing)(one, rng)
            others = [names.get(other, other) for other in roles.values() if isinstance(other, Concept)
                      and other != one]
            if not any(alike(new, other) for other in others):
                names[one] = new
    return names


def told_as(roles: dict, names: dict[Concept, Concept]) -> dict:
    """`roles` under their new names."""
    return {role: names.get(one, one) for role, one in roles.items()}
