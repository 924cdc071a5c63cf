"""Names and things nobody has heard of: a word problem stays the same problem when its words are new."""

import collections
import itertools
import random
import re
from dataclasses import replace

import pytest

from tinyllm import telling, unheard
from tinyllm.exercises import story
from tinyllm.lexicon import LANGUAGES, SMALL, TENS, word
from tinyllm.telling import UNPLACED, fixed_in, inside, placed, tell, together
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


def test_a_story_that_goes_on_keeps_the_new_names(monkeypatch):
    """What are wugs in the first sentence are wugs in the last; and wugs go on in all the ways that pencils do."""
    rename(monkeypatch, 1.0)
    further, new, seen = set(), 0, telling.draw_next

    def draw_next(*args):
        schema, roles = seen(*args)
        further.add(schema.name)
        return schema, roles

    monkeypatch.setattr(telling, "draw_next", draw_next)
    monkeypatch.setattr(unheard, "thing", lambda one, rng: replace(one, english="wug", plural="wugs", chinese="乌格"))
    for schema in (schema for schema in schemas()["scene/"] if schema.leaves and "X" in dict(schema.roles)):
        for seed in range(30):
            thing = draw(schema, random.Random(seed))["X"]
            if thing.kinds[0] in unheard.RENAMED and thing.plural[:1] not in ("~", "="):
                question, _, _ = tell(schema, random.Random(seed), "en", longer=True)
                assert not re.search(rf"\b{word(thing, 's', 'en', None)}\b", question), question
                new += "wugs" in question
    assert new > 100 and {"next/holder", "next/share", "next/price"} <= further


def test_two_names_never_stand_in_each_other(monkeypatch):
    """Lou and Louis, or 球 and 红球: a question about the one would find the other."""
    rename(monkeypatch, 1.0)
    names = {"A": ("Lou", "王芳"), "B": ("Louis", "李强"), "C": ("Bob", "小芳"), "D": ("Rex", "芳")}
    one = {role: choices("person")[place] for place, role in enumerate(names)}
    new = {person: replace(person, english=names[role][0], chinese=names[role][1]) for role, person in one.items()}
    monkeypatch.setattr(unheard, "person", lambda person, rng: new[person])
    renamed = unheard.renamed(one, set(), random.Random(0))
    assert renamed == {one["A"]: new[one["A"]], one["C"]: new[one["C"]]}         # Lou is in Louis, 芳 in 王芳 and 小芳


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


def test_no_thing_is_red_twice():
    """A red apple may become a big red apple, never a red red apple."""
    red = next(one for one in choices("fruit") if one.english == "red apple")
    names = {unheard.thing(red, random.Random(seed)).english for seed in range(2000)}
    assert "big red apple" in names and "red red apple" not in names


def test_a_title_fits_who_bears_it():
    """Mrs. Hill is no boy, and no child."""
    rng, titled = random.Random(0), {"boy": set(), "girl": set()}
    people = [one for one in choices("anyone") if one.features["sex"][0] in titled]
    for _ in range(2000):
        old = rng.choice(people)
        new = unheard.person(old, rng)
        if " " in new.english:
            assert "child" not in old.kinds
            titled[new.features["sex"][0]].add((new.english.split()[0], new.chinese[1:]))
    assert all(10 < len(found) < 60 for found in titled.values())
    assert not {title for pair in titled["boy"] for title in pair} & {"Mrs.", "Ms.", "Miss", "Aunt", "阿姨", "奶奶"}
    assert not {title for pair in titled["girl"] for title in pair} & {"Mr.", "Uncle", "Grandpa", "叔叔", "爷爷"}


def test_no_invented_word_is_rude():
    rude = unheard.parts("rude", "en")
    assert not [word for word in (unheard.invented("en", random.Random(seed)) for seed in range(5000))
                if any(one in word for one in rude)]


def test_nothing_grows_that_is_made_of_rubber():
    """What is eaten or alive is big, rare or cheap, not wooden."""
    apple, made = next(one for one in choices("fruit") if one.english == "apple"), set(unheard.parts("goods", "en"))
    kite = next(one for one in choices("toy") if one.english == "kite")
    first = lambda one: {unheard.thing(one, random.Random(seed)).english.split()[0] for seed in range(1000)}
    assert not made & first(apple) and made & first(kite)


