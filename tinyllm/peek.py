"""Look inside: tokens, parameters, FLOPs, tensor shapes, attention, next tokens, surprise, one training batch.

In: a checkpoint (or a preset, where the shape is all that matters) and a text. Out: text for a terminal, or --json.
The facts come from anatomy.py. Explained by tests/test_peek.py.
"""

import json
import math
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from tinyllm import checkpoint
from tinyllm.anatomy import (
    attention_weights,
    batch_table,
    label,
    letters,
    next_tokens,
    parameter_table,
    shape_table,
    surprises,
)
from tinyllm.config import PRESETS, Settings, command, opt, read_command
from tinyllm.data import IGNORE, PackedRows, TokenFiles
from tinyllm.generate import document_prompt, printable
from tinyllm.model import KVCache, ModelConfig, TinyLLM
from tinyllm.report import width
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import TrainConfig

# --- text for a terminal ---

def table(rows: list[dict]) -> str:
    """`rows` with their keys as heading: texts and shapes to the left, numbers to the right."""
    form = lambda x: (f"{x:,}" if isinstance(x, int) else f"{x:.3f}" if isinstance(x, float) else
                      x if isinstance(x, str) else " × ".join(f"{n:,}" for n in x))
    columns = []
    for key in rows[0]:
        cells, number = [key, *(form(row[key]) for row in rows)], isinstance(rows[0][key], (int, float))
        widest = max(map(width, cells))
        gaps = [" " * (widest - width(cell)) for cell in cells]
        columns.append([gap + cell if number else cell + gap for cell, gap in zip(cells, gaps)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))


