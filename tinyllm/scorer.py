"""Choose among options without generating: train, measure and use a head on states read from one cached prefix.

In: a checkpoint and JSON lines of questions with options. Out: a folder with the head, accuracies beside baselines,
rows with scores. The loop is train.train; options.py reads, head.py compares. Explained by tests/test_scorer.py.
"""

import dataclasses
import functools
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

from tinyllm import checkpoint, labels
from tinyllm.config import Settings, command, opt, read_command, read_json, write_atomically
from tinyllm.data import Batch
from tinyllm.fork_speed import ForkSpeedConfig, measure, speed_table
from tinyllm.head import Head, Scorer, StatesOf, choice_loss, digest, live, load_head, save_head, stored_states
from tinyllm.model import TinyLLM
from tinyllm.options import Encoded, Question, credit, encode, overlap, read_questions
from tinyllm.problems import split_of
from tinyllm.report import grid, interval, percent
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import LossFn, TrainConfig, train

STATES = opt("runs/states", "folder for the hidden states of a frozen model, computed once")


@dataclass
class ScorerConfig(Settings):
    """Train a head that chooses among the options of a question; the model itself stays as it is.

    Without --val, a hash of each question sends a tenth of --data to validation and a tenth to a test that is measured
    at the end. The result stands beside what no head can do. Examples:
      python -m tinyllm.choices --out data
      python -m tinyllm.scorer train --data data/options_train.jsonl --val data/options_val.jsonl
      python -m tinyllm.scorer train --data my_questions.jsonl --unfreeze 2 --out runs/mine
    """

    checkpoint: str = opt("", "run or checkpoint folder; the most skilled stage under checkpoints/ when absent")
    data: list[str] = opt(["data/options_train.jsonl"], "files of questions to learn from")
    val: list[str] = opt([], "files of questions that decide when to stop; a tenth of --data when absent")
    out: str = opt("runs/scorer", "folder for the head, its settings and metrics.jsonl")
    states: str = STATES
    limit: int = opt(0, "questions of each file (0: all)", low=0)
    unfreeze: int = opt(0, "train this many of the last blocks too; their states are then read anew each time", low=0)
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
class EvalConfig(Settings):
    """Measure a head on questions, beside chance, the longest option, shared letters and the language model's own score.

      python -m tinyllm.scorer eval --head runs/scorer --data data/options_test.jsonl
    """

    head: str = opt("runs/scorer", "folder written by `scorer train`")
    checkpoint: str = opt("", "the checkpoint that the head was trained on, if it has moved")
    data: str = opt("data/options_test.jsonl", "file of questions")
    split: str = opt("all", "only questions whose hash belongs to this split", choices=("all", "train", "val", "test"))
    states: str = STATES
    limit: int = opt(0, "questions to read (0: all)", low=0)
    json: bool = opt(False, "print the result as JSON")


@dataclass
class PredictConfig(Settings):
    """Add "scores", "probabilities" and "choice" to each row of questions; no answers needed.

      python -m tinyllm.scorer predict --head runs/scorer --data questions.jsonl > answered.jsonl
    """

    head: str = opt("runs/scorer", "folder written by `scorer train`")
    checkpoint: str = opt("", "the checkpoint that the head was trained on, if it has moved")
    data: str = opt("data/options_test.jsonl", "file of questions")
    out: str = opt("", "file to write; empty prints the rows")
    states: str = STATES
    limit: int = opt(0, "questions to read (0: all)", low=0)
    json: bool = opt(False, "print a summary as JSON; needs --out")


@dataclass
class _LoopConfig(TrainConfig):
    """What the training loop is told, with one more schedule."""

    schedule: str = opt("one-cycle", "learning rate", choices=("trapezoid", "cosine", "one-cycle"))


# --- questions -> ids ---

def load_questions(paths: Sequence[str], limit: int = 0, labelled: bool = True) -> list[Question]:
    """The good rows of all files; every bad one is named on stderr (at most 20 of them) and counted."""
    questions, bad = [], []
    for path in paths:
        good, wrong = read_questions(path, limit, labelled)
        questions, bad = questions + good, bad + wrong
    for sentence in bad[:20]:
        print(sentence, file=sys.stderr)
    if bad:
        print(f"{len(bad):,} rows skipped" + f", {len(bad) - 20:,} more than shown" * (len(bad) > 20)
              + f"; {len(questions):,} questions read", file=sys.stderr)
    return questions