def test_where_it_happens_changes_nothing_else(monkeypatch):
    """`At the blick fair Tom had 3 apples`: an unknown word more, no number but that of `At 8 o'clock`, and nothing
    that says where twice."""
    always, met = random.Random(0), set()
    always.random = lambda: 0.0
    assert inside("There are 3 cats.") == "there are 3 cats." and inside("Tom has 3 cats.") == "Tom has 3 cats."
    for seed, setting in itertools.product(range(400), schemas()["setting/"]):
        monkeypatch.setattr(telling, "schemas", lambda setting=setting: {"setting/": [setting]})
        first, second = placed(["There are 3 cats.", "They sleep."], "en", random.Random(seed))
        if first != "There are 3 cats.":
            assert re.fullmatch(r"[^.?!]*[a-z,] there are 3 cats\.", first) and second == "They sleep.", first
            assert setting.roles or re.findall(r"\d+", first) == ["3"], first
            first, = placed(["汤姆有3只猫。"], "zh", random.Random(seed))
            assert re.fullmatch("[^，。]+，汤姆有3只猫。", first), first
            assert setting.roles or not set(first[:-8]) & (unheard.NUMERALS - {"个", "一"}), first
            met.add(first)
    assert len(met) > 40
    assert placed(["In the park there are 3 cats."], "en", always) == ["In the park there are 3 cats."]
    assert all(placed([start + "3."], "en", always) == [start + "3."] for start in UNPLACED)


def test_only_what_happens_has_an_hour():
    """`At 6 o'clock, there are 3 cats` is no way to begin, `At 6 o'clock Tom bought 3 cats` is."""
    hour = re.compile("At .* o'clock|早上.*[点时]，")
    for language, happens, holds in (("en", "Tom bought 3 cats.", "Tom has 3 cats."),
                                     ("zh", "汤姆买了3只猫。", "汤姆有3只猫。")):
        timed = [any(hour.match(placed([text], language, random.Random(seed))[0]) for seed in range(3000))
                 for text in (happens, holds)]
        assert timed == [True, False]


def test_what_always_holds_has_no_place_and_no_hour():
    """`At 6 o'clock, the edge of a cube is 3 cm long` is no way to begin."""
    ways = lambda sentence, language: {placed([sentence], language, random.Random(seed))[0] for seed in range(60)}
    for sentence, language in (("Every box holds 6 pens.", "en"), ("The edge of a cube is 3 cm long.", "en"),
                               ("小明今年9岁。", "zh"), ("昨天来了9人。", "zh")):
        assert ways(sentence, language) == {sentence}
    assert len(ways("Tom had 3 pens.", "en")) > 2 and len(ways("小明有3支笔。", "zh")) > 2


def test_a_question_that_points_stands_behind_what_it_points_at():
    """`How many do they have?` neither comes first nor behind a remark on something else."""
    ways = lambda question: {telling.running(["Tom had 3 pens."], question, (["It was late."], ["All slept."]), "en",
                                             random.Random(seed)) for seed in range(80)}
    assert all(re.search(r"Tom had 3 pens\W+how many do they", text, re.I) for text in ways("How many do they have?"))
    free = ways("How many pens are left?")
    assert any(text.startswith("How many") for text in free) and any("All slept. How" in text for text in free)


def test_a_sentence_inside_another_begins_small(monkeypatch):
    """`If originally Tom had 5, how many ...?`: a first word keeps its capital there if it is a name."""
    told, keep = [], inside
    monkeypatch.setattr(telling, "inside", lambda sentence: told.append(sentence) or keep(sentence))
    for index in range(6000):
        story(random.Random(index), "en", "train")
    names = {word(one, "", "en", None).split()[0] for one in choices("anyone")} | {
        name for kind in ("boy", "girl", "boy title", "girl title") for name in unheard.parts(kind, "en")}
    firsts = collections.Counter(sentence.split()[0] for sentence in told if re.match("[A-Z][a-z]+ [a-z]", sentence))
    common = {first for first, count in firsts.items() if count > 2} - names         # an invented name comes once
    assert len(common) > 10 and not {first for first in common if inside(f"{first} it went.")[0].isupper()} - {"Mum"}


def test_two_sentences_may_become_one():
    always = random.Random(0)
    always.random = lambda: 0.0
    for seed in range(10):
        always.seed(seed)
        joined, third = together(["Tom has 3 cats.", "He buys 4 more.", "They sleep."], "en", always)
        assert re.fullmatch(r"Tom has 3 cats(,? and|;|, then) he buys 4 more\.", joined) and third == "They sleep."
        assert together(["Tom has 3 cats.", "Then he buys 4."], "en", always) == ["Tom has 3 cats, and then he buys 4."]
    apart = ["Tom has 3 cats.", "In May he buys 4 more."]
    assert together(apart, "en", always) == apart and together(apart[:1], "en", always) == apart[:1]
