"""Slow textbook versions: the definition of what the fast code must compute, written the way a chapter would print it.

They read a TinyLLM's weights and its config and nothing else of tinyllm: every formula stands here a second time. No
cache, a materialised (T, T) mask, rotation recomputed in every layer, float32. tinyllm.bench times them as a yardstick.
Shapes: B batch, T tokens, D width, H heads, K key/value heads, E head width, F feed-forward width, V vocabulary.
"""

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each vector of x (..., D) divided by its root mean square, times the learnt weight (D,)."""
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """x (B, H, T, E) with pair i = (x[i], x[i + E/2]) read as a complex number and turned by position * theta^(-2i/E).

    RoFormer's formula (Su et al. 2021, arXiv:2104.09864): multiplying by e^(i angle) is a rotation.
    """
    T, E = x.shape[-2:]
    position = torch.arange(T, dtype=torch.float64)
    frequency = theta ** (-2 * torch.arange(E // 2, dtype=torch.float64) / E)
    angle = torch.outer(position, frequency)                                  # (T, E/2)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)     # (T, E/2), complex
    turned = torch.complex(x[..., : E // 2], x[..., E // 2:]) * turn          # (B, H, T, E/2), complex
    return torch.cat([turned.real, turned.imag], dim=-1)


def dropout(x: Tensor, share: float) -> Tensor:
    """x with `share` of its entries zeroed by a random mask; the rest grows so that the mean stays."""
    keep = (torch.rand_like(x) >= share).float()
    return x * keep / (1 - share)


def attention(x: Tensor, weights: dict[str, Tensor], n_heads: int, n_kv_heads: int, theta: float,
              eps: float, drop: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V, (B, T, D) -> (B, T, D). Vaswani et al. 2017, arXiv:1706.03762."""
    B, T, D = x.shape
    E = D // n_heads
    q = (x @ weights["wq"].T).view(B, T, n_heads, E).transpose(1, 2)          # (B, H, T, E)
    k = (x @ weights["wk"].T).view(B, T, n_kv_heads, E).transpose(1, 2)       # (B, K, T, E)
    v = (x @ weights["wv"].T).view(B, T, n_kv_heads, E).transpose(1, 2)       # (B, K, T, E)
    if "q_norm" in weights:
        q, k = rms_norm(q, weights["q_norm"], eps), rms_norm(k, weights["k_norm"], eps)
    q, k = rotate(q, theta), rotate(k, theta)
    k = k.repeat_interleave(n_heads // n_kv_heads, dim=1)                     # (B, H, T, E): one for each query head
    v = v.repeat_interleave(n_heads // n_kv_heads, dim=1)                     # (B, H, T, E)
    future = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)       # (T, T): column after row
    scores = (q @ k.transpose(-2, -1) / math.sqrt(E)).masked_fill(future, -math.inf)      # (B, H, T, T)
    shares = torch.softmax(scores, dim=-1)                                    # (B, H, T, T), rows sum to one
    if drop:
        shares = dropout(shares, drop)
    mixed = (shares @ v).transpose(1, 2).reshape(B, T, D)                     # heads side by side again
    return mixed @ weights["wo"].T


def swiglu(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """down(silu(gate(x)) * up(x)), (B, T, D) -> (B, T, F) -> (B, T, D). Shazeer 2020, arXiv:2002.05202."""
    gate = x @ weights["gate"].T
    silu = gate * torch.sigmoid(gate)
    return (silu * (x @ weights["up"].T)) @ weights["down"].T


def logits(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Token ids (B, T) -> scores of the next token (B, T, V), differentiable in the weights of `model`.

    With model.training, drops the embedding, the attention shares and both residual steps of a block.
    """
    config, weights = model.config, dict(model.named_parameters())
    drop = model.drop.p if model.training else 0.0
    maybe_drop = (lambda x: dropout(x, drop)) if drop else (lambda x: x)
    embedding = weights["embed.weight"]                                       # (V, D)
    x = maybe_drop(embedding[tokens])                                         # (B, T, D)
    for layer in range(config.n_layers):
        def named(part: str, names: str, layer: int = layer) -> dict[str, Tensor]:
            paths = {name: f"blocks.{layer}.{part}.{name}.weight" for name in names.split()}
            return {name: weights[path] for name, path in paths.items() if path in weights}

        normed = rms_norm(x, weights[f"blocks.{layer}.attention_norm.weight"], config.norm_eps)
        x = x + maybe_drop(attention(normed, named("attention", "wq wk wv wo q_norm k_norm"), config.n_heads,
                                     config.n_kv_heads, config.rope_theta, config.norm_eps, drop))
        normed = rms_norm(x, weights[f"blocks.{layer}.ffn_norm.weight"], config.norm_eps)
        x = x + maybe_drop(swiglu(normed, named("ffn", "gate up down")))
    return rms_norm(x, weights["norm.weight"], config.norm_eps) @ embedding.T


@torch.no_grad()
def generate_greedy(model: torch.nn.Module, ids: list[int], n: int) -> list[int]:
    """The n likeliest tokens after `ids`, one after the other; everything is read again for every token."""
    text = list(ids)
    for _ in range(n):
        text.append(int(logits(model, torch.tensor([text]))[0, -1].argmax()))
    return text[len(ids):]


def loss_sum(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """Sum of -ln p(target) over the targets (B, T) that are not `ignore`, for logits (B, T, V)."""
    total = torch.zeros(())
    for b in range(targets.shape[0]):
        for t in range(targets.shape[1]):
            if targets[b, t] != ignore:
                scores = logits[b, t]
                total = total - (scores[targets[b, t]] - torch.log(torch.exp(scores).sum()))
    return total


def sampling_probabilities(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """What each token is drawn with: softmax at `temperature`, then the first k, then the fewest that reach p.

    Each cut rescales what is left to sum to one. Of equally likely tokens the one with the smaller id comes first.
    """
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: (-powers[token], token))
    if top_k > 0:
        order = order[:top_k]
    within = sum(powers[token] for token in order)
    kept, reached = [], 0.0
    for token in order:
        if kept and reached >= top_p:
            break
        kept.append(token)                                                    # the one that crosses p is kept
        reached += powers[token] / within
    total = sum(powers[token] for token in kept)
    return [powers[token] / total if token in kept else 0.0 for token in range(len(logits))]


def polar_factor(matrix: Tensor) -> Tensor:
    """U V^T of matrix = U S V^T: the nearest matrix that stretches no direction. What Muon's iteration approaches."""
    U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
    return U @ Vt
