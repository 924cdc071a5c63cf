"""What a model is made of and what it does with a text, as numbers: the facts that peek.py prints.

The model is only watched, with PyTorch's own hooks. Shapes: B rows, T new tokens, S stored + new tokens, D width,
H heads, K key/value heads, E head width, F feed-forward width, V vocabulary. Explained by tests/test_peek.py.
"""

import contextlib
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.data import IGNORE, Batch
from tinyllm.generate import printable
from tinyllm.model import KVCache, ModelConfig, TinyLLM
from tinyllm.tokenizer import Tokenizer


def parameter_table(config: ModelConfig, context: int = 0) -> list[dict]:
    """One row per kind of weight: shape, copies, parameters, forward FLOPs of one token. Training costs three times.

    A matrix costs 2 FLOPs per weight (multiply, add). Attention itself has no weights but compares the token with
    `context` keys (0: the model's context) and adds up as many values: 2 + 2 FLOPs per key and channel. Norms,
    rotations and softmax are left out: under 1%.
    """
    D, H, K, E, n_layers = config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.n_layers
    S = context or config.context
    matrix = lambda name, out, into: (name, (out, into), n_layers, 2 * out * into)
    rows = [("embed", (config.vocab_size, D), 1, 0),                 # a look-up: no arithmetic
            ("attention_norm", (D,), n_layers, 0),
            matrix("wq", H * E, D), matrix("wk", K * E, D), matrix("wv", K * E, D), matrix("wo", D, H * E),
            *([("q_norm", (E,), n_layers, 0), ("k_norm", (E,), n_layers, 0)] if config.qk_norm else []),
            ("attention itself", (), n_layers, 4 * S * H * E),
            ("ffn_norm", (D,), n_layers, 0),
            matrix("gate", config.ffn_dim, D), matrix("up", config.ffn_dim, D), matrix("down", D, config.ffn_dim),
            ("norm", (D,), 1, 0),
            ("logits (embed)", (), 1, 2 * config.vocab_size * D)]  # tied: the same weights once more
    return [{"part": part, "weight": shape, "copies": copies, "parameters": copies * math.prod(shape or (0,)),
             "flops": copies * flops} for part, shape, copies, flops in rows]


# The output of each module, as model.py names its shape; 0 stands for a block. q to out are made inside attention.
TENSORS = {
    "tokens": ("B T", "token ids"), "embed": ("B T D", "one row of the table for each token"),
    "attention_norm": ("B T D", ""), "wq": ("B T H·E", "what each token looks for"),
    "wk": ("B T K·E", "what each token is found by"), "wv": ("B T K·E", "what each token passes on"),
    "q_norm": ("B H T E", "each query of length √E"), "k_norm": ("B K T E", "each key of length √E"),
    "q": ("B H T E", "split into heads, rotated"), "k": ("B K S E", "split into heads, rotated"),
    "v": ("B K S E", "split into heads"), "scores": ("B H T S", "q @ kᵀ / √E, in pieces: never stored whole"),
    "out": ("B H T E", "softmax(scores) @ v"), "wo": ("B T D", "heads joined; added to the block's input"),
    "ffn_norm": ("B T D", ""), "gate": ("B T F", ""), "up": ("B T F", "silu(gate) * up goes into down"),
    "down": ("B T D", "added again"), "0": ("B T D", "what the next block reads"), "norm": ("B T D", ""),
    "logits": ("B T V", "scores of every possible next token"),
}


def letters(config: ModelConfig, B: int, T: int, S: int) -> dict[str, int]:
    """What each letter of a shape means and how much it is in this pass."""
    return {"B rows": B, "T new tokens": T, "S stored + new tokens": S, "D width": config.dim,
            "H heads": config.n_heads, "K key/value heads": config.n_kv_heads, "E head width": config.head_dim,
            "F feed-forward width": config.ffn_dim, "V vocabulary": config.vocab_size}


