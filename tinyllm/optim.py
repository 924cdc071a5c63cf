"""How weights move: parameter groups, AdamW and Muon, and schedules as pure functions of numbers.

Muon moves every hidden matrix by an orthogonal step, so that weak directions learn as fast as strong ones; embeddings
and norms keep AdamW. Explained by tests/test_optim.py, which compares Muon with a singular value decomposition.
"""

import math

import torch
from torch import Tensor, nn


def warmup_at(step: int, warmup_steps: int) -> float:
    """Share of the peak rate while warming up: 1/warmup_steps at step 0, 1 from step warmup_steps - 1 on."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def decay_at(progress: float, schedule: str, decay_share: float = 0.4) -> float:
    """Share of the peak rate at `progress` (0 at the first step, 1 at the end).

    "linear": straight down to 0 (Bergsma et al. 2025, arXiv:2502.15938), for runs whose length is known.
    "trapezoid": constant, then linear to 0 over the last `decay_share` (Hägele et al. 2024, arXiv:2405.18392).
    "cosine": half a cosine down to a tenth (Loshchilov & Hutter 2016, arXiv:1608.03983).
    "one-cycle": half a cosine up from 1/25 over the first 30%, then down to almost 0 (Smith & Topin 2017,
    arXiv:1708.07120): warm-up and decay in one.
    """
    progress = min(1.0, max(0.0, progress))
    if schedule == "one-cycle":
        up, low = (progress / 0.3, 1 / 25) if progress < 0.3 else ((1 - progress) / 0.7, 1e-4 / 25)
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * up))
    if schedule == "cosine":
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if schedule == "linear" else min(1.0, (1 - progress) / decay_share)


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Named trainable parameters in three disjoint groups that together are all of them.

    "hidden": matrices inside the blocks; "embedding": other matrices; "vector": norms, never decayed (pulling a scale
    towards zero helps nothing).
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"hidden": [], "embedding": [], "vector": []}
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    for name, weight in trainable:
        groups["vector" if weight.ndim < 2 else "hidden" if "blocks." in name else "embedding"].append((name, weight))
    assert sum(map(len, groups.values())) == len(trainable)
    return {kind: members for kind, members in groups.items() if members}


# (a, b, c) of each iteration below: of all odd polynomials of degree 5 the ones that bring singular values between 0.01
# and 1 nearest to 1 in three rounds, as Amsel et al. 2025 ("Polar Express", arXiv:2505.16932) derive them.
NEWTON_SCHULZ = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))


def orthogonalise(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`matrix` (m, n) with its singular values moved near 1: about U V^T of U S V^T.

    Newton-Schulz iteration on G = X X^T, or X^T X if smaller (Jordan et al. 2024, "Muon"), matrix products only:
    no singular value may exceed 1 at the start, and what starts above a hundredth ends between 0.7 and 1.3, near enough
    for a direction. So X is divided by a bound of its largest singular value: the root of |G|, which is closer than |X|
    (too large by the fourth root of n if all n are equal), and a hundredth more for rounding.
    """
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    for iteration, (a, b, c) in enumerate(NEWTON_SCHULZ):
        gram = x.mT @ x if tall else x @ x.mT                        # G
        if iteration == 0:
            bound = 1.01 * gram.norm().sqrt() + 1e-7
            x, gram = x / bound, gram / bound ** 2
        change = torch.addmm(gram, gram, gram, beta=b, alpha=c)      # b G + c G G
        x = torch.addmm(x, x, change, beta=a) if tall else torch.addmm(x, change, x, beta=a)
    return x.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, for matrices only. Jordan et al. 2024, https://kellerjordan.github.io.

    `lr` is the length of a step in every direction of the matrix (times sqrt(rows / columns) for tall ones); `dtype`
    is that of the matrix products inside a step. `momentum` is lower than the usual 0.95: an average over 20 steps is
    old when there are only two thousand of them.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.8, weight_decay: float = 0.0,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["momentum"], group["momentum"])                   # Nesterov: look ahead
                rows, columns = weight.shape
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalise(ahead, dtype=self.dtype), alpha=-scale)


def make_optimizers(model: nn.Module, name: str, *, lr: float, muon_lr: float, weight_decay: float,
                    dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), with "muon" for hidden matrices.

    Every group remembers its peak rate as "peak"; weight decay applies to matrices only.
    """
    groups = {kind: [weight for _, weight in members] for kind, members in parameter_groups(model).items()}
    made: list[torch.optim.Optimizer] = []
    if name == "muon" and "hidden" in groups:
        made.append(Muon(groups.pop("hidden"), muon_lr, weight_decay=weight_decay, dtype=dtype))
    if groups:
        decays = {"hidden": weight_decay, "embedding": weight_decay, "vector": 0.0}
        made.append(torch.optim.AdamW([{"params": members, "weight_decay": decays[kind]}
                                       for kind, members in groups.items()], lr=lr, betas=(0.9, 0.95), fused=True))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def set_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Sets every group to `share` of its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All the optimizers remember, by name ("blocks.0.attention.wq.weight:momentum"), to be saved."""
    names = {weight: name for name, weight in model.named_parameters()}
    return {f"{names[weight]}:{key}": value for optimizer in optimizers
            for weight, state in optimizer.state.items() for key, value in state.items()}


def load_state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Puts back what state_tensors() gave; ValueError if it belongs to another model or optimizer."""
    owners = {weight: optimizer for optimizer in optimizers for group in optimizer.param_groups
              for weight in group["params"]}
    weights = dict(model.named_parameters())
    for name, tensor in tensors.items():
        weight_name, _, key = name.rpartition(":")
        owner = owners.get(weights.get(weight_name))
        if owner is None or (key == "momentum") != isinstance(owner, Muon):
            raise ValueError(f"optimizer state {name!r} does not fit this run; resume with the --optimizer it was "
                             "started with, or begin again with --restart")
        weight = weights[weight_name]
        owner.state[weight][key] = tensor.to(weight.device, copy=True)
