"""Stage 1: a model with random weights reads documents packed end to end and learns to predict the next token.

In: a folder of prepared tokens (the built-in texts are prepared when there is none). Out: a run folder with
checkpoints. Explained by tests/test_pretrain.py.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tinyllm import checkpoint, parallel, plot, prepare
from tinyllm.config import command, opt, part, read_settings
from tinyllm.data import PackedRows, TokenFiles, held_out
from tinyllm.induction import plant_induction
from tinyllm.model import BASE, ModelConfig, TinyLLM
from tinyllm.stage import run_stage
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import TrainConfig, TrainState


@dataclass
class PretrainConfig(ModelConfig, TrainConfig):
    """Train a language model from random weights on plain text.

    With no flags it writes the built-in texts, prepares them and trains the `base` model for an hour. Ctrl-C saves;
    the same command goes on where it stopped. Examples:
      python -m tinyllm.pretrain
      python -m tinyllm.pretrain --preset nano --max-minutes 10
      python -m tinyllm.prepare --input my_books/ --out data/books
      python -m tinyllm.pretrain --data data/books --out checkpoints/books --max-minutes 480
    The same minutes with the plain recipe for large models, to compare:
      python -m tinyllm.pretrain --preset nano --max-minutes 10 --recipe classic --out checkpoints/classic
    Several processes share the rows of each step:
      torchrun --nproc_per_node 2 -m tinyllm.pretrain
    """

    preset: str = opt("base", "shape of the model; single flags such as --n-layers win over it",
                      choices=("base", "nano"))
    data: str = opt(prepare.PrepareConfig.out, "folder written by `python -m tinyllm.prepare`")
    init: str = opt("", "checkpoint to start from instead of random weights")
    out: str = opt("checkpoints/pretrain", "folder for checkpoints and metrics.jsonl")
    vocab_size: int = opt(BASE["vocab_size"], "tokens of the vocabulary where the built-in texts are prepared here; "
                          "else that of --data decides", low=2, high=65536)
    start_context: int = opt(256, TrainConfig.__dataclass_fields__["start_context"].metadata["help"], low=0)
    induction: bool = opt(True, "begin with an induction head, which can copy, written into the random weights")
    val_tokens: int = opt(50_000, "validation tokens read each time", low=1)
    json: bool = opt(False, "print the result as JSON")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.max_steps or self.max_tokens or self.max_minutes):
            self.max_minutes = 60.0
        if 0 < self.start_context < self.context and self.context % self.start_context:
            raise ValueError(f"--start-context {self.start_context} does not divide --context {self.context}; give a "
                             "divisor of it, or 0 for whole rows from the start")


def pretrain(config: PretrainConfig) -> dict:
    """Trains as `config` says and returns the result."""
    parallel.start()
    if config.init:
        checkpoint.refuse_overwriting(config.init, config.out)
    with parallel.first_alone():
        prepare_world_if_missing(config)
    tokens, val_tokens = (TokenFiles(config.data, split) for split in ("train", "val"))
    tokenizer = Tokenizer.load(config.data)
    if tokenizer.vocab_size != tokens.vocab_size:
        raise ValueError(f"{config.data}: the tokenizer has {tokenizer.vocab_size} tokens but the text was prepared "
                         f"with {tokens.vocab_size}; run prepare again")
    shape = part(ModelConfig, config)
    shape.vocab_size = tokenizer.vocab_size                          # the data decides
    torch.manual_seed(config.seed)
    if config.init:
        model, tokenizer = start_from(config.init, shape, tokenizer)
    else:
        model = TinyLLM(shape)
        if config.induction and not plant_induction(model, config.seed) and parallel.rank() == 0:
            print("no heads that copy are planted: that takes two layers and two heads", file=sys.stderr)
    batch_at = PackedRows(tokens, shape.context, config.effective_batch_size, config.seed)
    val = held_out(val_tokens, shape.context, config.batch_size, config.val_tokens)
    state = run_stage(model, tokenizer, batch_at, config, config.out, val={"text": val},
                      bytes_per_token=val_tokens.n_bytes / val_tokens.n_tokens)
    return summary(config, state, tokens.n_tokens)


def prepare_world_if_missing(config: PretrainConfig) -> None:
    """Writes and tokenises the built-in texts when the default data folder is empty."""
    if Path(config.data) == Path(prepare.PrepareConfig.out) and not (Path(config.data) / "meta.json").is_file():
        print(f"no prepared text in {config.data}: preparing the built-in texts first", file=sys.stderr)
        prepare.prepare(prepare.PrepareConfig(out=config.data, vocab_size=config.vocab_size))


def start_from(folder: str, shape: ModelConfig, tokenizer: Tokenizer) -> tuple[TinyLLM, Tokenizer]:
    """The model of a checkpoint, if it has this shape and was trained with this tokenizer."""
    model, its_tokenizer = checkpoint.load(folder)
    if its_tokenizer.model != tokenizer.model:
        raise ValueError(f"--init {folder} was trained with another tokenizer than the data; prepare the text again "
                         f"with --tokenizer {checkpoint.resolve(folder)}")
    if model.config != shape:
        flags = " ".join(f"--{'no-' * (its is False)}{name.replace('_', '-')}" + f" {its}" * (type(its) is not bool)
                         for name, its in vars(model.config).items() if its != vars(shape)[name])
        raise ValueError(f"--init {folder} has another shape than asked for; give its --preset, or {flags}")
    return model, its_tokenizer


def summary(config: TrainConfig, state: TrainState, corpus_tokens: int) -> dict:
    """What a run came to: the settings that matter and the last numbers it logged."""
    validated = [row for row in plot.read_metrics(config.out) if "val_loss" in row]
    last = validated[-1] if validated else {}
    return {"out": config.out, "steps": state.step, "tokens": state.tokens, "epochs": state.tokens / corpus_tokens,
            "minutes": state.seconds / 60, "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
            "train_loss": state.loss, "val_loss": last.get("val_loss"), "val_loss_by": last.get("val_loss_by"),
            "bits_per_byte": last.get("bits_per_byte")}


def table(rows: dict) -> str:
    """Names and numbers, one to a line; of numbers by family each its own."""
    rows = dict(pair for name, value in rows.items() for pair in (
        [(f"{name.removesuffix('_by')} {kind}", one) for kind, one in value.items()] if isinstance(value, dict)
        else [(name, value)]))
    shown = {name: f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
             for name, value in rows.items() if value is not None}
    return "\n".join(f"{name.replace('_', ' '):20}{value}" for name, value in shown.items())


def show(result: dict, config: TrainConfig) -> None:
    """Draws the curve and prints the result; of several processes, one does."""
    if parallel.rank() == 0:
        plot.draw_losses(config.out)
        print(json.dumps(result) if config.json else table(result))


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(PretrainConfig, "python -m tinyllm.pretrain", argv)
    show(pretrain(config), config)


if __name__ == "__main__":
    sys.exit(main())
