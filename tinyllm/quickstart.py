"""The whole book in one command: a model reads, learns to answer, learns to think before it answers, and is examined.

Nothing here is new: it calls problems, prepare, pretrain, sft, cot_sft, grow, evaluate and scorer one after the other
and shows in the end what the model could do after each. Explained by tests/test_quickstart.py.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tinyllm import checkpoint, choices, plot, prepare, problems, tokenizer
from tinyllm.config import PRESETS, Settings, command, opt, read_json, read_settings, write_atomically
from tinyllm.config import part as part_of
from tinyllm.cot_sft import CoTConfig, cot_sft
from tinyllm.evaluate import EvaluateConfig, ask, grouped, read_questions
from tinyllm.generate import GenerateConfig, answer, continue_text, conversation, printable
from tinyllm.grow import GrowConfig, grow_checkpoint
from tinyllm.made_by import code_of
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.pretrain import PretrainConfig, pretrain
from tinyllm.report import by_group, grid, in_short
from tinyllm.scorer import EvalConfig, evaluate_scorer
from tinyllm.sft import SFTConfig, read_files, sft
from tinyllm.shortcuts import table as accuracies
from tinyllm.timing import forward_backward, random_batch
from tinyllm.train import next_token_loss, pick_dtype
from tinyllm.train_head import ScorerConfig, train_scorer

STORY = "Once upon a time, Little Bear"
QUESTION = "计算：12*(3+4)-10"
HALF = {"dim": 128, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 352}               # of the width of nano
SHARES = {"nano": {"pretrain": 0.04, "sft": 0.03, "cot_sft": 0.93},              # of the minutes of training
          "base": {"pretrain": 0.02, "sft": 0.01, "cot_sft": 0.91, "base": 0.06}}
MORE = 0.5                               # for base so many times the problems again, of the families that take longest
NAMES = {"pretrain": "pretrained only", "sft": "SFT, answers at once", "cot_sft": "CoT-SFT, steps first",
         "base": "base, grown from it"}


@dataclass
class QuickstartConfig(Settings):
    """See a model being made that reasons, in less than a quarter of an hour on two cores.

    Writes a small world and a schoolbook, learns a vocabulary, then trains `nano` (4 layers, 256 wide) in three stages:
    to continue texts, to answer questions, to write its steps before the answer. Then every stage sits the same test
    of questions it has never seen. At last a head learns to choose among options, on the model that ships.
    A model that reads fewer tokens than it has weights is too large for its minutes; where this machine is so slow,
    one half as wide is trained, which reads two to three times as many. With --preset base `nano` has most of the
    minutes, for it learns more in one, and then grows into `base`, which goes on gently. Stop it whenever you like:
    the same command goes on. Examples:
      python -m tinyllm.quickstart
      python -m tinyllm.quickstart --minutes 42 --problems 200000 --batch-ramp 1000 2500 --data data/long \\
          --out checkpoints/long
      python -m tinyllm.quickstart --preset base --minutes 140 --problems 400000 --documents 12000 \\
          --instructions 15000 --questions 360 --batch-ramp 1000 2500 --data data/large --out checkpoints/large
    Afterwards:
      python -m tinyllm.generate --checkpoint checkpoints/quickstart/cot_sft --self-consistency 5 "计算：12*(3+4)-10"
    """

    preset: str = opt("auto", "shape of the model in the end; auto: nano, or half its width where the CPU is too slow "
                              "for nano; base takes hours", choices=("auto", "half", "nano", "base"))
    minutes: float = opt(12.5, "minutes of training, all stages together", low=0.01)
    batch_ramp: list[int] = opt([500, 1000], "steps of the third stage at which the rows per step double", low=1)
    documents: int = opt(6_000, "stories and pages of the schoolbook to read", low=2)
    problems: int = opt(50_000, "problems with steps to learn from", low=10)
    instructions: int = opt(5_000, "plain instructions, and as many problems with the answer alone", low=10)
    questions: int = opt(180, "questions of the test", low=1)
    self_consistency: int = opt(5, "attempts that vote in the test", low=1)
    options: int = opt(400, "reading questions to train the head of the last part on (0: leave it out)", low=0)
    data: str = opt("data/quickstart", "folder for texts, questions and tokens")
    out: str = opt("checkpoints/quickstart", "folder for the checkpoints of the stages")
    seed: int = opt(0, "of world, weights, batches and samples", low=0)
    restart: bool = opt(False, "begin again instead of going on from what is there")
    json: bool = opt(False, "print the result as JSON at the end")


@contextmanager
def part(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Prints the heading of one part of the story and notes in `seconds` how long it took."""
    name = f"{len(seconds) + 1}. {name}"
    print(f"\n=== {name} ===", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


def quickstart(config: QuickstartConfig) -> dict:
    """Runs every part in order; returns {"seconds": {part: s}, "results": {stage: ...}, "test": {stage: groups},
    "weights": how many the last model has, "chosen": {baseline or head: accuracy}}."""
    out, data, seconds, results, test, chosen = Path(config.out), Path(config.data), {}, {}, {}, {}
    with part("texts and questions: a world, a schoolbook, a vocabulary", seconds):
        write_problems(config)
        report = prepare.prepare(prepare.PrepareConfig(
            out=config.data, preset="nano", seed=config.seed, world_documents=config.documents, restart=config.restart,
            tokenizer=learn_words(config)))
        print(prepare.table(report))
    shared = {"seed": config.seed, "restart": config.restart, "val_every": 300}
    shares = SHARES["base" if config.preset == "base" else "nano"]
    minutes = {stage: config.minutes * share for stage, share in shares.items()}
    with part("pretraining: predict the next token, again and again", seconds):
        half = is_half(config, minutes["cot_sft"])
        shape = PRESETS["nano"] | (HALF if half else {})
        results["pretrain"] = pretrain(PretrainConfig(
            preset="nano", **shape, data=config.data, out=str(out / "pretrain"),
            start_context=0, val_tokens=20_000, max_minutes=minutes["pretrain"], **shared))
        model, words = checkpoint.load(out / "pretrain")
        settings = GenerateConfig(max_new_tokens=60, seed=config.seed)
        print(f"[{STORY}]" + printable("".join(continue_text(model, words, STORY, settings))))
    with part("SFT: answer instead of continuing", seconds):
        results["sft"] = sft(SFTConfig(
            data=[str(data / "sft_train.jsonl"), str(data / "direct_train.jsonl")],
            val=[str(data / "sft_val.jsonl"), str(data / "direct_val.jsonl")], init=str(out / "pretrain"),
            out=str(out / "sft"), max_minutes=minutes["sft"], dropout=0.0, **shared))
    steps = shared | {"data": [f"{folder.out}/cot_train.jsonl" for folder in question_folders(config)],
                      "val": [str(data / "cot_val.jsonl")], "plain": [str(data / "sft_train.jsonl")], "dropout": 0.0}
    with part("CoT-SFT: think, then answer", seconds):
        results["cot_sft"] = cot_sft(CoTConfig(
            init=str(out / "sft"), out=str(out / "cot_sft"), max_minutes=minutes["cot_sft"],
            muon_lr=0.014 if half else 0.008,                        # narrow matrices bear longer steps (docs/log.md)
            batch_ramp=config.batch_ramp, **steps))
    if "base" in minutes:
        with part("base begins where nano ended, and goes on", seconds):
            shutil.rmtree(out / "grown", ignore_errors=True)         # made anew: seconds, and never of an older nano
            grow_checkpoint(GrowConfig(init=str(out / "cot_sft"), out=str(out / "grown"), seed=config.seed,
                                       **PRESETS["base"]))
            results["base"] = cot_sft(CoTConfig(
                init=str(out / "grown"), out=str(out / "base"), max_minutes=minutes["base"], muon_lr=0.0004, lr=0.0002,
                effective_batch_size=16, **steps))
    for stage in minutes:
        plot.draw_losses(out / stage)
    with part("the test: the same questions for every stage", seconds):
        questions = read_questions(data / "cot_test.jsonl", config.questions)
        for stage in minutes:
            model, words = checkpoint.load(out / stage)
            room = {"max_new_tokens": 64} if stage == "pretrain" else {}             # its answer is one line
            settings = EvaluateConfig(self_consistency=config.self_consistency, seed=config.seed, **room)
            answered = ask(model, words, questions, settings, is_chat=stage != "pretrain", label=stage)
            test[stage] = grouped(answered)
    with part("one question, several attempts, one vote", seconds):
        print(f"{QUESTION}\n")
        settings = GenerateConfig(self_consistency=config.self_consistency, seed=config.seed)
        answer(model, words, conversation(settings, QUESTION), settings)
    if config.options and not checkpoint.SHIPPED.is_dir():
        print(f"{checkpoint.SHIPPED}: no model here that has practised choosing; the last part is left out",
              file=sys.stderr)
    elif config.options:
        with part("choosing among options: a head on the model that ships, which has practised it", seconds):
            chosen = choose(config)
            print(accuracies({"reading questions": chosen}))
    return {"seconds": seconds, "results": results, "test": test, "weights": model.n_weights, "chosen": chosen}


def is_half(config: QuickstartConfig, minutes: float) -> bool:
    """Whether to train half the width: where nano would read fewer tokens in `minutes` than it has weights.

    Hoffmann et al. 2022 (arXiv:2203.15556) would have twenty tokens for each weight; with half a token, half the width
    is far ahead (docs/log.md). The optimizer is not timed, so doubt speaks for nano. A run that has begun keeps its
    width.
    """
    begun = Path(config.out) / "pretrain"
    if config.preset != "auto":
        return config.preset == "half"
    if checkpoint.steps(begun) and not config.restart:
        return checkpoint.shape(begun).dim == HALF["dim"]
    model = TinyLLM(part_of(ModelConfig, PretrainConfig(**PRESETS["nano"])))
    batch, dtype = random_batch(model, 8, model.config.context), pick_dtype("auto")
    seconds = min(forward_backward(model, batch, next_token_loss, dtype) for _ in range(5))
    tokens = 60 * minutes * batch.tokens.numel() / seconds
    print(f"nano has {model.n_weights / 1e6:.1f} M weights and would read {tokens / 1e6:.1f} M tokens of solutions "
          "here: " + ("a model half as wide learns more" if tokens < model.n_weights else "enough for it"))
    return tokens < model.n_weights


def choose(config: QuickstartConfig) -> dict:
    """Trains a head on generated reading questions; its accuracy on others, beside the baselines."""
    data, n = Path(config.data), config.options
    choices.write(choices.ChoicesConfig(out=str(data), options=n, labels=0, val=max(1, n // 4), test=max(1, n // 2),
                                        seed=config.seed))
    train, val, test = (str(data / f"options_{split}.jsonl") for split in choices.SPLITS)
    head = ScorerConfig(checkpoint=str(checkpoint.SHIPPED), data=[train], val=[val], states=str(data / "states"),
                        out=str(Path(config.out) / "scorer"), seed=config.seed)
    train_scorer(head)
    return evaluate_scorer(EvalConfig(head=head.out, data=test, states=head.states))["accuracy"]


def question_folders(config: QuickstartConfig) -> list[problems.ProblemsConfig]:
    """The folders of questions: one for all stages and, for a long run, one with more stories and passages."""
    every = problems.ProblemsConfig(out=config.data, cot=config.problems, sft=config.instructions,
                                    direct=config.instructions, val=min(180, config.problems),
                                    test=max(360, config.questions), harder=360, seed=config.seed)
    more = replace(every, out=f"{config.data}/more", families="3,9", cot=int(config.problems * MORE),
                   direct=0, seed=config.seed + 1)
    return [every, more] if config.preset == "base" else [every]


def write_problems(config: QuickstartConfig) -> None:
    """The questions of all stages; kept if the same settings and the same code wrote them before."""
    every, *more = question_folders(config)
    note = Path(config.data) / "problems.json"
    made_by = {"settings": [asdict(every), *map(asdict, more)], "code": code_of("problems", "tokenizer")}
    if not config.restart and note.is_file() and read_json(note) == made_by:
        print(f"the questions in {config.data} are already written", file=sys.stderr)
        return
    for old in (note, words_of(config) / "tokenizer.model"):         # no note beside half of the files, no vocabulary
        old.unlink(missing_ok=True)                                  # of other questions
    problems.write(every)
    for folder in more:
        problems.write(folder, ["cot_train.jsonl"])
    write_atomically(note, json.dumps(made_by).encode())


def words_of(config: QuickstartConfig) -> Path:
    """The folder of the vocabulary."""
    return Path(config.data) / "words"


def learn_words(config: QuickstartConfig) -> str:
    """The folder of a vocabulary learnt from the questions and their answers, so that a name or a thing is one token in
    most of them; learnt once."""
    folder = words_of(config)
    if not (folder / "tokenizer.model").is_file():
        rows = read_files([str(Path(config.data) / f"{kind}_train.jsonl") for kind in ("cot", "sft")])
        texts = ("\n".join(message["content"] for message in row.messages) for row in rows)
        tokenizer.train(texts, PRESETS["nano"]["vocab_size"], folder, config.seed)
    return str(folder)


def table(report: dict) -> str:
    """The stages on the same test, the last one by family, and the time of each part."""
    head, *short = in_short([groups["all"] for groups in report["test"].values()])
    rows = [["stage", "minutes", "tokens", *head]]
    for stage, row in zip(report["test"], short):
        run = report["results"][stage]
        rows.append([NAMES[stage], f"{run['minutes']:.1f}", f"{run['tokens']:,}", *row])
    *_, (stage, last) = report["test"].items()
    title = f"{NAMES[stage]} ({report['weights'] / 1e6:.1f} M weights): by family and language"
    lines = ["", *grid(rows), "", title, "", *by_group(last), ""]
    lines += [f"{seconds:7.1f} s  {name}" for name, seconds in report["seconds"].items()]
    return "\n".join([*lines, f"{sum(report['seconds'].values()):7.1f} s  in all"])


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(QuickstartConfig, "python -m tinyllm.quickstart", argv)
    with redirect_stdout(sys.stderr) if config.json else nullcontext():
        report = quickstart(config)
    print(json.dumps(report, ensure_ascii=False) if config.json else table(report))
    made = f"{config.out}/{[*report['test']][-1]}"
    print(f'\nNow try:  python -m tinyllm.generate --checkpoint {made} --self-consistency 5 "{QUESTION}"',
          file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
