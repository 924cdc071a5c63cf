"""Stage 2: a pretrained model learns to answer: the loop of pretraining on rows of questions and answers.

In: JSON lines of conversations and a pretrained checkpoint. Out: a run folder with checkpoints. Only answers and their
end token are learnt. `fine_tune` is the stage itself; cot_sft.py calls it with other rows. Explained by
tests/test_sft.py.
"""

import random
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyllm import chat, checkpoint, parallel, problems
from tinyllm.config import command, opt, read_settings
from tinyllm.data import Example, PackedExamples
from tinyllm.practice import beside, examined, with_drills
from tinyllm.pretrain import show, summary
from tinyllm.stage import run_stage
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import TrainConfig


@dataclass
class SFTConfig(TrainConfig):
    """Fine-tune a pretrained model on questions and answers, with loss on the answers only.

    Without --data it learns the generated instructions and direct answers in data/ (written when they are missing).
    Your own rows are JSON lines: {"system", "user", "assistant"} or {"messages": [...]}. Without a limit of steps,
    tokens or minutes it trains for an hour. Ctrl-C saves; the same command goes on where it stopped. Examples:
      python -m tinyllm.sft
      python -m tinyllm.sft --init checkpoints/pretrain --max-minutes 5
      python -m tinyllm.sft --data my_questions.jsonl --out checkpoints/mine
      python -m tinyllm.sft --recipe classic --max-minutes 5 --out checkpoints/classic_sft
    """

    chat = True                                                      # not a setting: its checkpoints answer questions
    data: list[str] = opt([], "files of rows to learn from; data/sft_train.jsonl and data/direct_train.jsonl if absent")
    val: list[str] = opt([], "files of held-out rows; the matching *_val.jsonl with the default data, else 2% of the "
                             "rows of --data")
    init: str = opt("checkpoints/pretrain", "checkpoint to start from")
    out: str = opt("checkpoints/sft", "folder for checkpoints and metrics.jsonl")
    batch_size: int = opt(8, TrainConfig.__dataclass_fields__["batch_size"].metadata["help"], low=1)
    effective_batch_size: int = opt(0, "rows per optimizer step (0: as many as hold 2,048 tokens)", low=0, high=2 ** 20)
    batch_ramp: list[int] = opt([], "steps at which the rows per optimizer step double", low=1)
    lr: float = opt(3e-3, "peak learning rate of AdamW", low=0)
    muon_lr: float = opt(0.006, "peak learning rate of Muon", low=0)
    schedule: str = opt("linear", TrainConfig.__dataclass_fields__["schedule"].metadata["help"],
                        choices=TrainConfig.__dataclass_fields__["schedule"].metadata["choices"])
    start_context: int = opt(0, "of pretrain only: rows of whole examples are never cut", low=0)
    drills: int = opt(0, "passages with options to choose from beside the rows of each step", low=0)
    dropout: float = opt(0.1, TrainConfig.__dataclass_fields__["dropout"].metadata["help"], low=0, high=0.9)
    val_rows: int = opt(600, "held-out rows read at each validation", low=1)
    json: bool = opt(False, "print the result as JSON")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.max_steps or self.max_tokens or self.max_minutes):
            self.max_minutes = 60.0


class Row(NamedTuple):
    """One conversation of a file and the name under which its validation loss is reported."""

    messages: list[dict]
    family: str


def read_files(paths: Sequence[str]) -> list[Row]:
    """The conversations of JSON-lines files; ValueError with file and line for a bad row."""
    parse = lambda row: Row(chat.messages_of(row), str(row.get("family") or "rows"))
    rows = [row for path in paths for row in chat.read_rows(path, parse)]
    if not rows:
        raise ValueError(f"{', '.join(map(str, paths)) or 'no file'}: no rows to learn from")
    return rows


def to_examples(rows: Sequence[Row], tokenizer: Tokenizer, context: int) -> tuple[list[tuple[str, Example]], int, int]:
    """((family, example) of every row in at most context + 1 ids, number of rows dropped, number cut at the beginning).
    """
    kept, n_cut = [], 0
    for row in rows:
        ids, learn = chat.render_example(tokenizer, row.messages)
        if fitted := chat.fit(ids, learn, context + 1):
            n_cut += len(fitted[0]) < len(ids)
            kept.append((row.family, Example(np.array(fitted[0], np.int32), np.array(fitted[1]))))      # lists: 6 x
    return kept, len(rows) - len(kept), n_cut


