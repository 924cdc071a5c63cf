"""Self-consistency: several sampled chains of thought, one vote. Wang et al. 2022, arXiv:2203.11171.

A wrong chain can go wrong in many ways, a right one ends in one place; so the answer that most chains agree on is right
more often than any single chain. In: a model and prompts. Out: samples, and the vote over them. Explained by
tests/test_vote.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinyllm.calculator import normalise_answer
from tinyllm.chat import parse_sections
from tinyllm.decode import decode, exact_steps
from tinyllm.model import TinyLLM
from tinyllm.tokenizer import Tokenizer


class Sample(NamedTuple):
    """One written answer. `answer` is None where no final answer was given: the sample abstains."""

    text: str
    reasoning: str
    answer: str | None
    logprob: float                                                   # of all its tokens, nats
    tokens: int

    @property
    def has_format(self) -> bool:
        """Whether both sections are there: steps, then a final answer."""
        return bool(self.reasoning and self.answer)


def to_sample(text: str, logprob: float, tokens: int) -> Sample:
    """A sample from what was written. A text without any heading is an answer as a whole, as plain questions get."""
    sections, bare = parse_sections(text), text.strip()
    direct = sections.answer is None and sections.reasoning == bare and bare
    return Sample(text, "" if direct else sections.reasoning, bare if direct else sections.answer, logprob, tokens)


@dataclass
class Vote:
    """`answer` is None when every sample abstained. `agreement` is the winner's share of all samples."""

    answer: str | None
    votes: dict[str, int]                                            # as first spelled -> samples, most first
    agreement: float
    abstained: int


def vote(samples: Sequence[Sample]) -> Vote:
    """The most frequent answer. Equal answers in other spellings are one (1.0 = 1 = 2/2); a sample without an answer
    abstains; ties go to the larger summed log-probability."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.answer is not None:
            groups.setdefault(normalise_answer(sample.answer), []).append(sample)
    ranked = sorted(groups.values(), key=lambda group: (len(group), sum(one.logprob for one in group)), reverse=True)
    votes = {group[0].answer: len(group) for group in ranked}
    given = sum(votes.values())
    winner = ranked[0] if ranked else []
    return Vote(winner[0].answer if winner else None, votes, len(winner) / max(1, len(samples)), len(samples) - given)


def same_answer(given: str | None, wanted: str) -> bool:
    """Whether an answer equals the wanted one, up to spelling."""
    return given is not None and normalise_answer(given) == normalise_answer(wanted)


Show = Callable[[int, str, bool], None]                              # (number of the sample, piece, was it the last?)


def sample_answers(model: TinyLLM, tokenizer: Tokenizer, prompts: Sequence[list[int]], n: int = 1, *,
                   end: int | None = None, calculator: bool = False, max_rows: int = 160,
                   progress: Callable[[int], None] = lambda n_prompts: None,
                   show: Show = lambda number, piece, ended: None, **sampling) -> list[list[Sample]]:
    """n samples for each prompt, decoded as batches of at most `max_rows` rows (or all of one prompt), prompts of
    similar length together.

    Equal to decoding each prompt alone; `sampling` is what decode() takes. A sample ends with the token `end` (default:
    <eos>). `progress` gets the number of prompts that are done with each batch; `show` every piece of text as it comes,
    sample i of prompt j being number j * n + i.
    """
    end = tokenizer.eos if end is None else end
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: list[list[Sample]] = [[] for _ in prompts]
    size = max(1, max_rows // n)
    for at in range(0, len(order), size):
        chosen = order[at:at + size]
        numbers = [prompt * n + i for prompt in chosen for i in range(n)]          # of each row of the batch
        streams, texts = [tokenizer.stream(new_line=True) for _ in numbers], [""] * len(numbers)
        counts, logprobs, running = [0] * len(numbers), [0.0] * len(numbers), set(range(len(numbers)))

        def take(row: int, piece: str, ended: bool, numbers=numbers, texts=texts) -> None:
            texts[row] += piece
            show(numbers[row], piece, ended)

        for step in decode(model, [prompts[prompt] for prompt in chosen], end=end, n=n,
                           feed=exact_steps(tokenizer) if calculator else None, **sampling):
            for row in sorted(running):
                counts[row], logprobs[row] = counts[row] + 1, logprobs[row] + step.logprobs[row]
                take(row, streams[row].push(step.ids[row]), ended=False)
                if step.ended[row]:
                    take(row, streams[row].finish(), ended=True)
                    running.remove(row)
        for row, written in enumerate(zip(texts, logprobs, counts)):
            answers[chosen[row // n]].append(to_sample(*written))
        progress(len(chosen))
    return answers
