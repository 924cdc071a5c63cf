"""The model: what attention may see, what the cache must keep, and what the first loss is."""

import math

import pytest
import torch
import torch.nn.functional as F

from tinyllm.model import (
    QUERIES,
    KVCache,
    ModelConfig,
    RMSNorm,
    TinyLLM,
    additive,
    attend,
    rope_tables,
    rotate,
    visible,
)
from tinyllm.train import set_dropout

pytestmark = pytest.mark.usefixtures("_no_grad")


@pytest.fixture
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def tokens():
    return torch.randint(0, 420, (2, 24))


@pytest.mark.parametrize("pieces", [[24], [23, 1], [7, 1, 16], [1] * 24, [1, 10, 13], [2, 2, 20]])
def test_reading_in_pieces_equals_reading_at_once(model, tokens, pieces):
    """The cache holds everything that attention needs from the past, and positions go on where they stopped."""
    cache = KVCache(model.config, batch=2, room=24)
    parts = [model(piece, cache) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


@torch.enable_grad()
@pytest.mark.parametrize("T, S, packed", [(QUERIES - 1, QUERIES - 1, True), (2 * QUERIES, 2 * QUERIES, False),
                                          (300, 300, True), (QUERIES + 9, 300, False), (1, 300, False)])
def test_attention_in_pieces_is_attention(T, S, packed):
    """However many pieces the queries come in, result and gradients are those of torch's own kernel."""
    inputs = [torch.randn(2, heads, length, 16, requires_grad=True) for heads, length in ((4, T), (2, S), (2, S))]
    starts = (torch.arange(T) // 70 * 70).expand(2, T) if packed else None
    allowed, results = visible(T, S, starts), []
    assert (allowed is None) == (T == 1)
    for out in (attend(*inputs, None if T == 1 else additive(allowed), torch.nn.Identity()),
                F.scaled_dot_product_attention(*inputs, attn_mask=allowed, enable_gqa=True)):
        results.append([out, *torch.autograd.grad(out.pow(2).sum(), inputs)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 9])
def test_a_future_token_changes_nothing_before_it(model, tokens, prefix):
    """Causality, also behind a cached prefix, where a mask aligned with the first key would let the future in."""
    changed = tokens.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 420

    def read(row):
        cache = KVCache(model.config, 2, 24)
        return torch.cat([model(row[:, :prefix], cache), model(row[:, prefix:], cache)], 1) if prefix else model(row)

    before, after = read(tokens), read(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.allclose(before[:, 15:], after[:, 15:])


def test_every_past_token_can_change_the_prediction(model, tokens):
    """Causal must not mean blind: the last position sees the first token."""
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 420
    assert not torch.allclose(model(tokens)[:, -1], model(changed)[:, -1], atol=1e-4)


def test_a_forked_cache_is_independent(model, tokens):
    """Writing to one copy changes neither the original nor a sibling."""
    cache = KVCache(model.config, batch=1, room=30)
    model(tokens[:1, :10], cache)
    keys = cache.keys[:, :, :, :10].clone()
    fork = cache.fork(3)
    answers = torch.randint(0, 420, (3, 5))
    together = model(answers, fork)
    assert cache.length == 10 and fork.length == 15 and torch.equal(cache.keys[:, :, :, :10], keys)
    for answer, logits in zip(answers, together):
        alone = model(answer[None], cache.fork(1))
        torch.testing.assert_close(alone[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_branches_that_take_turns_do_not_hear_each_other(model, tokens, n):
    """Each fork owns its memory, also a fork of one: written in turns, every branch reads as if it were alone."""
    cache = KVCache(model.config, batch=1, room=30)
    model(tokens[:1, :10], cache)
    branches, answers = [cache.fork(n), cache.fork(n), cache], torch.randint(0, 420, (3, 6))
    turns = [[model(answer[at:at + 2].expand(branch.keys.shape[1], -1), branch)
              for branch, answer in zip(branches, answers)] for at in (0, 2, 4)]
    for answer, *parts in zip(answers, *turns):
        read, alone = torch.cat(parts, dim=1), model(torch.cat([tokens[0, :10], answer])[None])[:, 10:]
        torch.testing.assert_close(read, alone.expand_as(read), rtol=1e-4, atol=1e-5)


def test_fork_keeps_the_copies_of_a_sequence_together(model, tokens):
    """fork(2) of sequences a, b is a, a, b, b, so row i of a fork belongs to sequence i // n."""
    cache = KVCache(model.config, batch=2, room=30)
    model(tokens[:, :10], cache)
    fork = cache.fork(2)
    for row, origin in enumerate((0, 0, 1, 1)):
        assert torch.equal(fork.keys[:, row, :, :10], cache.keys[:, origin, :, :10])


def test_truncating_forgets_exactly_the_rest(model, tokens):
    """After going back, reading on gives what a fresh read would give."""
    cache = KVCache(model.config, 2, 24)
    model(tokens, cache)
    cache.truncate(6)
    torch.testing.assert_close(model(tokens[:, 6:12], cache), model(tokens[:, :12])[:, 6:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot truncate a cache of 12 tokens to 13"):
        cache.truncate(13)


def test_rotary_scores_depend_on_distance_alone():
    """Turning query and key by their positions turns their product by the difference."""
    cos, sin = rope_tables(64, 8, 10000.0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    score = lambda i, j: (rotate(q, cos[i:i + 1], sin[i:i + 1]) * rotate(k, cos[j:j + 1], sin[j:j + 1])).sum()
    torch.testing.assert_close(score(5, 2), score(50, 47), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(5, 2), score(6, 2), atol=1e-3)


def test_word_order_matters(model, tokens):
    """Attention alone is a bag of words; the rotation is what tells positions apart."""
    swapped = tokens.clone()
    swapped[:, [3, 8]] = tokens[:, [8, 3]]
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-4)


def test_rms_norm_gives_unit_size():
    """Whatever the scale of the input, the output has root mean square 1, times the learnt weight."""
    norm = RMSNorm(16, 1e-6)
    out = norm(torch.randn(4, 16) * 1000)
    torch.testing.assert_close(out.pow(2).mean(-1).sqrt(), torch.ones(4))


def test_the_first_loss_is_about_ln_v():
    """Untrained, the model is as unsure as a fair die with V faces: sure and wrong would cost more."""
    model = TinyLLM(ModelConfig(vocab_size=5000, dim=64, n_layers=4, n_heads=4, n_kv_heads=4, ffn_dim=128, context=64))
    tokens = torch.randint(0, 5000, (4, 65))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(float(loss) - math.log(5000)) < 0.1


def test_base_has_about_42_million_parameters_and_one_embedding():
    """The head is the embedding matrix itself, so the checkpoint stores it once."""
    with torch.device("meta"):
        model = TinyLLM(ModelConfig())
    weights = dict(model.named_parameters())
    assert 41e6 < sum(weight.numel() for weight in weights.values()) < 43e6
    assert [name for name, weight in weights.items() if 16000 in weight.shape] == ["embed.weight"]


def test_one_key_value_head_per_query_head_is_ordinary_attention(tokens):
    """Grouped queries with copied key/value heads compute the same as full attention."""
    few = TinyLLM(ModelConfig(vocab_size=420, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, context=48))
    many = TinyLLM(ModelConfig(vocab_size=420, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, ffn_dim=48, context=48))
    weights = few.state_dict()
    for name in weights:
        if "wk" in name or "wv" in name:
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).view(32, 32)
    many.load_state_dict(weights)
    torch.testing.assert_close(few(tokens), many(tokens), rtol=1e-4, atol=1e-5)


def test_dropout_acts_only_in_training(tokens):
    """The same text must get the same scores every time it is read."""
    model = TinyLLM(ModelConfig(vocab_size=420, dim=32, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=48, context=48))
    set_dropout(model.train(), 0.3)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_reading_past_the_context_is_refused(model):
    """Positions beyond the context were never trained."""
    with pytest.raises(ValueError, match="sequence of 49 tokens exceeds .*context=48"):
        model(torch.zeros(1, 49, dtype=torch.long))
    cache = KVCache(model.config, 1, 10)
    model(torch.zeros(1, 8, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="sequence of 11 tokens exceeds the 10"):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="room for 60 tokens exceeds context=48"):
        KVCache(model.config, 1, 60)
