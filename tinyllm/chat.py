"""The one chat template: messages -> ids and which of them are learnt; sections of an answer back out of its text.

Control tokens are inserted as ids, so nothing a user types can end a turn. Every example begins with its own prompt
because a prompt is an example with an empty answer. Used by the stages after pretraining, generate and evaluate;
explained by tests/test_chat.py.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from tinyllm.tokenizer import Tokenizer
from tinyllm.vocabulary import HEADINGS

T = TypeVar("T")


# --- messages -> ids ---

def render_example(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """(ids, learn): the ids of a conversation, and for each whether the model learns to write it.

    A turn is `<|role|>` newline content, two turns are joined by newline `<|sep|>` newline, and an assistant's turn
    ends with <eos>. Learnt are the content and the <eos> of every assistant's turn, nothing else.
    """
    ids: list[int] = []
    learn: list[bool] = []
    for message in messages:
        # A newline never merges with what follows, so the prompt's ids do not depend on the answer.
        newline, *content = tokenizer.encode("\n" + message["content"])
        separator = [newline, tokenizer.special("<|sep|>"), newline] if ids else []
        header = [*separator, tokenizer.special(f"<|{message['role']}|>"), newline]
        is_answer = message["role"] == "assistant"
        content += [tokenizer.eos] * is_answer
        ids += header + content
        learn += [False] * len(header) + [is_answer] * len(content)
    return ids, learn


def render_prompt(tokenizer: Tokenizer, messages: list[dict]) -> list[int]:
    """The ids after which the assistant's next turn begins: its example with an empty answer, without the <eos>."""
    return render_example(tokenizer, [*messages, {"role": "assistant", "content": ""}])[0][:-1]


def fit(ids: list[int], learn: list[bool], context: int) -> tuple[list[int], list[bool]] | None:
    """The example in at most `context` ids, cut at its beginning; None when its last answer alone does not fit.

    The last answer stays whole, with `<|assistant|>` newline before it. What is left of an earlier answer that was cut
    goes too, so that nothing is learnt without its beginning. Count the Nones: they are examples that are dropped.
    """
    answer = max((i for i, learnt in enumerate(learn) if not learnt), default=-1) + 1
    start = max(0, len(ids) - context)
    if start > answer - 2:
        return None
    while learn[start]:
        start += 1
    return ids[start:], learn[start:]


# --- the two sections of an answer that shows its reasoning ---

class Sections(NamedTuple):
    """`answer` is None when the text has no final answer."""

    reasoning: str
    answer: str | None


def language_of(text: str) -> str:
    """"zh" or "en": whether `text` has more Chinese characters than Latin words."""
    return "zh" if len(re.findall("[\u3400-\u9fff]", text)) > len(re.findall("[A-Za-z]+", text)) else "en"


def rationale(cot: str, final: str, language: str) -> str:
    """An assistant's text in two sections, headings in "zh" or "en". parse_sections takes it apart again,
    unless one of its lines looks like a heading itself."""
    reasoning, answer = HEADINGS[language]
    return f"{reasoning}\n{cot}\n{answer}\n{final}"


# A name between brackets of any kind (the closing one may be missing), or alone at the beginning of a line.
_NAME = r"(?:(?P<reasoning{0}>推理过程|reasoning)|最终答案|final[ \t]*answer)"
_HEADING = re.compile(r"[*#]{0,4}[\[［【〔〖「][ \t\u3000*]*" + _NAME.format(1) + r"[ \t\u3000*:：\]］】〕〗」]*"
                      r"|^[ \t\u3000*#]*" + _NAME.format(2) + r"(?:[ \t\u3000*]*[:：\]］】〕〗」][*]*|[ \t*]*$)",
                      re.IGNORECASE | re.MULTILINE)


