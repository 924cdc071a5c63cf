"""The embedded corpus: a small bilingual world, simulated and told through a grammar; nothing to download.

The lexicon says what exists, the grammar what can happen and how it is told, simulation.py what does happen. This
module words every event in English or Chinese and puts documents together. Explained by tests/test_world.py.
"""

import contextlib
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyllm.config import Settings, command, opt, read_settings, refuse_folder
from tinyllm.grammar import Plot, Step, grammar, polished, wording
from tinyllm.lexicon import LANGUAGES
from tinyllm.simulation import Event, Simulation, accepts, roots, ways

SPLITS = ("train", "test")


@dataclass
class Story:
    """A told story and the record that questions about it are made from."""
    plot: str
    language: str
    sentences: list[str]
    events: list[Event]
    facts: dict
    premises: list[tuple]
    text: str = ""


def word_steps(simulation: Simulation, language: str, rng: random.Random) -> list[str]:
    """The sentences of what has been played; each event remembers its own."""
    sentences = []
    for step, roles, event, pick in simulation.plan:
        if not step.texts[language]:                             # a second side of the event before: nothing to say
            event.text = simulation.events[event.order - 1].text
            continue
        wordings = step.texts[language]
        text = polished(wording(wordings[int(pick * len(wordings))], roles, language, rng), language)
        if event:
            event.text = text.strip()
        sentences.append(text)
    return sentences


def join(sentences: list[str], language: str) -> str:
    """The sentences as running text; a document never holds a blank line."""
    return re.sub(r"\s*\n\s*", "\n", (" " if language == "en" else "").join(sentences)).strip()


def _fragment(simulation: Simulation, title: str, given: list) -> None:
    simulation.tell(Plot("", [("A", "")], [Step(include=title, arguments=["A"])]), {"A": given[0]})


def _episodes(simulation: Simulation, most: int) -> Plot:
    """Play one to `most` story plots about the same hero between an opening and a close; return the first plot."""
    rng, seen, hero, friend = simulation.rng, [], None, None
    for episode in range(most):
        given = [hero] if episode else []
        plots = [plot for plot in ways("story/", tuple(value[0] for value in given))
                 if plot not in seen and not (episode and opens(plot))]
        if not plots:
            break
        plot = rng.choice(plots)
        if episode and isinstance(friend, tuple) and rng.random() < 0.7 and accepts(plot, (hero[0], friend[0])):
            given.append(friend)
        roles = simulation.cast(plot, given, simulation.split)
        if roles is None:
            break
        if not episode:
            hero, friend = (list(roles.values()) * 2)[:2]
        if not opens(plot):
            _fragment(simulation, "then" if episode else "opening", [hero])
        simulation.tell(plot, roles)
        seen.append(plot)
        if len(simulation.plan) > 22 or rng.random() < 0.25:
            break
    if rng.random() < 0.6:
        _fragment(simulation, "closing", [hero])
    return seen[0]


def opens(plot: Plot) -> bool:
    """Whether a plot brings its own opening (a snowman needs snow)."""
    return plot.steps[0].include.startswith("opening")


def story(index: int, seed: int = 0, split: str = "train", language: str = "en") -> Story:
    """Story `index` with its record. Both languages tell the same events."""
    simulation = Simulation(random.Random(f"story {seed} {split} {index}"), split)
    plot = _episodes(simulation, 3)
    sentences = word_steps(simulation, language, random.Random(f"{language} {seed} {split} {index}"))
    people = sorted({key for event in simulation.events for key in (event.actor, event.recipient) if key})
    holdings: dict = {}
    for (owner, thing), count in simulation.holds.items():
        holdings.setdefault(owner, {})[thing] = count
    record = {"people": people, "places": dict(simulation.where), "holdings": holdings}
    return Story(plot.name, language, sentences, simulation.events, record, simulation.premises,
                 join(sentences, language))


