"""A larger model that begins by doing exactly what a smaller one does: what was learnt in minutes is not learnt again.

In: a checkpoint and a larger shape. Out: a checkpoint of that shape with the same next-token probabilities, for cot_sft
to train on. Explained by tests/test_grow.py.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tinyllm import checkpoint
from tinyllm.config import PRESETS, command, opt, part, read_settings, refuse_checkpoint
from tinyllm.model import Block, ModelConfig, TinyLLM


@dataclass
class GrowConfig(ModelConfig):
    """Make a larger model out of a trained smaller one, without changing what it says.

    New heads, units and layers are random where they read and zero where they write, so at first nobody hears them;
    gradients reach what they write, and training brings them in (Chen et al. 2015, "Net2Net", arXiv:1511.05641). The
    vocabulary stays that of the smaller model. Examples:
      python -m tinyllm.grow --init checkpoints/nano
      python -m tinyllm.cot_sft --init checkpoints/grown --out checkpoints/base --muon-lr 0.0004 --lr 0.0002 --dropout 0
    """

    preset: str = opt("base", "shape of the larger model; single flags such as --n-layers win over it",
                      choices=("base", "nano"))
    init: str = opt("checkpoints/nano", "checkpoint of the smaller model")
    out: str = opt("checkpoints/grown", "folder for the larger one")
    seed: int = opt(0, "of what is random in the new parts", low=0)
    vocab_size: int = opt(PRESETS["base"]["vocab_size"], "has no effect: the vocabulary stays", low=2)
    norm_eps: float = opt(1e-5, "has no effect: follows from that of the smaller model", low=0)


def grow(small: TinyLLM, shape: ModelConfig, seed: int = 0) -> TinyLLM:
    """A model of `shape` with the same logits as `small`, up to rounding. ValueError where it cannot be.

    The hidden state (D,) becomes (D',): D numbers as before, then zeros. The norm divides by the root of a mean over D'
    numbers in place of D, so its weights and its epsilon shrink to match. (The norms of queries and keys share the
    epsilon though they are as wide as before: about 1e-4 of a logit.) Old layers are spread evenly among new ones.
    """
    old = small.config
    for name in ("vocab_size", "head_dim", "rope_theta", "qk_norm"):
        if getattr(shape, name) != getattr(old, name):
            raise ValueError(f"a model cannot grow from {name}={getattr(old, name)} to {getattr(shape, name)}: this "
                             "must stay as it is")
    if shape.n_heads // shape.n_kv_heads != old.n_heads // old.n_kv_heads:
        raise ValueError(f"{old.n_heads // old.n_kv_heads} query heads share a key/value head in the smaller model; "
                         "give the larger one --n-kv-heads to match")
    for name in ("dim", "n_layers", "n_heads", "ffn_dim", "context"):
        if getattr(shape, name) < getattr(old, name):
            raise ValueError(f"a model cannot grow from {name}={getattr(old, name)} to {getattr(shape, name)}; ask for "
                             "at least as much")
    torch.manual_seed(seed)
    narrower = old.dim / shape.dim
    large = TinyLLM(replace(shape, norm_eps=old.norm_eps * narrower)).eval()
    with torch.no_grad():
        _write(large.embed.weight.zero_(), small.embed.weight)
        _write(large.norm.weight, small.norm.weight * narrower ** 0.5)
        for block in large.blocks:
            block.attention.wo.weight.zero_()
            block.ffn.down.weight.zero_()
        for number, block in enumerate(small.blocks):
            _grow_block(large.blocks[number * shape.n_layers // old.n_layers], block, narrower)
    return large


def _grow_block(large: Block, small: Block, narrower: float) -> None:
    for mine, theirs in ((large.attention_norm, small.attention_norm), (large.ffn_norm, small.ffn_norm)):
        _write(mine.weight, theirs.weight * narrower ** 0.5)
    into, out = ("attention.wq", "attention.wk", "attention.wv", "ffn.gate", "ffn.up"), ("attention.wo", "ffn.down")
    for name in into + out:                                          # out: rows and columns beside stay zero
        _write(large.get_submodule(name).weight, small.get_submodule(name).weight)
    if hasattr(small.attention.q_norm, "weight"):
        for name in ("attention.q_norm", "attention.k_norm"):        # as wide as a head, whatever the model
            _write(large.get_submodule(name).weight, small.get_submodule(name).weight)


def _write(large: Tensor, small: Tensor) -> None:
    """Puts `small` into the corner of `large`; what lies beside it stays."""
    large[tuple(slice(0, size) for size in small.shape)] = small


def grow_checkpoint(config: GrowConfig) -> Path:
    """Grows `config.init` into `config.out`; the folder that was written."""
    small, tokenizer = checkpoint.load(config.init)
    refuse_checkpoint(config.out)
    if checkpoint.steps(config.out):
        raise ValueError(f"{config.out} holds a checkpoint already; choose another --out")
    shape = replace(part(ModelConfig, config), vocab_size=small.config.vocab_size)
    large = grow(small, shape, config.seed)
    config.chat = checkpoint.is_chat(config.init)                    # noted in the checkpoint, not a setting
    return checkpoint.save(config.out, large, tokenizer, config, {"step": 0})


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(GrowConfig, "python -m tinyllm.grow", argv)
    print(grow_checkpoint(config))


if __name__ == "__main__":
    sys.exit(main())
