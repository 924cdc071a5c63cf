"""Self-consistency: samples decoded together, and the rules by which they vote."""

import pytest
import torch

from tinyllm import vote as votes
from tinyllm.data import next_token_batch
from tinyllm.decode import decode, draw, exact_steps, next_token_probabilities, stream
from tinyllm.model import KVCache, TinyLLM
from tinyllm.train import TrainConfig, train
from tinyllm.vote import Sample, same_answer, sample_answers, to_sample, vote

END = 2


def said(answer, logprob=-1.0):
    return Sample(f"[Reasoning]\nx\n[Final answer]\n{answer}", "x", answer, logprob, 5)


# --- decoding many prompts at once ---

@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_batch_of_prompts_writes_what_each_writes_alone(model, temperature):
    """Token for token: padding is never seen, positions count from each prompt's own start, draws are its own."""
    prompts = [[5, 9, 13], [7] * 11, [21], [30, 31, 32, 33, 34], [8] * 44]
    settings = {"end": END, "n": 2, "max_new_tokens": 12, "temperature": temperature, "seed": 4}
    together = list(zip(*(step.ids for step in decode(model, prompts, **settings))))
    for number, prompt in enumerate(prompts):
        alone = list(zip(*stream(model, prompt, **settings)))
        for i, sample in enumerate(alone):
            row = together[number * 2 + i]
            assert row[:len(sample)] == sample and set(row[len(sample):]) <= {END}


def test_rows_that_have_ended_leave_the_batch(model):
    """The work shrinks with the number of rows that still write; what these write stays the same."""
    with torch.no_grad():
        model.embed.weight[END] = torch.randn(32) * 3
    sizes, forward = [], model.forward
    model.forward = lambda tokens, cache: sizes.append(len(tokens)) or forward(tokens, cache)
    settings = {"end": END, "n": 8, "max_new_tokens": 30, "temperature": 2.0, "top_p": 1.0}
    together = list(zip(*stream(model, [5, 9, 13], **settings)))
    assert min(sizes) <= 4 < max(sizes) == 8
    del model.forward
    for i, sample in enumerate(together):
        alone = [id for (id,) in stream(model, [5, 9, 13], **{**settings, "n": 1, "seed": i})]
        assert list(sample[:len(alone)]) == alone


@torch.no_grad()
def test_log_probabilities_are_the_models_own(model):
    """Not those of the sharpened distribution that was drawn from: they must compare across temperatures."""
    steps = list(decode(model, [[5, 9, 13]], end=-1, n=1, max_new_tokens=6, temperature=0.3, seed=1))
    row = [5, 9, 13, *(step.ids[0] for step in steps)]
    expected = model(torch.tensor([row])).log_softmax(-1)[0]
    for at, step in enumerate(steps):
        assert step.logprobs[0] == pytest.approx(float(expected[2 + at, row[3 + at]]), abs=1e-4)


def test_a_number_is_drawn_as_often_as_it_is_likely():
    """Inverse transform: cut [0, 1) into pieces as long as the probabilities and look where the number falls."""
    p = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])
    ids = draw(p.expand(1000, -1), torch.arange(1000, dtype=torch.float64) / 1000)
    assert [ids.count(i) for i in range(6)] == [0, 500, 0, 300, 200, 0]


@pytest.mark.parametrize("n_tokens", [100, 5000])
def test_a_flat_distribution_is_cut_where_p_is_reached(n_tokens):
    """A sharp one is done after a few tokens; of equally likely ones nine of ten are needed for 0.9, however many."""
    p = next_token_probabilities(torch.stack([torch.zeros(n_tokens), 30 * torch.eye(n_tokens)[7]]), top_p=0.9)
    assert (p > 0).sum(-1).tolist() == [pytest.approx(0.9 * n_tokens, abs=1), 1]


def test_forgetting_rows_of_a_cache_keeps_the_others(model):
    """The rows that stay go on as if the others had never been there."""
    tokens, following = torch.randint(9, 400, (4, 6)), torch.randint(9, 400, (2, 1))
    cache = KVCache(model.config, 4, 10, starts=torch.tensor([[0], [2], [0], [1]]))
    alone = KVCache(model.config, 2, 10, starts=torch.tensor([[2], [1]]))
    with torch.no_grad():
        model(tokens, cache), model(tokens[[1, 3]], alone)
        cache.keep(torch.tensor([1, 3]))
        torch.testing.assert_close(model(following, cache), model(following, alone))


