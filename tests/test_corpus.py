"""Reading: what a document is, nothing lost on the way, and every mistake in the input reported with its place."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest

from tinyllm.corpus import Tally, _lines, cut, find_files, read_documents


def read(*paths, whole_files=False, max_chars=1000, skip_bad=False, notes=None, progress=lambda n: None) -> list[str]:
    return list(read_documents(find_files([str(path) for path in paths]), whole_files=whole_files, max_chars=max_chars,
                               skip_bad=skip_bad, notes=Tally() if notes is None else notes, progress=progress))


def test_blank_lines_separate_documents_unless_a_file_is_one(tmp_path):
    """Both habits are common: a file of many short texts, and a folder with one book a file."""
    file = tmp_path / "a.txt"
    file.write_text("one\nstill one\n\n  \n\ntwo\r\n\r\nthree", encoding="utf-8", newline="")
    assert [text.strip() for text in read(file)] == ["one\nstill one", "two", "three"]
    assert read(file, whole_files=True) == ["one\nstill one\n\n  \n\ntwo\r\n\r\nthree"]


def test_every_ending_gives_the_same_documents(tmp_path):
    """How a text is stored says nothing about it."""
    texts = ["The owl sleeps.", "猫头鹰睡觉。", "line one\nline two"]
    plain = "\n\n".join(texts).encode()
    rows = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()
    for name, content in (("a.txt", plain), ("b.md", plain), ("c.jsonl", rows)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            assert [text.strip() for text in read(path)] == texts


def test_a_folder_is_read_in_a_fixed_order_and_each_file_once(tmp_path):
    """The order decides which copy is the first one, so it must not depend on the file system."""
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.txt", "a.md", "sub/c.TXT", "ignored.pdf", ".git/d.txt", ".e.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert read(tmp_path, tmp_path / "b.txt") == ["a.md", "b.txt", "sub/c.TXT"]


@pytest.mark.parametrize("mention", ["Use the <script> tag here.", "A comment begins with <!-- and so on."])
def test_prose_may_speak_of_scripts(tmp_path, mention):
    """Only a page has a script in it; a text about pages goes on behind the word."""
    (tmp_path / "a.txt").write_text(f"{mention}\n\nSecond block.\n\nThird block.\n")
    assert [text.strip() for text in read(tmp_path)] == [mention, "Second block.", "Third block."]


def test_a_script_with_blank_lines_stays_in_one_document(tmp_path):
    """Cut in two, its second half would look like text."""
    file = tmp_path / "page.txt"
    page = "<p>Hi</p><script>\nvar a;\n\nvar b;\n</script>"
    file.write_text(f"before\n\n{page}\n\nafter\n", encoding="utf-8")
    assert [text.strip() for text in read(file)] == ["before", page, "after"]


@pytest.mark.parametrize("unit", ["A short sentence. ", "一个没有空格的句子。", "lines\nof text\n", "x" * 37, "猫"])
def test_long_documents_are_cut_and_nothing_is_lost(tmp_path, unit):
    """A book becomes several documents: in order, complete, each at most max_chars long."""
    text = unit * (7000 // len(unit))
    file, notes = tmp_path / "book.txt", Tally()
    file.write_text(text, encoding="utf-8")
    pieces = read(file, whole_files=True, notes=notes)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1000
    assert notes == {"cut": [len(pieces) - 1, 0]}
    if unit[-1] in " 。\n":
        assert all(piece.endswith(unit[-1]) for piece in pieces)


def test_a_cut_prefers_lines_to_sentences_to_anything():
    """A model that reads the piece should meet as few broken thoughts as possible."""
    assert list(cut("one. two\nthree. four five", 12)) == ["one. two\n", "three. ", "four five"]
    assert list(cut("one two. three", 10)) == ["one two. ", "three"]
    assert list(cut("onetwothree", 6)) == ["onetwo", "three"]
    assert list(cut("", 6)) == [""]


def test_a_line_longer_than_any_buffer_is_read_whole(tmp_path):
    """Long lines arrive in pieces of a megabyte; a Chinese character on the border must not break."""
    text = "".join(random.Random(0).choices("ab中文字", k=1_200_000))
    file = tmp_path / "line.txt"
    file.write_text(text, encoding="utf-8")
    assert "".join(read(file, whole_files=True, max_chars=100_000)) == text


def test_a_byte_order_mark_is_not_text(tmp_path):
    """Windows editors write one; in front of a JSON line it would be a syntax error."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "world"}\n')
    assert read(tmp_path) == ["hello", "world"]


