"""Tokens out of a model: read the prompts once, then add one token at a time from the key/value cache.

In: a model and prompts. Out: for every step one id for each of n continuations of each prompt. The only sampler.
Shapes: R continuations running, V vocabulary. Explained by tests/test_generate.py and tests/test_vote.py.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tinyllm import calculator
from tinyllm.model import KVCache, TinyLLM
from tinyllm.tokenizer import Tokenizer

Feed = Callable[[int, int], list[int]]                               # (continuation, its new id) -> ids to write next


class Step(NamedTuple):
    """The new token of every continuation, its log-probability in nats under the model (temperature 1), and whether the
    continuation ends with it; what stands in the place of one that has ended before is padding."""

    ids: list[int]
    logprobs: list[float]
    ended: list[bool]


def next_token_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (R, V) -> the distribution (R, V) that is sampled from.

    temperature 0 puts everything on the most likely token, and so does one below a millionth, for which float32 has no
    numbers. top_k keeps exactly k tokens (0: all; Fan et al. 2018,
    arXiv:1805.04833). top_p keeps the most likely tokens up to and including the one that crosses p (Holtzman et al.
    2019, arXiv:1904.09751). What is kept is rescaled to sum to one.
    """
    if temperature < 1e-6:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits.float() / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return probabilities
    if not top_k and bool((probabilities.amax(-1) >= top_p).all()):  # a trained model is mostly sure: nothing to rank
        return torch.zeros_like(probabilities).scatter_(-1, probabilities.argmax(-1, keepdim=True), 1.0)
    V = probabilities.shape[-1]
    if top_k:
        kept, order = ranked(probabilities, top_k)
        if bool((kept == 0).any()):                                  # a tie lies across the end
            kept, order = ranked(probabilities, V)
        kept, order = kept[:, :top_k], order[:, :top_k]
        kept = kept / kept.sum(-1, keepdim=True)
    else:
        for n in (32, 1024, V):
            kept, order = ranked(probabilities, n)
            if bool((kept.sum(-1) >= top_p).all()):                  # else a flat distribution: p lies further down
                break
    before = kept.cumsum(-1) - kept                                  # mass ahead of each token
    kept = kept.masked_fill(before >= top_p, 0)
    kept[:, 0] = kept[:, 0].clamp_min(1e-9)                          # top_p = 0 still keeps the first
    return torch.zeros_like(probabilities).scatter_(-1, order, kept / kept.sum(-1, keepdim=True))


