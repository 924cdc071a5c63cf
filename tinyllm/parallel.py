"""Several processes, one run: each reads a share of the rows of every step, and their gradients are added up.

Started by `torchrun --nproc_per_node 2 -m tinyllm.pretrain`, on one machine or several. A process alone meets nothing
of this: every function here then does nothing. In: the environment that torchrun sets. Out: the same numbers in every
process. Explained by tests/test_parallel.py.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm.data import Batch


def start() -> None:
    """Joins the other processes, if torchrun started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")                              # what PyTorch has for CPUs


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is. Number 0 reads, writes and speaks for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(batch: Batch) -> Batch:
    """The rows of `batch` that this process reads: (B, T) -> about (B / size, T)."""
    if size() == 1:
        return batch
    if len(batch.tokens) < size():
        raise ValueError(f"{len(batch.tokens)} rows a step cannot be shared by {size()} processes; raise "
                         "--effective-batch-size")
    pick = lambda part: None if part is None else part[rank()::size()]
    return Batch(pick(batch.tokens), pick(batch.targets), pick(batch.starts))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces every tensor by its sum over the processes; sent as one piece, for each message has a price."""
    if size() > 1:
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))


def total(*values: float) -> list[float]:
    """The sum of each value over the processes."""
    sums = torch.tensor(values, dtype=torch.float64)
    add_up([sums])
    return sums.tolist()


def agreed(*values: float) -> list[float]:
    """The values of process 0, in all of them: clocks differ, and all must stop at the same step."""
    told = torch.tensor(values, dtype=torch.float64)
    if size() > 1:
        dist.broadcast(told, 0)
    return told.tolist()


def refuse_different(**numbers: float) -> None:
    """ValueError in every process if one of these numbers is not the same in all: machines may hold other files, and
    gradients of different models add up to those of none."""
    if size() == 1:
        return
    least = torch.tensor([*numbers.values()], dtype=torch.float64)
    most = least.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if different := [name for name, low, high in zip(numbers, least, most) if low != high]:
        raise ValueError(f"the processes differ in {' and '.join(different)}; every machine needs the same files "
                         "(data, --init, --out) and settings")


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 goes through the block while the others wait, then they follow: they find the files it wrote."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    try:
        yield
    finally:                                                         # after an error, too: they meet the same one
        if size() > 1 and rank() == 0:
            dist.barrier()
