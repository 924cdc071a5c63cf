"""What a prediction costs: cross-entropy, and its gradient, what the model believes minus what was right.

In: logits (N, V), scores of all V tokens at N positions, and the N tokens that were right. Out: one number to make
smaller. Explained by tests/test_loss.py, which compares both with what torch finds by itself.
"""

import torch
from torch import Tensor, nn

from tinyllm.data import IGNORE


class SoftmaxMinusOne(torch.autograd.Function):
    """The sum of -log softmax(logits)[target] with its gradient written out: softmax(logits), minus 1 at the target.

    torch finds the same gradient, but the code that torch.compile makes for it asks of all V tokens of every position
    whether they were the right one. Here it is known where to subtract (uncompiled this is a tenth to a sixth slower).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        learnt, right = (targets != IGNORE)[:, None], targets.clamp(min=0)[:, None]      # (N, 1) each
        normaliser = logits.float().logsumexp(1, keepdim=True)       # (N, 1): log of the sum of exp
        ctx.save_for_backward(logits, normaliser, right, learnt)
        return ((normaliser - logits.gather(1, right)) * learnt).sum()

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None]:
        logits, normaliser, right, learnt = ctx.saved_tensors
        slope = slope * learnt                                       # (N, 1): of the sum, and 0 where nothing is learnt
        softmax = (logits.float() - normaliser).exp_()               # (N, V)
        minus_one = (logits.gather(1, right) - normaliser).exp() - 1                     # (N, 1), before it is rounded
        return softmax.mul_(slope).to(logits.dtype).scatter_(1, right, (minus_one * slope).to(logits.dtype)), None


class CrossEntropy(nn.Module):
    """Sum of -log softmax(logits)[target] in nats: logits (N, V), targets (N,), of which IGNORE costs nothing. A module
    so that it can be compiled by itself: N x V scores are more numbers than any hidden state, and each time less that
    they are read counts.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return SoftmaxMinusOne.apply(logits, targets)
