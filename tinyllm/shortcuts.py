"""What can be had without a head: chance, shortcuts, the language model's own score; a table with the head beside it.

In: questions and scores of their options. Out: accuracies with 95% intervals. A head that does not beat chance
and the shortcuts has learnt nothing about reading. Explained by tests/test_shortcuts.py.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from tinyllm.options import Question
from tinyllm.report import accuracy, grid, percent


def overlap(option: str, context: str) -> float:
    """Share of the character bigrams of `option` that also stand in `context`; of the character if it is only one."""
    size = min(2, len(option))
    grams = {option[at:at + size] for at in range(len(option) - size + 1)}
    return sum(gram in context for gram in grams) / len(grams)


def credit(scores: Sequence[float], answer: int) -> float:
    """1 if the highest score is that of the answer, a share of it if others are as high: what a fair coin would get."""
    best = max(scores)
    return (scores[answer] == best) / sum(score == best for score in scores)


def baselines(questions: Sequence[Question], zero_shot: Callable[[int, bool], list[float]]) -> dict[str, dict]:
    """What can be had without a head. zero_shot(i, normalised) gives the language model's own scores of question i."""
    of = lambda score: accuracy([credit(score(i, one), one.answer) for i, one in enumerate(questions)])
    return {"chance": of(lambda i, one: [0.0] * len(one.options)),
            "longest option": of(lambda i, one: list(map(len, one.options))),
            "bigrams shared with context": of(lambda i, one: [overlap(option, one.context or one.question)
                                                              for option in one.options]),
            "language model, log-probability": of(lambda i, one: zero_shot(i, False)),
            "language model, per token": of(lambda i, one: zero_shot(i, True))}


def accuracies(questions: Sequence[Question], scores: Sequence[Tensor],
               zero_shot: Callable[[int, bool], list[float]]) -> dict[str, dict]:
    """Accuracy of the head and of every baseline, each with its interval."""
    return {"head": accuracy([credit(score.tolist(), one.answer) for one, score in zip(questions, scores)]),
            **baselines(questions, zero_shot)}


def table(measured: dict[str, dict[str, dict]]) -> str:
    """Accuracies of one or more sets of questions, a column each."""
    names = list(next(iter(measured.values())))
    rows = [["", *(f"{name} ({facts['head']['n']:,})" for name, facts in measured.items())]]
    return "\n".join(grid(rows + [[name, *(percent(facts[name]).strip() for facts in measured.values())]
                                  for name in names]))
