"""Any text -> cleaned, de-duplicated, split and tokenised uint16 files with a meta.json: what pretraining reads.

The main process cuts the input into parts; workers clean, fingerprint and tokenise them, one file per finished part,
so that an interrupted run continues; then one pass over the parts decides what is kept. Memory stays bounded however
large the input. In: .txt .md .jsonl (also .gz). Explained by tests/test_prepare.py.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinyllm import __version__, clean, corpus, schoolbook, tokenizer, vocabulary, world
from tinyllm.config import PRESETS, Settings, command, hold, opt, read_settings, refuse_checkpoint, write_atomically
from tinyllm.corpus import Tally
from tinyllm.made_by import code_of, continue_or_clear, finished_report, has_plan
from tinyllm.parts import held_out, make_parts, read_parts, survivors, text_hash, write_shards
from tinyllm.tokenizer import Tokenizer

SAMPLE_CHARS = 2 * vocabulary.SAMPLE_CHARS                           # cleaning takes some of it


@dataclass
class PrepareConfig(Settings):
    """Turn text into token files to train on: clean, remove duplicates, split, tokenise.

    Give it files or folders of .txt, .md or .jsonl ({"text": ...} a line), also .gz. Without --input it takes the
    generated world and a schoolbook of worked exercises. Stop it whenever you like: the same command goes on.
        python -m tinyllm.prepare
        python -m tinyllm.prepare --input books/ notes.txt --documents file --out data/books
    """

    input: list[str] = opt([], "files or folders; without any, the documents of the generated world and schoolbook")
    out: str = opt("data/tokens", "folder for the token files, meta.json and tokenizer.model")
    documents: str = opt("block", "what a document is in .txt and .md: the text between blank lines, or a whole file",
                         choices=("block", "file"))
    tokenizer: str = opt("", "tokenizer.model to use; trained on the input when absent")
    preset: str = opt("base", "the model that will read the tokens; gives the vocabulary size", choices=tuple(PRESETS))
    vocab_size: int = opt(PRESETS["base"]["vocab_size"], "tokens in the tokenizer that is trained here",
                          low=300, high=65535)
    world_documents: int = opt(50_000, "without --input: how many documents, a quarter of them stories "
                               "of the world, the others pages of a schoolbook", low=2)
    val_share: float = opt(0.01, "share of the documents held out for validation, at least one", low=1e-6, high=0.5)
    min_bytes: int = opt(20, "drop shorter documents (in bytes: 7 Chinese characters say as much as 20 letters)", low=0)
    max_chars: int = opt(100_000, "cut longer documents at the end of a line or sentence; nothing is lost", low=100)
    near_duplicates: float = opt(0.8, "drop a document that resembles an earlier one this much (0 keeps it)",
                                 low=0, high=1)
    skip_bad: bool = opt(False, "count and skip unreadable files and lines instead of stopping")
    part_chars: int = opt(2_000_000, "characters a worker takes at a time", low=100)
    workers: int = opt(0, "processes; 0 means one per core, at most 8", low=0, high=256)
    restart: bool = opt(False, "start over even if there is something to continue")
    seed: int = opt(0, "draws the world and the tokenizer's sample", low=0)
    json: bool = opt(False, "print the report as JSON")

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.near_duplicates < 0.5:
            raise ValueError(f"--near-duplicates must be 0 or at least 0.5, not {self.near_duplicates}: "
                             "texts on the same subject already share that much")


def prepare(config: PrepareConfig) -> dict:
    """The report on what was kept and dropped; writes `out`/train-*.bin, val-*.bin, tokenizer.model and meta.json.

    The files depend on the input and the settings alone, not on the number of workers or on interruptions.
    """
    started = time.perf_counter()
    out, folder = Path(config.out), Path(config.out) / "parts"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    refuse_checkpoint(out)
    files = corpus.find_files(config.input)
    if not files:
        say(f"no --input: taking {config.world_documents:,} documents of the generated world and schoolbook")
    plan = make_plan(config, files)
    if not config.restart and (report := finished_report(out, plan)):
        say(f"{out} already holds exactly this; --restart makes it again")
        if has_plan(folder, plan):                                   # stopped between its last two steps
            shutil.rmtree(folder)
        return report
    with hold(out, "prepare"):
        return made(config, files, plan, started)


def made(config: PrepareConfig, files: list[Path], plan: dict, started: float) -> dict:
    """The work of prepare(), by the only process that does it."""
    out, folder = Path(config.out), Path(config.out) / "parts"
    n_finished, notes = continue_or_clear(folder, plan, config.restart), Tally()
    words = working_tokenizer(config, folder, documents(config, files, Tally(), "sampling for the tokenizer"))
    try:
        read = make_parts(documents(config, files, notes, "cleaning and tokenising"), folder, words.model,
                          part_chars=config.part_chars, min_bytes=config.min_bytes,
                          workers=config.workers or min(os.cpu_count() or 1, 8))
        report = merge(folder, out, config, words, plan, {"read": read, "notes": notes})
    except KeyboardInterrupt:
        say("\ninterrupted; the same command" + " without --restart" * config.restart + " continues from here")
        raise
    shutil.rmtree(folder)
    average = report["kept"]["characters"] / report["kept"]["documents"]
    if files and config.documents == "block" and average < 300:
        say(f"documents have {average:.0f} characters on average; --documents file keeps long texts together")
    seconds = time.perf_counter() - started
    speed = {} if n_finished else {"megabytes_per_second": read["bytes"] / 1e6 / seconds}
    return report | {"seconds": seconds} | speed


def say(message: str) -> None:
    """One line on stderr, where progress belongs."""
    print(message, file=sys.stderr)


def documents(config: PrepareConfig, files: list[Path], notes: Tally, doing: str) -> Iterator[str]:
    """The raw documents of the input, with a progress bar that says what is being done."""
    if not files:
        stories = world.documents(-(-config.world_documents // 4), config.seed)
        pages = schoolbook.pages(config.world_documents, config.seed)
        by_turns = ((next(pages) if number % 4 else next(stories)) for number in range(config.world_documents))
        yield from tqdm(by_turns, doing, config.world_documents, unit=" documents")
        return
    size = sum(file.stat().st_size for file in files if file.exists())
    with tqdm(None, doing, size, unit="B", unit_scale=True) as bar:
        yield from corpus.read_documents(files, whole_files=config.documents == "file", max_chars=config.max_chars,
                                         skip_bad=config.skip_bad, notes=notes, progress=bar.update)


def make_plan(config: PrepareConfig, files: list[Path]) -> dict:
    """Everything the result depends on. Parts made under another plan must not be mixed in."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("out", "workers", "restart", "json")}
    if config.tokenizer:
        settings["tokenizer"] = hashlib.sha256(Tokenizer.load(config.tokenizer).model).hexdigest()
    code = [hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            code_of("clean", "corpus", "parts", *(() if files else ("world", "schoolbook")))]
    stats = [file.stat() if file.exists() else None for file in files]                       # None: a broken link
    return {"version": __version__, "code": code, "settings": settings,
            "inputs": [[str(file), stat and [stat.st_size, stat.st_mtime_ns]] for file, stat in zip(files, stats)]}


