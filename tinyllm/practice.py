"""The model practises choosing: a passage, its questions and all their options are read as one tree.

In: drills and a checkpoint. Out: a run folder; and for later stages a loss and batches with drills beside their rows.
In a tree an option sees its question and the passage, never a rival, so nothing is read twice.
Explained by tests/test_practice.py.
Shapes: B trees, T tokens of the longest, Q questions, N options of the longest list, D width.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tinyllm import checkpoint, parallel
from tinyllm.config import command, opt, read_settings
from tinyllm.data import Batch
from tinyllm.drills import Drill, drill
from tinyllm.model import TinyLLM, additive
from tinyllm.pretrain import show
from tinyllm.stage import run_stage
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import LossFn, TrainConfig, next_token_loss

TRUNK, PADDING = -1, -2                                              # of no question, of no option; of nothing
WEIGHT = 8                                                           # a target of a drill counts like so many of a row


# ---- a passage with its questions and options as one tree ----------------------------------------------------------

class Tree(NamedTuple):
    """The ids of a drill, and for each its question, its option (TRUNK: of none) and its position.

    `ends[q]` are the places where the options of question q end, `right[q]` which is right; `told` are the (place,
    next id) pairs of the right options.
    """

    ids: list[int]
    question: list[int]
    option: list[int]
    position: list[int]
    ends: list[list[int]]
    right: list[int]
    told: list[tuple[int, int]]


def tree(one: Drill, tokenizer: Tokenizer, context: int) -> Tree:
    """Passage, then each question behind it, then each option behind its question.

    A passage with which a path would be longer than `context` loses its beginning. ValueError if a question alone is.
    """
    prompts = [tokenizer.encode(asked.prompt) for asked in one.asked]
    options = [[tokenizer.encode(text) for text in asked.options] for asked in one.asked]
    passage = tokenizer.encode(one.context)
    longest = max(len(prompt) + max(map(len, choices)) for prompt, choices in zip(prompts, options))
    if longest >= context:
        raise ValueError(f"a question of a drill takes {longest} tokens and context={context}; train a model with a "
                         "larger context, or a vocabulary with longer tokens")
    ids = [tokenizer.eos, *passage[max(0, len(passage) + 1 + longest - context):]]       # after the end of another text
    trunk = len(ids)
    question, option, position = [TRUNK] * trunk, [TRUNK] * trunk, list(range(trunk))
    ends: list[list[int]] = []
    told: list[tuple[int, int]] = []
    for number, (asked, prompt) in enumerate(zip(one.asked, prompts)):
        here = trunk + len(prompt)
        ids += prompt
        question += [number] * len(prompt)
        option += [TRUNK] * len(prompt)
        position += range(trunk, here)
        last = len(ids) - 1                                          # where the first token of the answer is foretold
        ends.append([])
        for choice, new in enumerate(options[number]):
            if choice == asked.answer:
                told += zip([last, *range(len(ids), len(ids) + len(new) - 1)], new)
            ids += new
            question += [number] * len(new)
            option += [choice] * len(new)
            position += range(here, here + len(new))
            ends[-1].append(len(ids) - 1)
    return Tree(ids, question, option, position, ends, [asked.answer for asked in one.asked], told)


def read_trees(model: TinyLLM, trees: Sequence[Tree]) -> Tensor:
    """The state after the final norm at every token of every tree: (B, T, D), T a multiple of 32 so that the shapes of
    the products repeat (train.next_token_loss says why)."""
    width = -(-max(len(one.ids) for one in trees) // 32) * 32
    fill = lambda name, value: torch.tensor([getattr(one, name) + [value] * (width - len(one.ids)) for one in trees])
    tokens, position = fill("ids", 0), fill("position", 0)           # (B, T)
    question, option = fill("question", PADDING), fill("option", PADDING)
    mine = lambda group: (group[:, None] == TRUNK) | (group[:, None] == group[..., None])      # (B, T queries, T keys)
    mask = additive(torch.ones(width, width, dtype=torch.bool).tril() & mine(question) & mine(option))
    rope = model.rope_cos[position][:, None], model.rope_sin[position][:, None]                # (B, 1, T, E/2)
    x = model.drop(model.embed(tokens))
    with torch.compiler.set_stance("force_eager"):                   # every batch of trees has a shape of its own
        for block in model.blocks:
            x = block(x, rope, mask[:, None])
    return model.norm(x)


# ---- what is learnt -------------------------------------------------------------------------------------------------

def choice_scores(model: TinyLLM, states: Tensor, eos: int) -> Tensor:
    """A score for each option from the state (..., D) at its end: how much it looks like the end of the text.

    After a right answer the text may end. So no head is learnt beside the model: the row of the end token is one.
    """
    return states @ model.embed.weight[eos]


def drill_loss(model: TinyLLM, trees: Sequence[Tree], eos: int) -> tuple[Tensor, Tensor]:
    """(sum in nats, number of targets): the right option among its rivals, and the tokens of the right option."""
    hidden = read_trees(model, trees)                                # (B, T, D)
    states = [hidden[row, ends] for row, one in enumerate(trees) for ends in one.ends]          # Q times (n, D)
    scores = [choice_scores(model, options, eos).float() for options in states]
    scores = pad_sequence(scores, batch_first=True, padding_value=-torch.inf)                   # (Q, N)
    right = torch.tensor([answer for one in trees for answer in one.right])
    rows = torch.tensor([row for row, one in enumerate(trees) for _ in one.told])
    places, ids = torch.tensor([pair for one in trees for pair in one.told]).T
    told = F.cross_entropy(model.logits(hidden[rows, places]).float(), ids, reduction="sum")
    return F.cross_entropy(scores, right, reduction="sum") + told, torch.tensor(len(right) + len(ids))


def with_drills(tokenizer: Tokenizer, context: int, seed: int) -> LossFn:
    """The loss of a batch of texts, or of one of drills: their numbers as tokens, (B, 1)."""

    @functools.lru_cache(maxsize=1000)
    def grown(number: int) -> Tree:
        return tree(drill(number, seed), tokenizer, context)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.tokens.shape[1] > 1:
            return next_token_loss(model, batch)
        with model.embed.weight.device:                              # what is made on the way lies where the model does
            nats, n = drill_loss(model, [grown(number) for number in batch.tokens[:, 0].tolist()], tokenizer.eos)
        return WEIGHT * nats, WEIGHT * n

    return loss


def drill_batch(first: int, n: int) -> Batch:
    """Drills `first` to `first + n` for with_drills."""
    numbers = torch.arange(first, first + n)[:, None]                # (n, 1)
    return Batch(numbers, numbers)


@dataclass
class WithDrills(Batch):
    """Rows of text with drills beside them: one more micro-batch."""

    drills: Batch | None = None

    def split(self, rows: int) -> list[Batch]:
        return [*super().split(rows), self.drills]


def beside(batch_at: Callable[[int], Batch], n: int) -> Callable[[int], Batch]:
    """batch_at(step) with `n` drills beside each batch, from the first one on."""
    if n and parallel.size() > 1:
        raise ValueError("drills beside the rows are for one process; leave out --drills or torchrun")

    def both(step: int) -> Batch:
        rows = batch_at(step)
        return WithDrills(rows.tokens, rows.targets, rows.starts, drill_batch(step * n, n))

    return both if n else batch_at


@torch.inference_mode()
def accuracy(model: TinyLLM, trees: Sequence[Tree], eos: int) -> float:
    """Share of the questions of `trees` whose right option has the highest score."""
    found: list[bool] = []
    for start in range(0, len(trees), 16):
        part = trees[start:start + 16]
        hidden = read_trees(model, part)
        found += [int(choice_scores(model, hidden[row, ends], eos).argmax()) == answer
                  for row, one in enumerate(part) for ends, answer in zip(one.ends, one.right)]
    return sum(found) / len(found)


def examined(model: TinyLLM, tokenizer: Tokenizer, passages: int = 100) -> dict[str, float]:
    """The share of right choices on held-out passages of the long kind, and that of chance."""
    trees = [tree(drill(i, split="val"), tokenizer, model.config.context) for i in range(passages)]
    asked = [1 / len(ends) for one in trees for ends in one.ends]
    return {"choice": accuracy(model, trees, tokenizer.eos), "chance": sum(asked) / len(asked)}


# ---- the stage -----------------------------------------------------------------------------------------------------

@dataclass
class PracticeConfig(TrainConfig):
    """Practise choosing among options: drills from terse facts to passages of a story, each read once.

    The drills are generated. The state at the end of an option then says whether it is right: a head can be trained on
    it. Alone, this takes a model that can copy about a quarter of an hour, and it forgets to write its steps; beside
    chains of thought (`cot_sft --drills 4`) it keeps both. The bar counts a passage as one token. Examples:
      python -m tinyllm.practice --init checkpoints/cot_sft
      python -m tinyllm.scorer train --checkpoint checkpoints/practice --data data/options_train.jsonl
    """

    chat = True                                                      # not a setting: it starts from a chat model
    init: str = opt("checkpoints/cot_sft", "checkpoint to start from")
    out: str = opt("checkpoints/practice", "folder for checkpoints and metrics.jsonl")
    max_steps: int = opt(1500, "stop after this many optimizer steps (0: no limit)", low=0)
    max_minutes: float = opt(0.0, "stop after this many minutes (0: no limit)", low=0)
    start_context: int = opt(0, "of pretrain only: drills are never cut", low=0)
    val_every: int = opt(100, "of other stages only: here choices are counted before and after the run", low=1)
    compile: str = opt("off", "of other stages only: each batch of drills has a shape of its own", choices=("off",))
    batch_size: int = opt(8, "drills in one forward pass (micro-batch)", low=1)
    effective_batch_size: int = opt(8, "drills per optimizer step, each a passage with up to five questions", low=1)
    muon_lr: float = opt(0.004, "peak learning rate of Muon", low=0)
    json: bool = opt(False, "print the result as JSON")


def practice(config: PracticeConfig) -> dict:
    """The stage as `config` says; the result with the right choices on held-out passages before and after."""
    parallel.start()
    checkpoint.refuse_overwriting(config.init, config.out)
    model, tokenizer = checkpoint.load(config.init)
    before, n = examined(model, tokenizer)["choice"], config.effective_batch_size
    state = run_stage(model, tokenizer, lambda step: drill_batch(step * n, n), config, config.out, val={},
                      loss_fn=with_drills(tokenizer, model.config.context, config.seed))
    return {"out": config.out, "steps": state.step, "drills": state.tokens, "minutes": state.seconds / 60,
            "train_loss": state.loss, "choice_before": before} | examined(model, tokenizer)


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(PracticeConfig, "python -m tinyllm.practice", argv)
    show(practice(config), config)


if __name__ == "__main__":
    sys.exit(main())
