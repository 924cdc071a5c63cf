"""Questions with options: rows of a file, checked, and as ids: a prefix that all options share, and each option.

In: JSON lines {"context", "question", "options", "answer"}. Out: `Encoded`. A bad row is skipped with its line, too
long a context is cut at its beginning, and both are counted. Explained by tests/test_options.py.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from tinyllm.chat import check_text, language_of, numbered_rows
from tinyllm.problems import split_of
from tinyllm.tokenizer import Tokenizer

# What stands before a passage of several, the question, the answer, and between "Answer:" and an option.
TEMPLATE = {"en": ("Evidence {n}: ", "Question: ", "Answer:", " "), "zh": ("证据{n}：", "问题：", "答案：", "")}
MOST_OPTIONS = 26


# --- files of questions ---

class Question(NamedTuple):
    """A row of a file. `context` is "" or a text, several texts already numbered; `answer` is None if not given."""

    context: str
    question: str
    options: list[str]
    answer: int | None
    line: int
    row: dict


def to_question(row: dict, labelled: bool = True) -> Question:
    """A row as a question; ValueError says what is wrong with it. Only `labelled` rows need an answer."""
    question, options, answer = row.get("question"), row.get("options"), row.get("answer")
    contexts = row.get("context", "")
    contexts = [contexts] if isinstance(contexts, str) else contexts
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f'"question" must be a text that is not empty, not {question!r:.40}')
    if not isinstance(contexts, list) or not all(isinstance(context, str) for context in contexts):
        raise ValueError(f'"context" must be a text or a list of texts, not {contexts!r:.40}')
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f'"options" must be a list of texts, not {options!r:.40}')
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise ValueError(f"{len(options)} option{'s' * (len(options) != 1)}; there must be 2 to {MOST_OPTIONS} to "
                         "choose from")
    for number, option in enumerate(options):
        if not option.strip():
            raise ValueError(f"option {number} is empty")
    for text in (question, *contexts, *options):
        check_text(f"{text!r:.40}", text, may_be_empty=True)
    known = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options)
    if not known and (labelled or answer is not None):
        raise ValueError(f'"answer" must be the number of an option, 0 to {len(options) - 1}, not {answer!r:.40}')
    contexts = [context.strip() for context in contexts if context.strip()]
    if len(contexts) > 1:
        mark = TEMPLATE[language_of(" ".join(contexts))][0]
        contexts = [mark.format(n=n) + context for n, context in enumerate(contexts, 1)]
    return Question("\n".join(contexts), question.strip(), [option.strip() for option in options], answer, 0, row)


def read_questions(path: str | Path, limit: int = 0, labelled: bool = True) -> tuple[list[Question], list[str]]:
    """(the first `limit` good questions of a file (0: all), one sentence with file and line for each bad row).

    ValueError if nothing is left.
    """
    questions: list[Question] = []
    bad: list[str] = []
    parse = functools.partial(to_question, labelled=labelled)
    for number, question in numbered_rows(path, parse, lambda sentence: bad.append(f"{sentence}; skipped")):
        questions.append(question._replace(line=number))
        if len(questions) == limit:
            break
    if not questions:
        raise ValueError(bad[0].removesuffix("; skipped") if bad else f"{path}: no questions in this file")
    return questions, bad


# --- questions -> ids ---

class Encoded(NamedTuple):
    """The ids of a question: what all options share, and each option; how many ids of each did not fit."""

    prefix: list[int]
    options: list[list[int]]
    n_prefix_cut: int = 0
    n_options_cut: int = 0


def render(question: Question) -> tuple[str, list[str]]:
    """(prefix, options) as text: a sentence that each option completes."""
    _, ask, reply, space = TEMPLATE[language_of(" ".join((question.context, question.question, *question.options)))]
    lines = [question.context] * bool(question.context) + [ask + question.question, reply]
    return "\n".join(lines), [space + option for option in question.options]


def encode(question: Question, tokenizer: Tokenizer, context: int) -> Encoded:
    """The question as ids, at most `context` for each option with its prefix.

    Too long a prefix loses its beginning, that is the context; an option longer than half of the context its end.
    """
    prefix, options = render(question)
    whole = [tokenizer.encode(option) for option in options]
    kept = [option[:context // 2] for option in whole]
    ids = tokenizer.encode(prefix)
    room = context - max(map(len, kept)) - 1                         # a document begins after the end of another
    cut = max(0, len(ids) - room)
    return Encoded([tokenizer.eos, *ids[cut:]], kept, cut, sum(map(len, whole)) - sum(map(len, kept)))


def load_questions(paths: Sequence[str], limit: int = 0, labelled: bool = True) -> tuple[list[Question], int]:
    """(the good rows of all files, number of bad ones); the first 20 bad ones are named on stderr."""
    questions, bad = [], []
    for path in paths:
        good, wrong = read_questions(path, limit, labelled)
        questions, bad = questions + good, bad + wrong
    for sentence in bad[:20]:
        print(sentence, file=sys.stderr)
    if bad:
        print(f"{len(bad):,} rows skipped" + f", {len(bad) - 20:,} more than shown" * (len(bad) > 20)
              + f"; {len(questions):,} questions read", file=sys.stderr)
    return questions, len(bad)


def encode_all(questions: Sequence[Question], tokenizer: Tokenizer, context: int) -> list[Encoded]:
    """Ids of every question; those that had to be cut are named by line and counted on stderr."""
    made = [encode(question, tokenizer, context) for question in
            tqdm(questions, "tokenising", file=sys.stderr, leave=False, disable=not sys.stderr.isatty())]
    for what, sizes in (("prefixes lost their beginning", [one.n_prefix_cut for one in made]),
                        ("questions had an option cut", [one.n_options_cut for one in made])):
        lines = [str(question.line) for question, size in zip(questions, sizes) if size]
        if lines:
            print(f"{len(lines):,} of {len(made):,} {what} to fit context={context}, {sum(sizes) / len(lines):.0f} "
                  f"tokens on average: lines {', '.join(lines[:20])}{', ...' * (len(lines) > 20)}", file=sys.stderr)
    return made


def by_split(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Questions by the hash of their text and context: train (which keeps the harder bucket too), val, test."""
    parts: dict[str, list[Question]] = {"train": [], "val": [], "test": []}
    for question in questions:
        split = split_of(f"{question.context} {question.question}")
        parts[split if split in parts else "train"].append(question)
    return parts
