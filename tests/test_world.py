"""The generated world: the same for everyone, consistent, varied, and split by what its documents are about."""

import json
import re
from collections import Counter

import pytest

from tinyllm import grammar, lexicon, simulation, world

SAMPLE = 3000


@pytest.fixture(scope="module")
def told():
    """(text, plot, premises) of the first documents."""
    return [world.told(index) for index in range(SAMPLE)]


@pytest.fixture(scope="module")
def stories():
    return [world.story(index, language=language) for index in range(300) for language in lexicon.LANGUAGES]


def texts(told, language):
    """The documents of one language; bilingual ones are left out."""
    return [text for text, plot, _ in told[lexicon.LANGUAGES.index(language)::2] if not plot.startswith("pairs")]


def test_a_document_is_a_pure_function_of_its_index():
    """Nobody need keep the corpus: any part of it can be made again, in any order."""
    there = [world.document(index, seed=3) for index in range(40)]
    back = [world.document(index, seed=3) for index in reversed(range(40))]
    assert there == back[::-1] == list(world.documents(40, seed=3))
    assert there != list(world.documents(40, seed=4))


def test_no_two_documents_are_identical(told):
    """A model that sees a text twice learns it by heart."""
    assert len({text for text, _, _ in told}) == SAMPLE


def test_no_premise_stands_in_both_splits(told):
    """Otherwise a test question could be answered from memory; the hash decides before a word is written."""
    test = [world.told(index, split="test") for index in range(300)]
    train_premises = {premise for _, _, premises in told for premise in premises}
    test_premises = {premise for _, _, premises in test for premise in premises}
    assert train_premises and test_premises and not train_premises & test_premises
    assert all(premises for _, _, premises in told + test), "every document has a premise"
    assert {simulation.premise_split(premise) for premise in train_premises} == {"train"}
    assert {simulation.premise_split(premise) for premise in test_premises} == {"test"}


def test_half_of_the_documents_are_chinese(told):
    """Both languages are equal citizens."""
    chinese = sum(len(re.findall(r"[\u4e00-\u9fff]", text)) > len(text) / 3 for text, plot, _ in told
                  if not plot.startswith("pairs"))
    assert 0.47 < chinese / sum(not plot.startswith("pairs") for _, plot, _ in told) < 0.53


def names(concept, language):
    """The spellings under which a concept shows up in text."""
    if language == "zh":
        return [concept.chinese]
    if concept.plural[:1] in ("", "~", "="):
        return [concept.english, lexicon.plural(concept.english)]
    return [concept.english, *concept.plural.split("|")]


@pytest.mark.parametrize("language", lexicon.LANGUAGES)
def test_at_least_600_concepts_are_really_used(told, language):
    """A vocabulary counts when it occurs in texts, not when it stands in a table."""
    text = "\n".join(texts(told, language)).lower()
    words = {names(concept, language)[0] for concept in lexicon.concepts().values()
             if any(spelling.lower() in text for spelling in names(concept, language))}
    assert len(words) >= 600


def test_at_least_forty_shapes_of_story_occur(told):
    """One template filled many times would be learnt in an hour."""
    assert len({plot for _, plot, _ in told if plot.startswith("story/")}) >= 40
    kinds = Counter(re.split("[:/]", plot)[0] for _, plot, _ in told)
    assert len(kinds) >= 10 and kinds["story"] < 0.75 * SAMPLE


def test_documents_have_a_readable_length(told):
    """Short enough for a small context, long enough to hold a cause and a consequence."""
    lengths = [len(text.split()) for text in texts(told, "en")]
    assert 100 < sum(lengths) / len(lengths) < 200
    assert max(lengths) < 600
    assert not any("\n\n" in text for text, _, _ in told), "a blank line would cut a document in two"


# ---- the simulation ------------------------------------------------------------------------------------------------

def test_every_cause_precedes_its_event(stories):
    """A question `why` has its answer earlier in the text."""
    assert sum(event.cause is not None for story in stories for event in story.events) > 1000
    for story in stories:
        for order, event in enumerate(story.events):
            assert event.order == order and (event.cause is None or event.cause < order)
            assert event.text in story.text


def test_possessions_follow_from_the_events(stories):
    """Replaying gains, losses and gifts gives exactly what the record says everyone holds at the end."""
    effects = grammar.grammar().effects
    for story in stories:
        holds = Counter()
        for event in story.events:
            amount, effect = 1 if event.count is None else event.count, effects.get(event.action)
            if effect in ("lose", "pass"):
                holds[event.actor, event.object] -= amount
                assert holds[event.actor, event.object] >= 0, "nobody gives away what they do not have"
            if effect in ("gain", "pass", "grant"):
                holds[event.actor if effect == "gain" else event.recipient, event.object] += amount
        recorded = {(owner, thing): count for owner, things in story.facts["holdings"].items()
                    for thing, count in things.items()}
        assert {key: count for key, count in holds.items() if count} == \
            {key: count for key, count in recorded.items() if count}


def test_both_languages_tell_the_same_events():
    """The record is free of language, so a story and its translation share it."""
    for index in range(50):
        english, chinese = (world.story(index, language=language) for language in lexicon.LANGUAGES)
        strip = lambda story: [(event.action, event.actor, event.object, event.count, event.cause)
                               for event in story.events]
        assert strip(english) == strip(chinese) and english.facts == chinese.facts
        assert len(english.sentences) == len(chinese.sentences)


