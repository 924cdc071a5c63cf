"""Names and things nobody has heard of: a word problem stays the same problem when its words are new."""

import random
import re

import pytest

from tinyllm import unheard
from tinyllm.lexicon import LANGUAGES, SMALL, TENS, word
from tinyllm.telling import UNPLACED, fixed_in, inside, placed, tell, tell_chain, tell_relations
from tinyllm.wordings import choices, draw, schemas


def rename(monkeypatch, share):
    """So many of the people and things have new names."""
    monkeypatch.setattr(unheard, "PEOPLE", share)
    monkeypatch.setattr(unheard, "THINGS", share)


@pytest.mark.parametrize("language", LANGUAGES)
def test_new_words_change_neither_numbers_nor_steps(monkeypatch, language):
    """`Mia has 7 pens` and `Brenda has 7 wugs` are one problem: the same steps and the same answer."""
    changed = 0
    for seed, schema in enumerate(schemas()["scene/"] + schemas()["story/"]):
        rename(monkeypatch, 0.0)
        known, *solution = tell(schema, random.Random(seed), language)
        rename(monkeypatch, 1.0)
        new, *same = tell(schema, random.Random(seed), language)
        assert solution == same, new
        changed += known != new
    assert changed > 150


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_chain_and_a_comparison_stay_what_they_were(monkeypatch, language):
    for told in (tell_chain, tell_relations):
        for seed in range(20):
            rename(monkeypatch, 1.0)
            question, steps, final = told(random.Random(seed), language, False)
            numbers = re.findall(r"\d+", final)
            assert numbers and question and steps                # draws on after the names, so another problem than ...
            rename(monkeypatch, 0.0)
            assert told(random.Random(seed), language, False)[0] != question


def test_what_the_steps_write_again_keeps_its_name(monkeypatch):
    """A name that is written out in every step costs a token where it is known, and several where it is not."""
    rename(monkeypatch, 1.0)
    kept = 0
    for schema in schemas()["story/"]:
        roles = draw(schema, random.Random(0))
        names = unheard.renamed(roles, fixed_in(schema), random.Random(0))
        kept += len(fixed_in(schema))
        assert not any(roles[role] in names for role in fixed_in(schema))
    assert kept


def test_two_names_never_stand_in_each_other(monkeypatch):
    """Ann and Joanna, or 球 and 红球: a question about the one would find the other."""
    rename(monkeypatch, 1.0)
    rng = random.Random(0)
    for _ in range(2000):
        roles = {"A": rng.choice(choices("anyone")), "B": rng.choice(choices("pupil")),
                 "X": rng.choice(choices("toy")), "Y": rng.choice(choices("toy"))}
        names = unheard.renamed(roles, set(), rng)
        if len(set(roles.values())) == 4 and len(names) == 4:
            for language in LANGUAGES:
                called = [word(one, "", language, None) for one in names.values()]
                assert not any(a in b for a in called for b in called if a is not b), called


def test_an_invented_word_is_no_number_and_belongs_to_one_language():
    rng = random.Random(0)
    for _ in range(500):
        assert re.fullmatch("[a-z]{4,}", one := unheard.invented("en", rng)) and one not in SMALL + TENS
        assert re.fullmatch("[\u3400-\u9fff]{2,}", one := unheard.invented("zh", rng))
        assert not set(one) & unheard.NUMERALS


def test_she_stays_she_and_what_is_counted_is_counted_alike():
    rng = random.Random(0)
    for _ in range(200):
        person, thing = rng.choice(choices("person")), rng.choice(choices("stationery"))
        assert word(unheard.person(person, rng), "he", "en", None) == word(person, "he", "en", None)
        assert unheard.thing(thing, rng).measure == thing.measure


def test_where_it_happens_changes_nothing_else():
    """`At the blick fair Tom had 3 apples`: an unknown word more, but no number, and nothing that says where twice."""
    always = random.Random(0)
    always.random = lambda: 0.0
    assert inside("There are 3 cats.") == "there are 3 cats." and inside("Tom has 3 cats.") == "Tom has 3 cats."
    for seed in range(30):
        always.seed(seed)
        first, second = placed(["There are 3 cats.", "They sleep."], "en", always)
        assert first.endswith(" there are 3 cats.") and second == "They sleep." and re.findall(r"\d+", first) == ["3"]
        first, = placed(["汤姆有3只猫。"], "zh", always)
        assert first.endswith("，汤姆有3只猫。") and not set(first[:-8]) & (unheard.NUMERALS - {"个", "一"})
    assert placed(["In the park there are 3 cats."], "en", always) == ["In the park there are 3 cats."]
    assert all(placed([start + "3."], "en", always) == [start + "3."] for start in UNPLACED)
