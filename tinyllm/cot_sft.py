"""Stage 3: the model learns to write its steps before the answer, and keeps the plain instructions of stage 2 alive.

In: rows with a rationale, plain rows mixed in at a set share, and the checkpoint of stage 2. Out: a run folder. It is
stage 2 with other rows. Explained by tests/test_sft.py.
"""

import random
import sys
from dataclasses import dataclass

from tinyllm import checkpoint, parallel
from tinyllm.config import command, opt, read_settings
from tinyllm.pretrain import show
from tinyllm.sft import Row, SFTConfig, default_files, fine_tune, held_out_share, read_files, split_off


@dataclass
class CoTConfig(SFTConfig):
    """Fine-tune on chains of thought: the answer is written in steps, then stated.

    Without --data it learns the generated problems in data/ (written when they are missing). Your own rows are JSON
    lines {"system", "user", "cot", "final"}. A share of plain instructions is mixed in, so that the model keeps
    answering what needs no steps. Without a limit of steps, tokens or minutes it trains for an hour. Examples:
      python -m tinyllm.cot_sft
      python -m tinyllm.cot_sft --max-minutes 12 --muon-lr 0.008 --batch-ramp 500 1000
      python -m tinyllm.cot_sft --data gsm8k.jsonl.gz --plain-share 0 --out checkpoints/mine
      python -m tinyllm.cot_sft --recipe classic --max-minutes 10 --out checkpoints/classic_cot
    """

    data: list[str] = opt([], "files of rows with steps; data/cot_train.jsonl if absent")
    plain: list[str] = opt([], "files of plain rows to mix in; data/sft_train.jsonl if absent")
    plain_share: float = opt(0.1, "share of plain rows among all", low=0, high=0.95)
    init: str = opt("checkpoints/sft", "checkpoint to start from")
    out: str = opt("checkpoints/cot_sft", "folder for checkpoints and metrics.jsonl")


def mix(rows: list[Row], plain: list[Row], share: float, seed: int) -> list[Row]:
    """All `rows` with as many of `plain` (drawn, the same again only when all are used) as make up `share`."""
    n = round(len(rows) * share / (1 - share))
    rng, drawn = random.Random(seed), []
    while len(drawn) < n and plain:
        drawn += rng.sample(plain, min(n - len(drawn), len(plain)))
    return rows + drawn


def cot_sft(config: CoTConfig) -> dict:
    """Stage 3 as `config` says."""
    if config.plain and not config.plain_share:
        raise ValueError("--plain-share 0 leaves out the rows of --plain; give one of them")
    parallel.start()
    checkpoint.refuse_overwriting(config.init, config.out)           # or a missing one: said before any work
    rows = read_files(config.data or default_files(["cot"], "train"))
    if config.val or not config.data:
        val = read_files(config.val or default_files(["cot"], "val"))
    else:
        rows, val = split_off(rows, held_out_share(config, rows), config.seed)
    plain = read_files(config.plain or default_files(["sft"], "train")) if config.plain_share else []
    return fine_tune(config, mix(rows, plain, config.plain_share, config.seed), val)


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(CoTConfig, "python -m tinyllm.cot_sft", argv)
    show(cot_sft(config), config)


if __name__ == "__main__":
    sys.exit(main())
