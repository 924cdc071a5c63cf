"""Training a head, and with --unfreeze the last blocks below it, through the one training loop.

In: a checkpoint and files of questions. Out: a folder with the head and its accuracy beside the baselines. A batch of
the loop holds numbers of questions in the place of tokens. Explained by tests/test_train_head.py.
"""

import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tinyllm import checkpoint
from tinyllm.config import Settings, opt, read_json
from tinyllm.data import Batch, numbers_of, rows_at
from tinyllm.fork import StatesOf, digest, duration, live, stored_states
from tinyllm.head import Head, Scorer, choice_loss, save_head, scores_of
from tinyllm.options import by_split, encode_all, load_questions
from tinyllm.shortcuts import accuracies
from tinyllm.train import LossFn, TrainConfig, train

STATES = opt("runs/states", "folder for the hidden states of a frozen model, computed once")


@dataclass
class ScorerConfig(Settings):
    """Train a head that chooses among the options of a question; the model itself stays as it is, unless --unfreeze.

    Without --val, a hash of each question sends a tenth of --data to validation and a tenth to a test that is measured
    at the end. The result stands beside what no head can do. Examples:
      python -m tinyllm.choices --out data
      python -m tinyllm.scorer train --data data/options_train.jsonl --val data/options_val.jsonl
      python -m tinyllm.scorer train --data my_questions.jsonl --unfreeze 2 --out runs/mine
    """

    checkpoint: str = opt("", "run or checkpoint folder; the last stage under checkpoints/ when absent")
    data: list[str] = opt(["data/options_train.jsonl"], "files of questions to learn from")
    val: list[str] = opt([], "files of questions that decide when to stop; a tenth of --data when absent")
    out: str = opt("runs/scorer", "folder for the head, its settings and metrics.jsonl")
    states: str = STATES
    limit: int = opt(0, "questions of each file (0: all)", low=0)
    unfreeze: int = opt(0, "train this many of the last blocks and the final norm too; their states are then read "
                           "anew each time", low=0)
    contrast: bool = opt(True, "show the head the mean of the other options beside each option")
    hidden: int = opt(256, "width inside the head", low=1)
    dropout: float = opt(0.2, "share of the head's activations zeroed in training", low=0, high=0.9)
    epochs: int = opt(20, "times every question is seen, at most", low=1)
    patience: int = opt(4, "stop after this many validations without a better loss (two validations an epoch)", low=1)
    batch_size: int = opt(32, "questions in one forward pass (micro-batch)", low=1)
    effective_batch_size: int = opt(32, "questions per optimizer step", low=1)
    lr: float = opt(1e-3, "peak learning rate of AdamW", low=0)
    weight_decay: float = opt(0.05, "pull towards zero, on matrices only", low=0)
    clip: float = opt(1.0, "largest gradient norm", low=0)
    dtype: str = opt("float32", "of activations where the model learns too", choices=("auto", "float32", "bfloat16"))
    seed: int = opt(0, "of the head, the order of questions and dropout", low=0)
    json: bool = opt(False, "print the result as JSON")


@dataclass
class _LoopConfig(TrainConfig):
    """What the training loop is told, with a schedule of its own."""

    schedule: str = opt("one-cycle", "learning rate", choices=("trapezoid", "cosine", "one-cycle"))


class Best:
    """Remembers the weights with the lowest validation loss, and when to give up waiting for better ones."""

    def __init__(self, scorer: Scorer, patience: int, show: Callable[[dict], None]) -> None:
        self.scorer, self.patience, self.show = scorer, patience, show
        self.loss, self.step, self.waited = math.inf, 0, 0
        self.weights: dict[str, Tensor] = {}

    def report(self, row: dict) -> None:
        if "val_loss" in row:
            self.waited += 1
            if row["val_loss"] < self.loss:
                self.loss, self.step, self.waited = row["val_loss"], row["step"], 0
                self.weights = {name: weight.detach().clone() for name, weight in self.scorer.named_parameters()
                                if weight.requires_grad}
        self.show(row)

    def should_stop(self) -> bool:
        return self.waited >= self.patience

    def put_back(self) -> None:
        with torch.no_grad():
            for name, weight in self.scorer.named_parameters():
                if weight.requires_grad:                             # what does not learn is as it was
                    weight.copy_(self.weights[name])


def question_batches(answers: Sequence[int], n: int, rows: int, seed: int) -> Callable[[int], Batch]:
    """batch_at(step): `rows` of the first `n` questions, every one once an epoch, in a new order each time."""

    def batch_at(step: int) -> Batch:
        return as_batch(numbers_of(rows_at(step, rows), n, seed), answers)

    return batch_at


def as_batch(numbers: Sequence[int], answers: Sequence[int]) -> Batch:
    """Numbers of questions in the place of tokens, their answers as targets: both (Q, 1)."""
    return Batch(torch.tensor(numbers)[:, None], torch.tensor([answers[i] for i in numbers])[:, None])


