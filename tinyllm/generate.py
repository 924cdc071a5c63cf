"""Text out of a model: read the prompt once, then add one token at a time from the key/value cache.

In: a model and prompt ids. Out: a stream of ids, one for each of n continuations and step; the only sampler there is.
Shapes: n continuations of one prompt, V vocabulary. Explained by tests/test_generate.py.
"""

import json
import sys
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyllm import checkpoint
from tinyllm.config import Settings, command, opt, read_settings
from tinyllm.model import KVCache, TinyLLM
from tinyllm.tokenizer import Tokenizer


def next_token_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (n, V) -> the distribution (n, V) that is sampled from.

    temperature 0 puts everything on the most likely token. top_k keeps exactly k tokens (0: all; Fan et al. 2018,
    arXiv:1805.04833). top_p keeps the most likely tokens up to and including the one that crosses p (Holtzman et al.
    2019, arXiv:1904.09751). What is kept is rescaled to sum to one.
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits.float() / temperature).softmax(-1)
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k:
        probabilities[:, top_k:] = 0                                 # by rank, so ties do not let more through
        probabilities /= probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities                # (n, V) mass ahead of each token
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    probabilities[:, 0] = probabilities[:, 0].clamp_min(1e-9)        # top_p = 0 still keeps the first
    probabilities /= probabilities.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(-1, order, probabilities)


@torch.inference_mode()
def stream(model: TinyLLM, prompt_ids: list[int], *, end: int, n: int = 1, max_new_tokens: int = 200,
           temperature: float = 0.8, top_k: int = 0, top_p: float = 0.95, seed: int = 0) -> Iterator[list[int]]:
    """Yields n ids a step, one for each continuation of `prompt_ids`, until all have ended or the context is full.

    The prompt is read once and its cache forked n ways. Continuation i draws from its own generator (seed + i), so it
    is the same whatever n is. One that wrote the token `end` stays ended: it yields `end` from then on.
    """
    context = model.config.context
    if not prompt_ids:
        raise ValueError("an empty prompt has no last token to continue from")
    if len(prompt_ids) >= context:
        raise ValueError(f"the prompt is {len(prompt_ids)} tokens long and context={context} leaves no room for an "
                         "answer; shorten the prompt")
    room = min(context, len(prompt_ids) + max_new_tokens)
    cache = KVCache(model.config, batch=1, room=room)
    hidden = model.last_hidden(torch.tensor([prompt_ids]), cache)[:, -1]      # (1, D): prefill
    logits = model.logits(hidden).expand(n, -1)                               # (n, V)
    cache = cache.fork(n)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(n)]
    ended = [False] * n
    for left in reversed(range(room - len(prompt_ids))):
        probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
        ids = [end if ended[i] else int(torch.multinomial(probabilities[i], 1, generator=generators[i]))
               for i in range(n)]
        yield ids
        ended = [was or id == end for was, id in zip(ended, ids)]
        if all(ended):
            return
        if left:
            logits = model(torch.tensor(ids)[:, None], cache)[:, -1]          # (n, V): decode one token each


def document_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` as the beginning of a document: in training, a document begins after the end of another."""
    return [tokenizer.eos, *tokenizer.encode(text)]


@dataclass
class GenerateConfig(Settings):
    """Continue a text. Without a prompt, asks for one again and again.

    Examples:
      python -m tinyllm.generate "Once upon a time"
      python -m tinyllm.generate --checkpoint checkpoints/pretrain --temperature 0 "从前"
      echo "The cat" | python -m tinyllm.generate --json
    """

    prompt: str = opt("", "text to continue", positional=True)
    checkpoint: str = opt("", "run or checkpoint folder; the newest stage under checkpoints/ when absent")
    temperature: float = opt(0.8, "0: always the likeliest token; 1: as the model believes; higher: wilder", low=0)
    top_k: int = opt(0, "keep only the k likeliest tokens (0: all)", low=0)
    top_p: float = opt(0.95, "keep the likeliest tokens that together reach this probability", low=0, high=1)
    max_new_tokens: int = opt(200, "stop after this many tokens", low=1)
    seed: int = opt(0, "the same seed gives the same text", low=0)
    json: bool = opt(False, "print one JSON object per prompt instead of streaming")


def continue_text(model: TinyLLM, tokenizer: Tokenizer, prompt: str, config: GenerateConfig) -> Iterator[str]:
    """The continuation of `prompt` piece by piece, each piece valid Unicode."""
    pieces = tokenizer.stream()
    for (id,) in stream(model, document_prompt(tokenizer, prompt), end=tokenizer.eos, seed=config.seed,
                        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_k=config.top_k,
                        top_p=config.top_p):
        if text := pieces.push(id):
            yield text
    yield pieces.finish()


def printable(text: str) -> str:
    """`text` without the control characters that could drive a terminal; a model may write any byte."""
    return "".join("\ufffd" if unicodedata.category(char) == "Cc" and char not in "\n\t" else char for char in text)


def prompts(config: GenerateConfig) -> Iterator[str]:
    """The prompt given, else one a line from standard input until it ends."""
    if config.prompt:
        yield config.prompt
        return
    if sys.stdin.isatty():
        print("type the beginning of a text; Ctrl-D ends", file=sys.stderr)
    while True:
        print("> " if sys.stdin.isatty() else "", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line.rstrip("\n")


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(GenerateConfig, "python -m tinyllm.generate", argv)
    folder = checkpoint.resolve(config.checkpoint) if config.checkpoint else checkpoint.default()
    print(f"using {folder}", file=sys.stderr)
    model, tokenizer = checkpoint.load(folder)
    for prompt in prompts(config):
        started, pieces = time.monotonic(), continue_text(model, tokenizer, prompt, config)
        if config.json:
            text = "".join(pieces)
            print(json.dumps({"prompt": prompt, "text": text, "tokens": len(tokenizer.encode(text)),
                              "seconds": round(time.monotonic() - started, 3), "checkpoint": str(folder)},
                             ensure_ascii=False), flush=True)
            continue
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(printable(piece), end="", flush=True)
        print()


if __name__ == "__main__":
    sys.exit(main())
