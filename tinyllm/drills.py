"""Passages with all that can be asked about them: what a model practises choosing with, from terse to told.

`Diana: stamp. Max: doll.` and then `Diana:` needs one look-up; "What did Diana choose in the shop?" needs the same one
behind a riddle of words. From the riddle alone a small model does not find it; from a mixture it finds it in minutes
(docs/log.md). In: the facts of choices.py. Out: drills. Used by practice.py; explained by tests/test_practice.py.
"""

import itertools
import random
from typing import NamedTuple

from tinyllm import wordings
from tinyllm.choices import Kind, between, draw_facts, facts_beside, kinds, rivals, worded
from tinyllm.grammar import polished
from tinyllm.lexicon import LANGUAGES, Concept, word
from tinyllm.options import TEMPLATE
from tinyllm.problems import split_of

SIGNS = {"en": (": ", " - ", ", ", " "), "zh": ("：", "，", " ")}     # between the two sides of a terse fact
MOST_ASKED = 5
LONG_FROM, LONG_AT = 4_000, 12_000                                   # the share of long ones: 0 to 1, at most 0.8


class Asked(NamedTuple):
    """A question behind its passage: the text up to the answer, the options with the space before them, which is right.
    """

    prompt: str
    options: list[str]
    answer: int


class Drill(NamedTuple):
    """A passage, what is asked about it, and its language."""

    context: str
    asked: list[Asked]
    language: str


def drill(index: int, seed: int = 0, split: str = "train") -> Drill:
    """Drill `index`: a pure function of its arguments. A curriculum: the first ones are short, later four of five long;
    outside train all are.

    A short one has one to three facts, terse or told, and questions that are terse, have only a heading, or are worded.
    A long one has up to five told facts, often among a story and facts of another kind, and worded questions.
    """
    language = LANGUAGES[index % 2]
    long = random.Random(f"long {seed} {index}").random() < min(0.8, (index - LONG_FROM) / (LONG_AT - LONG_FROM))
    for attempt in itertools.count():
        rng = random.Random(f"drill {seed} {split} {index} {attempt}")
        made = _drawn(rng, language, long or split != "train", split)
        if made and made.asked:
            return made


def _drawn(rng: random.Random, language: str, long: bool, split: str) -> Drill | None:
    terse, form = (False, "worded") if long else (rng.random() < 0.6, rng.choice(("worded", "worded", "key", "bare")))
    name = rng.choice([one for one in kinds() if one != "give" or (not terse and form == "worded")])
    groups = [(kinds()[name], _facts(kinds()[name], rng, long))]
    people = [fact["A"] for fact in groups[0][1] if "A" in fact]
    if long and len(people) > 1 and rng.random() < 0.4:
        groups.append(facts_beside(name, people, rng))
    sign = rng.choice(SIGNS[language])
    tell = lambda kind, fact: _terse(kind, fact, sign, language, rng) if terse else \
        wordings.pick(kind.facts, fact, language, rng, words=0)
    told = [tell(kind, fact) for kind, facts in groups for fact in facts]
    names = [bare(value, language) for _, facts in groups for fact in facts for value in fact.values()]
    if long and rng.random() < 0.5:
        passage = between(told, names, language, split, rng)
    else:
        passage = polished((" " if language == "en" else "").join(rng.sample(told, len(told))), language)
    if passage is None:
        return None
    items = [(kind, facts, fact, ask) for kind, facts in groups for fact in facts for ask in kind.asks]
    asked = [_asked(*item, terse, form, sign, language, split, rng) for item in rng.sample(items, len(items))]
    return Drill(passage, list(filter(None, asked))[:MOST_ASKED], language)


def _facts(kind: Kind, rng: random.Random, long: bool) -> list[dict]:
    two_people = len([spec for _, spec in kind.roles if spec == "person"]) > 1       # one such fact has two candidates
    return draw_facts(kind, rng.randint(1, 3) if two_people else rng.randint(2, 5 if long else 3), rng)


def _asked(kind: Kind, facts: list[dict], fact: dict, ask: tuple, terse: bool, form: str, sign: str, language: str,
           split: str, rng: random.Random) -> Asked | None:
    """One question with its options; None where two options read the same or another split owns the question."""
    role, wording, asks = ask
    value = lambda one: bare(one, language) if terse else worded(one, wording[len(role):], language, rng)
    options = [value(other[rival]) for other in facts for rival in rivals(kind, role)]
    if len(options) < 2 or len(set(options)) < len(options):
        return None
    rng.shuffle(options)
    _, question, reply, space = TEMPLATE[language]
    key = bare(next(fact[other] for other, spec in kind.roles if other != role and spec[0] != "="), language)
    text = polished(wordings.pick(asks, fact, language, rng, words=0), language) if form == "worded" else key
    if form == "worded" and split_of(text) != split:
        return None
    prompt = "\n" + (key + sign.rstrip() if form == "bare" else f"{question}{text}\n{reply}")
    return Asked(prompt, [space + option for option in options], options.index(value(fact[role])))


def _terse(kind: Kind, fact: dict, sign: str, language: str, rng: random.Random) -> str:
    """`Diana: stamp.` or `stamp: Diana.`"""
    sides = [bare(fact[role], language) for role, spec in kind.roles if spec[0] != "="]
    return sign.join(rng.sample(sides, len(sides))) + {"en": ".", "zh": "。"}[language]


def bare(value: Concept | int, language: str) -> str:
    """A value without article or measure word."""
    return word(value, "", language, None) if isinstance(value, Concept) else str(value)
