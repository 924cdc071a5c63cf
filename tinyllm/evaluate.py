"""How good is it? Bits per byte of a text, exact match on questions never seen: greedy, one sample, a vote of many.

In: checkpoints and files of questions. Out: tables, report.md, JSON, and every answer to read. Each accuracy comes with
its 95% interval, because a few hundred questions cannot tell 80% from 82%. Explained by tests/test_evaluate.py.
"""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from tinyllm import chat, checkpoint
from tinyllm.config import command, opt, read_settings, write_atomically
from tinyllm.data import next_token_batch
from tinyllm.generate import SamplingConfig, document_prompt
from tinyllm.model import TinyLLM
from tinyllm.report import Answered, by_group, draw_votes, facts, grid, in_short, page
from tinyllm.sft import default_files
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import loss_sums
from tinyllm.vote import Sample, same_answer, sample_answers, vote
from tinyllm.weights import kind_of, read_as


@dataclass
class EvaluateConfig(SamplingConfig):
    """Measure checkpoints on questions they have never seen, with 95% intervals.

    Without --data and --text it asks the generated test problems, the ordinary and the harder ones (written when they
    are missing). Your own questions are JSON lines {"user", "final"}; "system", "cot", "family" and "language" may
    be there too. With --calculator everything is measured with exact results fed in as well. Several checkpoints
    are compared in one table. Examples:
      python -m tinyllm.evaluate
      python -m tinyllm.evaluate --checkpoint checkpoints/sft checkpoints/cot_sft --calculator --limit 300
      python -m tinyllm.evaluate --data my_questions.jsonl --self-consistency 5
      python -m tinyllm.evaluate --text book.txt --weights int8
    """

    checkpoint: list[str] = opt([], "run or checkpoint folders; the last stage under checkpoints/ when absent")
    data: list[str] = opt([], "files of questions; data/cot_test.jsonl and data/cot_harder.jsonl when absent")
    text: str = opt("", "a text file whose bits per byte are measured")
    self_consistency: int = opt(7, "samples a question (1, 3, 5, 7 of them vote); 0: greedy only", low=0, high=1000)
    limit: int = opt(0, "questions of each file (0: all)", low=0)
    batch_size: int = opt(160, "answers that are written at the same time; those of one question always are", low=1)
    out: str = opt("runs/evaluate", "folder for report.md, result.json, answers.jsonl and the plot")
    json: bool = opt(False, "print the result as JSON")


class Question(NamedTuple):
    """What is asked and which answer is right."""

    messages: list[dict]
    final: str
    family: str
    language: str


def to_question(row: dict) -> Question:
    """A row of a file as a question: {"user", "final"}, or any row that can be trained on, whose answer is then wanted.

    ValueError names what is missing.
    """
    if "final" in row and row.get("cot") in (None, ""):              # a rationale is not needed to ask
        row = row | {"cot": "-"}
    messages = chat.messages_of(row)
    written = messages[-1]["content"]
    final = row["final"] if "final" in row else chat.parse_sections(written).answer or written
    if not isinstance(final, str):
        raise ValueError(f'"final" must be a string, not {final!r:.40}')
    language = row.get("language") or chat.language_of(messages[-2]["content"])
    return Question(messages[:-1], final, str(row.get("family") or "questions"), str(language))


def read_questions(path: str | Path, limit: int = 0) -> list[Question]:
    """The first `limit` questions of a file (0: all)."""
    questions = list(chat.read_rows(path, to_question))
    if not questions:
        raise ValueError(f"{path}: no questions in this file")
    return questions[:limit or None]


def prompts_of(conversations: Sequence[list[dict]], tokenizer: Tokenizer, is_chat: bool) -> list[list[int]]:
    """Prompt ids; a model that only continues texts gets the last question as the beginning of one."""
    if is_chat:
        return [chat.render_prompt(tokenizer, messages) for messages in conversations]
    return [document_prompt(tokenizer, messages[-1]["content"] + "\n") for messages in conversations]


