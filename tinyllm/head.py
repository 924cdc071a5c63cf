"""Choosing without writing, second half: a small network that compares what the model felt at the end of each option.

In: hidden states of the options of a question. Out: a score for each; softmax over them is the choice. The states of a
frozen model never change, so they are computed once and stored. Explained by tests/test_head.py.
Shapes: Q questions, N options of the longest list, D width, F width of the features.
"""

import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from tinyllm.checkpoint import read_tensors
from tinyllm.config import write_atomically
from tinyllm.data import Batch
from tinyllm.model import KVCache, TinyLLM
from tinyllm.options import TEMPLATE, Encoded, GrowingCache, batches, log_probabilities, n_tokens, read
from tinyllm.train import LossFn

StatesOf = Callable[[Tensor], tuple[Tensor, Tensor]]                 # numbers (Q,) -> states (Q, N, D), real (Q, N)


def features(states: Tensor, real: Tensor, contrast: bool = True) -> Tensor:
    """What the head sees of each option: its state, and with `contrast` the mean state of the other options of its
    question. states (Q, N, D), real (Q, N) False for padding -> (Q, N, 2D) or (Q, N, D).

    ValueError for a question with one option: there is nothing to compare it with.
    """
    n = real.sum(1)[:, None, None]                                   # (Q, 1, 1)
    if (n < 2).any():
        raise ValueError("a question with one option has nothing to choose from")
    states = states.masked_fill(~real[..., None], 0)
    if not contrast:
        return states
    others = (states.sum(1, keepdim=True) - states) / (n - 1)        # (Q, N, D): the option itself is left out
    return torch.cat([states, others], dim=-1)


class Head(nn.Module):
    """LayerNorm -> Linear -> GELU -> Dropout -> Linear: a score for each option, comparable within its question."""

    def __init__(self, dim: int, hidden: int = 256, dropout: float = 0.2, contrast: bool = True) -> None:
        super().__init__()
        self.contrast = contrast
        width = 2 * dim if contrast else dim
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(hidden, 1))
        for layer in self.net:
            if isinstance(layer, nn.Linear):                         # He et al. 2015, arXiv:1502.01852
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        """states (Q, N, D), real (Q, N) -> scores (Q, N), -inf where there is no option."""
        scores = self.net(features(states, real, self.contrast))[..., 0]
        return scores.masked_fill(~real, -torch.inf)


class Scorer(nn.Module):
    """The head and, where its last blocks learn too, the model below it: what the training loop moves."""

    def __init__(self, head: Head, model: TinyLLM | None = None, n_blocks: int = 0) -> None:
        super().__init__()
        self.head, self.model = head, model
        if model is not None:
            model.requires_grad_(False)
            for part in (*model.blocks[len(model.blocks) - n_blocks:], model.norm):
                part.requires_grad_(True)


def choice_loss(states_of: StatesOf) -> LossFn:
    """A loss for the training loop: cross-entropy of the softmax over the options of each question.

    A batch holds numbers of questions as tokens (Q, 1) and the right options as targets (Q, 1).
    """

    def loss(scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = scorer.head(*states_of(batch.tokens[:, 0]))         # (Q, N)
        return F.cross_entropy(scores.float(), batch.targets[:, 0], reduction="sum"), torch.tensor(len(scores))

    return loss


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


def live(model: TinyLLM, encoded: Sequence[Encoded], max_tokens: int = 4096) -> StatesOf:
    """states_of that reads the questions anew each time: for a model that learns. Gradients reach the prefix too."""

    def states_of(numbers: Tensor) -> tuple[Tensor, Tensor]:
        chosen = [encoded[i] for i in numbers.tolist()]
        states: list[Tensor] = [torch.empty(0)] * len(chosen)
        for group in batches(chosen, max_tokens):
            last = read(model, [chosen[i] for i in group], GrowingCache if torch.is_grad_enabled() else KVCache).last
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
                minutes = (time.monotonic() - started) / done * total / 60
                tqdm.write(f"reading {len(encoded):,} questions, {total:,} tokens: about {minutes:.1f} min",
                           file=sys.stderr)
                told = True
    lengths = torch.tensor([len(option) for one in encoded for option in one.options])
    return States(hidden, logprob, lengths, starts)


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


# --- a head in a folder ---

def save_head(folder: Path, head: Head, settings: dict) -> None:
    """head.safetensors and scorer.json, each whole or not there."""
    write_atomically(folder / "head.safetensors", safetensors.torch.save(head.state_dict()))
    write_atomically(folder / "scorer.json", (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())


def load_head(folder: Path, settings: dict) -> Head:
    """The head of a folder in eval mode; ValueError if its weights are not what scorer.json describes."""
    head = Head(settings["dim"], settings["hidden"], settings["dropout"], settings["contrast"])
    weights = read_tensors(folder / "head.safetensors")
    wanted = {name: weight.shape for name, weight in head.state_dict().items()}
    if {name: weight.shape for name, weight in weights.items()} != wanted:
        raise ValueError(f"{folder / 'head.safetensors'}: not the head that scorer.json describes; train it again")
    head.load_state_dict(weights)
    return head.eval()