def test_the_calculator_writes_the_right_side(tokenizer, config):
    """A model that learnt 12+30=99 by heart is corrected while it writes; the rest is its own."""
    text = "12+30=99. A red bird."
    prompt = [tokenizer.eos]
    row = torch.tensor([[*prompt, *tokenizer.encode(text), tokenizer.eos]])
    config.vocab_size = tokenizer.vocab_size
    model = TinyLLM(config)
    train(model, lambda step: next_token_batch(row), TrainConfig(max_steps=60, dtype="float32", compile="off"))
    settings = {"end": tokenizer.eos, "temperature": 0}
    write = lambda feed: tokenizer.decode(id for (id,) in stream(model, prompt, feed=feed, **settings))
    assert write(None) == text
    assert write(exact_steps(tokenizer)).startswith("12+30=42")
    assert write(exact_steps(tokenizer, "5*")).startswith("12+30=90")            # a text that goes on: 5*12+30


# --- votes ---

def test_most_samples_win():
    """Whatever their log-probability."""
    result = vote([said("7", -9.0), said("8", -0.1), said("7", -9.0)])
    assert (result.answer, result.votes, result.agreement, result.abstained) == ("7", {"7": 2, "8": 1}, 2 / 3, 0)


def test_equal_answers_in_other_spellings_are_one():
    """1.0 = 1 = １, 1/2 = 2/4 = 0.5; a unit is part of the answer."""
    assert vote([said("1.0"), said("１"), said("2"), said("1")]).votes == {"1.0": 3, "2": 1}
    assert vote([said("1/2"), said("2/4"), said("0.5")]).agreement == 1
    assert vote([said("5 km"), said("5 m"), said("5km")]).votes == {"5 km": 2, "5 m": 1}


def test_a_sample_without_an_answer_abstains():
    """It is counted in the agreement, for a model that often fails to finish should not seem sure."""
    cut = to_sample("[Reasoning]\n3+4=", -1.0, 5)
    result = vote([said("7"), cut, cut])
    assert (result.answer, result.agreement, result.abstained) == ("7", 1 / 3, 2)
    nothing = vote([cut, cut])
    assert (nothing.answer, nothing.votes, nothing.agreement, nothing.abstained) == (None, {}, 0, 2)
    assert vote([]).answer is None


def test_ties_go_to_the_likelier_group():
    """Two against two: the larger sum of log-probabilities wins, in whatever order they came."""
    samples = [said("7", -5.0), said("8", -2.0), said("7", -5.0), said("8", -3.0)]
    assert vote(samples).answer == vote(samples[::-1]).answer == "8"


@pytest.mark.parametrize(("text", "answer", "formatted"), [
    ("[Reasoning]\n1+1=2\n[Final answer]\n2", "2", True), ("【推理过程】\n1+1=2\n【最终答案】\n2", "2", True),
    ("Paris", "Paris", False), ("", None, False), ("[Reasoning]\n1+1=", None, False),
    ("[Final answer]\n2", "2", False)])
def test_an_answer_without_headings_is_an_answer_as_a_whole(text, answer, formatted):
    """A plain question needs no steps; an unfinished chain of thought has no answer yet."""
    sample = to_sample(text, 0.0, 1)
    assert (sample.answer, sample.has_format) == (answer, formatted)


def test_the_right_answer_may_be_spelled_otherwise():
    assert same_answer(" 2/4.", "1/2") and not same_answer(None, "1") and not same_answer("1 m", "1 km")


def test_samples_of_a_batch_are_those_of_each_prompt_alone(model, tokenizer, config):
    """Sorting by length, batching and splitting a batch are bookkeeping: every prompt gets its own samples back. One
    that fills the context stops there, though its neighbours go on."""
    config.vocab_size = tokenizer.vocab_size
    small = TinyLLM(config).eval()
    prompts = [tokenizer.encode(text) for text in ("The cat sat on the mat.", "猫", "Mia gave two", "A red", "Tom")]
    prompts.append((prompts[0] * config.context)[:config.context - 3])
    settings = {"n": 3, "max_new_tokens": 8, "temperature": 1.0, "seed": 5}
    done, shown = [], {}
    show = lambda number, piece, ended: shown.update({number: shown.get(number, "") + piece})
    together = sample_answers(small, tokenizer, prompts, max_rows=6, progress=done.append, show=show, **settings)
    alone = [sample_answers(small, tokenizer, [prompt], **settings)[0] for prompt in prompts]
    texts = lambda answers: [[sample.text for sample in many] for many in answers]
    assert sum(done) == 6 and texts(together) == texts(alone)
    assert [[sample.tokens for sample in many] for many in together] == \
        [[sample.tokens for sample in many] for many in alone]
    assert [shown[number] for number in range(18)] == [text for many in texts(together) for text in many]
    assert votes.vote(together[0]).abstained == 0
