"""Questions whose answer is chosen: reading questions with options, and query-item pairs of four classes.

The passages tell the same kind of fact about several people; which of them is asked for is drawn last, so the options
are alike in everything but the truth and no shortcut (length, position, words shared with the passage) beats chance.
In: the world's lexicon and stories. Out: options_*.jsonl, labels_*.jsonl. Explained by tests/test_choices.py.
"""

import functools
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm import wordings
from tinyllm.config import Settings, command, opt, read_settings, write_atomically
from tinyllm.grammar import polished, template
from tinyllm.lexicon import LANGUAGES, Concept, concepts, data_lines, members, word
from tinyllm.problems import split_of
from tinyllm.reading import drawn_story

SPLITS = ("train", "val", "test")
LABELS = ("exact", "substitute", "complement", "irrelevant")         # from relevant to not; their values are 3, 2, 1, 0


# ---- reading questions with options: choices_facts.txt --------------------------------------------------------------

@dataclass(eq=False)
class Kind:
    """One kind of fact: its roles, how it is told, and what can be asked: (role, form of the answer, wordings)."""

    roles: list[tuple[str, str]]
    facts: dict = field(default_factory=lambda: {"en": [], "zh": []})
    asks: list[tuple[str, str, dict]] = field(default_factory=list)


@functools.cache
def kinds() -> dict[str, Kind]:
    """choices_facts.txt, parsed; its first lines explain the notation."""
    table: dict[str, Kind] = {}
    for line in data_lines("choices_facts.txt"):
        mark, _, rest = line.partition(" ")
        if mark == "==":
            name, *roles = rest.split()
            table[name] = kind = Kind([tuple(role.split("=", 1)) for role in roles])
        elif mark == "-":
            texts = kind.facts
        elif mark == "?":
            texts = {"en": [], "zh": []}
            kind.asks.append((rest.partition(".")[0], rest, texts))
        else:
            texts[mark].append(template(rest, mark, {}))
    return table


