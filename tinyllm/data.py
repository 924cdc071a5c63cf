"""Token files -> batches. What step s learns from is a pure function of (seed, s), so resuming needs no replay.

In: a folder written by `python -m tinyllm.prepare`, or examples of the later stages. Out: `Batch`, the only thing the
training loop reads.
Shapes: B rows, T tokens. Explained by tests/test_data.py.
"""

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyllm.config import read_json

IGNORE = -100                                                        # a target that is not learnt


@dataclass
class Batch:
    """`targets[b, t]` is the token to predict after reading `tokens[b, starts[b, t]:t + 1]`, or IGNORE.

    All (B, T), int64. Without `starts` a row is one text from its beginning.
    """

    tokens: Tensor
    targets: Tensor
    starts: Tensor | None = None

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of at most `rows` rows."""
        parts = [part.split(rows) for part in (self.tokens, self.targets, self.starts) if part is not None]
        return [Batch(*together) for together in zip(*parts)]

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        return Batch(*(part if part is None else part.to(device) for part in (self.tokens, self.targets, self.starts)))

    def cut(self, length: int) -> "Batch":
        """The same tokens as shorter rows: (B, T) -> (B * T / length, length).

        Unchanged if the rows are not longer, or hold whole examples.
        """
        T = self.tokens.shape[1]
        if length >= T or self.starts is not None:
            return self
        if T % length:
            raise ValueError(f"rows of {T} tokens cannot be cut into rows of {length}; choose a divisor")
        return Batch(self.tokens.reshape(-1, length), self.targets.reshape(-1, length))


def next_token_batch(rows: Tensor) -> Batch:
    """The one place where labels are shifted: rows (B, T + 1) -> tokens (B, T) and the token after each."""
    return Batch(rows[:, :-1].clone(), rows[:, 1:].clone())          # clones: masking targets leaves tokens alone


class TokenFiles:
    """The uint16 files of one split (`train` or `val`) seen as one long row of tokens, read from disk as needed."""

    def __init__(self, folder: str | Path, split: str) -> None:
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise ValueError(f"{folder}: no prepared tokens here (meta.json is missing); "
                             f"run `python -m tinyllm.prepare --out {folder}`")
        try:
            meta = read_json(folder / "meta.json")
            self.vocab_size: int = meta["vocab_size"]
            self.n_bytes: int = meta[split]["bytes"]                 # of the text, for bits per byte
            self.n_tokens: int = meta[split]["tokens"]
            files: list[str] = list(meta[split]["files"])
            sizes = [(folder / name).stat().st_size for name in files]
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"{folder / 'meta.json'} or what it names is not what prepare writes "
                             f"({error}); run prepare again") from None
        if not sizes or sum(sizes) != 2 * self.n_tokens:
            raise ValueError(f"{folder}: the {split} files do not hold the {self.n_tokens:,} tokens that meta.json "
                             "promises; run prepare again")
        self.files = [np.memmap(folder / name, dtype="<u2", mode="r") for name in files]
        self.ends = np.cumsum([len(file) for file in self.files])

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count as int64, across file borders."""
        parts = []
        while count > 0:
            at = int(np.searchsorted(self.ends, start, side="right"))
            offset = start - (int(self.ends[at - 1]) if at else 0)
            part = self.files[at][offset:offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts).astype(np.int64)


class PackedRows:
    """batch_at(step) for pretraining: documents packed end to end, cut into windows, each epoch in a new order."""

    def __init__(self, tokens: TokenFiles, context: int, rows: int, seed: int) -> None:
        self.tokens, self.context, self.rows, self.seed = tokens, context, rows, seed
        self.n_windows = (tokens.n_tokens - 1) // context            # the last target needs one token more
        if self.n_windows < 1:
            raise ValueError(f"{tokens.n_tokens} training tokens do not fill one row of context={context}; "
                             "give prepare more text or choose a shorter --context")

    def __call__(self, step: int) -> Batch:
        """The rows of `step`, (rows, context). Every window comes once before any comes again."""
        rows = [self.tokens.read(number * self.context, self.context + 1)
                for number in numbers_of(rows_at(step, self.rows), self.n_windows, self.seed)]
        return next_token_batch(torch.from_numpy(np.stack(rows)))


