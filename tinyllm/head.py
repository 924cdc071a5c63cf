"""The head: a small network that compares what the model felt at the end of each option.

In: hidden states of the options of a question. Out: a score for each; softmax over them is the choice. Explained by
tests/test_head.py.
Shapes: Q questions, N options of the longest list, D width.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.checkpoint import read_tensors
from tinyllm.config import write_atomically
from tinyllm.data import Batch
from tinyllm.fork import StatesOf
from tinyllm.model import TinyLLM
from tinyllm.train import LossFn


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


@torch.no_grad()
def scores_of(head: Head, states_of: StatesOf, numbers: Sequence[int]) -> list[Tensor]:
    """Scores (n,) of each question."""
    made: list[Tensor] = []
    for part in torch.tensor(list(numbers)).split(256):
        states, real = states_of(part)
        made += [score[mask] for score, mask in zip(head(states, real), real)]
    return made


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
