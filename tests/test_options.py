"""Rows with options: what is accepted, what is skipped or cut, and that nothing of it is silent."""

import gzip
import json

import pytest

from tinyllm.options import Question, by_split, encode, encode_all, load_questions, read_questions, render, to_question

GOOD = {"context": "The cat sat.", "question": "Who sat?", "options": ["the cat", "a dog", "a bird"], "answer": 0}


def write(path, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("change, complaint", [
    ({"options": ["only"]}, "1 option; there must be 2 to 26"),
    ({"options": ["a"] * 27}, "27 options"),
    ({"options": ["a", " "]}, "option 1 is empty"),
    ({"options": "ab"}, "list of texts"),
    ({"options": ["a", 3]}, "list of texts"),
    ({"answer": 3}, "0 to 2, not 3"),
    ({"answer": -1}, "0 to 2, not -1"),
    ({"answer": True}, "not True"),
    ({"answer": "A"}, "not 'A'"),
    ({"answer": None}, "not None"),
    ({"question": ""}, '"question" must be a text'),
    ({"context": 5}, '"context" must be a text')])
def test_a_bad_row_says_what_is_wrong(change, complaint):
    """One sentence with the value and the limit."""
    with pytest.raises(ValueError, match=complaint):
        to_question(GOOD | change)


def test_bad_rows_are_skipped_with_their_line(tmp_path, capsys):
    """The good rows are read, every bad one is named and counted: nothing is dropped silently."""
    rows = GOOD, GOOD | {"options": ["a"]}, "", "{broken", "[1]", GOOD | {"answer": 9}, GOOD
    path = write(tmp_path / "rows.jsonl", *rows)
    questions, skipped = load_questions([str(path)])
    said = capsys.readouterr().err
    assert [question.line for question in questions] == [1, 7] and skipped == 4
    for line in (2, 4, 5, 6):
        assert f"line {line}: " in said
    assert "4 rows skipped; 2 questions read" in said


@pytest.mark.parametrize("field", [{"question": "a \ud800?"}, {"context": "\ud800"}, {"options": ["a", "\ud800"]}])
def test_half_a_character_is_a_fault_of_its_row(tmp_path, field):
    """JSON can spell a surrogate that stands alone; it cannot be encoded, and must not end a run without its line."""
    (question,), (said,) = read_questions(write(tmp_path / "a.jsonl", GOOD, GOOD | field))
    assert question.line == 1 and "line 2: " in said and "half of a character" in said


def test_a_file_without_a_good_row_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="line 1: 1 option"):
        read_questions(write(tmp_path / "a.jsonl", GOOD | {"options": ["a"]}))
    with pytest.raises(ValueError, match="no questions"):
        read_questions(write(tmp_path / "b.jsonl"))


def test_a_gzip_file_is_read_and_a_damaged_one_reported(tmp_path):
    whole = gzip.compress((json.dumps(GOOD) + "\n").encode() * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    assert len(read_questions(tmp_path / "a.jsonl.gz", limit=3)[0]) == 3
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match="damaged gzip"):
        read_questions(tmp_path / "b.jsonl.gz")


def test_answers_are_needed_only_where_something_is_measured():
    """predict takes rows without an answer; a wrong one is still a mistake."""
    unanswered = {key: value for key, value in GOOD.items() if key != "answer"}
    assert to_question(unanswered, labelled=False).answer is None
    with pytest.raises(ValueError, match="0 to 2"):
        to_question(GOOD | {"answer": 7}, labelled=False)


def test_the_prompt_is_a_sentence_to_complete():
    """In the language of the row; several contexts are numbered as evidence."""
    assert render(to_question(GOOD)) == ("The cat sat.\nQuestion: Who sat?\nAnswer:", [" the cat", " a dog", " a bird"])
    chinese = {"context": ["猫坐着。", "狗跑了。"], "question": "谁跑了？", "options": ["猫", "狗"], "answer": 1}
    assert render(to_question(chinese)) == ("证据1：猫坐着。\n证据2：狗跑了。\n问题：谁跑了？\n答案：", ["猫", "狗"])
    assert render(to_question(GOOD | {"context": ""}))[0].startswith("Question:")


def test_a_long_context_loses_its_beginning(tokenizer, capsys):
    """The question and the options stay whole; every option still fits behind the prefix; it is said which line."""
    question = to_question(GOOD | {"context": "The bird sang in the rain. " * 30})._replace(line=7)
    short = encode(question._replace(context=""), tokenizer, 64)
    (cut,) = encode_all([question], tokenizer, 64)
    assert "1 of 1 prefixes lost their beginning" in (said := capsys.readouterr().err) and "lines 7" in said
    assert cut.prefix[0] == tokenizer.eos and cut.prefix[-20:] == short.prefix[-20:] and cut.options == short.options
    assert len(cut.prefix) + max(map(len, cut.options)) == 64
    assert cut.n_prefix_cut > 0 and cut.n_options_cut == 0


def test_a_long_option_loses_its_end(tokenizer):
    """At most half of the context is for an option, so that something of the question is always left."""
    one = encode(to_question(GOOD | {"options": ["the cat " * 99, "a dog"]}), tokenizer, 64)
    assert max(map(len, one.options)) == 32 and one.n_options_cut > 0 and len(one.prefix) > 1


def test_questions_are_divided_by_their_text():
    """The same question is always in the same part, whatever else is in the file."""
    questions = [Question("", f"Question number {n}?", ["a", "b"], 0, n, {}) for n in range(300)]
    parts = by_split(questions)
    again = by_split(questions[::-1])
    assert {name: {one.line for one in part} for name, part in parts.items()} == \
        {name: {one.line for one in part} for name, part in again.items()}
    assert all(len(part) > 10 for part in parts.values()) and sum(map(len, parts.values())) == 300