def encode_all(questions: Sequence[Question], tokenizer: Tokenizer, context: int) -> list[Encoded]:
    """Ids of every question; those that had to be cut are named by line and counted on stderr."""
    made = [encode(question, tokenizer, context) for question in
            tqdm(questions, "tokenising", file=sys.stderr, leave=False, disable=not sys.stderr.isatty())]
    cut = [question.line for question, one in zip(questions, made) if one.n_cut]
    if cut:
        lines = ", ".join(map(str, cut[:20])) + ", ..." * (len(cut) > 20)
        print(f"{len(cut):,} of {len(made):,} questions do not fit context={context} and lost the beginning of their "
              f"context, {sum(one.n_cut for one in made) / len(cut):.0f} tokens on average: lines {lines}",
              file=sys.stderr)
    return made


def by_split(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Questions by the hash of their text and context: train (which keeps the harder bucket too), val, test."""
    parts: dict[str, list[Question]] = {"train": [], "val": [], "test": []}
    for question in questions:
        split = split_of(f"{question.context} {question.question}")
        parts[split if split in parts else "train"].append(question)
    return parts


# --- measuring ---

def shares(credits: Sequence[float]) -> dict:
    """{"accuracy", "low", "high", "n"} of credits between 0 and 1, with the 95% interval."""
    low, high = interval(sum(credits), len(credits))
    return {"accuracy": sum(credits) / max(1, len(credits)), "low": low, "high": high, "n": len(credits)}


@torch.no_grad()
def scores_of(head: Head, states_of: StatesOf, numbers: Sequence[int]) -> list[Tensor]:
    """Scores (n,) of each question."""
    made: list[Tensor] = []
    for part in torch.tensor(list(numbers)).split(256):
        states, real = states_of(part)
        made += [score[mask] for score, mask in zip(head(states, real), real)]
    return made


def baselines(questions: Sequence[Question], zero_shot: Callable[[int, bool], list[float]]) -> dict[str, dict]:
    """What can be had without a head. zero_shot(i, normalised) gives the language model's own scores of question i."""
    of = lambda score: shares([credit(score(i, one), one.answer) for i, one in enumerate(questions)])
    return {"chance": of(lambda i, one: [0.0] * len(one.options)),
            "longest option": of(lambda i, one: list(map(len, one.options))),
            "bigrams shared with the context": of(lambda i, one: [overlap(option, one.context) for option in one.options]),
            "language model, log-probability": of(lambda i, one: zero_shot(i, False)),
            "language model, per token": of(lambda i, one: zero_shot(i, True))}


def accuracies(questions: Sequence[Question], scores: Sequence[Tensor],
               zero_shot: Callable[[int, bool], list[float]]) -> dict[str, dict]:
    """Accuracy of the head and of every baseline, each with its interval."""
    return {"head": shares([credit(score.tolist(), one.answer) for one, score in zip(questions, scores)]),
            **baselines(questions, zero_shot)}


def table(measured: dict[str, dict[str, dict]]) -> str:
    """Accuracies of one or more sets of questions, a column each."""
    names = list(next(iter(measured.values())))
    rows = [["", *(f"{name} ({facts['head']['n']:,})" for name, facts in measured.items())]]
    return "\n".join(grid(rows + [[name, *(percent(facts[name]).strip() for facts in measured.values())]
                                  for name in names]))


# --- training ---

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
        self.scorer.load_state_dict(self.weights, strict=False)      # only what learnt was kept


def question_batches(answers: Sequence[int], n: int, rows: int, seed: int) -> Callable[[int], Batch]:
    """batch_at(step): `rows` of the first `n` questions, every one once an epoch, in a new order each time."""

    def batch_at(step: int) -> Batch:
        numbers = [int(_order(n, seed, k // n)[k % n]) for k in range(step * rows, (step + 1) * rows)]
        return as_batch(numbers, answers)

    return batch_at


def as_batch(numbers: Sequence[int], answers: Sequence[int]) -> Batch:
    """Numbers of questions in the place of tokens, their answers as targets: both (Q, 1)."""
    return Batch(torch.tensor(numbers)[:, None], torch.tensor([answers[i] for i in numbers])[:, None])


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def train_scorer(config: ScorerConfig) -> dict:
    """Trains as `config` says and writes the folder; returns accuracies of validation (and test) beside baselines."""
    started = time.monotonic()
    folder = checkpoint.resolve(config.checkpoint or checkpoint.default())
    model, tokenizer = checkpoint.load(folder)
    if config.unfreeze > model.config.n_layers:
        raise ValueError(f"--unfreeze {config.unfreeze}: the model has {model.config.n_layers} blocks")
    parts = {"train": load_questions(config.data, config.limit)}
    if config.val:
        parts["val"] = load_questions(config.val, config.limit)
    else:
        parts = by_split(parts["train"])
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
    out = Path(config.out)
    settings = {"dim": model.config.dim, "hidden": config.hidden, "dropout": config.dropout,
                "contrast": config.contrast, "checkpoint": str(folder.resolve()), "fingerprint": fingerprint,
                "settings": dataclasses.asdict(config)}
    shutil.rmtree(out / "model", ignore_errors=True)                 # of an earlier run
    if config.unfreeze:
        saved = checkpoint.save(out / "model", model, tokenizer, config, {"step": best.step, "val_loss": best.loss})
        settings |= {"checkpoint": f"model/{saved.name}", "fingerprint": digest(saved)}
    save_head(out, head, settings)
    return {"out": config.out, "checkpoint": str(folder), "best_step": best.step, "val_loss": best.loss,
            "seconds": time.monotonic() - started, "accuracy": measured}


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
          f"{(n_micro + config.epochs * len(held_out)) * seconds / 60:.1f} min or less", file=sys.stderr)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
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


# --- using a head ---

def load_scorer(folder: str | Path, elsewhere: str = "") -> tuple[Head, TinyLLM, Tokenizer, str]:
    """(head, its model, tokenizer, fingerprint of the model) of a folder written by train_scorer.

    ValueError if the checkpoint is not the one that the head was trained on: its states would mean something else.
    """
    folder = Path(folder)
    if not (folder / "scorer.json").is_file():
        raise ValueError(f"{folder}: no head here; train one with `python -m tinyllm.scorer train --out {folder}`")
    settings = read_json(folder / "scorer.json")
    wanted = Path(elsewhere) if elsewhere else folder / settings["checkpoint"]         # an absolute path stays itself
    if not wanted.is_dir():
        raise ValueError(f"{wanted}: the checkpoint of this head is gone; name its new place with --checkpoint")
    found = checkpoint.resolve(wanted)
    if digest(found) != settings["fingerprint"]:
        raise ValueError(f"{found} is not the checkpoint that {folder} was trained on; name that one with --checkpoint, "
                         "or train the head again")
    return load_head(folder, settings), *checkpoint.load(found), settings["fingerprint"]


def evaluate_scorer(config: EvalConfig) -> dict:
    """Accuracy of a head on a file, beside the baselines."""
    head, model, tokenizer, fingerprint = load_scorer(config.head, config.checkpoint)
    questions = load_questions([config.data], config.limit)
    questions = questions if config.split == "all" else by_split(questions)[config.split]
    if not questions:
        raise ValueError(f"{config.data}: no question belongs to the split {config.split}")
    stored = stored_states(config.states, fingerprint, model, encode_all(questions, tokenizer, model.config.context))
    measured = accuracies(questions, scores_of(head, stored.of, range(len(questions))), stored.zero_shot)
    return {"head": config.head, "data": config.data, "split": config.split, "accuracy": measured}


def predict(config: PredictConfig) -> list[dict]:
    """The good rows of a file, each with "scores", "probabilities" and "choice"."""
    head, model, tokenizer, fingerprint = load_scorer(config.head, config.checkpoint)
    questions = load_questions([config.data], config.limit, labelled=False)
    stored = stored_states(config.states, fingerprint, model, encode_all(questions, tokenizer, model.config.context))
    return [question.row | {"scores": score.tolist(), "probabilities": score.softmax(-1).tolist(),
                            "choice": int(score.argmax())}
            for question, score in zip(questions, scores_of(head, stored.of, range(len(questions))))]


# --- commands ---

def _train(config: ScorerConfig) -> None:
    result = train_scorer(config)
    print(json.dumps(result) if config.json else
          table(result["accuracy"]) + f"\nbest of validation: loss {result['val_loss']:.4f} nats at step "
          f"{result['best_step']:,}; {result['seconds']:.0f} s in all; written to {result['out']}")


def _eval(config: EvalConfig) -> None:
    result = evaluate_scorer(config)
    print(json.dumps(result) if config.json else table({Path(config.data).name: result["accuracy"]}))


def _predict(config: PredictConfig) -> None:
    rows = predict(config)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not config.out:
        print(lines, end="")
        return
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(config.out), lines.encode())
    print(json.dumps({"rows": len(rows), "out": config.out}) if config.json else f"{len(rows):,} rows: {config.out}")


def _labels(config: labels.LabelsConfig) -> None:
    result = labels.label(config)
    print(json.dumps(result) if config.json else labels.table(result))


def _bench(config: ForkSpeedConfig) -> None:
    rows = measure(config)
    print(json.dumps({"rows": rows}) if config.json else speed_table(rows))


COMMANDS = {"train": (ScorerConfig, _train), "eval": (EvalConfig, _eval), "predict": (PredictConfig, _predict),
            "labels": (labels.LabelsConfig, _labels), "bench": (ForkSpeedConfig, _bench)}


@command
def main(argv: list[str] | None = None) -> None:
    name, config = read_command({name: settings for name, (settings, _) in COMMANDS.items()},
                                "python -m tinyllm.scorer", argv)
    COMMANDS[name][1](config)


if __name__ == "__main__":
    sys.exit(main())
