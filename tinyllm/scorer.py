"""Choose among options without generating: train, measure and use a head on states read from one cached prefix.

In: a checkpoint and JSON lines of questions with options. Out: a folder with the head, accuracies beside baselines,
rows with scores. The loop is train.train; fork.py reads, head.py compares. Explained by tests/test_scorer.py.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tinyllm import checkpoint
from tinyllm.config import Settings, command, opt, read_command, read_json, refuse_folder, write_atomically
from tinyllm.fork import digest, stored_states
from tinyllm.fork_speed import ForkSpeedConfig, measure, speed_table
from tinyllm.head import Head, load_head, scores_of
from tinyllm.labels import LabelsConfig, label, label_table
from tinyllm.model import TinyLLM
from tinyllm.options import by_split, encode_all, load_questions
from tinyllm.shortcuts import accuracies, table
from tinyllm.tokenizer import Tokenizer
from tinyllm.train_head import STATES, ScorerConfig, train_scorer
from tinyllm.weights import KINDS, kind_of, read_as

WEIGHTS = opt("fp32", "what the model's matrices are read as; a head was trained on states of fp32", choices=KINDS)


@dataclass
class EvalConfig(Settings):
    """Measure a head beside chance, the longest option, shared letters and the language model's own score.

      python -m tinyllm.scorer eval --head runs/scorer --data data/options_test.jsonl
    """

    head: str = opt("runs/scorer", "folder written by `scorer train`")
    checkpoint: str = opt("", "the checkpoint that the head was trained on, if it has moved")
    data: str = opt("data/options_test.jsonl", "file of questions")
    split: str = opt("all", "only questions whose hash belongs to this split", choices=("all", "train", "val", "test"))
    states: str = STATES
    weights: str = WEIGHTS
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
    weights: str = WEIGHTS
    limit: int = opt(0, "questions to read (0: all)", low=0)
    json: bool = opt(False, "print a summary as JSON; needs --out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json and not self.out:
            raise ValueError("--json sums up the rows that --out writes; give --out, or leave --json out")


# --- using a head ---

def load_scorer(folder: str | Path, elsewhere: str = "",
                weights: str = "fp32") -> tuple[Head, TinyLLM, Tokenizer, str]:
    """(head, its model, tokenizer, fingerprint of the model's states) of a folder written by train_scorer.

    ValueError if the checkpoint is not the one that the head was trained on: its states would mean something else.
    """
    folder = Path(folder)
    if not (folder / "scorer.json").is_file():
        raise ValueError(f"{folder}: no head here; train one with `python -m tinyllm.scorer train --out {folder}`")
    settings = read_json(folder / "scorer.json")
    kinds = {"checkpoint": str, "fingerprint": str, "dim": int, "hidden": int, "dropout": (int, float),
             "contrast": bool}
    for name, kind in kinds.items():
        if not isinstance(settings.get(name), kind) or (kind is int and settings[name] < 0):
            raise ValueError(f"{folder / 'scorer.json'} has no {name} that fits: no head; train one again")
    wanted = Path(elsewhere) if elsewhere else folder / settings["checkpoint"]         # an absolute path stays itself
    if not wanted.is_dir():
        raise ValueError(f"{wanted}: no such folder with the checkpoint of this head; name its place with --checkpoint")
    found = checkpoint.resolve(wanted)
    if digest(found) != settings["fingerprint"]:
        raise ValueError(f"{found} is not the checkpoint that {folder} was trained on; name that with --checkpoint, "
                         "or train the head again")
    model, tokenizer = checkpoint.load(found)
    kind = kind_of(weights)                                          # other weights, other states
    fingerprint = settings["fingerprint"] + ("" if kind == "fp32" else f" {kind}")
    return load_head(folder, settings), read_as(kind, model), tokenizer, fingerprint


def evaluate_scorer(config: EvalConfig) -> dict:
    """Accuracy of a head on a file, beside the baselines."""
    head, model, tokenizer, fingerprint = load_scorer(config.head, config.checkpoint, config.weights)
    questions, skipped = load_questions([config.data], config.limit)
    questions = questions if config.split == "all" else by_split(questions)[config.split]
    if not questions:
        raise ValueError(f"{config.data}: no question belongs to the split {config.split}")
    encoded = encode_all(questions, tokenizer, model.config.context)
    stored = stored_states(config.states, fingerprint, model, encoded)
    measured = accuracies(questions, scores_of(head, stored.of, range(len(questions))), stored.zero_shot)
    return {"head": config.head, "data": config.data, "split": config.split, "skipped": skipped,
            "cut": sum(one.n_prefix_cut + one.n_options_cut > 0 for one in encoded), "accuracy": measured}


def predict(config: PredictConfig) -> list[dict]:
    """The good rows of a file, each with "scores", "probabilities" and "choice"."""
    head, model, tokenizer, fingerprint = load_scorer(config.head, config.checkpoint, config.weights)
    questions, _ = load_questions([config.data], config.limit, labelled=False)
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
    if config.out:
        refuse_folder(config.out)
        if Path(config.out).resolve() == Path(config.data).resolve():
            raise ValueError(f"--out {config.out} is the file of questions; its bad rows would be lost: choose another")
    rows = predict(config)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not config.out:
        print(lines, end="")
        return
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(config.out), lines.encode())
    print(json.dumps({"rows": len(rows), "out": config.out}) if config.json else f"{len(rows):,} rows: {config.out}")


def _labels(config: LabelsConfig) -> None:
    result = label(config)
    print(json.dumps(result) if config.json else label_table(result))


def _bench(config: ForkSpeedConfig) -> None:
    rows = measure(config)
    print(json.dumps({"rows": rows}) if config.json else speed_table(rows))


COMMANDS = {"train": (ScorerConfig, _train), "eval": (EvalConfig, _eval), "predict": (PredictConfig, _predict),
            "labels": (LabelsConfig, _labels), "bench": (ForkSpeedConfig, _bench)}


@command
def main(argv: list[str] | None = None) -> None:
    name, config = read_command({name: settings for name, (settings, _) in COMMANDS.items()},
                                "python -m tinyllm.scorer", argv)
    COMMANDS[name][1](config)


if __name__ == "__main__":
    sys.exit(main())
