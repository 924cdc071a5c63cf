"""How to time what is slow and noisy: in turn, several times, as a row with its median and its yardsticks.

In: functions to run. Out: rows for a table or for JSON. What scaling.py and bench.py have in common. Explained by
tests/test_bench.py.
"""

import statistics
import time
from collections.abc import Callable

import torch

from tinyllm import train
from tinyllm.data import Batch, next_token_batch
from tinyllm.model import ModelConfig, TinyLLM


def make_row(name: str, values: list[float], unit: str, yardsticks: dict[str, float]) -> dict:
    """One number with its context, as --json prints it; the yardsticks are in the same unit as the values."""
    value = statistics.median(values)
    return {"name": name, "value": value, "unit": unit, "runs": len(values), "low": min(values), "high": max(values),
            "ratios": {other: value / size for other, size in yardsticks.items()}}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def gradient_name(rows: int, length: int, way: str) -> str:
    """The name of the row of bench that times forward and backward in one way, such as `eager float32`."""
    return f"forward+backward {rows}x{length}, {way}"


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def alternate(jobs: dict[str, Callable[[], float]], repeats: int, seconds: float) -> dict[str, list[float]]:
    """What each job returned (its seconds), run in turn, A B C A B C, so that a busy moment hits all alike.

    A job stops after `repeats`, or when one more run of it would exceed the `seconds` of all; each runs at least once.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    spent = 0.0
    for _ in range(repeats):
        for name, job in jobs.items():
            if not times[name] or spent + times[name][-1] <= seconds:
                times[name].append(job())
                spent += times[name][-1]
    return times


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations of forward + backward per token of a row of `length`: 6 per matrix weight + attention.

    Forward multiplies and adds once per weight, backward twice (Kaplan et al. 2020, arXiv:2001.08361). The embedding
    counts once, as the head: looking up a row multiplies nothing. Attention counts the full (T, T) square.
    """
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in TinyLLM(config).parameters() if weight.ndim == 2)
    return 6 * weights + 12 * config.n_layers * config.n_heads * config.head_dim * length


def random_batch(model: TinyLLM, rows: int, length: int) -> Batch:
    """Random tokens, and the next of each as its target: (rows, length) each."""
    return next_token_batch(torch.randint(model.config.vocab_size, (rows, length + 1)))


def forward_backward(model: TinyLLM, batch: Batch, loss_fn: train.LossFn, dtype: torch.dtype) -> float:
    """Seconds from tokens to the gradients of every weight."""
    model.train().zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, _ = loss_fn(model, batch)
    loss.backward()
    return time.perf_counter() - started
