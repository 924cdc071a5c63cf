"""Token files -> batches. What step s learns from is a pure function of (seed, s), so resuming needs no replay.

In: a folder written by `python -m tinyllm.prepare`. Out: `Batch`, the only thing the training loop reads.
Shapes: B rows, T tokens. Explained by tests/test_data.py.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinyllm.config import read_json

IGNORE = -100                                                        # a target that is not learnt


@dataclass
class Batch:
    """`targets[b, t]` is the token to predict after reading `tokens[b, :t + 1]`, or IGNORE. Both (B, T), int64."""

    tokens: Tensor
    targets: Tensor

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of at most `rows` rows."""
        return [Batch(*pair) for pair in zip(self.tokens.split(rows), self.targets.split(rows))]

    def cut(self, length: int) -> "Batch":
        """The same tokens as shorter rows: (B, T) -> (B * T / length, length). Unchanged if the rows are not longer."""
        T = self.tokens.shape[1]
        if length >= T:
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
        meta = read_json(folder / "meta.json")
        self.vocab_size: int = meta["vocab_size"]
        self.n_bytes: int = meta[split]["bytes"]                     # of the text, for bits per byte
        self.n_tokens: int = meta[split]["tokens"]
        self.files = [np.memmap(folder / name, dtype="<u2", mode="r") for name in meta[split]["files"]]
        self.ends = np.cumsum([len(file) for file in self.files])
        if not self.files or self.ends[-1] != self.n_tokens:
            raise ValueError(f"{folder}: the {split} files do not hold the {self.n_tokens:,} tokens that meta.json "
                             "promises; run prepare again")

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
        rows = [self.window(step * self.rows + row) for row in range(self.rows)]
        return next_token_batch(torch.from_numpy(np.stack(rows)))

    def window(self, n: int) -> np.ndarray:
        """The n-th window ever read: context + 1 tokens."""
        epoch, position = divmod(n, self.n_windows)
        return self.tokens.read(int(_order(self.n_windows, self.seed, epoch)[position]) * self.context,
                                self.context + 1)


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
