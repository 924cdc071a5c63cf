"""What a run will come to, before it is begun: when it ends, the memory it takes, the loss to expect, for each preset.

In: a number of tokens or of hours. Out: a prediction for each preset and the command that it is about. Speed and memory
are measured here and now, by a few steps of the training loop; the loss is read off curves that were measured once, on
the built-in texts. Explained by tests/test_plan.py.
"""

import json
import math
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import torch

from tinyllm import train
from tinyllm.bench import peak_mb, random_batch
from tinyllm.config import Settings, command, opt, part, read_settings
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.pretrain import PretrainConfig

BALANCE = 20                             # tokens for each weight where computing is best spent: Hoffmann et al. 2022
UNITS = {"": 1, "k": 10 ** 3, "m": 10 ** 6, "b": 10 ** 9}


class Curve(NamedTuple):
    """What was measured of a preset: a run of its own for each point, to the end of its schedule."""

    points: tuple[tuple[int, float], ...]                            # (tokens read, bits per byte of held-out text)
    corpus_tokens: int                                               # of the built-in texts, in its vocabulary


# python -m tinyllm.prepare --preset P --out data/P
# python -m tinyllm.pretrain --preset P --data data/P --out checkpoints/P_N --max-tokens N --compile on
CURVES = {
    "nano": Curve(((131_072, 2.013), (262_144, 1.536), (524_288, 1.100), (1_048_576, 0.798)), 11_803_418),
    "base": Curve(((131_072, 1.549), (262_144, 1.243), (524_288, 0.940)), 9_820_733),
}


@dataclass
class PlanConfig(Settings):
    """Know before you train: when a run will end, how much memory it takes and which loss to expect.

    Trains each preset on this machine for a few steps, less than a minute in all, and compares the presets. Without
    --tokens and --hours: one hour, as `pretrain` does. The loss is that of the built-in texts of 26 November 2026.
    Examples:
      python -m tinyllm.plan --hours 8
      python -m tinyllm.plan --preset base --tokens 50M
    """

    preset: str = opt("both", "the model to plan for; both are compared", choices=("both", *CURVES))
    tokens: str = opt("", "tokens to train on, such as 300k, 50M or 1.5B")
    hours: float = opt(0.0, "hours to train for", low=0, high=100_000)
    seconds: float = opt(50.0, "time for measuring, all presets together; each takes three steps at least", low=0)
    compile: str = opt("on", "torch.compile, in what is measured and in the command that is printed",
                       choices=("on", "off"))
    json: bool = opt(False, "print one JSON object instead of a table")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens and self.hours:
            raise ValueError(f"--tokens {self.tokens} and --hours {self.hours:g} are two ends of one run; give one")
        if self.tokens:
            parse_tokens(self.tokens)
        elif not self.hours:
            self.hours = 1.0