def working_tokenizer(config: PrepareConfig, folder: Path, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of this run, kept in `folder`: the one given, or one trained on a sample of `texts`."""
    if not (folder / "tokenizer.model").exists():
        if config.tokenizer:
            Tokenizer.load(config.tokenizer).save(folder / "tokenizer.model")
        else:
            some = sample(texts, SAMPLE_CHARS * config.vocab_size, config.val_share, config.seed)
            tokenizer.train(some, config.vocab_size, folder, config.seed)
    return Tokenizer.load(folder)


def sample(texts: Iterable[str], size: int, val_share: float, seed: int) -> Iterator[str]:
    """Cleaned documents, none whose hash says validation, drawn evenly from the whole input, at most `size` characters.

    When the sample gets too large a random half of it leaves, and later documents enter half as often. Drawn, not
    every k-th: a corpus that alternates between two languages would lose one of them.
    """
    rng = random.Random(seed)
    kept, chars, share = [], 0, 1.0
    for text in texts:
        if rng.random() < share:
            kept.append(text)
            chars += len(text)
        while chars > size and len(kept) > 1:
            kept, share = [one for one in kept if rng.random() < 0.5] or kept[:1], share / 2
            chars = sum(map(len, kept))
    for raw in kept:
        text, _ = clean.clean(raw)
        if text and text_hash(text) >= val_share * 2.0**64:
            yield text


# --- parts -> token files ---

def merge(folder: Path, out: Path, config: PrepareConfig, words: Tokenizer, plan: dict, report: dict) -> dict:
    """Decides which documents stay, writes the token files and, last of all, meta.json; returns the report."""
    parts = read_parts(folder)
    kept = survivors(parts, config.near_duplicates)
    val = kept & held_out(parts.hashes, kept, config.val_share)
    report |= {"dropped": parts.dropped, "removed": parts.removed, "kept": totals(parts.sizes[kept])}
    meta = {"dtype": "uint16", "vocab_size": words.vocab_size, "eos": words.eos, "seed": config.seed}
    for split, chosen in (("train", kept & ~val), ("val", val)):
        report[split] = totals(parts.sizes[chosen])
        meta[split] = {"files": write_shards(parts, chosen, folder, split)} | report[split]
    report["vocab_size"] = words.vocab_size

    (out / "meta.json").unlink(missing_ok=True)                       # from here on the old files are incomplete
    for old in [*out.glob("train-*.bin"), *out.glob("val-*.bin")]:
        old.unlink()
    for name in [*meta["train"]["files"], *meta["val"]["files"]]:
        (folder / name).replace(out / name)
    words.save(out / "tokenizer.model")
    content = json.dumps(meta | {"report": report} | plan, ensure_ascii=False, indent=1)
    write_atomically(out / "meta.json", content.encode())
    return report


def totals(sizes: np.ndarray) -> dict:
    """Sums of (n, 3) sizes by name."""
    tokens, characters, n_bytes = map(int, sizes.sum(axis=0, dtype=np.int64))
    return {"documents": len(sizes), "tokens": tokens, "characters": characters, "bytes": n_bytes}


# --- python -m tinyllm.prepare ---

def table(report: dict) -> str:
    """The report for a reader: where every document and every character went."""
    read, kept = report["read"], report["kept"]
    lines = [f"{'documents':28}{'count':>12}{'share':>8}{'characters':>16}{'share':>8}"]

    def row(name: str, count: int, characters: int, share: bool = True) -> None:
        part = f"{count / max(1, read['documents']):8.2%}" if share else " " * 8
        lines.append(f"{name:28}{count:12,}{part}{characters:16,}{characters / max(1, read['characters']):8.2%}")

    row("read", read["documents"], read["characters"])
    for reason, (count, characters) in report["dropped"].items():
        row(f"  {reason}", count, characters)
    for reason, (count, characters) in report["removed"].items():
        row(f"  in them: {reason}", count, characters, share=False)
    row("kept", kept["documents"], kept["characters"])
    for reason, (count, _) in report["notes"].items():
        lines.append(f"{reason:28}{count:12,}")
    lines.append("")
    for name in ("train", "val"):
        counts = (f"{report[name][unit]:14,} {unit}" for unit in ("documents", "tokens", "bytes"))
        lines.append(f"{name:6}" + "".join(counts))
    per_token = f"{kept['characters'] / kept['tokens']:.2f} characters or {kept['bytes'] / kept['tokens']:.2f} bytes"
    lines.append(f"{per_token} a token, vocabulary of {report['vocab_size']:,}")
    times = [f"{report[key]:.1f} {unit}" for key, unit in (("seconds", "seconds"), ("megabytes_per_second", "MB/s"))
             if key in report]
    if times:
        lines.append(", ".join(times))
    return "\n".join(lines)


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(PrepareConfig, "python -m tinyllm.prepare", argv)
    report = prepare(config)
    print(json.dumps(report, ensure_ascii=False) if config.json else f"{table(report)}\nwritten to {config.out}")


if __name__ == "__main__":
    main()