def test_a_shared_basket_adds_up(stories):
    """What was given away and what is left make what there was."""
    shared = [story for story in stories if story.plot == "story/share-fruit"]
    for story in shared:
        have, give, left = (next(event.count for event in story.events if event.action == action)
                            for action in ("have", "give", "count"))
        assert have == give + left
    assert shared


def test_arithmetic_in_the_texts_is_right(told):
    """A model learns wrong sums as willingly as right ones."""
    right = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b, "÷": lambda a, b: a / b}
    sums = [found for text, _, _ in told for found in re.findall(r"(\d+) ([-+×÷]) (\d+) = (\d+)", text)]
    assert len(sums) > 100
    assert all(right[sign](int(a), int(b)) == int(c) for a, sign, b, c in sums)


# ---- the language --------------------------------------------------------------------------------------------------

def test_no_slot_is_left_unfilled(told):
    """Every mark of the grammar has become words."""
    for text, plot, _ in told:
        assert not re.search(r"[{}<>\[\]|_#~]|None|\\", text), (plot, text)


def test_english_and_chinese_do_not_mix(told):
    """Only bilingual documents hold both."""
    assert not [text for text in texts(told, "en") if re.search(r"[\u4e00-\u9fff]|[，。“”]", text)]
    assert not [text for text in texts(told, "zh") if re.search(r"[A-Za-z]", text)]


def test_the_article_follows_the_sound(told):
    """a ball, an apple, an old ball, a unicycle."""
    for text in texts(told, "en"):
        for article, word in re.findall(r"\b([Aa]n?) ([a-z]+)", text):
            vowel = word[0] in "aeiou" and not word.startswith(("uni", "use", "one"))
            assert (article.lower() == "an") == (vowel or word.startswith(("hour", "honest"))), f"{article} {word}"


def test_english_sentences_begin_with_a_capital(told):
    """The generator puts sentences together; none may look like a fragment."""
    for text in texts(told, "en"):
        assert text[0].isupper() or text[0] in '"0123456789', text[:60]
        assert not re.search(r"[.] [a-z]", text), text


def test_number_words_and_measure_words():
    """三个苹果 and two glasses of milk; two things are 两, the number alone is 二."""
    assert [lexicon.counted(3, "apple", language) for language in lexicon.LANGUAGES] == ["three apples", "三个苹果"]
    assert [lexicon.counted(2, "milk", language) for language in lexicon.LANGUAGES] == [
        "two glasses of milk", "两杯牛奶"]
    assert lexicon.counted(1, "shoes", "en") == "one pair of shoes"
    assert [lexicon.number(21, language) for language in lexicon.LANGUAGES] == ["twenty-one", "二十一"]
    assert [lexicon.number(n, "zh") for n in (10, 12, 105, 230)] == ["十", "十二", "一百零五", "二百三十"]
    assert [lexicon.plural(noun) for noun in ("box", "day", "berry", "loaf")] == ["boxes", "days", "berries", "loaves"]


# ---- the data files ------------------------------------------------------------------------------------------------

def test_the_world_names_only_things_that_exist():
    """Each value of a relation is a concept, and so has a name in both languages."""
    table = lexicon.concepts()
    relations = [key.split("#")[0] for key in table if key.endswith("#relation")]
    for concept in table.values():
        assert re.search(r"[\u4e00-\u9fff]", concept.chinese), concept.key
        for relation in set(concept.features) & set(relations):
            assert all(value in table for value in concept.features[relation]), (concept.key, relation)
    assert {("cat", "is-a", "pet"), ("cat", "drinks", "milk"), ("pen", "goes-with", "notebook")} <= set(lexicon.facts())
    assert ("猫", "爱喝", "牛奶") in lexicon.facts("zh")
    assert len(lexicon.facts()) == len(set(lexicon.facts()))


def test_every_step_is_worded_in_both_languages():
    """A missing translation would be found by the one seed that reaches it."""
    for ways in grammar.grammar().plots.values():
        for plot in ways:
            for step in plot.steps:
                assert bool(step.texts["en"]) == bool(step.texts["zh"]), (plot.name, step.action)
                assert step.include in grammar.grammar().plots or not step.include, (plot.name, step.include)


def test_the_command_writes_what_the_functions_return(tmp_path, capsys):
    """Documents are separated by blank lines; --json counts them."""
    out = tmp_path / "deep" / "world.txt"
    world.main(["--documents", "30", "--seed", "7", "--out", str(out), "--json"])
    assert out.read_text(encoding="utf-8").strip().split("\n\n") == list(world.documents(30, seed=7))
    assert json.loads(capsys.readouterr().out)["documents"] == 30
    with pytest.raises(SystemExit):
        world.main(["--documents", "2", "--out", str(out.parent)])
    assert "is a folder; give the name of a file" in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*")] == ["deep", "world.txt"]
    world.main(["--documents", "2", "--language", "zh"])
    assert capsys.readouterr().out.strip().split("\n\n") == [world.document(index) for index in (1, 3)]
    with pytest.raises(ValueError, match="split must be one of"):
        world.document(0, split="validation")