def parse_tokens(text: str) -> int:
    """The number that `text` means: "300k" -> 300,000; k, M and B stand for thousands, millions and billions."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)([kmb]?)", text.strip().lower(), re.ASCII)
    n = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if not 1 <= n <= 10 ** 12:
        raise ValueError(f"--tokens takes a number up to 1000B, such as 300k, 50M or 1.5B, not {text!r}")
    return n


# --- the loss to expect ---

class PowerLaw(NamedTuple):
    """loss(tokens) = floor + scale / tokens ** power: each halving of what is left above the floor costs the same
    factor in tokens. Hoffmann et al. 2022, arXiv:2203.15556, for one size of model."""

    floor: float
    scale: float
    power: float

    def at(self, tokens: float) -> float:
        return self.floor + self.scale / tokens ** self.power


def fit(points: Sequence[tuple[int, float]]) -> PowerLaw:
    """The power law with the least squared error at `points` (tokens, loss), three or more, and no floor below 0."""
    assert len(points) >= 3
    tokens, losses = np.array(points, dtype=float).T
    laws = []
    for power in np.arange(0.01, 2.0, 0.01):                         # the other two follow from it by linear regression
        x = (tokens / tokens[0]) ** -power                           # 1 at the first point
        spread = x - x.mean()
        scale = float(spread @ losses / (spread @ spread))
        floor = float(losses.mean() - scale * x.mean())
        if floor < 0:
            floor, scale = 0.0, float(x @ losses / (x @ x))
        error = float(((floor + scale * x - losses) ** 2).sum())
        laws.append((error, PowerLaw(floor, scale * float(tokens[0] ** power), float(power))))
    return min(laws)[1]


# --- this machine ---

class Speed(NamedTuple):
    """Seconds that parts of a run take here, and the most memory that the process has held."""

    first: float                                                     # the first step; it compiles
    step: float                                                      # a later step
    validation: float                                                # of all validation tokens
    memory_mb: float | None


def measure(config: PretrainConfig, seconds: float) -> Speed:
    """Runs the training loop for about `seconds`, three steps at least, on random tokens: they cost what text costs.

    Rows have the full context. Those of a run's first half may be shorter (`start_context`), at about the same speed.
    """
    model = TinyLLM(part(ModelConfig, config))
    batch = random_batch(model, config.effective_batch_size, config.context)
    rows, until = [], time.monotonic() + seconds
    endless = replace(config, start_context=0, max_steps=10 ** 9, max_tokens=0, max_minutes=0.0)
    train.train(model, lambda step: batch, endless, val={"text": batch.split(config.batch_size)}, report=rows.append,
                should_stop=lambda: len(rows) > 3 and time.monotonic() > until)
    validation, first, *later = rows
    later = [row for row in later if "val_loss" not in row]
    n_tokens = batch.tokens.numel()
    return Speed(n_tokens / first["tokens_per_second"],
                 statistics.median(n_tokens / row["tokens_per_second"] for row in later),
                 validation["seconds"] * config.val_tokens / n_tokens, (peak_mb() or [None])[0])


def predict(preset: str, config: PretrainConfig, speed: Speed, now: datetime) -> dict:
    """What the run of `config` comes to at this `speed`: a dict of numbers with their units in their names."""
    step_tokens = config.effective_batch_size * config.context
    start, each = speed.validation + speed.first, speed.step + speed.validation / config.val_every
    if config.max_tokens:
        steps = math.ceil(config.max_tokens / step_tokens)
    else:                                                            # the clock is looked at before each step
        steps = 1 + max(0, math.ceil((config.max_minutes * 60 - start) / each))
    n_validations = 1 + math.ceil(steps / config.val_every)          # before the first step, in between, at the end
    seconds = speed.first + (steps - 1) * speed.step + n_validations * speed.validation
    tokens, curve = steps * step_tokens, CURVES[preset]
    low, high = curve.points[0][0], curve.points[-1][0]
    law = fit(curve.points)
    with torch.device("meta"):                                       # counted, not made
        weights = TinyLLM(part(ModelConfig, config)).n_weights
    return {"preset": preset, "tokens": tokens, "steps": steps, "hours": seconds / 3600,
            "tokens_per_weight": tokens / weights,
            "ends": (now + timedelta(seconds=seconds)).isoformat(timespec="minutes"),
            "tokens_per_second": step_tokens / each, "first_step_seconds": speed.first, "memory_mb": speed.memory_mb,
            "bits_per_byte": law.at(tokens), "measured_tokens": [low, high],
            "largest_miss": max(abs(law.at(n) / loss - 1) for n, loss in curve.points),
            "extrapolated": not low <= tokens <= high, "passes": tokens / curve.corpus_tokens}


# --- all of it ---

def training_flags(config: PlanConfig, preset: str) -> list[str]:
    """The flags of `pretrain` for the run that is planned."""
    end = ["--max-tokens", str(parse_tokens(config.tokens))] if config.tokens else \
        ["--max-minutes", f"{config.hours * 60:g}"]
    return ["--preset", preset, *end, "--compile", config.compile, "--data", f"data/{preset}"]


def plan(config: PlanConfig) -> dict:
    """What the command prints: {"machine", "settings", "plans", "lowest_loss", "fits"}; no lowest loss where one is a
    guess. Then the preset that fits the hours is the one that comes nearest to BALANCE tokens for each weight."""
    presets = list(CURVES) if config.preset == "both" else [config.preset]   # the smaller first: memory is a maximum
    plans = []
    for preset in presets:
        print(f"measuring steps of {preset} ...", file=sys.stderr)
        run = read_settings(PretrainConfig, "python -m tinyllm.pretrain", training_flags(config, preset))
        plans.append(predict(preset, run, measure(run, config.seconds / len(presets)), datetime.now()) | {
            "prepare": f"python -m tinyllm.prepare --preset {preset} --out data/{preset}",      # its own vocabulary
            "command": " ".join(["python -m tinyllm.pretrain", *training_flags(config, preset)])})
    guessed = any(one["extrapolated"] for one in plans)
    best = None if guessed else min(plans, key=lambda one: one["bits_per_byte"])["preset"]
    balanced = min(plans, key=lambda one: abs(math.log(one["tokens_per_weight"] / BALANCE)))["preset"]
    return {"machine": {"torch": torch.__version__, "threads": torch.get_num_threads()}, "settings": asdict(config),
            "plans": plans, "lowest_loss": best, "fits": best or (None if config.tokens else balanced)}


def table(result: dict) -> str:
    """The plans side by side, which one to take, and how far to trust it."""
    plans = result["plans"]
    rows = {"": [one["preset"] for one in plans],
            "tokens/s, with validation": [f"{one['tokens_per_second']:,.0f}" for one in plans],
            "first step, s": [f"{one['first_step_seconds']:.1f}" for one in plans],
            "peak memory, MB": [f"{one['memory_mb']:,.0f}" if one["memory_mb"] else "unknown" for one in plans],
            "tokens": [f"{one['tokens']:,}" for one in plans],
            "hours": [f"{one['hours']:,.2f}" for one in plans],
            "ends, if begun now": [one["ends"].replace("T", " ") for one in plans],
            "tokens for each weight": [f"{one['tokens_per_weight']:,.2f}" for one in plans],
            "passes over the built-in texts": [f"{one['passes']:,.2f}" for one in plans],
            "bits per byte to expect": [f"{one['bits_per_byte']:.2f}" + " (extrapolated)" * one["extrapolated"]
                                        for one in plans]}
    lines = [f"{name:32}" + "".join(f"{cell:>24}" for cell in cells) for name, cells in rows.items()]
    lines += [f"{one['preset']}: the curve misses its own points by up to {one['largest_miss']:.0%}" for one in plans]
    lines += ["{}: the loss was measured from {:,} to {:,} tokens; {:,} lie outside, so this one is a guess".format(
        one["preset"], *one["measured_tokens"], one["tokens"]) for one in plans if one["extrapolated"]]
    lines += [f"{one['preset']}: reads the built-in texts {one['passes']:.1f} times; the curves are of texts read once"
              for one in plans if one["passes"] > 1]
    if len(plans) > 1:
        lines.append(f"lower loss {'with equal tokens' if result['settings']['tokens'] else 'in this time'}: "
                     f"{result['lowest_loss'] or 'a guess is nothing to choose by'}")
        if result["fits"] and not result["lowest_loss"]:
            lines.append(f"fits these hours: {result['fits']}, nearest to {BALANCE} tokens for each weight, which make "
                         "the most of so much computing (Hoffmann et al. 2022), on texts that are not read again")
    return "\n".join([*lines, *(f"{one['prepare']}\n{one['command']}" for one in plans
                                if result["fits"] in (one["preset"], None))])


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(PlanConfig, "python -m tinyllm.plan", argv)
    result = plan(config)
    print(json.dumps(result) if config.json else table(result))


if __name__ == "__main__":
    sys.exit(main())