def joined(labels: list[str], colours: list[int]) -> str:
    """The tokens of a text on background colours, or with | between them where there are no colours."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return "|".join(labels).replace("⏎|", "⏎\n")
    return "".join(f"\033[38;5;16;48;5;{colour}m{text}\033[0m" + "\n" * (text == "⏎")
                   for text, colour in zip(labels, colours))


# --- python -m tinyllm.peek: look() gives the facts for --json and the text for a reader ---

@dataclass
class Peek(Settings):
    """Options of every subcommand that looks at a model."""

    checkpoint: str = opt("", "run or checkpoint folder; the last stage under checkpoints/ when absent")
    json: bool = opt(False, "print JSON")

    def folder(self) -> Path:
        """The checkpoint to look at; says on stderr which."""
        folder = checkpoint.resolve(self.checkpoint) if self.checkpoint else checkpoint.default()
        print(f"using {folder}", file=sys.stderr)
        return folder


@dataclass
class PeekText(Peek):
    """Options of every subcommand that reads a text."""

    text: str = opt("", "the text to look at", positional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text:
            raise ValueError('no text given; write it after the subcommand, in quotes: "Once upon a time"')

    def load(self) -> tuple[TinyLLM, Tokenizer, list[int], list[str]]:
        """The model, its tokenizer, the text as the beginning of a document, and the labels of its tokens."""
        model, tokenizer = checkpoint.load(self.folder())
        ids = document_prompt(tokenizer, self.text)
        return model, tokenizer, ids, [label(tokenizer, id) for id in ids]


@dataclass
class PeekTokens(PeekText):
    """the tokens of a text

    A space is shown as ▁, a newline as ⏎, a byte of a rare character as <0xE9>. Example:
      python -m tinyllm.peek tokens "The cat sat. 小猫坐着。"
    """

    tokenizer: str = opt("", "tokenizer.model file or a folder that holds one; the checkpoint's when absent")

    def look(self) -> tuple[dict, str]:
        if self.tokenizer and self.checkpoint:
            raise ValueError("--tokenizer and --checkpoint each name a tokenizer; give one of them")
        tokenizer = Tokenizer.load(self.tokenizer or self.folder())
        ids, n_chars, n_bytes = tokenizer.encode(self.text), len(self.text), len(self.text.encode())
        labels = [label(tokenizer, id) for id in ids]
        return {"tokens": labels, "ids": ids, "characters": n_chars, "bytes": n_bytes}, (
            f"{joined(labels, [(224, 194, 189, 229, 219)[i % 5] for i in range(len(ids))])}\n\n"
            f"{len(ids)} tokens, {n_chars} characters, {n_bytes} bytes: {n_chars / len(ids):.2f} characters per token\n"
            f"ids: {' '.join(map(str, ids))}")


@dataclass
class PeekConfig(Peek):
    """Options of every subcommand for which the shape of a model is enough."""

    preset: str = opt("", "shape to look at instead of a checkpoint", choices=("", *PRESETS))

    def shape(self) -> ModelConfig:
        """The shape of the preset or else of the checkpoint; no weights are read."""
        if self.preset and self.checkpoint:
            raise ValueError("--preset and --checkpoint both name a model; give one of them")
        if self.preset:
            return ModelConfig(**{field.name: PRESETS[self.preset].get(field.name, field.default)
                                  for field in fields(ModelConfig)})
        try:
            return checkpoint.shape(self.folder())
        except ValueError as error:
            raise ValueError(f"{error}, or look at a shape with --preset base") from None


@dataclass
class PeekParams(PeekConfig):
    """parameters, FLOPs and bytes by part

    Example:
      python -m tinyllm.peek params --preset base
    """

    context: int = opt(0, "tokens that attention looks at; the model's context when 0", low=0)

    def look(self) -> tuple[dict, str]:
        config = self.shape()
        S, rows = self.context or config.context, parameter_table(config, self.context)
        n, flops = (sum(row[key] for row in rows) for key in ("parameters", "flops"))
        kv = 2 * config.n_layers * config.n_kv_heads * config.head_dim       # numbers per token: keys and values
        bytes_of = lambda what, n: {"bytes of": what, "fp32": 4 * n, "bf16": 2 * n, "int8": n}
        memory = [bytes_of("weights", n), bytes_of("KV cache, 1 token", kv),
                  bytes_of(f"KV cache, {S:,} tokens", kv * S)]
        shares = [{"share": row["parameters"] / n, "share of FLOPs": row["flops"] / flops} for row in rows]
        return {"config": asdict(config), "context": S, "parts": rows, "parameters": n, "forward_flops": flops,
                "training_flops": 3 * flops, "memory": memory}, (
            f"{table([row | share for row, share in zip(rows, shares)])}\n\n{n:,} parameters\n"
            f"{flops:,} FLOPs: the forward pass of one token that looks at {S:,}\n"
            f"{3 * flops:,} FLOPs: the same in training, where the backward pass costs twice the forward pass\n\n"
            f"{table(memory)}")


@dataclass
class PeekShapes(PeekConfig):
    """every tensor of one forward pass

    The model runs without numbers, on PyTorch's "meta" device. Example, then decoding one token after 20:
      python -m tinyllm.peek shapes --preset base
      python -m tinyllm.peek shapes --preset base --length 1 --cached 20
    """

    rows: int = opt(2, "sequences read side by side (B)", low=1, high=2 ** 20)
    length: int = opt(12, "new tokens of each (T)", low=1, high=2 ** 20)
    cached: int = opt(0, "tokens already in the KV cache", low=0, high=2 ** 20)

    def look(self) -> tuple[dict, str]:
        config, S = self.shape(), self.cached + self.length
        with torch.device("meta"):
            model, tokens = TinyLLM(config).eval(), torch.zeros(self.rows, self.length, dtype=torch.long)
        cache = KVCache(config, self.rows, S, device="meta")
        cache.length = self.cached                                   # as if they had been read
        tensors, values = shape_table(model, tokens, cache), letters(config, self.rows, self.length, S)
        first = [row for row in tensors if not row["tensor"].startswith("blocks.") or ".0" in row["tensor"]]
        return {"letters": values, "tensors": tensors}, (
            f"{table([{'letter': name, 'here': n} for name, n in values.items()])}\n\n{table(first)}\n\n"
            f"Of {config.n_layers} blocks only the first is shown: the shapes of all are alike.")


@dataclass
class PeekAttention(PeekText):
    """where each token looks, as a triangle of shades

    Layers and heads are counted from 0. Example:
      python -m tinyllm.peek attention --layer 0 --head 2 "The cat sat on the mat."
    """

    layer: int = opt(-1, "block to look at; -1: the last", low=-1)
    head: int = opt(-1, "attention head; -1: the mean over all", low=-1)

    def look(self) -> tuple[dict, str]:
        model, _, ids, labels = self.load()
        weights = attention_weights(model, ids, self.layer)                   # (H, T, T)
        if self.head >= len(weights):
            raise ValueError(f"head {self.head} does not exist: this model has heads 0 to {len(weights) - 1} "
                             "(-1: the mean over all)")
        chosen = (weights.mean(0) if self.head < 0 else weights[self.head]).tolist()
        shade = lambda weight: "·░▒▓█"[sum(weight >= limit for limit in (0.02, 0.1, 0.25, 0.5))]
        columns = 2 if len(ids) <= 40 else 1                                  # of the terminal, for each token
        most = [row.index(max(row)) for row in chosen]
        rows = [{"": t, "token": labels[t], "looks at": "".join(shade(w) * columns for w in row[:t + 1]),
                 "mostly at": f"{most[t]} {labels[most[t]]}", "weight": max(row)} for t, row in enumerate(chosen)]
        layer = self.layer % model.config.n_layers
        who = f"head {self.head}" if self.head >= 0 else f"mean over {len(weights)} heads"
        return {"layer": layer, "head": self.head, "tokens": labels, "weights": chosen}, (
            f"layer {layer} (of 0 to {model.config.n_layers - 1}), {who}; the weights of a row sum to 1\n"
            f"· under 0.02   ░ from 0.02   ▒ from 0.1   ▓ from 0.25   █ from 0.5\n\n{table(rows)}")


@dataclass
class PeekNext(PeekText):
    """the likeliest next tokens

    Example:
      python -m tinyllm.peek next "Once upon a"
    """

    k: int = opt(10, "how many to show", low=1)

    def look(self) -> tuple[dict, str]:
        model, tokenizer, ids, labels = self.load()
        top, entropy = next_tokens(model, ids, self.k)
        rows = [{"token": label(tokenizer, id), "id": id, "probability": p} for id, p in top]
        return {"next": rows, "entropy_bits": entropy}, (
            f"{'|'.join(labels)}| ...\n\n"
            f"{table([row | {'': '█' * round(40 * row['probability'])} for row in rows])}\n\n"
            f"together {sum(p for _, p in top):.3f}; entropy {entropy:.2f} bits, as for {2 ** entropy:,.1f} equally "
            f"likely tokens (of {tokenizer.vocab_size:,})")


@dataclass
class PeekSurprise(PeekText):
    """how unexpected each token of a text is

    Surprise is -log2 of the probability that the model gave the token: 1 bit is a coin toss. Example:
      python -m tinyllm.peek surprise "The cat sat on the moon."
    """

    def look(self) -> tuple[dict, str]:
        model, tokenizer, ids, (_, *labels) = self.load()
        bits, n_bytes = surprises(model, ids).tolist(), len(self.text.encode())
        green_to_red = [(157, 194, 229, 222, 216, 210)[sum(b >= limit for limit in (1, 2, 4, 8, 12))] for b in bits]
        rows = [{"token": text, "bits": b} for text, b in zip(labels, bits)]
        return {"tokens": rows, "total_bits": sum(bits), "bits_per_byte": sum(bits) / n_bytes}, (
            f"{joined(labels, green_to_red)}\n\n{table([row | {'': '█' * round(2 * row['bits'])} for row in rows])}\n\n"
            f"{sum(bits):.1f} bits: {sum(bits) / len(bits):.2f} per token (a blind guess: "
            f"{math.log2(tokenizer.vocab_size):.2f}), {sum(bits) / n_bytes:.3f} per byte (plain text: 8)")


@dataclass
class PeekBatch(Settings):
    """what one training batch looks like

    With the default settings, the rows of this step of `pretrain` (before --start-context cuts them). Example:
      python -m tinyllm.peek batch --data data/tokens --step 100
    """

    data: str = opt("data/tokens", "folder written by `python -m tinyllm.prepare`")
    step: int = opt(0, "optimizer step", low=0)
    preset: str = opt("base", "of the run: gives context and batch size", choices=tuple(PRESETS))
    context: int = opt(PRESETS["base"]["context"], "tokens in a row", low=2)
    effective_batch_size: int = opt(TrainConfig.effective_batch_size, "rows per optimizer step", low=1, high=2 ** 14)
    seed: int = opt(0, "of the run: it orders the rows", low=0)
    positions: int = opt(20, "how many positions of the first row to show", low=1)
    json: bool = opt(False, "print JSON")

    def look(self) -> tuple[dict, str]:
        files = TokenFiles(self.data, "train")
        batch = PackedRows(files, self.context, self.effective_batch_size, self.seed)(self.step)
        tokenizer, n_ignored = Tokenizer.load(self.data), int((batch.targets == IGNORE).sum())
        tokens, targets = batch.tokens.tolist(), batch.targets.tolist()
        texts = [tokenizer.decode(row) for row in tokens]
        starts = [{"row": i, "begins": printable(" ".join(text[:50].split()))} for i, text in enumerate(texts)]
        return {"step": self.step, "tokens": tokens, "targets": targets, "texts": texts}, (
            f"step {self.step}: {len(texts)} rows of {self.context} tokens; "
            f"{batch.targets.numel() - n_ignored:,} targets to learn, {n_ignored:,} IGNORE\n\n{table(starts)}\n\n"
            "row 0: the target of a position is the next token\n"
            f"{table(batch_table(batch, 0, tokenizer)[:self.positions])}")


COMMANDS = {"tokens": PeekTokens, "params": PeekParams, "shapes": PeekShapes, "attention": PeekAttention,
            "next": PeekNext, "surprise": PeekSurprise, "batch": PeekBatch}


@command
def main(argv: list[str] | None = None) -> None:
    _, config = read_command(COMMANDS, "python -m tinyllm.peek", argv)
    facts, text = config.look()
    print(json.dumps(facts, ensure_ascii=False) if config.json else text)


if __name__ == "__main__":
    sys.exit(main())
