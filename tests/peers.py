"""How others build the same shape, for bench.py to time beside ours; skip this at first reading.

Hugging Face's Llama is theirs, where transformers is installed; beside it then stand two that learners know, written
here in their manner: nanoGPT (Karpathy 2022, github.com/karpathy/nanoGPT) and MiniMind (Gong 2024,
github.com/jingyaogong/minimind). No module imports this file; bench loads it by its path. In: a shape. Out: ways to
one loss and to the next tokens. None has QK-norm. Explained by tests/test_bench.py.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyllm.data import Batch
from tinyllm.model import ModelConfig
from tinyllm.timing import timed
from tinyllm.train import LossFn


def llama(config: ModelConfig) -> nn.Module | None:
    """A Llama with random weights of this shape; None where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.context, rms_norm_eps=config.norm_eps, tie_word_embeddings=True))


class NanoGPT(nn.Module):
    """nanoGPT's manner: learned positions, LayerNorm, one matrix for query, key and value, GELU. Its feed-forward part
    has two matrices for our three, here made wider until there are as many weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, wide = config.dim, config.ffn_dim * 3 // 2
        self.n_heads = config.n_heads
        self.embed, self.positions = nn.Embedding(config.vocab_size, D), nn.Embedding(config.context, D)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm": nn.LayerNorm(D, bias=False), "qkv": nn.Linear(D, 3 * D, bias=False),
            "out": nn.Linear(D, D, bias=False), "ffn_norm": nn.LayerNorm(D, bias=False),
            "up": nn.Linear(D, wide, bias=False), "down": nn.Linear(wide, D, bias=False),
        }) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(D, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        B, T = ids.shape
        x = self.embed(ids) + self.positions(torch.arange(T))                 # (B, T, D)
        for block in self.blocks:
            q, k, v = (part.view(B, T, self.n_heads, -1).transpose(1, 2)
                       for part in block["qkv"](block["norm"](x)).chunk(3, dim=-1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)    # (B, H, T, E)
            x = x + block["out"](seen.transpose(1, 2).reshape(B, T, -1))
            x = x + block["down"](F.gelu(block["up"](block["ffn_norm"](x))))
        logits = F.linear(self.norm(x), self.embed.weight)                    # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class MiniMind(nn.Module):
    """MiniMind's manner, which is Llama's: RMSNorm in float32, rotation by half-widths, repeated key/value heads, the
    ready-made attention, SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, E, F_dim = config.dim, config.head_dim, config.ffn_dim
        self.config, self.embed = config, nn.Embedding(config.vocab_size, D)
        linear = lambda rows, columns: nn.Linear(rows, columns, bias=False)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm": nn.RMSNorm(D), "q": linear(D, config.n_heads * E), "k": linear(D, config.n_kv_heads * E),
            "v": linear(D, config.n_kv_heads * E), "out": linear(config.n_heads * E, D), "ffn_norm": nn.RMSNorm(D),
            "gate": linear(D, F_dim), "up": linear(D, F_dim), "down": linear(F_dim, D),
        }) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(D)
        angles = torch.outer(torch.arange(config.context), config.rope_theta ** (-torch.arange(0, E, 2) / E))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1))    # (context, E)
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        B, T = ids.shape
        share = self.config.n_heads // self.config.n_kv_heads
        heads = lambda part: part.view(B, T, -1, self.config.head_dim)        # (B, T, H, E)
        cos, sin = self.cos[:T, None], self.sin[:T, None]                     # (T, 1, E)
        half = lambda part: torch.cat([-part[..., part.shape[-1] // 2:], part[..., :part.shape[-1] // 2]], dim=-1)
        rotate = lambda part: (part * cos + half(part) * sin).to(part.dtype)
        x = self.embed(ids)                                                   # (B, T, D)
        for block in self.blocks:
            y = block["norm"](x.float()).type_as(x)
            q, k, v = rotate(heads(block["q"](y))), rotate(heads(block["k"](y))), heads(block["v"](y))
            k, v = k.repeat_interleave(share, dim=2), v.repeat_interleave(share, dim=2)
            seen = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), is_causal=True)
            x = x + block["out"](seen.transpose(1, 2).reshape(B, T, -1))
            y = block["ffn_norm"](x.float()).type_as(x)
            x = x + block["down"](F.silu(block["gate"](y)) * block["up"](y))
        logits = F.linear(self.norm(x.float()).type_as(x), self.embed.weight)          # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def losses(config: ModelConfig, dtype: torch.dtype, compiled: bool) -> dict[str, tuple[LossFn, torch.dtype]]:
    """Name -> (loss, dtype of autocast): activations in `dtype`, for HF also the weights; eager, compiled if wanted."""
    if llama(config) is None:
        return {}
    ways, name_of = {}, str(dtype).removeprefix("torch.")
    kinds = [("HF", llama, torch.float32, dtype), ("HF all", llama, dtype, torch.float32),
             ("nanoGPT style", NanoGPT, torch.float32, dtype), ("MiniMind style", MiniMind, torch.float32, dtype)]
    for name, make, weights, autocast in kinds:
        for made in (False, True)[:1 + compiled]:
            if name != "HF all" or dtype != torch.float32:
                peer = make(config).to(weights)
                ways[f"{name}{' compiled' * made} {name_of}"] = (
                    _loss_of(torch.compile(peer, dynamic=False) if made else peer, make is llama), autocast)
    return ways


def _loss_of(peer: nn.Module, is_llama: bool) -> LossFn:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        peer.zero_grad()                                             # the one that is given is ours
        mean = peer(input_ids=batch.tokens, labels=batch.tokens).loss if is_llama else peer(batch.tokens, batch.targets)
        return mean, torch.tensor(batch.tokens.numel())

    return loss


def decode_seconds(config: ModelConfig, prompt: list[int]) -> Callable[[int], float] | None:
    """count -> seconds for so many tokens after the first, greedy, with their cache, in float32."""
    peer = llama(config)
    if peer is None:
        return None
    ids = torch.tensor([prompt])

    def seconds(n: int) -> float:
        return timed(lambda: peer.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n,
                                                  min_new_tokens=n, do_sample=False, pad_token_id=0))

    return lambda count: max(1e-9, seconds(count + 1) - seconds(1))