def document(index: int, seed: int = 0, split: str = "train") -> str:
    """Document `index` of an endless corpus: a pure function of its arguments; even is English, odd Chinese."""
    return told(index, seed, split)[0]


def told(index: int, seed: int = 0, split: str = "train") -> tuple[str, str, list[tuple]]:
    """(text, name of its plot, premises) of document `index`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    rng, language = random.Random(f"{seed} {split} {index}"), LANGUAGES[index % 2]
    kind = rng.choices(list(grammar().weights), grammar().weights.values())[0]
    simulation = Simulation(rng, split)
    if kind in ("story", "pairs") and (kind == "story" or rng.random() < 0.5):
        plot = _episodes(simulation, 3 if kind == "story" else 1)
    else:
        plot = rng.choice(roots(kind))
        simulation.tell(plot, simulation.cast(plot, split=split))
    if kind == "pairs":                                          # every sentence in one language, then in the other
        simulation.plan = simulation.plan[:10]
        sides = [word_steps(simulation, side, rng) for side in (language, LANGUAGES[1 - index % 2])]
        sentences = [f"{one.strip()}\n{other.strip()}\n" for one, other in zip(*sides)]
    else:
        sentences = word_steps(simulation, language, rng)
    return join(sentences, language), ("pairs:" if kind == "pairs" else "") + plot.name, simulation.premises


def documents(n: int, seed: int = 0, split: str = "train") -> Iterator[str]:
    """The first `n` documents."""
    return (document(index, seed, split) for index in range(n))


# ---- command -------------------------------------------------------------------------------------------------------

@dataclass
class WorldConfig(Settings):
    """Write documents of the generated world, separated by blank lines: a quarter of what pretraining reads.

    Without flags it prints a few to read. The same seed always gives the same documents. The two splits share no
    premise: no plot with the same people, things and places stands in both.
        python -m tinyllm.world --documents 50000 --out data/world.txt
        python -m tinyllm.world --documents 1000 --split test --out data/world_test.txt
    """
    documents: int = opt(5, "how many documents", low=1)
    out: str = opt("", "file to write; empty prints the documents")
    seed: int = opt(0, "another seed gives another corpus", low=0)
    split: str = opt("train", "which share of the premises", choices=SPLITS)
    language: str = opt("both", "keep only documents of one language", choices=("en", "zh", "both"))
    json: bool = opt(False, "print statistics as JSON instead of the documents")


def write(config: WorldConfig) -> dict:
    """Write or print the documents of `config`; return their statistics."""
    step = 1 if config.language == "both" else 2
    first = LANGUAGES.index(config.language) if step == 2 else 0
    counts, kinds, words, characters = Counter(), Counter(), set(), 0
    target = Path(config.out + ".part") if config.out else None
    if target:
        refuse_folder(config.out)
        target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", encoding="utf-8") if target else contextlib.nullcontext(sys.stdout) as sink:
        for n, index in enumerate(range(first, first + step * config.documents, step)):
            text, plot, _ = told(index, config.seed, config.split)
            if target or not config.json:
                print(text, end="\n\n", file=sink)
            kinds[re.split("[:/]", plot)[0]] += 1
            counts[plot] += 1
            words.update(re.findall(r"[a-z'-]+|[\u4e00-\u9fff]", text.lower()))
            characters += len(text)
            if (n + 1) % 10000 == 0:
                print(f"{n + 1} of {config.documents} documents", file=sys.stderr)
        sink.flush()
        if target:
            os.fsync(sink.fileno())
    if target:
        os.replace(target, config.out)
    return {"documents": sum(counts.values()), "characters": characters, "distinct_words": len(words),
            "plots": len(counts), "kinds": dict(kinds)}


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(WorldConfig, "python -m tinyllm.world", argv)
    stats = write(config)
    if config.json:
        print(json.dumps(stats, ensure_ascii=False))
    elif config.out:
        print(f"{config.out}: {stats['documents']} documents, {stats['characters']} characters", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
