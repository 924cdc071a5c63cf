"""Optimizers and schedules: who moves how far, and when."""

import pytest
import torch
from torch import nn

from tinyllm import optim
from tinyllm.model import TinyLLM


def test_warm_up_counts_steps_and_reaches_the_peak():
    """The first step is small but not nothing; step `warmup_steps - 1` is the first at full rate."""
    rates = [optim.warmup_at(step, 4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0] and optim.warmup_at(0, 0) == 1.0


def test_the_trapezoid_is_flat_and_then_straight_down_to_zero():
    """Large steps explore; the decline settles."""
    share = lambda progress: optim.decay_at(progress, "trapezoid", decay_share=0.4)
    assert share(0) == share(0.6) == 1.0 and share(1.0) == 0.0
    assert share(0.8) == pytest.approx(0.5) and share(0.9) == pytest.approx(0.25)


def test_the_linear_decay_falls_from_the_first_step_on():
    """No plateau: each step is as much smaller as the one before it was."""
    assert [optim.decay_at(i / 4, "linear") for i in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_cosine_ends_at_a_tenth():
    """Half a wave from the peak to a tenth of it, never rising."""
    shares = [optim.decay_at(i / 10, "cosine") for i in range(11)]
    assert shares[0] == 1.0 and shares[5] == pytest.approx(0.55) and shares[10] == pytest.approx(0.1)
    assert shares == sorted(shares, reverse=True)


def test_groups_are_disjoint_complete_and_only_matrices_decay(model):
    """A norm's weight is a scale, not a direction: pulling it to zero helps nothing."""
    groups = optim.parameter_groups(model)
    names = [name for members in groups.values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(weight.ndim == 1 for _, weight in groups["vector"]) and groups["embedding"][0][0] == "embed.weight"
    for kind in ("muon", "adamw"):
        optimizers = optim.make_optimizers(model, kind, lr=1e-3, muon_lr=0.02, weight_decay=0.1)
        moved = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group in moved:
            assert all((weight.ndim == 2) == (group["weight_decay"] > 0) for weight in group["params"])
        owned = [id(weight) for group in moved for weight in group["params"]]
        assert sorted(owned) == sorted(map(id, model.parameters()))


def test_frozen_weights_are_left_alone(model):
    """Trainable means requires_grad, and nothing else."""
    model.requires_grad_(False)
    model.blocks[0].ffn.up.weight.requires_grad_(True)
    assert [name for m in optim.parameter_groups(model).values() for name, _ in m] == ["blocks.0.ffn.up.weight"]


def test_muon_steps_equally_far_in_every_direction():
    """A gradient with singular values 100 and 1 becomes a step with both near 1."""
    u, v = torch.linalg.qr(torch.randn(6, 6))[0], torch.linalg.qr(torch.randn(6, 6))[0]
    gradient = u @ torch.diag(torch.tensor([100.0, 50, 10, 5, 2, 1.1])) @ v.T
    values = torch.linalg.svdvals(optim.orthogonalise(gradient))
    assert values.min() > 0.6 and values.max() < 1.3


def test_our_muon_moves_as_the_one_in_torch():
    """A reference written by others takes five iterations from a looser bound, which leave most singular values a
    little below 1: the same direction, and ours a tenth longer."""
    ours, theirs = (nn.Linear(16, 24, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    mine = optim.Muon([ours.weight], 0.02, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs.weight], lr=0.02, weight_decay=0.1)
    for step in range(5):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (layer(x) - x.repeat(1, 2)[:, :24]).square().mean().backward()
            optimizer.step()
    a, b = (weight.detach() - start for weight in (ours.weight, theirs.weight))
    assert (a * b).sum() > 0.98 * a.norm() * b.norm() and 1.0 < a.norm() / b.norm() < 1.2 and b.norm() > 0.1


def test_three_iterations_are_enough_for_small_singular_values():
    """Singular values from 1 to a thousandth: two thirds of them lie above a hundredth and come near 1."""
    u, v = torch.linalg.qr(torch.randn(64, 64))[0], torch.linalg.qr(torch.randn(160, 64))[0]
    spread = u @ torch.diag(torch.logspace(0, -3, 64)) @ v.T                                 # (64, 160)
    for matrix in (spread, spread.T):
        values = torch.linalg.svdvals(optim.orthogonalise(matrix))
        assert (values > 0.6).float().mean() > 0.65 and values.max() < 1.3


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_saved_optimizer_state_continues_bit_for_bit(model, config, kind):
    """Three steps, save, three more == six steps."""
    def steps(model, optimizers, numbers):
        for number in numbers:
            tokens = torch.randint(0, 420, (2, 9), generator=torch.Generator().manual_seed(number))
            model(tokens).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    make = lambda model: optim.make_optimizers(model, kind, lr=1e-2, muon_lr=0.02, weight_decay=0.1)
    other = TinyLLM(config)
    optimizers = make(model)
    steps(model, optimizers, range(3))
    other.load_state_dict(model.state_dict())
    resumed = make(other)
    optim.load_state_tensors(other, resumed, optim.state_tensors(model, optimizers))
    steps(model, optimizers, range(3, 6))
    steps(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_state_of_another_optimizer_is_refused(model):
    """Resuming Muon's momentum with AdamW would silently be another run."""
    muon = optim.make_optimizers(model, "muon", lr=1e-3, muon_lr=0.02, weight_decay=0.1)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    for optimizer in muon:
        optimizer.step()
    adamw = optim.make_optimizers(model, "adamw", lr=1e-3, muon_lr=0.02, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"does not fit this run.*--optimizer"):
        optim.load_state_tensors(model, adamw, optim.state_tensors(model, muon))
