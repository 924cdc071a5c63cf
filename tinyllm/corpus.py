"""Files of text -> raw documents, one after the other, in bounded memory: .txt .md .jsonl, each also .gz.

A mistake in the input is reported with its place (file and byte, or file and line), or counted and skipped on demand;
nothing is lost silently. Used by prepare.py; explained by tests/test_corpus.py.
"""

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ENDINGS = (".txt", ".md", ".jsonl", ".txt.gz", ".md.gz", ".jsonl.gz")
TEXT_LINE_BYTES = 1 << 20             # longer lines are read in pieces, so that no line can fill the memory
JSON_LINE_BYTES = 64 << 20            # a JSON line has to be read whole
# Where a script, a style or a comment begins (behind a tag, or first in a line; not in prose) and where it ends.
HIDDEN = re.compile(r"(?:(?<=>)|^)\s*(?:<(?:script|style)\b|<!--)|</(?:script|style)|-->", re.I)
SENTENCE_END = re.compile(r"[.!?]['”’\")]?\s|[。！？][”’」』]?")


class Tally(dict):
    """Reason -> [how many, characters]: what was dropped, for the report."""

    def add(self, reason: str, count: int = 1, characters: int = 0) -> None:
        """Count `count` more cases of `reason`; a reason that never happened does not appear."""
        if count or characters:
            old = self.get(reason, (0, 0))
            self[reason] = [old[0] + count, old[1] + characters]

    def merge(self, other: dict) -> None:
        """Add all counts of `other`."""
        for reason, (count, characters) in other.items():
            self.add(reason, count, characters)


def find_files(paths: list[str]) -> list[Path]:
    """The text files in `paths` in a fixed order; ValueError for a path that is missing or holds none.

    Hidden files and folders (.git, .ipynb_checkpoints) inside a folder do not count, and links to folders are not
    followed.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        inside = [path] if path.is_file() else sorted(
            Path(folder, name) for folder, _, names in os.walk(path, onerror=_unreadable) for name in names
            if not any(part.startswith(".") for part in Path(folder, name).relative_to(path).parts))
        usable = [file for file in inside if file.name.lower().endswith(ENDINGS)]
        if not usable:
            raise ValueError(f"{path}: nothing to read here; the names of text files end in {' '.join(ENDINGS)}")
        for file in usable:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _unreadable(error: OSError) -> None:
    """A folder whose files cannot be listed is no empty one."""
    raise ValueError(f"{error.filename}: {error.strerror}; make it readable, or name the other folders one by one")


class _UnreadableFile(ValueError):
    """Nothing more can be read from this file."""


def read_documents(files: list[Path], *, whole_files: bool, max_chars: int, skip_bad: bool, notes: Tally,
                   progress: Callable[[int], object]) -> Iterator[str]:
    """The raw documents of `files`, none longer than `max_chars`; `notes` counts cuts and what `skip_bad` skips.

    `progress` is told the number of bytes read from disk.
    """
    for file in files:
        is_json = file.name.lower().removesuffix(".gz").endswith(".jsonl")
        lines = _lines(file, JSON_LINE_BYTES if is_json else TEXT_LINE_BYTES, skip_bad, notes, progress)
        texts = _json_texts(file, lines, skip_bad, notes) if is_json else \
            _texts(lines, whole_files, max_chars, notes)
        try:
            for text in texts:
                pieces = list(cut(text, max_chars))
                notes.add("cut", len(pieces) - 1)
                yield from pieces
        except _UnreadableFile as error:
            if not skip_bad:
                raise ValueError(f"{error}; remove it from the input or use --skip-bad") from None
            notes.add("unreadable file")


def _lines(file: Path, limit: int, skip_bad: bool, notes: Tally, progress: Callable[[int], object]) -> Iterator[str]:
    """Lines of `file` with their ends; those longer than `limit` bytes in pieces; "" in place of a bad line."""
    decoder, position, shown = codecs.getincrementaldecoder("utf-8")(), 0, 0
    try:
        opened = file.open("rb")
    except OSError as error:
        raise _UnreadableFile(f"{file}: {error.strerror}") from None
    with opened as raw, (gzip.GzipFile(fileobj=raw) if file.name.lower().endswith(".gz") else raw) as stream:
        while True:
            try:
                line = stream.readline(limit)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _UnreadableFile(f"{file}: damaged gzip file ({error})") from None
            if position == 0 and b"\0" in line[:8192]:
                raise _UnreadableFile(f"{file}: binary, not UTF-8 text (zero byte at {line.index(0)})")
            held = len(decoder.getstate()[0])                        # bytes of a character cut by the limit
            try:
                text = decoder.decode(line, final=not line or line.endswith(b"\n"))
            except UnicodeDecodeError as error:
                if not skip_bad:
                    place = f"byte {position - held + error.start} (value 0x{error.object[error.start]:02x})"
                    raise ValueError(f"{file}: not UTF-8 at {place}; convert the file or use --skip-bad") from None
                notes.add("bad line")
                decoder.reset()
                text = ""
            yield text.removeprefix("\ufeff") if position == 0 else text
            if not line:
                return
            position += len(line)
            progress(raw.tell() - shown)
            shown = raw.tell()


def _texts(lines: Iterable[str], whole_file: bool, max_chars: int, notes: Tally) -> Iterator[str]:
    """Documents of a text file: all of it, or the blocks between blank lines (never cut inside an HTML script)."""
    pieces, size, hidden = [], 0, False
    for line in lines:
        for mark in HIDDEN.findall(line) if "<" in line or hidden else ():
            hidden = not mark.startswith(("</", "-->"))
        if line.isspace() and not whole_file and not hidden:
            if pieces:
                yield "".join(pieces)
            pieces, size = [], 0
        elif line:
            pieces.append(line)
            size += len(line)
            if size > 2 * max_chars:                                 # a whole book need not fit into memory
                *ready, rest = cut("".join(pieces), max_chars)
                notes.add("cut", len(ready))
                yield from ready
                pieces, size, hidden = [rest], len(rest), False
    if pieces:
        yield "".join(pieces)


def _json_texts(file: Path, lines: Iterable[str], skip_bad: bool, notes: Tally) -> Iterator[str]:
    """The "text" of every JSON line."""
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
            fault = "" if isinstance(row, dict) and isinstance(row.get("text"), str) else \
                'expected an object with a string "text"'
        except (ValueError, RecursionError) as error:                # ValueError: a number of thousands of digits
            fault = f"not valid JSON ({getattr(error, 'msg', error)}, column {getattr(error, 'pos', 0) + 1})"
        if not fault:
            yield row["text"]
        elif skip_bad:
            notes.add("bad line")
        else:
            raise ValueError(f"{file}, line {number}: {fault}; correct the line or use --skip-bad")


def cut(text: str, max_chars: int) -> Iterator[str]:
    """`text` in pieces of at most `max_chars` that end with a line if possible, else with a sentence."""
    start = 0
    while len(text) - start > max_chars:
        head = text[start:start + max_chars]
        end = head.rfind("\n") + 1
        if end < max_chars // 2:
            end = max((match.end() for match in SENTENCE_END.finditer(head)), default=0)
        end = start + (end if end >= max_chars // 2 else max_chars)
        yield text[start:end]
        start = end
    yield text[start:]