@torch.no_grad()
def shape_table(model: TinyLLM, tokens: Tensor, cache: KVCache | None = None) -> list[dict]:
    """Every tensor of one forward pass over `tokens` (B, T), in order, each with its letters, shape and weight."""
    B, T = tokens.shape
    values = {name[0]: n for name, n in letters(model.config, B, T, T + (cache.length if cache else 0)).items()}
    rows = []

    def add(path: str, shape: Iterable[int], weight: Iterable[int] = ()) -> None:
        name = path.rpartition(".")[2]
        symbols, meaning = TENSORS["0" if name.isdigit() else name]
        rows.append({"tensor": path, "letters": symbols, "shape": list(shape), "weight": list(weight),
                     "what it is": meaning})

    def seen(path: str, module: nn.Module, out: Tensor) -> None:
        add(path, out.shape, module.weight.shape if hasattr(module, "weight") else ())
        if path.endswith("k_norm" if model.config.qk_norm else "wv"):     # what follows is no module: no hook sees it
            for name in ("q", "k", "v", "scores", "out"):
                add(path.rpartition(".")[0] + "." + name, [values[letter] for letter in TENSORS[name][0].split()])

    with contextlib.ExitStack() as hooks:
        for path, module in model.named_modules():
            path = path or "logits"                                  # the model itself
            if path == "logits" or hasattr(module, "weight") or path.rpartition(".")[2].isdigit():
                hook = lambda module, inputs, out, path=path: seen(path, module, out)
                hooks.enter_context(module.register_forward_hook(hook))
        add("tokens", tokens.shape)
        model(tokens, cache)
    return rows


@torch.no_grad()
def attention_weights(model: TinyLLM, ids: list[int], layer: int = -1) -> Tensor:
    """softmax(q kᵀ / √E) of one layer (-1: the last): (H, T, T). Row t says where token t looks; it sums to one.

    Attention keeps none of them, so they are computed again from what the layer was given.
    """
    last = model.config.n_layers - 1
    if not -1 <= layer <= last:
        raise ValueError(f"layer {layer} does not exist: this model has layers 0 to {last} (-1: the last)")
    attention, caught = model.blocks[layer].attention, []
    with attention.register_forward_pre_hook(lambda module, inputs: caught.append(inputs)):
        model.last_hidden(torch.tensor([ids]))
    x, rope, *_ = caught[0]                                                   # (1, T, D), two of (T, E/2)
    T, E = len(ids), model.config.head_dim
    q, k, _ = attention.heads(x, rope)                                        # (1, H, T, E), (1, K, T, E)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)                  # (1, H, T, E): groups share a key head
    scores = q @ k.transpose(-2, -1) / E ** 0.5                               # (1, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)                       # (T, T)
    return scores.masked_fill(future, -math.inf).softmax(-1)[0]


@torch.no_grad()
def next_tokens(model: TinyLLM, ids: list[int], k: int = 10) -> tuple[list[tuple[int, float]], float]:
    """The k likeliest tokens after `ids` as (id, probability), and the entropy of all in bits."""
    log_p = model(torch.tensor([ids]))[0, -1].log_softmax(-1)                 # (V,)
    top = log_p.exp().topk(min(k, len(log_p)))
    return list(zip(top.indices.tolist(), top.values.tolist())), float(-(log_p.exp() * log_p).sum() / math.log(2))


@torch.no_grad()
def surprises(model: TinyLLM, ids: list[int]) -> Tensor:
    """-log2 p(ids[t] | ids[:t]) in bits for t = 1, 2, ...: (T - 1,). The shortest code for a token has this length."""
    logits = model(torch.tensor([ids[:-1]]))[0]                               # (T - 1, V)
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none") / math.log(2)


def label(tokenizer: Tokenizer, id: int) -> str:
    """Token `id` without characters that would move the cursor."""
    return printable(tokenizer.show(id)).replace("\t", "⇥")


def batch_table(batch: Batch, row: int, tokenizer: Tokenizer) -> list[dict]:
    """The positions of one row: the token that is read, and the target to predict or IGNORE where nothing is learnt."""
    return [{"position": t, "token": label(tokenizer, token), "id": token,
             "target": "IGNORE" if target == IGNORE else label(tokenizer, target), "target id": target}
            for t, (token, target) in enumerate(zip(batch.tokens[row].tolist(), batch.targets[row].tolist()))]
