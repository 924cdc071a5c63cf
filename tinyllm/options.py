"""Choosing without writing, first half: questions with options, and their hidden states from a prefix that is read once.

In: JSON lines {"context", "question", "options", "answer"} and a model. Out: for every option the hidden state at its
last token, and its log-probability. Harnesses read the prefix again for every option; here the cache is forked.
Shapes: Q questions of a batch, n options each, P prefix, T option tokens, D width. Explained by tests/test_options.py.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tinyllm.chat import language_of
from tinyllm.data import IGNORE
from tinyllm.model import KVCache, ModelConfig, TinyLLM
from tinyllm.tokenizer import Tokenizer

# What stands before a passage of several, the question, the answer, and between "Answer:" and an option.
TEMPLATE = {"en": ("Evidence {n}: ", "Question: ", "Answer:", " "), "zh": ("证据{n}：", "问题：", "答案：", "")}
MOST_OPTIONS = 26
Cache = Callable[..., KVCache]


# --- files of questions ---

class Question(NamedTuple):
    """A row of a file. `context` is "" or a text, several texts already numbered; `answer` is None if not given."""

    context: str
    question: str
    options: list[str]
    answer: int | None
    line: int
    row: dict


def to_question(row: dict, line: int = 0, labelled: bool = True) -> Question:
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
    if answer is not None or labelled:
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
            raise ValueError(f'"answer" must be the number of an option, 0 to {len(options) - 1}, not {answer!r:.40}')
    contexts = [context.strip() for context in contexts if context.strip()]
    if len(contexts) > 1:
        mark = TEMPLATE[language_of(" ".join(contexts))][0]
        contexts = [mark.format(n=n) + context for n, context in enumerate(contexts, 1)]
    return Question("\n".join(contexts), question.strip(), [option.strip() for option in options], answer, line, row)


def read_questions(path: str | Path, limit: int = 0, labelled: bool = True) -> tuple[list[Question], list[str]]:
    """(the first `limit` good questions of a file (0: all), one sentence with file and line for each bad row).

    ValueError if nothing is left.
    """
    questions: list[Question] = []
    bad: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        if limit and len(questions) == limit:
            break
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError(f"expected an object {{...}}, found a {type(row).__name__}")
            questions.append(to_question(row, number, labelled))
        except (ValueError, RecursionError) as error:
            bad.append(f"{path}, line {number}: {error}; skipped")
    if not questions:
        raise ValueError(bad[0].removesuffix("; skipped") if bad else f"{path}: no questions in this file")
    return questions, bad


def _lines(path: str | Path) -> Iterator[bytes]:
    path = Path(path)
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        try:
            yield from file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from None


# --- questions -> ids ---

class Encoded(NamedTuple):
    """The ids of a question: what all options share, and each option; how many ids did not fit the context."""

    prefix: list[int]
    options: list[list[int]]
    n_cut: int = 0


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
    return Encoded([tokenizer.eos, *ids[cut:]], kept, cut + sum(map(len, whole)) - sum(map(len, kept)))


def batches(encoded: Sequence[Encoded], max_tokens: int = 4096, padding: int = 8) -> list[list[int]]:
    """Numbers of the questions that are read together: as many options each, prefixes of nearly the same length.

    A batch reads at most `max_tokens` tokens (or one question); no prefix gets more than `padding` padding tokens.
    """
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].options), len(encoded[i].prefix)))
    made: list[list[int]] = []
    for number in order:
        one = encoded[number]
        if made:
            first = encoded[made[-1][0]]
            size = (len(made[-1]) + 1) * n_tokens(one)
            if len(first.options) == len(one.options) and len(one.prefix) - len(first.prefix) <= padding \
                    and size <= max_tokens:
                made[-1].append(number)
                continue
        made.append([number])
    return made


def n_tokens(one: Encoded) -> int:
    """Tokens that are read for a question, the padding of its options included."""
    return len(one.prefix) + len(one.options) * max(map(len, one.options))


# --- reading ---

class GrowingCache(KVCache):
    """A key/value cache in which nothing is overwritten, so that gradients flow through a prefix that is read once.

    autograd refuses to go back through a KVCache: its tensors have changed since. This one joins new tensors instead.
    """

    def __init__(self, config: ModelConfig, batch: int, room: int, starts: Tensor | None = None) -> None:
        self.config, self.batch, self.room, self.starts, self.length = config, batch, room, starts, 0
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}           # layer -> keys and values, (B, K, length, E)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.stored:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(self.stored[layer], (k, v)))
        self.stored[layer] = k, v                                    # (B, K, S, E) each
        return k, v

    def fork(self, n: int) -> "GrowingCache":
        starts = None if self.starts is None else self.starts.repeat_interleave(n, dim=0)
        other = GrowingCache(self.config, self.batch * n, self.room, starts)
        other.length = self.length
        other.stored = {layer: (k.repeat_interleave(n, dim=0), v.repeat_interleave(n, dim=0))
                        for layer, (k, v) in self.stored.items()}
        return other


class Read(NamedTuple):
    """What the model made of a batch: `last` (Q, n, D) at each option's own last token; for log-probabilities the state
    before each option token `before` (Q * n, T, D) and the token it should predict `targets` (Q * n, T) or IGNORE."""

    last: Tensor
    before: Tensor
    targets: Tensor


def read(model: TinyLLM, batch: Sequence[Encoded], cache: Cache = KVCache) -> Read:
    """Reads every prefix once, forks the cache over the options, and reads all options as one batch.

    All questions have equally many options. Prefixes are padded on the left (padding is out of sight and positions
    count from the first real token), options on the right (nothing real looks at what follows it).
    """
    n = len(batch[0].options)
    assert all(len(one.options) == n for one in batch), "batches() puts questions with equally many options together"
    width = max(len(one.prefix) for one in batch)
    padding = [width - len(one.prefix) for one in batch]
    starts = torch.tensor(padding)[:, None] if any(padding) else None                   # (Q, 1)
    tokens = torch.tensor([[0] * pad + one.prefix for pad, one in zip(padding, batch)])     # (Q, P)
    options = [option for one in batch for option in one.options]
    lengths = torch.tensor([len(option) for option in options])                         # (Q * n,)
    T = int(lengths.max())
    targets = torch.tensor([option + [IGNORE] * (T - len(option)) for option in options])   # (Q * n, T)

    prefix = cache(model.config, len(batch), width + T, starts=starts)
    first = model.last_hidden(tokens, prefix)[:, -1:].repeat_interleave(n, dim=0)       # (Q * n, 1, D)
    hidden = model.last_hidden(targets.clamp_min(0), prefix.fork(n))                    # (Q * n, T, D)
    last = hidden[torch.arange(len(options)), lengths - 1]                              # (Q * n, D)
    return Read(last.view(len(batch), n, -1), torch.cat([first, hidden[:, :-1]], dim=1), targets)


def log_probabilities(model: TinyLLM, batch: Read) -> Tensor:
    """Log-probability in nats of each option given its prefix, summed over its tokens: (Q * n,)."""
    real = batch.targets != IGNORE                                   # (Q * n, T)
    logits = model.logits(batch.before[real]).float()                # (real tokens, V)
    picked = logits.gather(-1, batch.targets[real][:, None])[:, 0] - logits.logsumexp(-1)
    return torch.zeros(real.shape).masked_scatter(real, picked).sum(-1)


# --- what needs no model ---

def overlap(option: str, context: str) -> float:
    """Share of the character bigrams of `option` that also stand in `context`; of the character if it is only one."""
    size = min(2, len(option))
    grams = {option[at:at + size] for at in range(len(option) - size + 1)}
    return sum(gram in context for gram in grams) / len(grams)


def credit(scores: Sequence[float], answer: int) -> float:
    """1 if the highest score is that of the answer, a share of it if others are as high: what a fair coin would get."""
    best = max(scores)
    return (scores[answer] == best) / sum(score == best for score in scores)
