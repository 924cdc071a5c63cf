"""Reading a prefix once: its key/value cache is forked over the options, and only their few tokens are read after it.

In: encoded questions and a model. Out: the hidden state at each option's own last token, and its log-probability.
Programs that evaluate models usually read the prefix again for every option. The states of a frozen model are stored
on disk.
Shapes: Q questions of a batch, n options each, P prefix, T option tokens, D width. Explained by tests/test_fork.py.
"""

import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from tinyllm.checkpoint import read_tensors
from tinyllm.config import write_atomically
from tinyllm.data import IGNORE
from tinyllm.model import KVCache, ModelConfig, TinyLLM
from tinyllm.options import TEMPLATE, Encoded

StatesOf = Callable[[Tensor], tuple[Tensor, Tensor]]                 # numbers (Q,) -> states (Q, N, D), real (Q, N)
Cache = Callable[..., KVCache]


def batches(encoded: Sequence[Encoded], max_tokens: int = 4096, padding: int = 8) -> list[list[int]]:
    """Numbers of the questions that are read together: as many options each, prefixes of nearly the same length.

    A batch reads at most `max_tokens` tokens, padding included (or one question); no prefix gets more than `padding`
    padding tokens.
    """
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].options), len(encoded[i].prefix)))
    made: list[list[int]] = []
    longest = 0                                                      # option of the last batch; all are padded to it
    for number in order:
        one = encoded[number]
        if made:
            first, longest = encoded[made[-1][0]], max(longest, *map(len, one.options))
            size = (len(made[-1]) + 1) * (len(one.prefix) + len(one.options) * longest)
            if len(first.options) == len(one.options) and len(one.prefix) - len(first.prefix) <= padding \
                    and size <= max_tokens:
                made[-1].append(number)
                continue
        made.append([number])
        longest = max(map(len, one.options))
    return made


def n_tokens(one: Encoded) -> int:
    """Tokens that are read for a question, the padding of its options included."""
    return len(one.prefix) + len(one.options) * max(map(len, one.options))


# --- reading ---

class PrefixCache(KVCache):
    """A cache for one prefix and one continuation of each of its forks, in which nothing is ever overwritten.

    So gradients flow through a prefix that is read once (autograd refuses to go back through tensors that have changed
    since), and a fork copies nothing by itself: each layer joins prefix and continuation when it needs them, and lets
    go of them again. KVCache holds the copies of all layers at once, to go on from them later.
    """

    def __init__(self, config: ModelConfig, batch: int, room: int, starts: Tensor | None = None) -> None:
        self.config, self.batch, self.room, self.starts, self.length = config, batch, room, starts, 0
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}           # layer -> keys and values, (B, K, P, E)
        self.n = 0                                                   # forks of each row; 0: this is the prefix itself

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.n:
            return tuple(self._behind(old, new) for old, new in zip(self.prefix[layer], (k, v)))
        assert layer not in self.prefix, "a prefix is read in one piece"
        self.prefix[layer] = k, v
        return k, v

    def _behind(self, old: Tensor, new: Tensor) -> Tensor:
        """Each fork's new (B * n, K, T, E) behind its row of old (B, K, P, E): (B * n, K, P + T, E)."""
        shared = old[:, None].expand(-1, self.n, -1, -1, -1)         # (B, n, K, P, E), a view
        return torch.cat([shared, new.unflatten(0, (-1, self.n))], dim=3).flatten(0, 1)

    def fork(self, n: int) -> "PrefixCache":
        starts = None if self.starts is None else self.starts.repeat_interleave(n, dim=0)
        other = PrefixCache(self.config, self.batch * n, self.room, starts)
        other.length, other.prefix, other.n = self.length, self.prefix, n
        return other


class Read(NamedTuple):
    """What the model made of a batch: `last` (Q, n, D) at each option's own last token; for log-probabilities the state
    before each option token `before` (Q * n, T, D) and the token it should predict `targets` (Q * n, T) or IGNORE."""

    last: Tensor
    before: Tensor
    targets: Tensor


def read(model: TinyLLM, batch: Sequence[Encoded], cache: Cache = PrefixCache) -> Read:
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


def padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States of questions (n, D) each -> (Q, N, D) and which of them are real (Q, N)."""
    lengths = torch.tensor([len(one) for one in states])
    return pad_sequence(list(states), batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None]


# --- states that are computed once ---

@dataclass
class States:
    """Of all options of all questions in a row: `hidden` (R, D), summed log-probability `logprob` (R,), and the number
    of tokens `length` (R,). Question i owns rows starts[i] to starts[i + 1]."""

    hidden: Tensor
    logprob: Tensor
    length: Tensor
    starts: list[int]

    def of(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, N, D) states and (Q, N) real."""
        return padded([self.hidden[self.starts[i]:self.starts[i + 1]] for i in numbers.tolist()])

    def zero_shot(self, i: int, normalised: bool) -> list[float]:
        """The language model's own scores of question i: log-probability, per token if `normalised`."""
        rows = slice(self.starts[i], self.starts[i + 1])
        return (self.logprob[rows] / self.length[rows] if normalised else self.logprob[rows]).tolist()


def live(model: TinyLLM, encoded: Sequence[Encoded]) -> StatesOf:
    """states_of that reads the questions anew each time: for a model that learns. Gradients reach the prefix too.

    A step holds few questions, so more padding is allowed than over a whole file.
    """

    def states_of(numbers: Tensor) -> tuple[Tensor, Tensor]:
        chosen = [encoded[i] for i in numbers.tolist()]
        states: list[Tensor] = [torch.empty(0)] * len(chosen)
        for group in batches(chosen, padding=32):
            last = read(model, [chosen[i] for i in group]).last
            for i, one in zip(group, last):
                states[i] = one
        return padded(states)

    return states_of


@torch.inference_mode()
def compute_states(model: TinyLLM, encoded: Sequence[Encoded], max_tokens: int = 4096) -> States:
    """Reads every question once, with a time estimate and a progress bar on stderr."""
    groups = batches(encoded, max_tokens)
    random.Random(0).shuffle(groups)                                 # so that the first ones are a fair sample
    starts = [0]
    for one in encoded:
        starts.append(starts[-1] + len(one.options))
    hidden, logprob = torch.empty(starts[-1], model.config.dim), torch.empty(starts[-1])
    total = sum(map(n_tokens, encoded))
    done, started, told = 0, time.monotonic(), False
    with tqdm(total=total, desc="reading", unit=" tokens", unit_scale=True, file=sys.stderr,
              mininterval=0.2 if sys.stderr.isatty() else 30) as bar:
        for number, group in enumerate(groups):
            batch = [encoded[i] for i in group]
            result = read(model, batch)
            scores = log_probabilities(model, result).view(len(batch), -1)
            for i, last, score in zip(group, result.last, scores):
                hidden[starts[i]:starts[i + 1]], logprob[starts[i]:starts[i + 1]] = last, score
            done += sum(map(n_tokens, batch))
            bar.update(sum(map(n_tokens, batch)))
            if not told and (number >= 4 or number + 1 == len(groups)):
                whole = duration((time.monotonic() - started) / done * total)
                tqdm.write(f"reading {len(encoded):,} questions, {total:,} tokens: about {whole}", file=sys.stderr)
                told = True
    lengths = torch.tensor([len(option) for one in encoded for option in one.options])
    return States(hidden, logprob, lengths, starts)


def duration(seconds: float) -> str:
    """`45 s` or `7.5 min`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def digest(folder: Path) -> str:
    """The fingerprint of a checkpoint: of its weights and its tokenizer."""
    found = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.model"):
        with (folder / name).open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    return found.hexdigest()


def stored_states(folder: str | Path, fingerprint: str, model: TinyLLM, encoded: Sequence[Encoded]) -> States:
    """States from `folder` if they were computed before, else computed and stored there.

    The name of the file is a key of (checkpoint, data, template): another one of any of them is another file.
    """
    ids = json.dumps([fingerprint, TEMPLATE, [one[:2] for one in encoded]]).encode()
    path = Path(folder) / f"{hashlib.sha256(ids).hexdigest()[:24]}.safetensors"
    rows = sum(len(one.options) for one in encoded)
    if path.is_file():
        try:
            stored = read_tensors(path)
            if len(stored["hidden"]) == rows:
                print(f"states of {len(encoded):,} questions read from {path}", file=sys.stderr)
                return States(**{key: stored[key] for key in ("hidden", "logprob", "length")},
                              starts=stored["starts"].tolist())
        except (ValueError, KeyError):
            print(f"{path} is damaged: computing it again", file=sys.stderr)
    states = compute_states(model, encoded)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save({
        "hidden": states.hidden, "logprob": states.logprob, "length": states.length,
        "starts": torch.tensor(states.starts)}))
    print(f"stored in {path} ({path.stat().st_size / 1e6:.0f} MB)", file=sys.stderr)
    return states
