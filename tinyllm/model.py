"""The language model: RMSNorm, rotary attention with a key/value cache, SwiGLU; 8 layers of width 512 by default.

In: token ids (B, T). Out: the hidden state of every position (B, T, D), or logits over the next token (B, T, V).
Shapes: B batch, T new tokens, S stored + new tokens, D width, H heads, K key/value heads, E head width,
F feed-forward width, V vocabulary. Explained by tests/test_model.py; tests/test_reference.py has the textbook form.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.config import PRESETS, Settings, opt
from tinyllm.loss import CrossEntropy

BASE = PRESETS["base"]


@dataclass
class ModelConfig(Settings):
    """The shape of a model. ModelConfig() is the `base` preset: about 42 M parameters."""

    vocab_size: int = opt(BASE["vocab_size"], "number of tokens the model can read and write", low=2, high=65536)
    dim: int = opt(BASE["dim"], "width of the hidden state", low=2)
    n_layers: int = opt(BASE["n_layers"], "number of blocks", low=1)
    n_heads: int = opt(BASE["n_heads"], "attention heads; each is dim / n_heads wide", low=1)
    n_kv_heads: int = opt(BASE["n_kv_heads"], "key/value heads, shared by groups of query heads", low=1)
    ffn_dim: int = opt(BASE["ffn_dim"], "width inside the feed-forward part", low=1)
    context: int = opt(BASE["context"], "longest sequence in tokens", low=2, high=2 ** 20)
    rope_theta: float = opt(10000.0, "base of the rotary wavelengths", low=1)
    norm_eps: float = opt(1e-5, "keeps the norm of an all-zero vector finite", low=0)
    qk_norm: bool = opt(BASE["qk_norm"], "normalise queries and keys, so that attention scores stay bounded")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise ValueError(f"dim={self.dim} must be n_heads={self.n_heads} times an even head width (rotary pairs)")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class RMSNorm(nn.Module):
    """Scales each vector to root mean square 1, then by a learnt weight. Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_tables(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (context, E/2): position p turns pair i by the angle p / theta^(2i/E)."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)     # (E/2,)
    angles = torch.arange(context, dtype=torch.float64)[:, None] * frequencies                 # (context, E/2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, H, T, E) by cos and sin (T, E/2). Su et al. 2021, arXiv:2104.09864.

    Pair i is (x[i], x[i + E/2]), the "half" layout. Rotating query and key by their positions makes the score of two
    tokens depend on their distance alone.
    """
    a, b = x.chunk(2, dim=-1)                                        # (B, H, T, E/2) each
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class KVCache:
    """Keys and values of the tokens read so far, so that each new token costs one row of attention.

    Holds up to `room` tokens of `batch` sequences for every layer; `length` says how many are stored. Prompts of
    unequal length are padded on the left, and `starts` keeps the padding out of sight.
    """

    def __init__(self, config: ModelConfig, batch: int, room: int, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", starts: Tensor | None = None) -> None:
        if starts is None and room > config.context:                 # padded rows are shorter than the room
            raise ValueError(f"room for {room} tokens exceeds context={config.context}; ask for less")
        shape = (config.n_layers, batch, config.n_kv_heads, room, config.head_dim)
        self.config, self.room, self.length = config, room, 0
        self.starts = starts                                         # (B, 1) first real token of each row, if padded
        self.keys = torch.empty(shape, dtype=dtype, device=device)   # (layers, B, K, room, E)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, K, T, E) behind the prefix; returns everything this layer has stored (B, K, S, E).

        `length` moves on only after the last layer, so that all layers of one pass see the same prefix.
        """
        T = k.shape[2]
        keys, values = self.keys[layer], self.values[layer]          # (B, K, room, E) each
        keys.narrow(2, self.length, T).copy_(k)                      # narrow: [:, :, length:length + T], in less time
        values.narrow(2, self.length, T).copy_(v)
        return keys.narrow(2, 0, self.length + T).to(k.dtype), values.narrow(2, 0, self.length + T).to(v.dtype)

    def fork(self, n: int) -> "KVCache":
        """A new cache in which every sequence stands n times in a row. Writing to it leaves this one as it is."""
        starts = None if self.starts is None else self.starts.repeat_interleave(n, dim=0)
        other = KVCache(self.config, self.keys.shape[1] * n, self.room, self.keys.dtype, self.keys.device, starts)
        other.length = self.length
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            theirs[:, :, :, :self.length] = mine[:, :, :, :self.length].repeat_interleave(n, dim=1)
        return other

    def keep(self, rows: Tensor) -> None:
        """Forgets all sequences but `rows` (their numbers), for example those that have ended."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.starts = None if self.starts is None else self.starts[rows]

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens; nothing is copied."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length


def visible(T: int, S: int, starts: Tensor | None = None, device: torch.device | str = "cpu") -> Tensor | None:
    """Which of S keys each of the last T of S positions may look at: itself and the past, from its start on.

    `starts` (B, T), or (B, 1) for whole rows: the first position of the example that a token belongs to, where a row
    holds several examples or padding. Returns True where allowed, (B, 1, T, S) with starts, (T, S) without; None where
    one token may look at everything.
    """
    if starts is None and T == 1:
        return None
    queries, keys = torch.arange(S - T, S, device=device)[:, None], torch.arange(S, device=device)     # the last T of S
    if starts is None:
        return keys <= queries                                                # (T, S)
    # Padding before a start sees itself: a row of the mask without any True would make it NaN.
    return ((keys <= queries) & ((keys >= starts[..., None]) | (keys == queries)))[:, None]     # (B, 1, T, S)


def additive(allowed: Tensor) -> Tensor:
    """What is added to scores so that no weight falls where `allowed` is False: 0 or -inf. In the code that
    torch.compile makes for a CPU, attention with a choice by truth values takes 1.7 times as long. Both numbers are
    exact in bfloat16, and a sum with scores in bfloat16 or float32 keeps their dtype."""
    return torch.zeros(allowed.shape, dtype=torch.bfloat16, device=allowed.device).masked_fill_(~allowed, -math.inf)


QUERIES = 128                                                        # that look at once


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: nn.Module) -> Tensor:
    """softmax(q k^T / sqrt(E)) v: each query's mean of the values, weighted by how well their keys fit it.

    q (B, H, T, E) are the last T of the S positions of k and v (B, K, S, E); `mask` is additive() of what
    visible() says, or None; `drop` zeroes a share of the weights in training. Returns (B, H, T, E). Queries come 128 at
    a time: those of an early piece need no score for the keys behind it, which saves up to half of the work, and the
    scores of a piece still lie in the CPU's cache when the softmax reads them.
    """
    T, S, share = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if share > 1:                                                    # so many query heads share a key/value head
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)     # (B, H, S, E)
    q, out = q * q.shape[-1] ** -0.5, []                             # scaled here there is less to scale
    for start in range(0, T, QUERIES):
        end = min(start + QUERIES, T)
        seen = S - T + end                                           # keys up to the last query of this piece
        scores = q[:, :, start:end] @ k[:, :, :seen].mT              # (B, H, end - start, seen)
        if mask is not None:
            scores = scores + mask[..., start:end, :seen]
        out.append(drop(scores.softmax(-1)) @ v[:, :, :seen])        # (B, H, end - start, E)
    return torch.cat(out, dim=2)


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped queries (Ainslie et al. 2023,
    arXiv:2305.13245): every n_heads / n_kv_heads query heads share one key/value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        D, E = config.dim, config.head_dim
        self.layer, self.head_dim, self.drop = layer, E, nn.Dropout(0.0)
        self.wq = nn.Linear(D, config.n_heads * E, bias=False)
        self.wk = nn.Linear(D, config.n_kv_heads * E, bias=False)
        self.wv = nn.Linear(D, config.n_kv_heads * E, bias=False)
        self.wo = nn.Linear(config.n_heads * E, D, bias=False)
        # Henry et al. 2020, arXiv:2010.04245; per head and before the rotation, as in Qwen3.
        self.q_norm = RMSNorm(E, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(E, config.norm_eps) if config.qk_norm else nn.Identity()

    def heads(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, E), keys and values (B, K, T, E) of x (B, T, D); queries and keys know their positions."""
        B, T, _ = x.shape
        q = self.wq(x).view(B, T, -1, self.head_dim).transpose(1, 2)          # (B, H, T, E)
        k = self.wk(x).view(B, T, -1, self.head_dim).transpose(1, 2)          # (B, K, T, E)
        v = self.wv(x).view(B, T, -1, self.head_dim).transpose(1, 2)          # (B, K, T, E)
        return rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope), v

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.heads(x, rope)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                             # (B, K, S, E)
        out = attend(q, k, v, mask, self.drop)                                # (B, H, T, E)
        return self.wo(out.transpose(1, 2).reshape(B, T, -1))                 # (B, T, D)