def test_progress_counts_the_bytes_on_disk(tmp_path):
    """The bar must end at the size of the files, compressed or not."""
    (tmp_path / "a.txt").write_bytes(b"some text\n" * 1000)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"some text\n" * 1000))
    steps = []
    read(tmp_path, progress=steps.append)
    assert sum(steps) == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("a.txt", b"good line\nbad \xe9 line\n", "a.txt: not UTF-8 at byte 14 (value 0xe9)"),
    ("a.txt", "中文".encode()[:-1], "a.txt: not UTF-8 at byte 3"),
    ("a.txt", b"PK\x03\x04\x00\x00", "a.txt: binary, not UTF-8 text (zero byte at 4)"),
    ("a.txt", "utf-16".encode("utf-16"), "a.txt: binary"),
    ("a.txt.gz", b"not gzip", "a.txt.gz: damaged gzip file"),
    ("a.txt.gz", gzip.compress(b"x" * 10_000)[:-9], "a.txt.gz: damaged gzip file"),
    ("a.jsonl", b'{"text": "x"}\n{"text": }\n', "a.jsonl, line 2: not valid JSON (Expecting value, column 10)"),
    ("a.jsonl", b'{"text"\n', "a.jsonl, line 1: not valid JSON (Expecting ':' delimiter, column 9)"),
    ("a.jsonl", b'\n{"story": "x"}\n', 'a.jsonl, line 2: expected an object with a string "text"'),
    ("a.jsonl", b"[1]\n", 'a.jsonl, line 1: expected an object with a string "text"'),
    ("a.jsonl", b'{"text": 3}\n', 'a.jsonl, line 1: expected an object with a string "text"'),
    ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl, line 1: not valid JSON"),
])
def test_a_bad_file_or_line_is_reported_with_its_place_or_counted(tmp_path, name, content, sentence):
    """By default the user decides; with skip_bad the rest is read and the loss is counted."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text("good", encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    assert sentence in str(error.value)
    assert str(error.value).count("\n") == 0 and "--skip-bad" in str(error.value)
    notes = Tally()
    assert "good" in read(tmp_path, skip_bad=True, notes=notes)[-1]
    assert sum(count for count, _ in notes.values()) == 1


def test_a_file_that_may_not_be_opened_is_reported_or_counted(tmp_path, monkeypatch):
    """As one that is damaged: it has its name in the sentence, and with skip_bad the others are read."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("good", encoding="utf-8")
    opened = Path.open

    def may_not(path, *how):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how)

    monkeypatch.setattr(Path, "open", may_not)
    with pytest.raises(ValueError, match="a.txt: Permission denied; .*--skip-bad"):
        read(tmp_path)
    notes = Tally()
    assert read(tmp_path, skip_bad=True, notes=notes) == ["good"] and notes == {"unreadable file": [1, 0]}


def test_a_skipped_line_does_not_shift_the_line_numbers(tmp_path):
    """A wrong place in an error message is worse than none."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "\xff"}\n\n{"text": "x"}\n{"text": \n')
    notes = Tally()
    assert read(file, skip_bad=True, notes=notes) == ["x"]
    assert notes == {"bad line": [2, 0]}
    assert list(_lines(file, 1000, True, notes, lambda n: None)) == ["", "\n", '{"text": "x"}\n', '{"text": \n', ""]


def test_a_number_of_thousands_of_digits_is_a_bad_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "id": ' + 5000 * "9" + '}\n{"text": "y"}\n')
    with pytest.raises(ValueError, match="a.jsonl, line 1: not valid JSON"):
        read(file)
    assert read(file, skip_bad=True) == ["y"]


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    """Half of a corpus would be missing without a word."""
    (tmp_path / "open.txt").write_text("seen")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "b.txt").write_text("not seen")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(ValueError, match="closed: Permission denied; make it readable"):
        read(tmp_path)


def test_missing_paths_and_folders_without_text_are_errors(tmp_path):
    """A typing error must not silently prepare an empty corpus."""
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.pdf").write_bytes(b"")
    for path in (tmp_path, tmp_path / "a.pdf"):
        with pytest.raises(ValueError, match=r"nothing to read here; .* \.txt \.md \.jsonl"):
            read(path)