def ask(model: TinyLLM, tokenizer: Tokenizer, questions: Sequence[Question], config: EvaluateConfig, *,
        is_chat: bool = True, calculator: bool = False, label: str = "") -> list[Answered]:
    """Every question answered greedily and by `config.self_consistency` samples.

    A question too long for the context counts as answered wrongly by abstaining; how many there are is said.
    """
    prompts = prompts_of([question.messages for question in questions], tokenizer, is_chat)
    fits = [number for number, prompt in enumerate(prompts) if len(prompt) < model.config.context]
    if len(fits) < len(prompts):
        print(f"{label}: {len(prompts) - len(fits):,} of {len(prompts):,} questions are longer than "
              f"context={model.config.context} and count as not answered", file=sys.stderr)
    silent = Sample("", "", None, 0.0, 0)
    n = config.self_consistency
    answers = {number: (silent, [silent] * n) for number in range(len(prompts))}
    with tqdm(total=len(fits) * (1 + n), desc=label, unit=" answers", file=sys.stderr, leave=False,
              mininterval=0.2 if sys.stderr.isatty() else 30) as bar:

        end = tokenizer.eos if is_chat else tokenizer.encode("\n")[0]            # a continued text answers in one line

        def write(n: int, temperature: float) -> list[list[Sample]]:
            return sample_answers(model, tokenizer, [prompts[number] for number in fits], n, end=end,
                                  calculator=calculator, max_rows=config.batch_size,
                                  progress=lambda done: bar.update(done * n),
                                  **config.sampling() | {"temperature": temperature})

        greedy, drawn = write(1, 0.0), write(n, config.temperature) if n else [[] for _ in fits]
    answers |= {number: (one[0], many) for number, one, many in zip(fits, greedy, drawn)}
    return [Answered(question.final, question.family, question.language, *answers[number])
            for number, question in enumerate(questions)]


def grouped(answered: Sequence[Answered]) -> dict:
    """Facts of all questions, and by family and language."""
    pick = lambda key: {name: facts([one for one in answered if getattr(one, key) == name])
                        for name in dict.fromkeys(getattr(one, key) for one in answered)}
    return {"all": facts(answered), "by_family": pick("family"), "by_language": pick("language")}


def bits_per_byte(model: TinyLLM, tokenizer: Tokenizer, text: str) -> float:
    """Bits the model needs for each byte of `text`, read in windows of the context (each begins without a past)."""
    ids, context = document_prompt(tokenizer, text), model.config.context
    windows = [next_token_batch(torch.tensor([ids[at:at + context + 1]])) for at in range(0, len(ids) - 1, context)]
    nats, _ = loss_sums(model, tqdm(windows, "reading", leave=False))
    return nats / math.log(2) / len(text.encode())


def evaluate(config: EvaluateConfig) -> dict:
    """{"settings", "checkpoints": {name: {"folder", "weights", "files": {file: groups}, "calculator": {file: groups},
    "text", "bits_per_byte"}}}; every answer goes to `config.out`/answers.jsonl as soon as its file has been asked."""
    folders = {name: checkpoint.resolve(name) for name in config.checkpoint or [str(checkpoint.default())]}
    paths = config.data or ([] if config.text else [*default_files(["cot"], "test"), *default_files(["cot"], "harder")])
    names = [Path(path).name.removesuffix(".gz").removesuffix(".jsonl") for path in paths]
    files = {name if names.count(name) == 1 else path: read_questions(path, config.limit)
             for name, path in zip(names, paths)}
    Path(config.out).mkdir(parents=True, exist_ok=True)              # no place for the report: said before any work
    log, text = Path(config.out) / "answers.jsonl", read_text(config.text) if config.text else ""
    result: dict = {"settings": asdict(config), "checkpoints": {}}
    for name, folder in folders.items():
        model, tokenizer = checkpoint.load(folder)
        if not result["checkpoints"]:                                # all that can be wrong beforehand is right
            log.write_text("", encoding="utf-8")
        kind, model = kind_of(config.weights), read_as(config.weights, model)
        print(f"measuring {folder} with {kind} weights", file=sys.stderr)
        measured = result["checkpoints"][name] = {"folder": str(folder), "weights": kind, "files": {}}
        if config.text:
            measured["text"] = config.text
            measured["bits_per_byte"] = bits_per_byte(model, tokenizer, text)
        for file, questions in files.items():
            for key, with_calculator in (("files", False), ("calculator", True))[:1 + config.calculator]:
                answered = ask(model, tokenizer, questions, config, is_chat=checkpoint.is_chat(folder),
                               calculator=with_calculator, label=f"{file}{' with calculator' * with_calculator}")
                measured.setdefault(key, {})[file] = grouped(answered)
                asked = {"checkpoint": name, "file": file, "calculator": with_calculator}
                with log.open("a", encoding="utf-8") as lines:
                    lines.writelines(json.dumps(asked | record(*pair), ensure_ascii=False) + "\n"
                                     for pair in zip(questions, answered))
    return result


