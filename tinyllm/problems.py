"""Exercises with exact answers and written steps, in Chinese and English, made from a seed; nothing to download.

Nine families of problems for chains of thought, plain instructions for SFT, and files whose splits share no question.
A problem is a pure function of (index, seed, split). Explained by tests/test_problems.py.
"""

import functools
import itertools
import json
import os
import random
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tinyllm.config import Settings, command, opt, read_settings, start_worker, write_atomically
from tinyllm.exercises import FAMILIES, named, story
from tinyllm.grammar import polished
from tinyllm.lexicon import LANGUAGES, concepts, name, word
from tinyllm.overlap import report, table
from tinyllm.reading import drawn_story
from tinyllm.telling import answer_of, worded
from tinyllm.typed import without_separators
from tinyllm.wordings import Schema, ask, choices, draw, schemas

SPLITS = {"val": 0, "test": 1, "harder": 2}       # hash of the question modulo 10; the other seven belong to train
MAX_LINES = (16, 20)                              # of a rationale; the second for harder: nano reads 256 tokens
# Short, and empty three times in four: most users give none, and every token costs time.
SYSTEMS = {"en": [*[""] * 9, "You are a helpful assistant.", "Think step by step.", "Write down each step."],
           "zh": [*[""] * 9, "你是一个有用的助手。", "请一步一步地想。", "先写步骤，再写答案。"]}
PLAIN_SYSTEMS = {"en": [*[""] * 9, "You are a helpful assistant.", "Answer the question.", "Answer briefly."],
                 "zh": [*[""] * 9, "你是一个有用的助手。", "请回答问题。", "请简短回答。"]}


# How often a family is drawn for training: what is hard for a small model comes more often than what it knows soon.
TRAIN_SHARES = {"expression": 6, "column": 5, "story": 12, "chance": 2, "rate": 1, "equation": 3, "order": 6,
                "series": 3, "reading": 4}


@dataclass
class Problem:
    """One exercise: `final` is the bare answer, `cot` the steps, one a line."""
    system: str
    user: str
    cot: str
    final: str
    family: str
    language: str

    @property
    def steps(self) -> list[str]:
        return self.cot.split("\n")


# ---- instructions without a rationale ------------------------------------------------------------------------------

def data(kind: str) -> Callable:
    """An instruction that is all data: what the world holds true, words to translate, talk, requests to decline."""
    return lambda rng, language, split: _answered(rng.choice(schemas()[kind]), rng, language)


def _answered(schema: Schema, rng: random.Random, language: str) -> tuple[str, str]:
    roles = draw(schema, rng)
    answer = answer_of(schema, roles, language, rng)
    return worded(schema, roles, rng, language), polished(answer, language) if answer[-1] in ".!?。！？" else answer


def lists(rng: random.Random, language: str, split: str) -> tuple[str, str]:
    """Copy, reverse, sort and count short lists of words or numbers."""
    kind = rng.choice(("copy", "reverse", "sort", "count", "first", "last", "longest"))
    words = [word(concept, "", language, None) for concept in
             rng.sample(choices(rng.choice(("fruit", "toy", "stationery", "animal", "vegetable"))), rng.randint(3, 5))]
    numbers = kind != "longest" and (kind == "sort" or rng.random() < 0.4)
    items = list(map(str, rng.sample(range(1, 100), rng.randint(3, 6)))) if numbers else words
    if kind == "longest" and len({len(item) for item in items}) < len(items):
        kind = "copy"
    comma = {"en": ", ", "zh": "，"}[language]
    answer = {"copy": comma.join(items), "reverse": comma.join(reversed(items)), "count": str(len(items)),
              "sort": comma.join(sorted(items, key=int)) if numbers else "", "first": items[0], "last": items[-1],
              "longest": max(items, key=len)}[kind]
    return ask(f"list/{kind}", {"e": comma.join(items)}, language, rng), answer


def tale(rng: random.Random, language: str, split: str) -> tuple[str, str]:
    """A short story of the world about the people and things that are asked for."""
    limit = {"en": 480, "zh": 170}[language]
    while True:
        told = drawn_story(rng, language, split, 4000)
        things = [event.object for event in told.events if event.object and name(event.object, language) in told.text]
        if len(told.text) <= limit and told.events[0].actor and things:
            roles = {"A": concepts()[told.events[0].actor], "X": concepts()[things[0]]}
            return ask("tale", roles, language, rng), told.text


INSTRUCTIONS: dict[str, tuple[Callable, int]] = {
    "facts": (data("know/"), 35), "translate": (data("translate/"), 12), "lists": (lists, 18), "tale": (tale, 15),
    "talk": (data("talk/"), 8), "refuse": (data("refuse/"), 12)}


# ---- one problem, one instruction, as a pure function of its arguments ---------------------------------------------