def reading_question(index: int, seed: int = 0, split: str = "train", language: str | None = None) -> dict:
    """Row `index` of the reading questions: {"context", "question", "options", "answer", "family", "language"}.

    A pure function of its arguments; drawn again until the hash of the question says that `split` owns it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    language = language or LANGUAGES[index % 2]
    for attempt in itertools.count():
        rng = random.Random(f"choice {language} {seed} {split} {index} {attempt}")
        row = _drawn_question(rng, language, split)
        if row and split_of(row["question"]) == split:
            return row


def _drawn_question(rng: random.Random, language: str, split: str) -> dict | None:
    """A passage and a question; None where two options read the same or the story in between tells of them too."""
    name = rng.choice(list(kinds()))
    role, form, asks = rng.choice(kinds()[name].asks)
    kind, alike = kinds()[name], rivals(kinds()[name], role)
    facts = draw_facts(kind, rng.randint(2, 5) if len(alike) == 1 else rng.randint(1, 3), rng)
    told = [wordings.pick(kind.facts, fact, language, rng, words=0) for fact in facts]
    people = [fact["A"] for fact in facts if "A" in fact]
    if len(people) > 1 and rng.random() < 0.4:
        other, more = facts_beside(name, people, rng)
        told += [wordings.pick(other.facts, fact, language, rng, words=0) for fact in more]
    asked = rng.choice(facts)                                        # last: up to here all facts were alike
    values = [fact[rival] for fact in facts for rival in alike]
    options = rng.sample([worded(value, form[len(role):], language, rng) for value in values], len(values))
    names = [word(value, "", language, None) for fact in facts for value in fact.values() if isinstance(value, Concept)]
    passage = between(told, names, language, split, rng)
    if len(set(options)) < len(options) or passage is None:
        return None
    return {"context": passage, "question": polished(wordings.pick(asks, asked, language, rng, words=0), language),
            "options": options, "answer": options.index(worded(asked[role], form[len(role):], language, rng)),
            "family": name, "language": language}


def worded(value: Concept | int, form: str, language: str, rng: random.Random) -> str:
    """A value as an option: `.the` the attic, `.a` a stamp, nothing: Diana, 13."""
    return wordings.pick({language: [template("{V" + form + "}", language, {})]}, {"V": value}, language, rng, words=0)


def rivals(kind: Kind, role: str) -> list[str]:
    """The roles whose values could be mistaken for that of `role`: giver and receiver are both persons."""
    return [other for other, spec in kind.roles if spec == dict(kind.roles)[role]]


def draw_facts(kind: Kind, n: int, rng: random.Random) -> list[dict]:
    """`n` facts of a kind; no value comes twice, except that of a role that is the same for all."""
    columns: dict[str, list] = {}
    for role, spec in kind.roles:
        if spec[0] == "=":
            columns[role] = [rng.choice(wordings.choices(spec[1:]))] * n
        elif ".." in spec:
            low, high = map(int, spec.split(".."))
            columns[role] = rng.sample(range(low, high + 1), n)
        else:
            used = [value for column in columns.values() for value in column]
            columns[role] = rng.sample([one for one in wordings.choices(spec) if one not in used], n)
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def facts_beside(name: str, people: list[Concept], rng: random.Random) -> tuple[Kind, list[dict]]:
    """The same people in another kind of fact than `name`, so that a name alone does not lead to the sentence."""
    other = kinds()[rng.choice([one for one in kinds() if dict(kinds()[one].roles).get("A") == "person"
                                and one not in (name, "give")])]
    return other, [fact | {"A": person} for fact, person in zip(draw_facts(other, len(people), rng), people)]


def between(told: list[str], names: list[str], language: str, split: str, rng: random.Random) -> str | None:
    """The facts in any order among the first sentences of a story of the world; None if it names one of `names`."""
    story = [sentence.strip() for sentence in drawn_story(rng, language, split, 20000).sentences[:rng.randint(0, 5)]]
    if any(name.lower() in sentence.lower() for name in names for sentence in story):
        return None
    places = sorted(rng.choices(range(len(story) + 1), k=len(told)))
    told = rng.sample(told, len(told))
    for at, fact in reversed(list(zip(places, told))):
        story.insert(at, fact)
    return polished((" " if language == "en" else "").join(story).replace("\n", " "), language)


# ---- queries and items: four classes from what the world holds true -------------------------------------------------

@functools.cache
def goods() -> list[Concept]:
    """What can be asked for in a shop."""
    return members("goods|food")


def relation(query: Concept, item: Concept) -> str | None:
    """The class of an item for a query; None where the world leaves it open.

    A substitute is of the same class and does the same (or is said to replace it), a complement is used together with
    it, an irrelevant item shares neither class, use nor material source.
    """
    if query is item:
        return "exact"
    linked = lambda key: item.key in query.features.get(key, []) or query.key in item.features.get(key, [])
    shared = lambda key: bool(set(query.features.get(key, [])) & set(item.features.get(key, [])))
    if linked("goes-with"):
        return "complement"
    alike = query.kinds[0] == item.kinds[0]
    if linked("instead-of") or (alike and (shared("used-for") or query.kinds[0] in ("fruit", "vegetable"))):
        return "substitute"
    if alike or shared("used-for") or linked("made-from") or linked("part-of"):
        return None
    return "irrelevant"


@functools.cache
def related(query: Concept, label: str) -> list[Concept]:
    """All goods of the class `label` for `query`."""
    return [item for item in goods() if relation(query, item) == label]


def pair(index: int, seed: int = 0, split: str = "train", language: str | None = None) -> dict:
    """Row `index` of the query-item pairs, ready for fine-tuning on the class word: {"user", "assistant", ...}.

    Classes take turns. Held-out splits share neither a question nor a pair of concepts with train.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    language, label = language or LANGUAGES[index // len(LABELS) % 2], LABELS[index % len(LABELS)]
    for attempt in itertools.count():
        rng = random.Random(f"pair {language} {seed} {split} {index} {attempt}")
        query = rng.choice(goods())
        items = related(query, label)
        if not items:
            continue
        item = rng.choice(items)
        if split_of(" ".join(sorted((query.english, item.english)))) == split:
            texts = _phrase(query, language, rng), _phrase(item, language, rng)
            user = polished(wordings.say(_QUESTION[language], {"q": texts[0], "i": texts[1]}, language, rng), language)
            if split_of(user) == split:
                return {"user": user, "assistant": label, "query": texts[0], "item": texts[1], "family": "relevance",
                        "language": language}


_QUESTION = {"en": template("[Query|Looking for|Wanted]: {q}\n[Item|Product|Offer]: {i}\nIs the item exact, "
                            "substitute, complement or irrelevant?", "en", {}),
             "zh": template("[查询|想要|搜索]：{q}\n[商品|物品|结果]：{i}\n[关系是|属于] exact、substitute、complement "
                            "还是 irrelevant？", "zh", {})}


def _phrase(concept: Concept, language: str, rng: random.Random) -> str:
    """`red kite`, `kite from the toy shop`: looks and shops are drawn without regard to the class."""
    looks = concept.features.get("adj")
    look = rng.choice(members(rng.choice(looks))) if looks and rng.random() < 0.5 else None
    text, shops = word(concept, "full", language, look), concept.features.get("sold-at")
    if shops and rng.random() < 0.25:
        shop = word(concepts()[rng.choice(shops)], "the", language, None)
        return f"{text} from {shop}" if language == "en" else f"{shop}的{text}"
    return text


# ---- files and command ---------------------------------------------------------------------------------------------

@dataclass
class ChoicesConfig(Settings):
    """Write reading questions with options and query-item pairs with four classes, each as train, val and test.

    options_*.jsonl is what `python -m tinyllm.scorer train` learns from; labels_*.jsonl is for `python -m tinyllm.sft`
    and then `python -m tinyllm.scorer labels`. No question stands in two splits. Without --out a few are printed.
      python -m tinyllm.choices --out data
    """

    out: str = opt("", "folder for the files; empty prints a few rows")
    options: int = opt(12000, "training questions with options (0: none of their files)", low=0)
    labels: int = opt(8000, "training pairs of query and item (0: none of their files)", low=0)
    val: int = opt(1000, "rows of each validation file", low=0)
    test: int = opt(1000, "rows of each test file", low=0)
    seed: int = opt(0, "another seed gives other rows", low=0)
    language: str = opt("both", "keep to one language", choices=(*LANGUAGES, "both"))
    json: bool = opt(False, "print the report as JSON")


def rows(make: Callable[..., dict], n: int, config: ChoicesConfig, split: str) -> Iterator[dict]:
    """`n` rows of a split; outside train none twice, and fewer when 2,000 in a row have come before."""
    language, seen, stale = None if config.language == "both" else config.language, set(), 0
    for index in itertools.count():
        if len(seen) == n or stale > 2000:
            return
        row = make(index, config.seed, split, language)
        key = index if split == "train" else (row.get("context"), row.get("question") or row["user"])
        stale = stale + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield row


def write(config: ChoicesConfig) -> dict:
    """Writes the six files, or the three of one kind; returns {file: number of rows}."""
    Path(config.out).mkdir(parents=True, exist_ok=True)
    report = {}
    files = (("options", reading_question, config.options), ("labels", pair, config.labels))
    for name, make, n_train in (file for file in files if file[-1]):
        for split, n in zip(SPLITS, (n_train, config.val, config.test)):
            lines = []
            for row in rows(make, n, config, split):
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
                if len(lines) % 2000 == 0:
                    print(f"{name}_{split}: {len(lines)} of {n} rows", file=sys.stderr)
            if len(lines) < n:
                print(f"{name}_{split}: only {len(lines)} of {n} rows, as no others turned up", file=sys.stderr)
            write_atomically(Path(config.out) / f"{name}_{split}.jsonl", "".join(lines).encode())
            report[f"{name}_{split}"] = len(lines)
    return report


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(ChoicesConfig, "python -m tinyllm.choices", argv)
    if config.out:
        report = write(config)
        print(json.dumps(report) if config.json else "\n".join(f"{name}: {n} rows" for name, n in report.items()))
        return
    for row in [*rows(reading_question, min(6, config.options), config, "train"),
                *rows(pair, min(8, config.labels), config, "train")]:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