def default_files(kinds: Sequence[str], split: str, folder: str = "data") -> list[str]:
    """The generated files of these kinds, written first when they are missing. Files that are there stay as they are.
    """
    paths = [Path(folder) / f"{kind}_{split}.jsonl" for kind in kinds]
    with parallel.first_alone():
        if missing := [path.name for path in paths if not path.is_file()]:
            print(f"no {' or '.join(missing)} in {folder}: writing the built-in problems first", file=sys.stderr)
            problems.write(problems.ProblemsConfig(out=folder), missing)
    return list(map(str, paths))


def split_off(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows) of a user's file without a validation file: about `share` of the questions, one
    at least. Drawn by a hash of the question, so that none stands on both sides, also when rows are added later."""
    asked = [" ".join(one["content"] for one in row.messages if one["role"] == "user") for row in rows]
    lots = [zlib.crc32(f"{seed} {problems.normalise(question)}".encode()) for question in asked]
    if len(set(lots)) < 2:
        raise ValueError(f"{len(set(lots))} question is too little to train on and to validate with; add rows or give "
                         "--val")
    end = min(max(int(share * 2 ** 32), min(lots) + 1), max(lots))
    return ([row for row, lot in zip(rows, lots) if lot >= end], [row for row, lot in zip(rows, lots) if lot < end])


def held_out_share(config: SFTConfig, rows: list[Row]) -> float:
    """2% of a user's rows, but no more than are read at a validation: the others are to be learnt from."""
    return min(0.02, config.val_rows / max(1, len(rows)))


def fine_tune(config: SFTConfig, train_rows: list[Row], val_rows: list[Row]) -> dict:
    """Trains the checkpoint `config.init` on `train_rows`; returns the result."""
    model, tokenizer = checkpoint.load(config.init)
    context = model.config.context
    examples, dropped, cut = to_examples(train_rows, tokenizer, context)
    random.Random(config.seed).shuffle(val_rows)
    held_out, val_dropped, val_cut = to_examples(val_rows[:config.val_rows], tokenizer, context)
    packed = lambda chosen, rows, doublings=(): PackedExamples([example for _, example in chosen], context, rows,
                                                               config.seed, tokenizer.pad, doublings)
    for kind, fitting, rows in (("training", examples, train_rows), ("validation", held_out, val_rows)):
        if not fitting:
            raise ValueError(f"none of {len(rows)} {kind} rows fits in context={context}; the last answer must fit "
                             "whole: use shorter rows or a larger model")
    val = {family: packed([one for one in held_out if one[0] == family], config.batch_size).batches()
           for family in sorted({family for family, _ in held_out})}
    batch_at = packed(examples, config.effective_batch_size or max(1, 2048 // context), config.batch_ramp)
    said = [f"{len(examples):,} examples of {batch_at.n_tokens / len(examples):.0f} tokens on average fill "
            f"{batch_at.fill:.1%} of {len(batch_at.packed):,} rows of {context}"]
    said += [f"{training:,} training and {validation:,} validation rows are longer than {context} tokens: {fate}"
             for training, validation, fate in (
                 (cut, val_cut, "their beginning is cut off"),
                 (dropped, val_dropped, "so are their answers, and they are dropped")) if training or validation]
    if parallel.rank() == 0:
        print("\n".join(said), file=sys.stderr)
    state = run_stage(model, tokenizer, beside(batch_at, config.drills), config, config.out, val=val,
                      loss_fn=with_drills(tokenizer, context, config.seed))
    result = summary(config, state, len(batch_at.packed) * context)
    result |= {"examples": len(examples), "dropped": dropped, "cut": cut, "fill": batch_at.fill}
    return result | examined(model, tokenizer) if config.drills else result


def sft(config: SFTConfig) -> dict:
    """Stage 2 as `config` says."""
    parallel.start()
    checkpoint.refuse_overwriting(config.init, config.out)           # or a missing one: said before any work
    kinds = ("sft", "direct")
    rows = read_files(config.data or default_files(kinds, "train"))
    if config.val or not config.data:
        return fine_tune(config, rows, read_files(config.val or default_files(kinds, "val")))
    return fine_tune(config, *split_off(rows, held_out_share(config, rows), config.seed))


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(SFTConfig, "python -m tinyllm.sft", argv)
    show(sft(config), config)


if __name__ == "__main__":
    sys.exit(main())