def normalise(question: str) -> str:
    """What makes a question the question it is: letters of every script and numbers, not case, width, spaces or
    punctuation.

    Where all numbers stand in one expression or equation, only that counts, whatever its letter: `2*13+3=?` and
    "What is 2 × 13 + 3" are one, `3n+5=20` and `3x+5=20` too, `n+5=20` and `□+5=20`.
    """
    text = unicodedata.normalize("NFKC", question).lower().translate(str.maketrans("×÷□", "*/x"))
    text = without_separators(text)
    tight = re.sub(r"\s", "", text)
    sums = re.findall(r"(?:[a-z](?=[-+*/])|[-(]*\d)[-+*/()=\da-z]*[-+*/(=]\(*\d[-+*/()=\d]*", tight)
    if len(sums) == 1 and not re.search(r"\d", tight.replace(sums[0], "")):
        return re.sub(r"[a-z]", "x", sums[0]).rstrip("=")
    return " ".join(re.findall(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+|\d+|[-+*/=<>]", text)) or tight


def split_of(question: str) -> str:
    """The split that owns a question: a hash of its normal form."""
    bucket = zlib.crc32(normalise(question).encode()) % 10
    return next((split for split, number in SPLITS.items() if number == bucket), "train")


def problem(index: int, seed: int = 0, split: str = "train", family: str | None = None,
            language: str | None = None, kinds: str = "") -> Problem:
    """Problem `index` of `split`: the families take turns, even rounds are English; drawn until `split` owns it. With
    `kinds` a word problem of these (exercises.named)."""
    if split not in ("train", *SPLITS):
        raise ValueError(f"split must be train, {', '.join(SPLITS)}, not {split!r}")
    family = "story" if kinds else family or list(FAMILIES)[index % len(FAMILIES)]
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    write_one = functools.partial(story, kinds=kinds) if kinds else FAMILIES[family]
    language = language or LANGUAGES[index // len(FAMILIES) % 2]
    for attempt in itertools.count():
        rng = random.Random(f"{family} {language} {seed} {split} {index} {attempt}")
        question, steps, final = write_one(rng, language, split)
        if split_of(question) == split and len(steps) <= MAX_LINES[split == "harder"]:
            return Problem(rng.choice(SYSTEMS[language]), question, "\n".join(steps), final, family, language)


def instruction(index: int, seed: int = 0, split: str = "train", language: str | None = None) -> dict:
    """Row `index` of the plain instructions: {"system", "user", "assistant", "family", "language"}."""
    language = language or LANGUAGES[index % 2]
    for attempt in itertools.count():
        rng = random.Random(f"instruction {language} {seed} {split} {index} {attempt}")
        kind = rng.choices(list(INSTRUCTIONS), [weight for _, weight in INSTRUCTIONS.values()])[0]
        question, answer = INSTRUCTIONS[kind][0](rng, language, split)
        if split_of(question) == split:
            return {"system": rng.choice(PLAIN_SYSTEMS[language]), "user": question, "assistant": answer,
                    "family": kind, "language": language}


# ---- files and command ---------------------------------------------------------------------------------------------

@dataclass
class ProblemsConfig(Settings):
    """Write questions with answers: cot_*.jsonl with steps, direct_*.jsonl the same without their steps, sft_*.jsonl
    plain instructions, each as train, val and test.

    cot_harder.jsonl has longer expressions, more steps and larger numbers. No question stands in two of the files of
    a kind: a hash of the question decides where it belongs. Without --out a few problems are printed to read.
        python -m tinyllm.problems --out data --cot 40000 --sft 20000
        python -m tinyllm.problems --kinds percent,discount --language zh
    """
    out: str = opt("", "folder for the files; empty prints one problem of each family, or eight of --kinds")
    cot: int = opt(40000, "training problems with steps", low=0)
    direct: int = opt(10000, "training problems with the answer alone", low=0)
    sft: int = opt(20000, "training instructions without steps", low=0)
    val: int = opt(1000, "rows of each validation file", low=0)
    test: int = opt(1000, "rows of each test file", low=0)
    harder: int = opt(1000, "rows of cot_harder.jsonl", low=0)
    seed: int = opt(0, "another seed gives other problems", low=0)
    language: str = opt("both", "keep to one language", choices=(*LANGUAGES, "both"))
    families: str = opt("", "numbers of the families wanted, such as 1,3 (default: all)")
    kinds: str = opt("", "only word problems of these kinds, such as percent,average, or of these files, such as upper")
    json: bool = opt(False, "print the report as JSON")


def wanted(config: ProblemsConfig) -> list[str]:
    """The families of `config`, in order; with kinds only that of word problems."""
    if config.kinds and config.families:
        raise ValueError(f"--kinds {config.kinds} are of family 3 alone; leave out --families {config.families}")
    if config.kinds:
        named(config.kinds)
        return ["story"]
    if not re.fullmatch(rf"([1-{len(FAMILIES)}](,|$))*", config.families):
        raise ValueError(f"--families takes numbers from 1 to {len(FAMILIES)} with commas, not {config.families!r}")
    return [list(FAMILIES)[int(number) - 1] for number in config.families.split(",") if number] or list(FAMILIES)


def cot_row(index: int, config: ProblemsConfig, split: str) -> dict:
    """Row `index` of cot_{split}.jsonl. The families take turns; in train they are drawn, those that take long to learn
    more often."""
    families = wanted(config)
    languages = LANGUAGES if config.language == "both" else (config.language,)
    family, language = families[index % len(families)], languages[index // len(families) % len(languages)]
    if split == "train":
        rng = random.Random(f"family {config.seed} {index}")
        family, = rng.choices(families, [TRAIN_SHARES[family] for family in families])
        language = languages[index % len(languages)]
    one = problem(index, config.seed, split, family, language, config.kinds)
    return {"system": one.system, "user": one.user, "cot": one.cot, "final": one.final, "family": one.family,
            "language": one.language}


def answer_alone(row: dict) -> dict:
    """A row of cot_*.jsonl without its steps: what a model can learn that answers at once."""
    return {key: row[key] for key in ("system", "user", "family", "language")} | {"assistant": row["final"]}


def sft_row(index: int, config: ProblemsConfig, split: str) -> dict:
    """Row `index` of the plain instructions."""
    return instruction(index, config.seed, split, None if config.language == "both" else config.language)


KINDS = {"cot": cot_row, "sft": sft_row}


def rows_of(kind: str, n: int, config: ProblemsConfig, split: str) -> list[dict]:
    """The first `n` rows of a file; outside train none twice. All cores make many rows; the result is the same."""
    if split != "train":
        return list(itertools.islice(_distinct(KINDS[kind](index, config, split) for index in itertools.count()), n))
    starts = range(0, n, 1000)
    chunks = [range(start, min(n, start + 1000)) for start in starts]
    if len(chunks) < 3:
        return [row for chunk in chunks for row in _chunk(kind, config, chunk)]
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8), initializer=start_worker) as pool:
        made = pool.map(functools.partial(_chunk, kind, config), chunks)
        return [row for chunk in tqdm(made, f"{kind}_train", len(chunks), unit="k rows", file=sys.stderr, leave=False,
                                      mininterval=0.2 if sys.stderr.isatty() else 30) for row in chunk]


def _chunk(kind: str, config: ProblemsConfig, numbers: range) -> list[dict]:
    return [KINDS[kind](index, config, "train") for index in numbers]


def _distinct(rows: Iterable[dict]) -> Iterator[dict]:
    """Rows whose question has not come before; stops when 200 in a row have."""
    seen, stale = set(), 0
    for row in rows:
        key = normalise(row["user"])
        stale = stale + 1 if key in seen else 0
        if key not in seen:
            yield row
        elif stale > 200:
            return
        seen.add(key)


def write(config: ProblemsConfig, only: Sequence[str] = ()) -> dict:
    """Write all files of `config`, or `only` those with these names; return the report of what was made."""
    wanted(config)                                                   # a wrong --families is said before any work
    Path(config.out).mkdir(parents=True, exist_ok=True)
    asked = lambda *kinds: lambda split: not only or {f"{kind}_{split}.jsonl" for kind in kinds} & set(only)
    held_out = {"val": config.val, "test": config.test}
    sizes = {"harder": config.harder, "train": max(config.cot, config.direct)} | held_out
    files = {f"cot_{split}": rows_of("cot", sizes[split], config, split)
             for split in filter(asked("cot", "direct"), sizes)}
    sizes = {"train": config.direct} | held_out
    files |= {f"direct_{split}": [answer_alone(row) for row in files[f"cot_{split}"][:sizes[split]]]
              for split in filter(asked("direct"), sizes)}
    if "cot_train" in files:
        files["cot_train"] = files["cot_train"][:config.cot]
    sizes = {"train": config.sft} | held_out
    files |= {f"sft_{split}": rows_of("sft", sizes[split], config, split) for split in filter(asked("sft"), sizes)}
    for file, rows in files.items():
        kind, split = file.split("_")
        n = getattr(config, kind if split == "train" else split)
        if len(rows) < n:
            print(f"{file}: only {len(rows)} of {n} rows, as no other questions turned up", file=sys.stderr)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not only or f"{file}.jsonl" in only:
            write_atomically(Path(config.out) / f"{file}.jsonl", lines.encode())
    return report(files)


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(ProblemsConfig, "python -m tinyllm.problems", argv)
    if config.out:
        facts = write(config)
        print(json.dumps(facts, ensure_ascii=False) if config.json else table(facts))
        return
    for row in rows_of("cot", 8 if config.kinds else len(wanted(config)), config, "val"):
        print(json.dumps(row, ensure_ascii=False) if config.json else
              f"[{row['family']}] {row['user']}\n{row['cot']}\n= {row['final']}\n")


if __name__ == "__main__":
    sys.exit(main())
