"""What evaluate.py measured, made readable: intervals, tables, a page in Markdown, accuracy against votes.

In: samples and the answers that were wanted. Out: numbers in plain dicts, and text. Explained by
tests/test_evaluate.py.
"""

import math
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinyllm.calculator import false_steps
from tinyllm.vote import Sample, same_answer, vote

KS = (1, 3, 5, 7)                                                    # numbers of votes that are compared


class Answered(NamedTuple):
    """A question of a family and language, the answer that is right, and what the model wrote."""

    final: str
    family: str
    language: str
    greedy: Sample
    samples: list[Sample]


def interval(hits: int, n: int) -> tuple[float, float]:
    """95% confidence interval of a share of hits among n. Wilson 1927; stays inside 0 and 1, also for 0 hits."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.96, hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))     # rounding must not exclude it


def accuracy(right: Sequence[float]) -> dict:
    """{"accuracy", "low", "high", "n"}: the mean of `right`, each True, False or a share, with its 95% interval."""
    low, high = interval(sum(right), len(right))
    return {"accuracy": sum(right) / max(1, len(right)), "low": low, "high": high, "n": len(right)}


def facts(answered: Sequence[Answered]) -> dict:
    """Everything measured on these questions: exact match greedy and voted, format, false steps, agreement."""
    n_samples = min((len(one.samples) for one in answered), default=0)
    sizes = [k for k in KS if k < n_samples] + [n_samples] * (n_samples > 0)
    every = [sample for one in answered for sample in one.samples] or [one.greedy for one in answered]
    right = {k: [same_answer(vote(one.samples[:k]).answer, one.final) for one in answered] for k in sizes}
    result = {"greedy": accuracy([same_answer(one.greedy.answer, one.final) for one in answered]),
              "vote": {k: accuracy(hits) for k, hits in right.items()},
              "format": sum(sample.has_format for sample in every) / max(1, len(every)),
              "abstained": sum(sample.answer is None for sample in every) / max(1, len(every)),
              "false_steps_per_answer": sum(len(false_steps(sample.text)) for sample in every) / max(1, len(every)),
              "tokens_per_answer": sum(sample.tokens for sample in every) / max(1, len(every))}
    if n_samples > 1:
        result["reliability"] = reliability([vote(one.samples).agreement for one in answered], right[n_samples])
    return result


def reliability(agreements: Sequence[float], right: Sequence[bool]) -> list[dict]:
    """For each level of agreement: how many questions reached it and how many of those were answered right."""
    return [{"agreement": level, **accuracy([hit for hit, reached in zip(right, agreements) if reached == level])}
            for level in sorted(set(agreements), reverse=True)]


# --- text ---

def percent(share: dict) -> str:
    """`81.3% [78.0, 84.2]`"""
    return f"{share['accuracy']:6.1%} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def width(text: str) -> int:
    """Columns that `text` takes: two for a Chinese character, none for an accent on the letter before it."""
    return sum(0 if unicodedata.category(char) in ("Mn", "Me", "Cf") else
               2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns also line up in a terminal; the first row is the heading."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(width(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell + " " * (wide - width(cell)) for cell, wide in zip(row, widths)) + " |"
             for row in rows]
    return [lines[0], "|" + "|".join("-" * (wide + 2) for wide in widths) + "|", *lines[1:]]


def cells(measured: Sequence[dict], sizes: Sequence[int]) -> list[list[str]]:
    """The heading, and a row for each result of facts(): greedy, votes of the sizes wanted, format."""
    head = ["greedy", *("one sample" if k == 1 else f"vote of {k}" for k in sizes), "format"]
    return [head, *([percent(fact["greedy"]), *(percent(fact["vote"][k]) for k in sizes), f"{fact['format']:.1%}"]
                    for fact in measured)]


def in_short(measured: Sequence[dict]) -> list[list[str]]:
    """The same with no other votes than one sample and that of all."""
    votes = measured[0]["vote"]
    return cells(measured, sorted({1, max(votes)}) if votes else [])


def by_group(groups: dict, kinds: Sequence[str] = ("by_language", "by_family")) -> list[str]:
    """A row for all questions and for each group of these kinds: greedy, votes, format, false steps."""
    named = [("all", groups["all"]), *(pair for kind in kinds for pair in groups[kind].items())]
    head, *rows = cells([facts for _, facts in named], [*groups["all"]["vote"]])
    return grid([["", "n", *head, "false steps"],
                 *([" ".join(name.split()), str(facts["greedy"]["n"]), *row, f"{facts['false_steps_per_answer']:.2f}"]
                   for (name, facts), row in zip(named, rows))])


def by_agreement(levels: Sequence[dict]) -> list[str]:
    """Whether agreement predicts correctness."""
    return grid([["agreement", "questions", "right"],
                 *([f"{level['agreement']:.0%}", str(level["n"]), percent(level)] for level in levels)])


def page(result: dict, command: str) -> str:
    """The whole evaluation as a page of Markdown."""
    lines = ["# Evaluation", "", f"`{command}`", ""]
    if result.get("files"):
        lines += ["Exact match of the final answer, 95% intervals in brackets.", ""]
    if "bits_per_byte" in result:
        lines += [f"Bits per byte of {result['text']}: {result['bits_per_byte']:.3f}", ""]
    for name, groups in result.get("files", {}).items():
        lines += [f"## {name}", "", *by_group(groups), ""]
        if levels := groups["all"].get("reliability"):
            lines += ["Does agreement predict correctness?", "", *by_agreement(levels), ""]
    if result.get("plot"):
        lines += [f"![accuracy against votes]({result['plot']})", ""]
    return "\n".join(lines)


def draw_votes(files: dict, path: Path) -> str | None:
    """Draws accuracy against the number of votes to `path`, a line a file; its name, or None without matplotlib."""
    curves = {name: groups["all"]["vote"] for name, groups in files.items() if len(groups["all"]["vote"]) > 1}
    if not curves:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot of accuracy against votes: `pip install -e '.[plot]'` draws one", file=sys.stderr)
        return None
    axes = (figure := Figure(figsize=(6, 4), dpi=120)).add_subplot()
    for name, votes in curves.items():
        shares = [votes[k]["accuracy"] for k in votes]
        errors = [[votes[k]["accuracy"] - votes[k]["low"] for k in votes],
                  [votes[k]["high"] - votes[k]["accuracy"] for k in votes]]
        axes.errorbar(list(votes), shares, yerr=errors, marker="o", capsize=3, label=name)
    axes.set(xlabel="samples that vote", ylabel="exact match", xticks=[*next(iter(curves.values()))])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    return path.name
