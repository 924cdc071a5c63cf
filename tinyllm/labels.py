"""Reading a label off the logits: the prompt's next token is a class word; its probabilities are the classification.

In: rows that end with a class word and a model fine-tuned on such rows. Out: probabilities of the classes, their
expected value as one continuous score, and how good both are. Explained by tests/test_labels.py.
Shapes: B prompts, V vocabulary, C classes.
"""

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tinyllm import chat, checkpoint
from tinyllm.config import Settings, opt
from tinyllm.evaluate import prompts_of
from tinyllm.model import TinyLLM
from tinyllm.report import accuracy, grid, percent
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import WEIGHTS, read_as


@dataclass
class LabelsConfig(Settings):
    """Classify by the probabilities of class words as the next token; measured on rows that end with the right word.

    The model must have learnt to answer with a class word: that is ordinary fine-tuning. Example:
      python -m tinyllm.choices --out data
      python -m tinyllm.sft --data data/labels_train.jsonl --val data/labels_val.jsonl --init checkpoints/nano \\
          --out checkpoints/labels --max-minutes 1.5 --dropout 0 --muon-lr 0.003 --lr 0.001
      python -m tinyllm.scorer labels --checkpoint checkpoints/labels --data data/labels_test.jsonl
    """

    checkpoint: str = opt("", "run or checkpoint folder; the last stage under checkpoints/ when absent")
    data: str = opt("data/labels_test.jsonl", 'rows {"user", "assistant"} (or "messages") that end with a class word')
    labels: str = opt("exact,substitute,complement,irrelevant", "class words, with commas")
    values: str = opt("3,2,1,0", "value of each class; the score is the expected value over the highest one")
    limit: int = opt(0, "rows to read (0: all)", low=0)
    batch_size: int = opt(32, "prompts that are read together", low=1)
    weights: str = WEIGHTS
    json: bool = opt(False, "print the result as JSON")

    def names(self) -> list[str]:
        """The class words; ValueError if there are fewer than two or one comes twice."""
        names = [name.strip() for name in self.labels.split(",")]
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"--labels needs at least two different words with commas, not {self.labels!r}")
        return names

    def numbers(self) -> list[float]:
        """The value of each class; ValueError if they are not as many as the labels or none is above zero."""
        try:
            numbers = [float(value) for value in self.values.split(",")]
        except ValueError:
            raise ValueError(f"--values takes numbers with commas, not {self.values!r}") from None
        if len(numbers) != len(self.names()) or not all(map(math.isfinite, numbers)) or \
                min(numbers) < 0 or not any(numbers):
            raise ValueError(f"--values needs a number of at least 0 for each of {len(self.names())} labels, one above "
                             f"0, not {self.values!r}")
        return numbers


class Labelled(NamedTuple):
    """The conversation before the class word, and the number of the class."""

    messages: list[dict]
    label: int


def first_tokens(tokenizer: Tokenizer, labels: Sequence[str]) -> list[int]:
    """The token that each label begins with; ValueError if two begin with the same one: they cannot be told apart."""
    found: dict[int, str] = {}
    for label in labels:
        _, first, *_ = tokenizer.encode("\n" + label)              # it stands at the beginning of a line
        if first in found:
            raise ValueError(f"the labels {found[first]!r} and {label!r} both begin with the token "
                             f"{tokenizer.show(first)!r}: one position cannot tell them apart; choose other words")
        found[first] = label
    return list(found)


def read_labelled(path: str | Path, labels: Sequence[str], limit: int = 0) -> tuple[list[Labelled], int]:
    """(rows whose last message is one of `labels`, number of other rows); ValueError if none is left."""
    rows, others = [], 0
    for messages in chat.read_rows(path, chat.messages_of):
        if limit and len(rows) == limit:
            break
        if (word := messages[-1]["content"].strip()) in labels:
            rows.append(Labelled(messages[:-1], list(labels).index(word)))
        else:
            others += 1
    if not rows:
        raise ValueError(f"{path}: no row ends with one of {', '.join(labels)}")
    return rows, others


@torch.inference_mode()
def probabilities(model: TinyLLM, prompts: Sequence[list[int]], first: Sequence[int], batch_size: int = 32) -> Tensor:
    """Softmax over the `first` tokens of the labels behind each prompt: (B, C).

    Prompts are padded on the right: nothing a prompt reads comes after its own last token.
    """
    made = torch.empty(len(prompts), len(first))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bar = tqdm(total=len(prompts), desc="reading", unit=" prompts", file=sys.stderr, leave=False,
               mininterval=0.2 if sys.stderr.isatty() else 30)
    for at in range(0, len(order), batch_size):
        numbers = order[at:at + batch_size]
        width = len(prompts[numbers[-1]])
        tokens = torch.tensor([prompts[i] + [0] * (width - len(prompts[i])) for i in numbers])     # (B, T)
        last = torch.tensor([len(prompts[i]) - 1 for i in numbers])
        hidden = model.last_hidden(tokens)[torch.arange(len(numbers)), last]                       # (B, D)
        made[torch.tensor(numbers)] = model.logits(hidden)[:, list(first)].float().softmax(-1)     # (B, C)
        bar.update(len(numbers))
    bar.close()
    return made


