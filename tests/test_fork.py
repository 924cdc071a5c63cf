"""Prefix once: reading options behind a forked cache is the same as reading everything anew for each of them."""

import random

import pytest
import torch

from tinyllm.data import IGNORE
from tinyllm.fork import (
    PrefixCache,
    batches,
    compute_states,
    digest,
    live,
    log_probabilities,
    read,
    stored_states,
)
from tinyllm.model import KVCache, ModelConfig, TinyLLM
from tinyllm.options import Encoded


def random_questions(n, n_options=None, seed=0, context=48):
    rng, ids = random.Random(seed), lambda k: [rng.randrange(9, 400) for _ in range(k)]
    made = []
    for _ in range(n):
        options = [ids(rng.randint(1, 9)) for _ in range(n_options or rng.randint(2, 6))]
        made.append(Encoded(ids(rng.randint(1, context - max(map(len, options)))), options))
    return made


def whole(model, prefix, option):
    """Textbook: the state and the log-probability of one option from one full forward over prefix and option."""
    hidden = model.last_hidden(torch.tensor([prefix + option]))[0]
    logprobs = model.logits(hidden).log_softmax(-1)
    return hidden[-1], sum(logprobs[len(prefix) + k - 1, token] for k, token in enumerate(option))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("cache", [KVCache, PrefixCache])
def test_cached_and_batched_equals_separate_full_forwards(model, seed, cache):
    """Random numbers of questions, prefix and option lengths: one prefix pass, a fork, one batch of options against a
    forward of its own for each option, to 1e-5 in fp32. Padding, batch mates and other forks change nothing."""
    batch = random_questions(random.Random(seed).randint(1, 4), random.Random(seed).randint(2, 5), seed)
    result = read(model, batch, cache)
    scores = log_probabilities(model, result).view(len(batch), -1)
    for q, question in enumerate(batch):
        for i, option in enumerate(question.options):
            state, logprob = whole(model, question.prefix, option)
            torch.testing.assert_close(result.last[q, i], state, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(scores[q, i], logprob, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_permuting_options_permutes_states(model):
    """No option sees another: each reads its own copy of the cache."""
    (question,) = random_questions(1, 5)
    order = [3, 0, 4, 1, 2]
    mixed = Encoded(question.prefix, [question.options[i] for i in order])
    torch.testing.assert_close(read(model, [mixed]).last[0], read(model, [question]).last[0][order],
                               rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_original_cache_is_untouched(model):
    """Options are written to the fork; the prefix that was read can be forked again, and gives the same states."""
    (question,) = random_questions(1, 3)
    cache = PrefixCache(model.config, 1, 48)
    model.last_hidden(torch.tensor([question.prefix]), cache)
    keys, length, options = cache.prefix[0][0].clone(), cache.length, torch.randint(400, (3, 2))
    states = [model.last_hidden(options, cache.fork(3)) for _ in range(2)]
    assert torch.equal(*states) and torch.equal(cache.prefix[0][0], keys) and cache.length == length
    kept = []

    class Watched(KVCache):
        def fork(self, n):
            kept.append((self, self.length, self.keys[:, :, :, :self.length].clone()))
            return super().fork(n)

    read(model, random_questions(2, 3), Watched)
    cache, length, keys = kept[0]
    assert cache.length == length and torch.equal(cache.keys[:, :, :, :length], keys)


def test_gradients_flow_through_the_shared_prefix(model):
    """Training blocks with a prefix that is read once gives the gradient of reading it anew for every option."""
    (question,) = random_questions(1, 3)
    weights = list(model.blocks.parameters())
    read(model, [question], PrefixCache).last.square().sum().backward()
    cached = [weight.grad.clone() for weight in weights]
    model.zero_grad()
    sum(whole(model, question.prefix, option)[0].square().sum() for option in question.options).backward()
    for mine, reference in zip(cached, weights):
        torch.testing.assert_close(mine, reference.grad, rtol=1e-3, atol=1e-4)


def test_batches_hold_every_question_once_and_little_padding():
    """Grouped by number of options and by length, within the limit of tokens unless one question alone exceeds it."""
    questions = random_questions(200)
    groups = batches(questions, max_tokens=200, padding=4)
    assert sorted(number for group in groups for number in group) == list(range(200))
    for group in groups:
        chosen = [questions[number] for number in group]
        assert len({len(one.options) for one in chosen}) == 1
        assert max(len(one.prefix) for one in chosen) - min(len(one.prefix) for one in chosen) <= 4
        longest = max(len(option) for one in chosen for option in one.options)
        prefix = max(len(one.prefix) for one in chosen)
        assert len(group) == 1 or len(group) * (prefix + len(chosen[0].options) * longest) <= 200


@torch.no_grad()
def test_states_of_a_file_are_those_of_each_question(model):
    """Grouping, shuffling and putting back in order: question i owns its own rows."""
    questions = random_questions(30)
    states = compute_states(model, questions, max_tokens=150)
    hidden, real = states.of(torch.tensor([4, 29, 11]))
    assert real.sum(1).tolist() == [len(questions[i].options) for i in (4, 29, 11)]
    for row, i in enumerate((4, 29, 11)):
        for k, option in enumerate(questions[i].options):
            state, logprob = whole(model, questions[i].prefix, option)
            torch.testing.assert_close(hidden[row, k], state, rtol=1e-5, atol=1e-5)
            assert states.zero_shot(i, False)[k] == pytest.approx(float(logprob), abs=1e-3)
            assert states.zero_shot(i, True)[k] == pytest.approx(float(logprob) / len(option), abs=1e-3)
    torch.testing.assert_close(live(model, questions)(torch.tensor([4, 29, 11]))[0], hidden, rtol=1e-5, atol=1e-5)


def test_states_are_computed_once(model, tmp_path, monkeypatch):
    """A second run reads them; another checkpoint or other data are another key; a damaged file is computed again."""
    questions = random_questions(5)
    first = stored_states(tmp_path, "checkpoint a", model, questions)
    monkeypatch.setattr("tinyllm.fork.compute_states", lambda *_: pytest.fail("computed again"))
    again = stored_states(tmp_path, "checkpoint a", model, questions)
    assert torch.equal(first.hidden, again.hidden) and first.starts == again.starts
    for other in (("checkpoint b", model, questions), ("checkpoint a", model, questions[:4])):
        with pytest.raises(pytest.fail.Exception):
            stored_states(tmp_path, *other)
    monkeypatch.undo()
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(stored_states(tmp_path, "checkpoint a", model, questions).hidden, first.hidden)


def test_a_fingerprint_is_of_the_weights(tmp_path):
    for name in ("model.safetensors", "tokenizer.model"):
        (tmp_path / name).write_bytes(b"x")
    before = digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"y")
    assert digest(tmp_path) != before


@torch.no_grad()
def test_a_prefix_that_fills_the_context_still_works():
    """Batch mates with longer options than fit behind the longest prefix: padded rows count from their own start."""
    config = ModelConfig(vocab_size=420, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, context=20)
    model = TinyLLM(config).eval()
    batch = [Encoded(list(range(9, 27)), [[30], [31, 32]]), Encoded(list(range(9, 21)), [[30], list(range(30, 38))])]
    result = read(model, batch)
    torch.testing.assert_close(result.last[1, 1], whole(model, *(batch[1].prefix, batch[1].options[1]))[0],
                               rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.last[0, 1], whole(model, *(batch[0].prefix, batch[0].options[1]))[0],
                               rtol=1e-5, atol=1e-5)
    assert (result.targets != IGNORE).sum() == 12
