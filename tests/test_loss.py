"""Cross-entropy costs what torch says it costs, and its gradient is what the model believes minus what was right."""

import pytest
import torch
import torch.nn.functional as F

from tinyllm.data import IGNORE
from tinyllm.loss import CrossEntropy


def both(logits, targets, factor=1.0):
    """(loss, gradient) of ours and of torch's, the loss times `factor`."""
    for way in (CrossEntropy(), lambda x, t: F.cross_entropy(x.float(), t, reduction="sum", ignore_index=IGNORE)):
        x = logits.clone().requires_grad_()
        loss = factor * way(x, targets)
        yield loss, torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("targets", [[3, 0, 8], [3, IGNORE, 8], [IGNORE] * 3])
def test_loss_and_gradient_are_those_of_torch(targets):
    """Scaled or not, and nothing is learnt from a position that is ignored."""
    targets = torch.tensor(targets)
    (ours, slope), (theirs, expected) = both(torch.randn(3, 9) * 4, targets, factor=-2.5)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(slope, expected)
    assert not slope[targets == IGNORE].any()


def test_belief_minus_what_was_right_sums_to_zero():
    """What the right token gains all others lose: raising every logit alike changes no probability."""
    slope = next(both(torch.randn(5, 40), torch.arange(5)))[1]
    torch.testing.assert_close(slope.sum(1), torch.zeros(5), atol=1e-6, rtol=0)
    assert (slope.diagonal() < 0).all() and (slope > 0).sum() == 5 * 39


def test_a_sure_model_still_hears_how_sure_it_is():
    """In bfloat16 0.999 is 1, and 1 - 1 would be nothing left to learn: one is subtracted first and rounded then."""
    logits = torch.tensor([[9.0, 2.0, 0.0]], dtype=torch.bfloat16)   # softmax 0.99897, 0.00091, 0.00012
    (_, slope), (_, expected) = both(logits, torch.tensor([0]))
    torch.testing.assert_close(slope, expected)
    assert slope.dtype == torch.bfloat16 and -0.0011 < slope[0, 0] < -0.0010


def test_the_logits_are_left_as_they_are():
    """They may be needed again, and float32 ones are used without a copy."""
    logits = torch.randn(4, 6, requires_grad=True)
    before = logits.detach().clone()
    CrossEntropy()(logits, torch.arange(4)).backward()
    assert torch.equal(logits.detach(), before)