def parse_sections(text: str) -> Sections:
    """Reasoning and final answer of what a model wrote, in either language, however untidy the headings are.

    Text under no heading counts as reasoning. Of several final answers the last that is not empty wins: a correction
    stands after what it corrects, and an empty one was cut off by the limit of tokens.
    """
    reasoning, answers, start, under = [], [], 0, "reasoning"
    for heading in [*_HEADING.finditer(text), None]:
        content = text[start:heading.start() if heading else None].strip()
        (reasoning if under == "reasoning" else answers).append(content)
        if heading:
            start, under = heading.end(), "reasoning" if heading["reasoning1"] or heading["reasoning2"] else "answer"
    answers = [answer for answer in answers if answer]
    return Sections("\n".join(filter(None, reasoning)), answers[-1] if answers else None)


# --- files of rows ---

def messages_of(row: dict) -> list[dict]:
    """The messages of a row of a file, without an empty system message; ValueError naming what is wrong with it.

    Formats: {"messages": [{"role", "content"}, ...]}, {"system", "user", "assistant"} and
    {"system", "user", "cot", "final"}; "system" may be missing, other keys are not read.
    """
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError('"messages" must be a list of objects with "role" and "content"')
    else:
        keys = ("user", "cot", "final") if "final" in row or "cot" in row else ("user", "assistant")
        for key in keys:
            if key not in row:
                raise ValueError(f'no "{key}"; a row holds "user" and "assistant", or "user", "cot" and "final", '
                                 'or "messages"')
        fields = {key: row[key] for key in ("system", *keys) if key in row}
        for key, value in fields.items():
            check_text(f'"{key}"', value, may_be_empty=key == "system")
        if "final" in keys:
            language = language_of(" ".join(fields.values()))
            fields["assistant"] = rationale(fields.pop("cot"), fields.pop("final"), language)
        messages = [{"role": role, "content": content} for role, content in fields.items()]
    return _checked(messages)


def _checked(messages: list[dict]) -> list[dict]:
    """`messages` as one optional system message, then users and assistants in turn, an assistant last."""
    for number, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if key not in message:
                raise ValueError(f'message {number} has no "{key}"')
        check_text(f"message {number}", message["content"], may_be_empty=message["role"] == "system")
    with_system = bool(messages) and messages[0]["role"] == "system"
    if with_system and not messages[0]["content"]:
        messages, with_system = messages[1:], False
    for number, message in enumerate(messages[with_system:]):
        wanted = ("user", "assistant")[number % 2]
        if message["role"] != wanted:
            raise ValueError(f"expected a message of the {wanted}, found role {message['role']!r}; a conversation is "
                             "one optional system message, then user and assistant in turn")
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end with an assistant's message, so there is nothing to learn")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def check_text(name: str, value: object, may_be_empty: bool) -> None:
    """ValueError unless `value` is text that can be written down, and not empty if it must not be."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a character (a surrogate that stands alone)") from None
    if not may_be_empty and not value.strip():
        raise ValueError(f"{name} is empty")


def read_rows(path: str | Path, parse: Callable[[dict], T] = dict) -> Iterator[T]:
    """`parse(row)` of every JSON line of the file, which may be gzipped; ValueError with file and line number.

    What `parse` raises is reported with the line too, so read_rows(path, messages_of) says where a bad row stands.
    """
    return (row for _, row in numbered_rows(path, parse))


def numbered_rows(path: str | Path, parse: Callable[[dict], T], skip: Callable[[str], None] | None = None
                  ) -> Iterator[tuple[int, T]]:
    """(line number, parsed row) of every JSON line; a bad row is an error, or with `skip` its sentence goes there."""
    path, number = Path(path), 0
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = _parsed(line, parse, f"{path}, line {number}")
                except ValueError as error:
                    if not skip:
                        raise
                    skip(str(error))
                else:
                    yield number, row
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}) after line {number}") from None


def _parsed(line: bytes, parse: Callable[[dict], T], where: str) -> T:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if not isinstance(row, dict):
            raise ValueError(f"expected an object {{...}}, found a {type(row).__name__}")
        return parse(row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start} of the line; convert the file") from None
    except (json.JSONDecodeError, RecursionError) as error:
        place = f", column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}{place})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