def expected_value(chances: Tensor, values: Sequence[float]) -> Tensor:
    """(B, C) -> (B,): the mean value under the probabilities, as a share of the highest value."""
    return chances.double() @ (torch.tensor(values, dtype=torch.float64) / max(values))


def auc(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """Share of pairs with different values that the scores put in the right order, ties counting half.

    With two values this is the area under the ROC curve (Hanley & McNeil 1982). None if all values are the same.
    """
    groups = {value: torch.tensor([score for score, one in zip(scores, values) if one == value]).sort().values
              for value in sorted(set(values))}
    right, pairs = 0.0, 0
    for (_, low), (_, high) in itertools.combinations(groups.items(), 2):
        below = torch.searchsorted(low, high, right=False)           # for each of `high`, how many scores of `low` are
        below_or_equal = torch.searchsorted(low, high, right=True)   # lower, and how many not higher
        right += float((below + below_or_equal).sum()) / 2
        pairs += len(low) * len(high)
    return right / pairs if pairs else None


def measure(chances: Tensor, truth: Sequence[int], labels: Sequence[str], values: Sequence[float]) -> dict:
    """Accuracy with interval, confusion matrix (rows: true class), mean score of each true class, AUC of the score."""
    chosen, scores = chances.argmax(-1).tolist(), expected_value(chances, values)
    confusion = [[0] * len(labels) for _ in labels]
    for true, guess in zip(truth, chosen):
        confusion[true][guess] += 1
    of = lambda number: [score for score, true in zip(scores.tolist(), truth) if true == number]
    return {"n": len(truth), "accuracy": accuracy([true == guess for true, guess in zip(truth, chosen)]),
            "most_frequent": max(map(sum, confusion)) / len(truth),
            "mean_probability": dict(zip(labels, chances.mean(0).tolist())),
            "mean_score": {label: sum(of(i)) / len(of(i)) if of(i) else None for i, label in enumerate(labels)},
            "auc": auc(scores.tolist(), [values[true] for true in truth]), "confusion": confusion}


def label(config: LabelsConfig) -> dict:
    """Classifies and measures the rows of `config.data`; the result also holds the probabilities of each row."""
    labels, values = config.names(), config.numbers()
    folder = checkpoint.resolve(config.checkpoint or checkpoint.default())
    model, tokenizer = checkpoint.load(folder)
    model = read_as(config.weights, model)
    first = first_tokens(tokenizer, labels)
    rows, others = read_labelled(config.data, labels, config.limit)
    prompts = prompts_of([row.messages for row in rows], tokenizer, checkpoint.is_chat(folder))
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= model.config.context]
    if not fits:
        raise ValueError(f"every prompt is longer than context={model.config.context}; use shorter ones")
    print(f"reading labels with {folder}", file=sys.stderr)
    if others or len(fits) < len(rows):
        print(f"{config.data}: {others:,} rows end with another word and {len(rows) - len(fits):,} are longer than "
              f"context={model.config.context}: skipped", file=sys.stderr)
    chances = probabilities(model, [prompts[i] for i in fits], first, config.batch_size)
    scores = expected_value(chances, values).tolist()
    result = measure(chances, [rows[i].label for i in fits], labels, values)
    return result | {"checkpoint": str(folder), "labels": labels, "values": values,
                     "skipped": others + len(rows) - len(fits),
                     "rows": [{"label": labels[rows[i].label], "probabilities": one, "score": score}
                              for i, one, score in zip(fits, chances.tolist(), scores)]}


def label_table(result: dict) -> str:
    """What a person reads."""
    labels = result["labels"]
    rows = [["true \\ read", *labels, "mean score"]]
    rows += [[label, *map(str, counts), "-" if (score := result["mean_score"][label]) is None else f"{score:.3f}"]
             for label, counts in zip(labels, result["confusion"])]
    area = "-" if result["auc"] is None else f"{result['auc']:.3f}"
    return "\n".join([f"accuracy {percent(result['accuracy']).strip()} of {result['n']:,} rows (most frequent class "
                      f"{result['most_frequent']:.1%}); AUC of the score {area}", "", *grid(rows)])
