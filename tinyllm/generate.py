"""Text out of a model: a document goes on, a question is answered, several attempts at an answer vote.

In: a checkpoint and a prompt. Out: text as it is written. The tokens come from decode.py, the votes from vote.py; here
they meet the user. Explained by tests/test_generate.py.
"""

import contextlib
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinyllm import chat, checkpoint
from tinyllm.calculator import complete, false_steps
from tinyllm.config import Settings, command, opt, read_settings
from tinyllm.decode import exact_steps, stream
from tinyllm.model import TinyLLM
from tinyllm.tokenizer import Tokenizer
from tinyllm.vote import Sample, Vote, sample_answers, vote
from tinyllm.weights import WEIGHTS, read_as


@dataclass
class SamplingConfig(Settings):
    """How tokens are drawn: the flags of every command that lets a model write."""

    calculator: bool = opt(False, "compute the right side of every `expression=` exactly while the model writes")
    temperature: float = opt(0.8, "0: always the likeliest token; 1: as the model believes; higher: wilder", low=0)
    top_k: int = opt(0, "keep only the k likeliest tokens (0: all)", low=0)
    top_p: float = opt(0.95, "keep the likeliest tokens that together reach this probability", low=0, high=1)
    max_new_tokens: int = opt(256, "stop after this many tokens", low=1)
    seed: int = opt(0, "the same seed gives the same text", low=0)
    weights: str = WEIGHTS

    def sampling(self) -> dict:
        """The settings that decode() takes."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "max_new_tokens", "seed")}


@dataclass
class GenerateConfig(SamplingConfig):
    """Continue a text, or answer a question if the checkpoint was fine-tuned to answer.

    With --self-consistency N the model thinks N times, and the answer that most attempts reach is given. Without a
    prompt, asks for one again and again: a conversation in a terminal, one question a line in a pipe. Examples:
      python -m tinyllm.generate --self-consistency 5 "计算：12*(3+4)-10"
      python -m tinyllm.generate --calculator "Ann has 23 pens and buys 4 boxes of 6. How many pens has she now?"
      python -m tinyllm.generate --checkpoint checkpoints/pretrain "Once upon a time"
      echo "What is 3*4+1?" | python -m tinyllm.generate --json
    """

    prompt: str = opt("", "text to continue or question to answer", positional=True)
    checkpoint: str = opt("", "run or checkpoint folder; the last stage under checkpoints/ when absent")
    system: str = opt("", "what the model is told before the question")
    self_consistency: int = opt(1, "number of attempts that vote on the answer", low=1, high=1000)
    json: bool = opt(False, "print one JSON object per prompt instead of streaming")


# --- a document goes on ---

def document_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` as the beginning of a document: in training, a document begins after the end of another."""
    return [tokenizer.eos, *tokenizer.encode(text)]


def continue_text(model: TinyLLM, tokenizer: Tokenizer, prompt: str, config: GenerateConfig) -> Iterator[str]:
    """The continuation of `prompt`: for each token what it completes, valid Unicode or "", and then what is left."""
    pieces, known, feed = tokenizer.stream(), "", None
    if config.calculator:
        known = complete(prompt) or ""                               # of a prompt that ends with `3+4=`
        prompt += known
        feed = exact_steps(tokenizer, prompt)
    for (id,) in stream(model, document_prompt(tokenizer, prompt), end=tokenizer.eos, feed=feed, **config.sampling()):
        yield known + pieces.push(id)
        known = ""
    yield known + pieces.finish()


def printable(text: str) -> str:
    """`text` without the control characters that could drive a terminal; a model may write any byte."""
    return "".join("\ufffd" if unicodedata.category(char) == "Cc" and char not in "\n\t" else char for char in text)


# --- a question is answered ---

class InOrder:
    """Prints texts that are written at the same time one after the other, the one whose turn it is as it comes."""

    def __init__(self, n: int, title: Callable[[int], str], write: Callable[[str], None]) -> None:
        self.waiting, self.ended, self.turn, self.title, self.write = [""] * n, [False] * n, 0, title, write
        write(title(0))

    def __call__(self, number: int, piece: str, ended: bool) -> None:
        self.waiting[number] += piece
        self.ended[number] |= ended
        while self.turn < len(self.waiting):
            self.write(printable(self.waiting[self.turn]))
            self.waiting[self.turn] = ""
            if not self.ended[self.turn]:
                return
            self.turn += 1
            self.write("\n" + (self.title(self.turn) if self.turn < len(self.waiting) else ""))


def fit_conversation(tokenizer: Tokenizer, messages: list[dict], context: int, room: int) -> list[dict]:
    """The newest messages whose prompt leaves `room` tokens of the context for an answer.

    The system message stays; the oldest question goes with its answer. The last question stays whatever its length:
    decode() says if it is too long.
    """
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system):]
    while len(turns) > 1 and len(chat.render_prompt(tokenizer, system + turns)) + room > context:
        turns = turns[2:]
    return system + turns


def vote_table(result: Vote, n: int) -> str:
    """The votes of n samples as a table with bars."""
    rows = [*result.votes.items(), *([("(no final answer)", result.abstained)] if result.abstained else [])]
    lines = [f"{count:4} {'█' * round(20 * count / n):21}{printable(answer)}" for answer, count in rows]
    shown = "none: no attempt gave a final answer" if result.answer is None else printable(result.answer)
    return "\n".join(["votes", *lines, f"agreement {result.agreement:.0%}    answer: {shown}"])