def rows_at(step: int, rows: int, doublings: Sequence[int] = ()) -> range:
    """Which rows of an endless list `step` reads: `rows` of them, and twice as many from each step in `doublings` on.

    Small steps learn most while the loss falls fast; later what separates them is noise, and larger ones cost less
    (McCandlish et al. 2018, arXiv:1812.06162).
    """
    first, since = 0, 0
    for doubling in sorted(doublings):
        if step >= doubling:
            first, since, rows = first + (doubling - since) * rows, doubling, 2 * rows
    first += (step - since) * rows
    return range(first, first + rows)


def numbers_of(wanted: range, n: int, seed: int) -> list[int]:
    """The items at these places of an endless list of `n` items: every one comes once before any comes again, and each
    epoch has an order of its own."""
    return [int(_order(n, seed, place // n)[place % n]) for place in wanted]


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def held_out(tokens: TokenFiles, context: int, rows: int, max_tokens: int) -> list[Batch]:
    """Fixed validation batches of at most `rows` rows: up to `max_tokens`, spread evenly over the whole split."""
    n_windows = (tokens.n_tokens - 1) // context
    if n_windows < 1:                                                # a tiny corpus: one short row is better than none
        return [next_token_batch(torch.from_numpy(tokens.read(0, tokens.n_tokens))[None])]
    chosen = np.linspace(0, n_windows - 1, min(n_windows, max(1, max_tokens // context))).astype(int)
    windows = torch.from_numpy(np.stack([tokens.read(int(w) * context, context + 1) for w in chosen]))
    return next_token_batch(windows).split(rows)


class Example(NamedTuple):
    """Token ids of a whole text and, for each, whether the model learns to write it."""

    ids: Sequence[int]
    learn: Sequence[bool]


class PackedExamples:
    """batch_at(step) for fine-tuning: whole examples side by side in rows, each epoch's rows in a new order.

    An example sees only itself (Batch.starts), so packing saves the padding and changes no loss. Every example must
    fit: at most context + 1 ids. The rows of a step double at each of the steps in `doublings`.
    """

    def __init__(self, examples: Sequence[Example], context: int, rows: int, seed: int, pad: int = 0,
                 doublings: Sequence[int] = ()) -> None:
        if not examples:
            raise ValueError("no examples to learn from; check the file and what was dropped")
        self.examples, self.context, self.rows, self.seed, self.pad = examples, context, rows, seed, pad
        self.doublings = doublings
        self.packed = pack([len(example.ids) for example in examples], context + 1)
        self.n_tokens = sum(len(example.ids) for example in examples)
        self.fill = self.n_tokens / (len(self.packed) * (context + 1))            # share of real tokens

    def __call__(self, step: int) -> Batch:
        """The rows of `step`: (rows, context). Every row comes once before any comes again."""
        wanted = rows_at(step, self.rows, self.doublings)
        return self.batch([self.packed[number] for number in numbers_of(wanted, len(self.packed), self.seed)])

    def batches(self) -> list[Batch]:
        """Everything once, in order, at most `rows` rows at a time: for validation."""
        return [self.batch(self.packed[at:at + self.rows]) for at in range(0, len(self.packed), self.rows)]

    def batch(self, chosen: Sequence[list[int]]) -> Batch:
        """Rows that hold the examples with these numbers, padded at the end."""
        shape = (len(chosen), self.context + 1)
        ids, learn, starts = np.full(shape, self.pad), np.zeros(shape, bool), np.zeros(shape, np.int64)
        for row, numbers in enumerate(chosen):
            at = 0
            for example in (self.examples[number] for number in numbers):
                end = at + len(example.ids)
                ids[row, at:end], learn[row, at:end], starts[row, at:end] = example.ids, example.learn, at
                at = end
            starts[row, at:] = at
        batch = next_token_batch(torch.from_numpy(ids))
        batch.targets[~torch.from_numpy(learn[:, 1:])] = IGNORE      # an example's first id is never learnt, so ...
        return Batch(batch.tokens, batch.targets, torch.from_numpy(starts[:, :-1].copy()))  # ... none spills over


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of the examples that share a row of `room` ids: the longest left, then whatever still fits best."""
    waiting: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length > room:
            raise ValueError(f"an example of {length} tokens does not fit a row of {room}")
        waiting.setdefault(length, []).append(number)
    known, rows = sorted(waiting), []
    while known:
        row, free = [], room
        while at := bisect.bisect_right(known, free):
            length = known[at - 1]
            row.append(waiting[length].pop())
            free -= length
            if not waiting[length]:
                known.pop(at - 1)
        rows.append(row)
    return rows
