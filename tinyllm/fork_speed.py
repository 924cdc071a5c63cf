"""How much reading a prefix once saves: cached and forked against re-read for every option, beside the ideal.

In: a shape of model. Out: for each prefix length and number of options the seconds of both ways, their ratio, and the
memory of the cache. Both ways must give the same states, or it is an error. Explained by tests/test_fork_speed.py.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from tinyllm.config import opt, part
from tinyllm.fork import read
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.options import Encoded
from tinyllm.report import grid


@dataclass
class ForkSpeedConfig(ModelConfig):
    """Time reading the options of one question from a cached prefix against reading the prefix again for each.

    The weights are random: speed does not depend on what a model knows. Examples:
      python -m tinyllm.scorer bench
      python -m tinyllm.scorer bench --preset nano --prefixes 256 --n-options 5 --repeats 9
    """

    preset: str = opt("base", "shape of the model", choices=("base", "nano"))
    prefixes: list[int] = opt([64, 128, 256, 480], "lengths of the prefix in tokens", low=1)
    n_options: list[int] = opt([2, 3, 5, 10], "numbers of options", low=2, high=26)
    option_tokens: int = opt(16, "length of each option", low=1)
    repeats: int = opt(5, "timed runs of both ways in turn; the medians count, and one run before them warms up", low=1)
    seed: int = opt(0, "of weights and tokens", low=0)
    json: bool = opt(False, "print the rows as JSON")


@torch.inference_mode()
def reread(model: TinyLLM, question: Encoded) -> Tensor:
    """The states (n, D) that read() finds, from a batch of whole sequences: prefix and option, n times."""
    rows = [question.prefix + option for option in question.options]
    width = max(map(len, rows))
    hidden = model.last_hidden(torch.tensor([row + [0] * (width - len(row)) for row in rows]))      # (n, P + T, D)
    return hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]


@torch.inference_mode()
def forked(model: TinyLLM, question: Encoded) -> Tensor:
    """The same states from a prefix that is read once."""
    return read(model, [question]).last[0]


def ideal(prefix: int, n: int, tokens: int) -> float:
    """How many times fewer tokens are read: n (P + T) / (P + n T)."""
    return n * (prefix + tokens) / (prefix + n * tokens)


def measure(config: ForkSpeedConfig) -> list[dict]:
    """One row for each prefix length and number of options: medians in milliseconds, ratio, ideal, megabytes."""
    if not (config.prefixes and config.n_options):
        raise ValueError("--prefixes and --n-options take one number or more")
    shape = part(ModelConfig, config)
    shape.context = max(shape.context, max(config.prefixes) + config.option_tokens)
    torch.manual_seed(config.seed)
    model = TinyLLM(shape).eval()
    rows = []
    cases = [(prefix, n) for prefix in config.prefixes for n in config.n_options]
    for prefix, n in tqdm(cases, "timing", file=sys.stderr, leave=False):
        ids = torch.randint(shape.vocab_size, (prefix + n * config.option_tokens,)).tolist()
        options = [ids[at:at + config.option_tokens] for at in range(prefix, len(ids), config.option_tokens)]
        question = Encoded(ids[:prefix], options)
        torch.testing.assert_close(forked(model, question), reread(model, question), rtol=1e-4, atol=1e-5)
        times: dict = {forked: [], reread: []}
        for _ in range(config.repeats):
            for way, seconds in times.items():
                started = time.perf_counter()
                way(model, question)
                seconds.append(time.perf_counter() - started)
        cached, again = statistics.median(times[forked]), statistics.median(times[reread])
        best = ideal(prefix, n, config.option_tokens)
        layer_bytes = 2 * shape.n_kv_heads * shape.head_dim * 4      # a key and a value of one token, fp32
        # The prefix in all layers, and the copies of one layer at a time.
        cache_bytes = layer_bytes * (shape.n_layers * prefix + n * (prefix + config.option_tokens))
        rows.append({"prefix_tokens": prefix, "options": n, "cached_ms": 1e3 * cached, "reread_ms": 1e3 * again,
                     "ratio": again / cached, "ideal": best, "share_of_ideal": again / cached / best,
                     "cache_mb": cache_bytes / 1e6})
    return rows


def speed_table(rows: Sequence[dict]) -> str:
    """The rows for a person."""
    cells = [["prefix", "options", "cached", "read again", "ratio", "ideal", "of ideal", "cache and forks"]]
    cells += [[str(row["prefix_tokens"]), str(row["options"]), f"{row['cached_ms']:.1f} ms",
               f"{row['reread_ms']:.1f} ms", f"{row['ratio']:.2f}", f"{row['ideal']:.2f}",
               f"{row['share_of_ideal']:.0%}", f"{row['cache_mb']:.1f} MB"] for row in rows]
    return "\n".join(grid(cells))
