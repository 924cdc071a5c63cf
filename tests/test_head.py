"""The head: contrast leaves out the option itself and padding; scores follow the options when these change places."""

import math

import pytest
import torch
from torch import nn

from tinyllm.data import Batch
from tinyllm.fork import padded
from tinyllm.head import Head, Scorer, choice_loss, features, load_head, save_head, scores_of


def test_contrast_is_the_mean_of_the_others():
    """By hand: options 1, 3, 8 of one question and 2, 6 of another, with padding that must not count."""
    states, real = padded([torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([[2.0], [6.0]])])
    states[1, 2] = 99
    made = features(states, real)
    assert made[0].tolist() == [[1, 5.5], [3, 4.5], [8, 2]]
    assert made[1, :2].tolist() == [[2, 6], [6, 2]]


def test_one_option_has_nothing_to_compare_with():
    """An error in words, not a division by zero."""
    with pytest.raises(ValueError, match="one option"):
        features(*padded([torch.ones(3, 4), torch.ones(1, 4)]))


@pytest.mark.parametrize("contrast", [True, False])
@torch.no_grad()
def test_permuting_options_permutes_scores(contrast):
    """The mean of the others does not know their order."""
    head, states, order = Head(16, contrast=contrast).eval(), torch.randn(1, 5, 16), [3, 0, 4, 1, 2]
    real = torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(head(states[:, order], real), head(states, real)[:, order])


@torch.no_grad()
def test_padding_and_batch_mates_change_no_score():
    """A question alone, or beside one with more options: the same scores, and none for what is not there."""
    head, small, large = Head(16).eval(), torch.randn(2, 16), torch.randn(26, 16)
    alone, together = head(*padded([small])), head(*padded([small, large]))
    torch.testing.assert_close(together[0, :2], alone[0])
    assert torch.isneginf(together[0, 2:]).all()
    assert [len(score) for score in scores_of(head, lambda numbers: padded([small, large]), [0, 1])] == [2, 26]


def test_the_head_is_a_funnel():
    """LayerNorm over state and contrast, Kaiming-normal weights: variance 2 / inputs."""
    net = Head(512, hidden=256).net
    assert [type(layer) for layer in net] == [nn.LayerNorm, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert net[0].normalized_shape == (1024,) and net[3].p == 0.2
    assert net[1].weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.02)


def test_the_loss_is_cross_entropy_over_the_options_of_a_question():
    """Summed over questions, each softmax over its own options only: equal scores cost ln 2 and ln 5."""
    head = Head(8)
    nn.init.zeros_(head.net[-1].weight)
    states_of = lambda numbers: padded([torch.randn((2, 5)[i], 8) for i in numbers.tolist()])
    loss, count = choice_loss(states_of)(Scorer(head), Batch(torch.tensor([[0], [1]]), torch.tensor([[1], [4]])))
    assert loss.item() == pytest.approx(math.log(2) + math.log(5), rel=1e-5) and int(count) == 2


def test_only_the_last_blocks_learn(model):
    """--unfreeze 2 of 3 blocks: embedding and first block stay as they are."""
    learns = {name for name, weight in Scorer(Head(32), model, 2).named_parameters() if weight.requires_grad}
    assert not any(name.startswith(("model.embed", "model.blocks.0")) for name in learns)
    assert any(name.startswith("model.blocks.1") for name in learns) and "model.norm.weight" in learns
    assert not any(name.startswith("model.blocks") for name, weight in Scorer(Head(32), model, 0).named_parameters()
                   if weight.requires_grad)


def test_a_saved_head_scores_the_same(tmp_path):
    head, states = Head(8, 16, contrast=False).eval(), torch.randn(1, 3, 8)
    settings = {"dim": 8, "hidden": 16, "dropout": 0.2, "contrast": False}
    save_head(tmp_path, head, settings)
    real = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(load_head(tmp_path, settings)(states, real), head(states, real))
    with pytest.raises(ValueError, match="not the head"):
        load_head(tmp_path, settings | {"hidden": 17})