def warnings(samples: Sequence[Sample]) -> list[str]:
    """A line for every written step whose arithmetic is false."""
    return [f"false step{f' in attempt {number}' if len(samples) > 1 else ''}: {step}, correct is {correct}"
            for number, sample in enumerate(samples, 1) for step, correct in false_steps(sample.text)]


def answer(model: TinyLLM, tokenizer: Tokenizer, messages: list[dict], config: GenerateConfig) -> str:
    """Answers the last message on the screen; returns the text of the attempt that won (or the only one)."""
    n, context = config.self_consistency, model.config.context
    said, messages = messages, fit_conversation(tokenizer, messages, context,
                                                room=min(config.max_new_tokens, context // 2))
    if len(messages) < len(said):
        print(f"the first {len(said) - len(messages)} messages no longer fit in the context of {context} tokens and "
              "are left out", file=sys.stderr)
    write = lambda text: print(text, end="", flush=True)
    show = InOrder(n, lambda number: f"--- attempt {number + 1} of {n} ---\n" if n > 1 else "", write)
    samples, = sample_answers(model, tokenizer, [chat.render_prompt(tokenizer, messages)], n,
                              calculator=config.calculator, show=show, **config.sampling())
    for line in warnings(samples):
        print(line)
    if n == 1:
        return samples[0].text
    result = vote(samples)
    print("\n" + vote_table(result, n))
    return next((sample.text for sample in samples if sample.answer == result.answer), samples[0].text)


def as_json(model: TinyLLM, tokenizer: Tokenizer, prompt: str, config: GenerateConfig, is_chat: bool) -> dict:
    """What a program wants to know of one prompt: a vote if there are several attempts, else the text."""
    started = time.monotonic()
    if not is_chat:
        *pieces, rest = continue_text(model, tokenizer, prompt, config)
        return {"prompt": prompt, "text": "".join(pieces) + rest, "tokens": len(pieces),
                "seconds": round(time.monotonic() - started, 3)}
    prompt_ids = chat.render_prompt(tokenizer, conversation(config, prompt))
    samples, = sample_answers(model, tokenizer, [prompt_ids], config.self_consistency, calculator=config.calculator,
                              **config.sampling())
    result = vote(samples)
    return {"prompt": prompt, "answer": result.answer, "votes": result.votes, "agreement": result.agreement,
            "abstained": result.abstained, "samples": [
                {"reasoning": one.reasoning, "answer": one.answer, "logprob": round(one.logprob, 4),
                 "tokens": one.tokens, "false_steps": [list(step) for step in false_steps(one.text)]}
                for one in samples], "seconds": round(time.monotonic() - started, 3)}


def conversation(config: GenerateConfig, prompt: str) -> list[dict]:
    """The first messages of a conversation."""
    system = [{"role": "system", "content": config.system}] if config.system else []
    return [*system, {"role": "user", "content": prompt}]


def prompts(config: GenerateConfig) -> Iterator[str]:
    """The prompt given, else one a line from standard input until it ends."""
    if config.prompt:
        yield config.prompt
        return
    if sys.stdin.isatty():
        print("type a text or a question; Ctrl-D ends", file=sys.stderr)
    while True:
        print("> " if sys.stdin.isatty() else "", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip("\ufeff\r\n")                          # what a file from Windows begins and ends with


@contextlib.contextmanager
def goes_on(config: GenerateConfig, number: int) -> Iterator[None]:
    """In a terminal one question that is too long does not end a conversation; elsewhere it is named by its number."""
    try:
        yield
    except ValueError as error:
        if config.prompt:
            raise
        if not sys.stdin.isatty():
            raise ValueError(f"question {number}: {error}") from None
        print(f"\n{error}", file=sys.stderr)


def converse(model: TinyLLM, tokenizer: Tokenizer, config: GenerateConfig) -> None:
    """Answers every prompt; in a terminal each with what was said before, as far as the context reaches."""
    said: list[dict] = []
    for number, prompt in enumerate(prompts(config), 1):
        asked = [*said, {"role": "user", "content": prompt}] if said else conversation(config, prompt)
        with goes_on(config, number):
            text = answer(model, tokenizer, asked, config)
            said = [*asked, {"role": "assistant", "content": text}] if sys.stdin.isatty() else []


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(GenerateConfig, "python -m tinyllm.generate", argv)
    folder = checkpoint.resolve(config.checkpoint) if config.checkpoint else checkpoint.default()
    is_chat = checkpoint.is_chat(folder)
    print(f"using {folder}" + ("" if is_chat else " (not fine-tuned: it continues texts)"), file=sys.stderr)
    if config.self_consistency > 1 and not is_chat:
        raise ValueError(f"{folder} only continues texts and has no answers to vote on; fine-tune it with "
                         "`python -m tinyllm.sft` and `python -m tinyllm.cot_sft` first")
    if config.system and not is_chat:
        raise ValueError(f"{folder} only continues texts and cannot be told anything before; leave out --system")
    model, tokenizer = checkpoint.load(folder)
    model = read_as(config.weights, model)
    if config.json:
        for number, prompt in enumerate(prompts(config), 1):
            with goes_on(config, number):
                print(json.dumps(as_json(model, tokenizer, prompt, config, is_chat) | {"checkpoint": str(folder)},
                                 ensure_ascii=False), flush=True)
    elif is_chat:
        converse(model, tokenizer, config)
    else:
        for number, prompt in enumerate(prompts(config), 1):
            print(prompt, end="", flush=True)
            with goes_on(config, number):
                for piece in continue_text(model, tokenizer, prompt, config):
                    print(printable(piece), end="", flush=True)
            print()


if __name__ == "__main__":
    sys.exit(main())