def record(question: Question, answered: Answered) -> dict:
    """A question and what was answered, to read: what fails is seen in the steps and not in a percentage."""
    greedy, voted = answered.greedy, vote(answered.samples)
    drawn = {"voted": voted.answer, "voted_right": same_answer(voted.answer, question.final), "votes": voted.votes}
    return {"user": question.messages[-1]["content"], "final": question.final, "family": question.family,
            "language": question.language, "answer": greedy.answer, "right": same_answer(greedy.answer, question.final),
            "reasoning": greedy.reasoning} | (drawn if answered.samples else {})


def read_text(path: str) -> str:
    """The text of a file; ValueError if it is not UTF-8 or empty."""
    try:
        if text := Path(path).read_text(encoding="utf-8-sig"):
            return text
        raise ValueError(f"{path}: the text is empty; there is nothing to measure")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None


def comparison(checkpoints: dict[str, dict], file: str) -> list[str]:
    """One row a checkpoint on the same questions: greedy, one sample, votes, format; greedy and the last vote also with
    the calculator."""
    short = in_short([measured["files"][file]["all"] for measured in checkpoints.values()])
    rows = [[name, *row] for name, row in zip(["", *checkpoints], short)]
    if "calculator" in next(iter(checkpoints.values())):
        exact = in_short([measured["calculator"][file]["all"] for measured in checkpoints.values()])
        exact[0] = [f"{title} + calculator" for title in exact[0]]
        rows = [[*row, greedy, *votes[-1:]] for row, (greedy, *votes, _) in zip(rows, exact)]
    return grid(rows)


def write_report(result: dict, config: EvaluateConfig, argv: Sequence[str]) -> str:
    """Writes report.md, result.json and the plot to `config.out`; returns the page."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    said = "python -m tinyllm.evaluate " + " ".join(map(shlex.quote, argv))
    pages = []
    for number, (name, measured) in enumerate(result["checkpoints"].items()):
        plot = draw_votes(measured["files"], out / f"votes{number or ''}.png")
        pages.append(f"<!-- {name} -->\n" + page(measured | {"plot": plot}, said.strip()))
        if "calculator" in measured:
            for file, groups in measured["calculator"].items():
                pages.append("\n".join([f"## {file}, with calculator", "", *by_group(groups, ["by_family"]), ""]))
    if len(result["checkpoints"]) > 1:
        for file in next(iter(result["checkpoints"].values()))["files"]:
            pages.append("\n".join([f"## Compared on {file}", "", *comparison(result["checkpoints"], file), ""]))
    text = "\n".join(pages)
    write_atomically(out / "report.md", text.encode())
    write_atomically(out / "result.json", (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
    return text


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(EvaluateConfig, "python -m tinyllm.evaluate", argv)
    result = evaluate(config)
    text = write_report(result, config, sys.argv[1:] if argv is None else argv)
    print(json.dumps(result, ensure_ascii=False) if config.json else text)
    print(f"written to {config.out}/report.md", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
