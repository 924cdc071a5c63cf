"""A model that can copy before it has learnt anything: what an induction head is, shown by building one."""

import dataclasses

import pytest
import torch

from tinyllm.data import IGNORE, next_token_batch
from tinyllm.induction import plant_induction
from tinyllm.model import ModelConfig, TinyLLM, rotate
from tinyllm.train import TrainConfig, next_token_loss, train

CONFIG = ModelConfig(vocab_size=300, dim=128, n_layers=3, n_heads=4, n_kv_heads=4, ffn_dim=64, context=64)


def fresh(config=CONFIG, planted=True):
    torch.manual_seed(0)
    model = TinyLLM(config)
    assert not planted or plant_induction(model)
    return model.eval()


def repeated(rows, step, length=20):
    """Random tokens, then the same again: only the second half can be foretold, and only by looking back. (B, 40)"""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(300, (rows, length), generator=generator).repeat(1, 2)


@torch.no_grad()
def attention(model, tokens, layer):
    """How much each position attends to each: (B, H, T, T), worked out from the queries and keys of one block."""
    block, seen = model.blocks[layer].attention, {}
    hook = block.register_forward_hook(lambda module, given, out: seen.update(x=given[0], rope=given[1]))
    model(tokens)
    hook.remove()
    heads = lambda weight: weight(seen["x"]).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)      # (B, H, T, E)
    q, k = (rotate(norm(heads(weight)), *seen["rope"]) for weight, norm in
            ((block.wq, block.q_norm), (block.wk, block.k_norm)))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return (q @ k.mT / block.head_dim ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)


def looks_back(model):
    """Share of positions at which head h of the first block looks most at the token h + 1 before, for half of them."""
    weights = attention(model, repeated(8, 0), layer=0)              # (B, H, T, T)
    return [(weights[:, head, head + 1:].argmax(-1) == torch.arange(39 - head)).float().mean().item()
            for head in range(weights.shape[1] // 2)]


def test_half_of_the_heads_of_the_first_block_look_one_or_two_tokens_back():
    """Whatever the tokens are: the heads read what all of them have in common, so only distance is left."""
    assert len(looks_back(fresh())) == 2 and min(looks_back(fresh())) > 0.9


def test_the_second_block_finds_what_followed_last_time():
    """At the second "A" of "A B ... A" it looks at B, which it then copies."""
    tokens = repeated(8, 0)
    weights = attention(fresh(), tokens, layer=1)                    # (B, H, T, T)
    second = torch.arange(20, 40)
    followed = weights[:, :, second, second - 19]
    assert followed.mean() > 8 / 40                                  # looking anywhere would give 1 / 40


def test_a_token_is_recognised_however_far_away_it_stood():
    """Rotary attention turns the fast pairs of a query and a key several times within a hundred positions; the copying
    heads compare in the slow half, where two equal tokens still look alike."""
    model = fresh(ModelConfig(vocab_size=2000, dim=256, n_layers=4, n_heads=4, n_kv_heads=4, ffn_dim=704, context=256))
    tokens = torch.stack([torch.randperm(2000)[:100] for _ in range(4)]).repeat(1, 2)     # each twice, 100 apart
    second = torch.arange(100, 200)
    assert attention(model, tokens, layer=1)[:, :, second, second - 99].mean() > 0.1      # anywhere: 1/200


def test_no_planted_head_is_deaf_to_its_gradient():
    """A score is a product of two weights: where both are zero neither has a gradient, and the head could never learn
    to look anywhere else."""
    model = fresh()
    sum_of_losses, _ = next_token_loss(model, second_half(0))
    sum_of_losses.backward()
    for block in model.blocks[:2]:
        for weight in (block.attention.wq.weight, block.attention.wk.weight):
            assert (weight.grad.abs().amax(dim=1) > 0).all()         # every row, and so every dimension of a query


def test_half_of_the_heads_of_the_first_block_stay_as_they_were():
    """Somebody must be free to look for words: with all heads bound to places, copying sentences was learnt later."""
    planted, plain = (fresh(planted=planted).blocks[0].attention for planted in (True, False))
    for name in ("wq", "wk", "wv"):                                  # 4 heads of 32 rows: two planted, two free
        after, before = getattr(planted, name).weight, getattr(plain, name).weight
        assert torch.equal(after[64:], before[64:]) and not torch.equal(after[:64], before[:64])
    assert torch.equal(planted.wo.weight[:, 64:], plain.wo.weight[:, 64:])


def second_half(step):
    """A batch of which only the repetition is learnt."""
    batch = next_token_batch(repeated(16, step))
    batch.targets[:, :20] = IGNORE
    return batch


def test_copying_is_learnt_in_a_fraction_of_the_steps():
    """With the circuit, 40 steps foretell most of the second half; without it, they foretell nothing."""
    losses = {}
    for planted in (True, False):
        model, rows = fresh(planted=planted), []
        train(model, second_half, TrainConfig(max_steps=40, batch_size=16, effective_batch_size=16, muon_lr=0.02,
                                           warmup_steps=5, dtype="float32", compile="off"), report=rows.append)
        losses[planted] = rows[-1]["loss"]
    assert losses[True] < 2 and losses[False] > 5                    # ln 300 = 5.7 is knowing nothing


@pytest.mark.parametrize("change", [{"n_kv_heads": 2}, {"qk_norm": False}, {"n_heads": 2, "n_kv_heads": 1},
                                    {"dim": 192, "n_heads": 6, "n_kv_heads": 3}])
def test_every_shape_of_attention_can_hold_the_circuit(change):
    """Shared keys and values, or no normalisation of them: the first block looks back all the same."""
    assert min(looks_back(fresh(dataclasses.replace(CONFIG, **change)))) > 0.9


def test_a_model_too_small_for_it_stays_as_it_was():
    """One block has nobody to tell; one head fills the whole width."""
    for change in ({"n_layers": 1}, {"n_heads": 1, "n_kv_heads": 1}):
        model = fresh(dataclasses.replace(CONFIG, **change), planted=False)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        assert not plant_induction(model)
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
