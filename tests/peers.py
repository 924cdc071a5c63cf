"""The same shape in Hugging Face's transformers, beside ours where it is installed; skip this at first reading.

The package never imports it. In: a shape. Out: ways to one loss and to the next tokens, for bench.py. Their Llama has
all that ours has but QK-norm. Explained by tests/test_bench.py.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

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


def losses(config: ModelConfig, dtype: torch.dtype, compiled: bool) -> dict[str, tuple[LossFn, torch.dtype]]:
    """Name -> (loss, dtype of autocast): activations in `dtype`, or the weights too; eager, and compiled if wanted."""
    ways, kinds = {}, [("HF", torch.float32, dtype), ("HF all", dtype, torch.float32)]
    for name, weights, autocast in kinds[:1 + (dtype != torch.float32)]:
        for made in (False, True)[:1 + compiled]:
            peer = llama(config)
            if peer is None:
                return {}
            peer = peer.to(weights)
            ways[f"{name}{' compiled' * made} {str(dtype).removeprefix('torch.')}"] = (
                _loss_of(torch.compile(peer) if made else peer), autocast)
    return ways


def _loss_of(peer: nn.Module) -> LossFn:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        peer.zero_grad()                                             # the one that is given is ours
        return peer(input_ids=batch.tokens, labels=batch.tokens).loss, torch.tensor(batch.tokens.numel())

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
