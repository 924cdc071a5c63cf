"""What more of everything costs: tokens/s against context, batch, depth and threads, and memory against context.

In: the shapes of a model and of a micro-batch. Out: rows for bench.py, points of curves through that micro-batch. What
is timed is forward + backward without torch.compile, which would compile for each point anew. Explained by
tests/test_bench.py.
"""

import functools
import statistics
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from tinyllm.data import Batch
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.timing import (
    alternate,
    dtype_name,
    flops_per_token,
    forward_backward,
    gradient_name,
    make_row,
    random_batch,
)
from tinyllm.train import next_token_loss

LONGER = (1 / 2, 1, 2, 4, 8)                                         # times the length, at equally many tokens
WIDER = (1 / 8, 1 / 4, 1 / 2, 2)                                     # times the rows
DEEPER = (1 / 4, 1 / 2, 1, 2)                                        # times the layers
THREADS = (1, 2)


def measure_scaling(config: ModelConfig, rows: int, length: int, gflops: float, dtype: torch.dtype, repeats: int,
                    seconds: float, known: Collection[str]) -> list[dict]:
    """All curves around a micro-batch of `rows` x `length`. Points whose names are `known` are left out; each of the
    three groups that are timed takes about `seconds`, and each point is measured at least once."""
    lengths = [max(2, int(length * factor)) for factor in LONGER]
    shapes = [(max(1, rows * length // longer), longer) for longer in lengths]
    shapes += [(max(1, int(rows * factor)), length) for factor in WIDER]
    names = {gradient_name(n, t, f"eager {dtype_name(dtype)}"): (n, t) for n, t in shapes}
    model = TinyLLM(replace(config, context=max(config.context, *lengths)))
    job(model, 1, 2, dtype)()                                        # warm-up
    jobs = {name: job(model, *shape, dtype) for name, shape in names.items() if name not in known}
    found = [speed_row(name, config, *names[name], times, gflops)
             for name, times in alternate(jobs, repeats, seconds).items()]
    weights_mb = sum(weight.nbytes for weight in model.parameters()) / 1e6
    found += [make_row(f"kept for backward, 1x{t}", [kept_bytes(model, random_batch(model, 1, t), dtype) / 1e6], "MB",
                       {"weights": weights_mb}) for t in lengths]
    return found + measure_depths(config, rows, length, gflops, dtype, repeats, seconds) + \
        measure_threads(model, rows, length, dtype, repeats, seconds)


def job(model: TinyLLM, rows: int, length: int, dtype: torch.dtype) -> Callable[[], float]:
    """What returns the seconds of one forward + backward."""
    return functools.partial(forward_backward, model, random_batch(model, rows, length), next_token_loss, dtype)


def speed_row(name: str, config: ModelConfig, rows: int, length: int, times: list[float], gflops: float) -> dict:
    """Tokens/s beside those that matrix products would allow."""
    return make_row(name, [rows * length / second for second in times], "tokens/s",
                    {"matmul ceiling": gflops * 1e9 / flops_per_token(config, length)})


def measure_depths(config: ModelConfig, rows: int, length: int, gflops: float, dtype: torch.dtype, repeats: int,
                   seconds: float) -> list[dict]:
    """Tokens/s of shallower and deeper models, one after the other, so that only one is in memory."""
    found = []
    depths = sorted({max(1, int(config.n_layers * factor)) for factor in DEEPER})
    for depth in depths:
        model = TinyLLM(replace(config, n_layers=depth))
        millions = model.n_weights / 1e6
        times = alternate({"": job(model, rows, length, dtype)}, repeats, seconds / len(depths))[""]
        found.append(speed_row(f"{rows}x{length}, {depth} layers, {millions:.3g} M weights", model.config, rows, length,
                               times, gflops))
    return found


def measure_threads(model: TinyLLM, rows: int, length: int, dtype: torch.dtype, repeats: int,
                    seconds: float) -> list[dict]:
    """Tokens/s with one thread and with two; the number of threads is as before afterwards."""
    before, run = torch.get_num_threads(), job(model, rows, length, dtype)

    def with_threads(n: int) -> float:
        torch.set_num_threads(n)
        return run()

    try:
        times = alternate({n: functools.partial(with_threads, n) for n in THREADS}, repeats, seconds)
    finally:
        torch.set_num_threads(before)
    speeds = {n: [rows * length / second for second in ran] for n, ran in times.items()}
    return [make_row(f"{rows}x{length}, threads: {n}", speed, "tokens/s", {"1 thread": statistics.median(speeds[1])})
            for n, speed in speeds.items()]


def kept_bytes(model: TinyLLM, batch: Batch, dtype: torch.dtype) -> int:
    """Bytes that the forward pass keeps for the backward pass beside the weights: exact, the same on every machine."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}                                        # address -> bytes: views share their storage

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), \
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, _ = next_token_loss(model, batch)
    assert loss.requires_grad                                        # alive until here, so no address was used twice
    return sum(kept.values())