class SwiGLU(nn.Module):
    """Feed-forward part: one projection gates the other. Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, ffn_dim, bias=False)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))                   # (B, T, D) -> (B, T, F) -> (B, T, D)


class Block(nn.Module):
    """Two residual steps: look at other tokens, then think about each token by itself."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = SwiGLU(config.dim, config.ffn_dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), rope, mask, cache))
        return x + self.drop(self.ffn(self.ffn_norm(x)))


class TinyLLM(nn.Module):
    """The whole decoder. The head that predicts the next token is the embedding matrix itself (Press & Wolf 2016,
    arXiv:1608.05859): one matrix, learnt from both ends."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.cross_entropy = CrossEntropy()
        self.drop = nn.Dropout(0.0)                                           # how much is a matter of training
        cos, sin = rope_tables(config.context, config.head_dim, config.rope_theta)
        self.register_buffer("rope_cos", cos, persistent=False)               # (context, E/2)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.apply(self._initialise)

    @property
    def n_weights(self) -> int:
        """How many weights can be learnt: matrices, embedding (which is the head, too) and the gains of the norms."""
        return sum(weight.numel() for weight in self.parameters())

    def _initialise(self, module: nn.Module) -> None:
        """Normal(0, 0.02): the first loss is about ln V, the model knows nothing and is sure of nothing."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, (Attention, SwiGLU)):            # apply() reaches the children first: this one wins
            out = module.wo if isinstance(module, Attention) else module.down
            nn.init.normal_(out.weight, std=0.02 / (2 * self.config.n_layers) ** 0.5)     # 2 residual steps a layer

    def last_hidden(self, tokens: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """The state after the final norm: token ids (B, T) -> (B, T, D). With a cache, `tokens` follow its prefix.

        `starts` (B, T): for rows that hold several examples, where the example of each token begins; nothing before
        it is seen. (Positions need no reset: rotary attention depends on distances alone.)
        """
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        limit = cache.room if cache is not None else self.config.context
        if end > limit:
            raise ValueError(f"sequence of {end} tokens exceeds the {limit} there is room for "
                             f"(context={self.config.context}); shorten the prompt")
        rope = self.rope_cos[start:end], self.rope_sin[start:end]             # (T, E/2) each
        if cache is not None and cache.starts is not None:                    # padded rows count from their own start
            starts = cache.starts
            positions = torch.arange(start, end, device=tokens.device) - starts               # (B, T)
            positions = positions.clamp(0, self.config.context - 1)[:, None]                  # (B, 1, T)
            rope = self.rope_cos[positions], self.rope_sin[positions]         # (B, 1, T, E/2) each
        allowed = visible(end - start, end, starts, tokens.device)
        mask = None if allowed is None else additive(allowed)                 # once for all layers
        x = self.drop(self.embed(tokens))                                     # (B, T, D)
        for block in self.blocks:
            x = block(x, rope, mask, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)                                                   # (B, T, D)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every possible next token: hidden (..., D) -> (..., V)."""
        return F.linear(hidden, self.embed.weight)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each position: (B, T) -> (B, T, V)."""
        return self.logits(self.last_hidden(tokens, cache))