def train_scorer(config: ScorerConfig) -> dict:
    """Trains as `config` says and writes the folder; returns accuracies of validation (and test) beside baselines."""
    started = time.monotonic()
    folder = checkpoint.resolve(config.checkpoint or checkpoint.default())
    out = Path(config.out)
    checkpoint.refuse_overwriting(folder, out / "model")
    earlier = (out / "scorer.json").is_file() and \
        str(read_json(out / "scorer.json").get("checkpoint")).startswith("model/")      # weights of an earlier run
    if config.unfreeze and not earlier and (out / "model").exists():
        raise ValueError(f"{out / 'model'} is there already and belongs to no head; choose another --out")
    out.mkdir(parents=True, exist_ok=True)                           # no place for it: said before any work
    model, tokenizer = checkpoint.load(folder)
    if config.unfreeze > model.config.n_layers:
        raise ValueError(f"--unfreeze {config.unfreeze}: the model has {model.config.n_layers} blocks")
    read, skipped = load_questions(config.data, config.limit)
    parts = by_split(read)
    if config.val:
        held_out, bad = load_questions(config.val, config.limit)
        parts, skipped = {"train": read, "val": held_out}, skipped + bad
    for name in ("train", "val"):
        if not parts[name]:
            raise ValueError(f"no question is left for {name}; give more rows, or --val with some of their own")
    questions = [question for part in parts.values() for question in part]
    print(f"{folder}: " + ", ".join(f"{len(part):,} questions for {name}" for name, part in parts.items()),
          file=sys.stderr)
    encoded = encode_all(questions, tokenizer, model.config.context)
    fingerprint = digest(folder)
    at = dict(zip(parts, np.cumsum([0, *map(len, parts.values())]).tolist()))
    # A model that learns still needs its first states once, for the language model's own score of held-out questions.
    known = at["val"] if config.unfreeze else 0
    stored = stored_states(config.states, fingerprint, model, encoded[known:])
    states_of: StatesOf = live(model, encoded) if config.unfreeze else stored.of

    torch.manual_seed(config.seed)
    head = Head(model.config.dim, config.hidden, config.dropout, config.contrast)
    scorer = Scorer(head, model if config.unfreeze else None, config.unfreeze)
    best = fit(scorer, choice_loss(states_of), [one.answer for one in questions], len(parts["train"]),
               range(at["val"], at["val"] + len(parts["val"])), config)
    best.put_back()
    scorer.eval()
    measured = {name: accuracies(part, scores_of(head, states_of, range(at[name], at[name] + len(part))),
                                 lambda i, normalised, name=name: stored.zero_shot(at[name] - known + i, normalised))
                for name, part in parts.items() if name != "train" and part}
    settings = {"dim": model.config.dim, "hidden": config.hidden, "dropout": config.dropout,
                "contrast": config.contrast, "checkpoint": str(folder.resolve()), "fingerprint": fingerprint,
                "settings": dataclasses.asdict(config)}
    if earlier:
        shutil.rmtree(out / "model", ignore_errors=True)
    if config.unfreeze:
        config.chat = checkpoint.is_chat(folder)                     # noted in the checkpoint, not a setting
        saved = checkpoint.save(out / "model", model, tokenizer, config, {"step": best.step, "val_loss": best.loss})
        settings |= {"checkpoint": f"model/{saved.name}", "fingerprint": digest(saved)}
    save_head(out, head, settings)
    return {"out": config.out, "checkpoint": str(folder), "best_step": best.step, "val_loss": best.loss,
            "seconds": time.monotonic() - started, "skipped": skipped,
            "cut": sum(one.n_prefix_cut + one.n_options_cut > 0 for one in encoded), "accuracy": measured}


def fit(scorer: Scorer, loss_fn: LossFn, answers: Sequence[int], n_train: int, val: Sequence[int],
        config: ScorerConfig) -> Best:
    """The training loop on questions: the first `n_train` to learn from, the numbers `val` to validate; the best."""
    rows = min(config.effective_batch_size, n_train)
    epoch = math.ceil(n_train / rows)
    loop = _LoopConfig(max_steps=config.epochs * epoch, batch_size=config.batch_size, effective_batch_size=rows,
                       optimizer="adamw", lr=config.lr, warmup_steps=0, weight_decay=config.weight_decay,
                       clip=config.clip, dtype=config.dtype, compile="off", val_every=max(1, epoch // 2),
                       seed=config.seed)
    batch_at = question_batches(answers, n_train, rows, config.seed)
    held_out = as_batch(list(val), answers).split(config.batch_size)
    n_micro = config.epochs * math.ceil(n_train / config.batch_size)
    seconds = _seconds_of(scorer, loss_fn, batch_at(0).split(config.batch_size)[0])
    print(f"training {sum(weight.numel() for weight in scorer.parameters() if weight.requires_grad):,} weights for at "
          f"most {config.epochs} epochs of {epoch:,} steps: about "
          f"{duration((n_micro + config.epochs * len(held_out)) * seconds)} or less", file=sys.stderr)
    out = Path(config.out)
    with checkpoint.lock(out), (out / "metrics.jsonl").open("w", encoding="utf-8") as metrics, \
            tqdm(total=loop.max_steps, desc="training", unit=" steps", file=sys.stderr,
                 mininterval=0.2 if sys.stderr.isatty() else 30) as bar:

        def show(row: dict) -> None:
            metrics.write(json.dumps(row) + "\n")
            if "val_loss" in row:
                bar.set_postfix_str(f"val loss {row['val_loss']:.3f}, best {best.loss:.3f} at step {best.step}")
            else:
                bar.update(1)

        best = Best(scorer, config.patience, show)
        try:
            train(scorer, batch_at, loop, val={"val": held_out}, loss_fn=loss_fn, report=best.report,
                  should_stop=best.should_stop)
        except KeyboardInterrupt:
            if not best.weights:
                raise
            print(f"stopped: keeping the best weights so far, of step {best.step}", file=sys.stderr)
    return best


def _seconds_of(scorer: Scorer, loss_fn: LossFn, batch: Batch) -> float:
    """How long one micro-batch takes, forward and backward; the second run is timed, the first one warms up."""
    for _ in range(2):
        started = time.perf_counter()
        loss_fn(scorer, batch)[0].backward()
        seconds = time.perf_counter() - started
    scorer.zero_grad()
    return seconds
