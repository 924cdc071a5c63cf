"""Generated questions: only the passage gives the answer away, and the classes of pairs follow from the world."""

import itertools
import json
import re
import statistics

import pytest

from tinyllm.choices import (
    LABELS,
    SPLITS,
    ChoicesConfig,
    goods,
    kinds,
    main,
    pair,
    reading_question,
    related,
    relation,
    rows,
)
from tinyllm.lexicon import concepts
from tinyllm.options import to_question
from tinyllm.problems import split_of
from tinyllm.report import interval
from tinyllm.shortcuts import baselines

N = 1200


@pytest.fixture(scope="module")
def questions():
    return [reading_question(index, split="val") for index in range(N)]


def share(questions, score):
    """Accuracy of choosing the option with the highest score(option, row), ties shared; and that of chance."""
    right = [baselines([to_question(row)], lambda i, n, row=row: [score(option, row) for option in row["options"]])
             ["language model, per token"]["accuracy"] for row in questions]
    return statistics.mean(right), statistics.mean(1 / len(row["options"]) for row in questions)


@pytest.mark.parametrize("shortcut", [
    lambda option, row: len(option), lambda option, row: -len(option),
    lambda option, row: row["options"].index(option), lambda option, row: -row["options"].index(option),
    lambda option, row: row["context"].count(option), lambda option, row: row["context"].find(option),
    lambda option, row: -row["context"].find(option)],
    ids=["longest", "shortest", "last", "first", "most often named", "named last", "named first"])
def test_no_shortcut_beats_chance(questions, shortcut):
    """Which fact is asked for is drawn after everything else, so the right option differs from the others in truth
    alone: any rule that does not link question and fact is right as often as a coin, within its 95% interval (99.9%
    here, as seven rules are tried)."""
    found, chance = share(questions, shortcut)
    low, high = interval(found * N, N)
    assert found + 1.7 * (low - found) < chance < found + 1.7 * (high - found)


def test_the_baselines_of_the_scorer_are_at_chance(questions):
    """Longest option and bigrams shared with the passage: the two shortcuts that are printed beside every result."""
    measured = baselines([to_question(row) for row in questions], lambda i, n: [0.0] * len(questions[i]["options"]))
    chance = measured["chance"]["accuracy"]
    for name in ("longest option", "bigrams shared with context"):
        assert measured[name]["low"] < chance < measured[name]["high"], name


def test_the_answer_is_what_the_passage_says():
    """A question and its answer come from one fact, so the sentence that holds both stands in the passage."""
    row = next(row for row in map(reading_question, itertools.count()) if row["family"] == "colour"
               and row["language"] == "en" and re.search("What colour", row["question"]))
    thing = re.search(r"was the (.*)\?", row["question"])[1]
    colour = row["options"][row["answer"]]
    assert any(told in row["context"].lower() for told in (f"the {thing} was {colour}.", f"{colour} {thing}."))


def test_every_kind_of_fact_asks_in_both_languages(questions):
    """A wording missing in one language would silently shrink the data."""
    assert {row["family"] for row in questions} == set(kinds())
    assert {row["language"] for row in questions} == {"en", "zh"}
    assert {len(row["options"]) for row in questions} >= {2, 3, 4, 5, 6}
    assert all(len(texts[language]) >= 2 for kind in kinds().values() for *_, texts in kind.asks
               for language in ("en", "zh"))


@pytest.mark.parametrize("make, key", [(reading_question, "question"), (pair, "user")])
def test_train_and_test_share_no_question(make, key):
    """The hash of the question decides which split it belongs to, whatever the seed."""
    for split in SPLITS:
        assert all(split_of(make(index, 5, split)[key]) == split for index in range(40))


def test_a_row_is_a_function_of_its_number():
    """The same number, seed and split give the same row on every machine."""
    assert reading_question(7) == reading_question(7) != reading_question(7, seed=1)
    assert pair(7) == pair(7) != pair(8)


def test_classes_follow_from_the_world():
    """By hand, from what everybody knows: tea goes with cake, a mug replaces a cup, a kite does neither."""
    the = concepts()
    for query, item, label in (("cup", "cup", "exact"), ("cup", "mug", "substitute"), ("apple", "pear", "substitute"),
                               ("cake", "tea", "complement"), ("cup", "saucer", "complement"),
                               ("pencil", "soup", "irrelevant")):
        assert relation(the[query], the[item]) == relation(the[item], the[query]) == label
    assert all(len(related(query, "irrelevant")) > 20 for query in goods())


def test_classes_are_balanced_and_looks_tell_nothing():
    """Colours and shops are drawn without regard to the class, so they are as common in each."""
    rows = [pair(index, split="val") for index in range(400)]
    assert [row["assistant"] for row in rows] == list(LABELS) * 100
    shops = {label: sum("from" in row["item"] or "的" in row["item"] for row in rows if row["assistant"] == label)
             for label in LABELS}
    assert max(shops.values()) - min(shops.values()) < 30


def test_held_out_pairs_of_concepts_are_new():
    """A pair of concepts belongs to one split, so a test row is not a train row in another colour."""
    words = {concept.english for concept in goods()}
    bare = lambda row: tuple(sorted(max((word for word in words if re.search(rf"\b{word}\b", row[side])), key=len)
                                    for side in ("query", "item")))
    train, test = ({bare(pair(index, split=split, language="en")) for index in range(160)}
                   for split in ("train", "test"))
    assert not train & test


def test_the_command_writes_six_files(tmp_path, capsys):
    """Rows of a held-out file are all different."""
    main(["--out", str(tmp_path), "--options", "30", "--labels", "20", "--val", "20", "--test", "20"])
    assert "options_train: 30 rows" in capsys.readouterr().out
    for name in ("options", "labels"):
        for split, n in zip(SPLITS, (30 if name == "options" else 20, 20, 20)):
            lines = (tmp_path / f"{name}_{split}.jsonl").read_text(encoding="utf-8").splitlines()
            assert len(lines) == n and all(json.loads(line) for line in lines)
            assert split == "train" or len(set(lines)) == n


def test_none_of_a_kind_is_no_file_of_it(tmp_path):
    main(["--out", str(tmp_path), "--options", "4", "--labels", "0", "--val", "2", "--test", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"options_{split}.jsonl" for split in sorted(SPLITS)]


def test_without_a_folder_rows_are_printed(capsys):
    main([])
    assert len(capsys.readouterr().out.splitlines()) == 14
    main(["--options", "0"])                                         # of one kind alone
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_more_held_out_rows_than_there_are_end_with_those_there_are():
    one = {"context": "c", "question": "q"}
    assert len(list(rows(lambda *key: one, 5, ChoicesConfig(), "val"))) == 1
    assert len(list(rows(lambda *key: one, 5, ChoicesConfig(), "train"))) == 5


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="train, val, test"):
        reading_question(0, split="dev")
    assert ChoicesConfig().options == 12000