def ranked(probabilities: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of each row in falling order, and their ids; of equal ones the smaller id comes first. Those that
    tie with what lies beyond the n are 0, for a larger n to decide.

    Sorting all V takes as long as a forward pass of a small model; finding the largest n takes a tenth of that.
    """
    if n >= probabilities.shape[-1]:
        return probabilities.sort(dim=-1, descending=True, stable=True)
    largest, ids = probabilities.topk(n + 1)                         # (R, n + 1) each
    ids = ids[:, :n].sort(dim=-1).values
    kept, order = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return kept.masked_fill(kept <= largest[:, n:], 0), ids.gather(-1, order)


def draw(probabilities: Tensor, uniform: Tensor) -> list[int]:
    """One id per row: the first whose cumulative probability exceeds a number drawn from [0, 1), (R, V), (R,) -> R."""
    cumulative = probabilities.double().cumsum(-1)                   # (R, V)
    ids = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)        # (R, 1)
    return ids[:, 0].clamp_max(probabilities.shape[-1] - 1).tolist()


@torch.inference_mode()
def decode(model: TinyLLM, prompts: Sequence[list[int]], *, end: int, n: int = 1, max_new_tokens: int = 200,
           temperature: float = 0.8, top_k: int = 0, top_p: float = 0.95, seed: int = 0,
           feed: Feed | None = None) -> Iterator[Step]:
    """Yields one Step at a time for n continuations of each prompt, until all have ended, filled the context or
    written `max_new_tokens`.

    Continuation i of prompt j is number j * n + i. The prompts are read once, padded on the left to equal length,
    and the cache is forked n ways. Continuation i of any prompt draws from its own generator (seed + i), so it is
    the same whatever else is in the batch (up to rounding: of more than 16 rows int8 takes another product). One
    that wrote the token `end` or filled the context yields `end` from then on, with log-probability 0. After each
    id, `feed` may name ids that are written next in place of the model's own choice.
    """
    context = model.config.context
    for prompt in prompts:
        if not prompt:
            raise ValueError("an empty prompt has no last token to continue from")
        if len(prompt) >= context:
            raise ValueError(f"the prompt is {len(prompt)} tokens long and context={context} leaves no room for an "
                             "answer; shorten the prompt")
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts for _ in range(n)]
    starts = torch.tensor(padding)[:, None] if any(padding) else None                    # (prompts, 1)
    cache = KVCache(model.config, batch=len(prompts), room=width + max(limits), starts=starts)
    tokens = torch.tensor([[end] * pad + prompt for pad, prompt in zip(padding, prompts)])
    eager = torch.compiler.set_stance("force_eager")                 # training may have compiled blocks for its shapes
    prefill, decode_one = eager(model.last_hidden), eager(model.forward)
    logits = model.logits(prefill(tokens, cache)[:, -1]).repeat_interleave(n, dim=0)         # (R, V)
    cache = cache.fork(n)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(n)]
    # Drawn ahead, (n, steps), so that a number depends on neither neighbours nor forced tokens.
    uniform = torch.stack([torch.rand(max(limits), generator=g, dtype=torch.float64) for g in generators])
    running = list(range(len(limits)))                               # the continuations that are still in the cache
    forced: dict[int, list[int]] = {}
    ended = [False] * len(limits)
    for step in range(max(limits)):
        probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
        drawn = draw(probabilities, uniform[[number % n for number in running], step])
        for row, number in enumerate(running):
            if ended[number]:
                drawn[row] = end
            elif forced.get(number):
                drawn[row] = forced[number].pop(0)
            if feed and not ended[number] and (following := feed(number, drawn[row])):
                forced[number] = [*forced.get(number, []), *following]
        chosen = torch.tensor(drawn)[:, None]                        # (R, 1)
        scores = logits.log_softmax(-1).gather(-1, chosen)[:, 0].tolist()
        ids, logprobs = [end] * len(limits), [0.0] * len(limits)
        for number, id, score in zip(running, drawn, scores):
            if not ended[number]:
                ids[number], logprobs[number] = id, score
        ended = [was or id == end or step + 1 >= limit for was, id, limit in zip(ended, ids, limits)]
        yield Step(ids, logprobs, ended)
        if all(ended):
            return
        alive = [row for row, number in enumerate(running) if not ended[number]]
        if 2 * len(alive) <= len(running):                           # half have ended: stop computing them
            rows = torch.tensor(alive)
            cache.keep(rows)
            running, chosen = [running[row] for row in alive], chosen[rows]
        logits = decode_one(chosen, cache)[:, -1]                    # (R, V)


def stream(model: TinyLLM, prompt_ids: list[int], **settings) -> Iterator[list[int]]:
    """Yields n ids a step, one for each continuation of one prompt: decode() without log-probabilities."""
    for step in decode(model, [prompt_ids], **settings):
        yield step.ids


def exact_steps(tokenizer: Tokenizer, before: str = "") -> Feed:
    """A `feed` that writes the right side of every `expression=` exactly, in place of the model's guess. An expression
    may begin in the text `before`, which is being continued."""
    streams, texts = {}, {}

    def feed(number: int, id: int) -> list[int]:
        pieces = streams.setdefault(number, tokenizer.stream())
        texts[number] = (texts.get(number, before) + pieces.push(id))[-2 * calculator.WINDOW:]
        result = calculator.complete(texts[number])
        return tokenizer.encode(result) if result else []

    return feed
