"""The whole story in one command: a world is written, read, and learnt by a small model that then writes by itself.

Nothing here is new: it calls prepare, pretrain and generate, shows the same prompts before, during and after
training, and says what each part took. Explained by tests/test_quickstart.py.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass

from tinyllm import checkpoint, plot, prepare
from tinyllm.config import PRESETS, Settings, command, opt, read_settings
from tinyllm.generate import GenerateConfig, continue_text, printable
from tinyllm.model import TinyLLM
from tinyllm.pretrain import PretrainConfig, pretrain
from tinyllm.tokenizer import Tokenizer

PROMPTS = ("Once upon a time, Little Bear", "从前，森林里住着", "Mei had three apples. Tom gave her two more. Now Mei")


@dataclass
class QuickstartConfig(Settings):
    """See a language model being made, in about five minutes on two cores.

    Writes the built-in world, learns a vocabulary from it, turns it into tokens, trains the `nano` model (4 layers,
    256 wide) and lets it write before, during and after. Example:
      python -m tinyllm.quickstart
    Afterwards:
      python -m tinyllm.generate "Once upon a time"
    """

    minutes: float = opt(4.5, "minutes of training", low=0)
    world_documents: int = opt(20_000, "documents of the built-in world to learn from", low=2)
    data: str = opt("data/quickstart", "folder for the tokens")
    out: str = opt("checkpoints/quickstart", "folder for checkpoints and metrics.jsonl")
    seed: int = opt(0, "of world, weights, batches and samples", low=0)
    restart: bool = opt(False, "begin again instead of going on from what is there")
    json: bool = opt(False, "print the result as JSON at the end")


class Story:
    """What the reader sees: samples at three moments, and the time that each part took."""

    def __init__(self, seed: int) -> None:
        self.seed, self.seconds, self.samples = seed, {}, {}
        self.model: TinyLLM | None = None
        self.tokenizer: Tokenizer | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times one part of the story."""
        print(f"\n=== {name} ===", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def sample(self, moment: str) -> None:
        """Lets the model continue each prompt; the same seed at every moment, so only the weights differ."""
        assert self.model is not None and self.tokenizer is not None
        self.model.eval()
        settings = GenerateConfig(max_new_tokens=60, temperature=0.7, seed=self.seed)
        self.samples[moment] = {prompt: "".join(continue_text(self.model, self.tokenizer, prompt, settings))
                                for prompt in PROMPTS}
        print(f"\n--- what it writes {moment} training ---")
        for prompt, text in self.samples[moment].items():
            print(f"[{prompt}]{printable(text)}".replace("\n", "⏎"), flush=True)

    def ready(self, model: TinyLLM, tokenizer: Tokenizer) -> None:
        """Called by pretrain() with the untrained model."""
        self.model, self.tokenizer = model, tokenizer
        print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, "
              f"vocabulary of {tokenizer.vocab_size:,}")
        self.sample("before")

    def watch(self, row: dict) -> None:
        """Called by pretrain() with every row of numbers."""
        if row.get("progress", 0) >= 0.3 and "during" not in self.samples and len(self.samples) == 1:
            self.sample("during")


def quickstart(config: QuickstartConfig) -> dict:
    """Runs every part in order; returns {"seconds": {part: s}, "validation": [...], "samples": {...}, "result"}."""
    story = Story(config.seed)
    with story.part("1. text to tokens: write the world, learn a vocabulary, encode"):
        report = prepare.prepare(prepare.PrepareConfig(
            out=config.data, preset="nano", vocab_size=PRESETS["nano"]["vocab_size"], seed=config.seed,
            world_documents=config.world_documents, restart=config.restart))
        print(prepare.table(report))
    with story.part("2. pretraining: predict the next token, again and again"):
        run = PretrainConfig(preset="nano", **PRESETS["nano"], data=config.data, out=config.out, seed=config.seed,
                             max_minutes=config.minutes, restart=config.restart)
        result = pretrain(run, report=story.watch, ready=story.ready)
        plot.draw_losses(config.out)
    with story.part("3. generation: from the best checkpoint"):
        story.model, story.tokenizer = checkpoint.load(config.out)
        story.sample("after")
    validation = [row for row in plot.read_metrics(config.out) if "val_loss" in row]
    return {"seconds": story.seconds, "validation": validation, "samples": story.samples, "result": result}


def table(report: dict) -> str:
    """Validation loss along the way, then the time of each part."""
    rows = report["validation"]
    shown = [rows[i] for i in sorted({round(i * (len(rows) - 1) / 5) for i in range(6)})]
    lines = ["", "tokens read    minutes   val loss   bits/byte"]
    lines += [f"{row['tokens']:11,} {row['seconds'] / 60:10.1f} {row['val_loss']:10.3f} {row['bits_per_byte']:11.3f}"
              for row in shown]
    lines += [""] + [f"{seconds:7.1f} s  {name}" for name, seconds in report["seconds"].items()]
    return "\n".join([*lines, f"{sum(report['seconds'].values()):7.1f} s  in all"])


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(QuickstartConfig, "python -m tinyllm.quickstart", argv)
    with redirect_stdout(sys.stderr) if config.json else nullcontext():
        report = quickstart(config)
    print(json.dumps(report, ensure_ascii=False) if config.json else table(report))
    print('\nNow try:  python -m tinyllm.generate "Once upon a time"', file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
