"""The ninth family of exercises: a passage of a generated story and a question that its record can answer.

In: a random generator, a language and a split; passages of held-out splits come from the test world. Out: an exercise.
Used by exercises.py; explained by tests/test_problems.py.
"""

import functools
import random

from tinyllm import world
from tinyllm.grammar import polished
from tinyllm.lexicon import LANGUAGES, concepts, name
from tinyllm.telling import Exercise, answer_of, labelled, spaced, steps_of
from tinyllm.wordings import Schema, ask, pick, schemas


def reading(rng: random.Random, language: str, split: str) -> Exercise:
    """9: a question on a passage of the world, answered from its record of events."""
    while True:
        told = drawn_story(rng, language, split, 20000)
        passage, events = _passage(told, language, LENGTHS[language][split == "harder"])
        for kind in rng.sample((_about_one, _about_one, _about_two, _about_rest), 4):
            if answered := kind(rng, language, passage, events):
                question, steps, final = answered
                return ask("passage", {"p": passage, "q": polished(question, language)}, language, rng), steps, final


def _about_one(rng: random.Random, language: str, passage: str, events: list[world.Event]) -> Exercise | None:
    """Who, where, what, how many: the sentence that tells it is quoted, then its answer taken."""
    found = [(schema, event) for schema in schemas()["read/"] for event in events
             if _tells(schema, event, events, passage, language)]
    if not found:
        return None
    schema, event = rng.choice(found)
    roles = _event_roles(schema, event)
    final = answer_of(schema, roles, language, rng)
    label = schema.needs[0].split("|")[LANGUAGES.index(language)]
    return pick(schema.asks, roles, language, rng), [event.text, labelled(label, {}, language) + final], final


def _about_two(rng: random.Random, language: str, passage: str, events: list[world.Event]) -> Exercise | None:
    """Which of two things happened first."""
    found = [(schema, event) for event in events for schema in schemas()["deed/"]
             if _tells(schema, event, events, passage, language)]
    if len({event.order for _, event in found}) < 2:
        return None
    two = sorted(rng.sample(found, 2), key=lambda item: item[1].order)
    deeds = [pick(schema.asks, _event_roles(schema, event), language, rng) for schema, event in two]
    if two[0][1].order == two[1][1].order or deeds[0] == deeds[1]:
        return None
    x, y = rng.sample(deeds, 2)
    steps = [f"{k}{spaced(': ', language)}{deed}" for k, deed in enumerate(deeds, 1)]
    return ask("first", {"x": x, "y": y}, language, rng), steps, deeds[0]


def _about_rest(rng: random.Random, language: str, passage: str, events: list[world.Event]) -> Exercise | None:
    """How many are left of what somebody had, after giving some away."""
    for had in events:
        after = [event for event in events if event.order > had.order and event.object == had.object]
        if had.action == "have" and had.count and len(after) == 1 and after[0].action == "give" \
                and after[0].actor == had.actor and (after[0].count or 0) in range(1, had.count):
            roles = {"A": concepts()[had.actor], "X": concepts()[had.object], "a": had.count, "b": after[0].count}
            schema, = schemas()["left"]
            roles["r"] = roles["a"] - roles["b"]
            return pick(schema.asks, roles, language, rng), steps_of(schema.steps, roles, language), str(roles["r"])
    return None


LENGTHS = {"en": (420, 600), "zh": (150, 220)}                   # characters of a passage; longer in the harder split
FIELDS = ("actor", "object", "recipient", "place", "count")


@functools.lru_cache(maxsize=4096)
def _story(index: int, split: str, language: str) -> world.Story:
    return world.story(index, split=split, language=language)


def drawn_story(rng: random.Random, language: str, split: str, n: int) -> world.Story:
    """One of `n` stories of the world's train split for train; for the others one of a few of its test split."""
    return _story(rng.randrange(n), "train", language) if split == "train" else \
        _story(rng.randrange(600), "test", language)


def _passage(told: world.Story, language: str, longest: int) -> tuple[str, list[world.Event]]:
    """The beginning of a story, whole sentences up to `longest` characters, and the events they tell."""
    sentences = []
    for sentence in told.sentences:
        if sum(map(len, sentences)) + len(sentence) > longest:
            break
        sentences.append(sentence)
    spoken = {sentence.strip() for sentence in sentences}
    return world.join(sentences, language), [event for event in told.events if event.text in spoken]


def _tells(schema: Schema, event: world.Event, events: list[world.Event], passage: str, language: str) -> bool:
    """Whether `event`, and no other one, answers the question of `schema`, and the passage names all it takes."""
    fields = dict(schema.roles)
    wanted, actions = fields.pop("answer", None), fields.pop("action").split(",")
    if event.action not in actions or any(getattr(event, field) is None for field in fields.values()):
        return False
    known = [field for role, field in fields.items() if role != wanted]
    alike = [other for other in events if other.action in actions
             and all(getattr(other, field) == getattr(event, field) for field in known)]
    counts = {other.count for other in events if other.object == event.object and other.count is not None}
    named = all(name(getattr(event, field), language) in passage for field in fields.values() if field != "count")
    source = fields.get(wanted)
    quoted = source in (None, "actor", "count") or name(getattr(event, source), language) in event.text
    if wanted == "n" and (len(counts) > 1 or concepts()[event.object].plural[:1] == "~"):        # how many corn?
        return False
    return len(alike) == 1 and named and quoted


def _event_roles(schema: Schema, event: world.Event) -> dict:
    """The roles of a question from the fields of an event."""
    values = {role: getattr(event, field) for role, field in schema.roles if field in FIELDS}
    return {role: concepts()[value] if isinstance(value, str) else value for role, value in values.items()}
