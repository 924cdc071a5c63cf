"""How much of a test is known from training: shared runs of 13 words; and how many questions of a family are left when
names and numbers are masked.

In: the rows of generated files. Out: a report to judge them by. Explained by tests/test_problems.py.
"""

import functools
import re
from collections.abc import Iterable

from tinyllm.lexicon import DIGITS, LANGUAGES, word
from tinyllm.typed import without_separators
from tinyllm.wordings import choices


def overlap(train: Iterable[str], test: list[str], n: int = 13) -> list[bool]:
    """For each test question, whether some run of `n` words, Chinese characters or digits also stands in train."""
    grams = [set(zip(*(tokens[k:] for k in range(n)))) for tokens in map(_tokens, test)]
    wanted, found = set().union(*grams), set()
    for text in train:
        tokens = _tokens(text)
        found.update(gram for gram in zip(*(tokens[k:] for k in range(n))) if gram in wanted)
    return [bool(gram & found) for gram in grams]


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d|[\u3400-\u9fff]|[-+*/=()]", text.lower())


def shape(question: str) -> str:
    """A question with the world's names, numbers and expressions masked. Things and invented names stay, so there are
    more of these than of wordings."""
    text = _names().sub("@", without_separators(question))
    return re.sub(r"[-+*/=×÷() ]*[\dx][-+*/=×÷().:\d ]*", "#", re.sub(f"[{DIGITS}十百两]+", "#", text))


@functools.cache
def _names() -> re.Pattern:
    people = {word(person, "", language, None) for person in choices("person") for language in LANGUAGES}
    return re.compile("|".join(sorted(map(re.escape, people), key=len, reverse=True)))


def report(files: dict[str, list[dict]]) -> dict:
    """Rows, lengths and distinct shapes of each file, and how much of a test file is known from train."""
    facts = {}
    for file, rows in files.items():
        sizes = [sum(len(row.get(key, "")) for key in ("user", "cot", "final", "assistant")) for row in rows]
        kinds = sorted({(row["family"], row["language"]) for row in rows})
        facts[file] = {"rows": len(rows), "mean_characters": round(sum(sizes) / max(1, len(sizes))),
                       "max_characters": max(sizes, default=0),
                       "by_family": {f"{family} {language}": {
                           "rows": len(chosen := [row["user"] for row in rows
                                                  if (row["family"], row["language"]) == (family, language)]),
                           "shapes": len(set(map(shape, chosen)))} for family, language in kinds}}
        kind, _, split = file.partition("_")
        if split != "train" and f"{kind}_train" in files and rows:
            known = overlap((row["user"] for row in files[f"{kind}_train"]), [row["user"] for row in rows])
            facts[file]["share_with_13_gram_in_train"] = round(sum(known) / len(known), 4)
            for family, language in kinds:
                hits = [hit for hit, row in zip(known, rows) if (row["family"], row["language"]) == (family, language)]
                facts[file]["by_family"][f"{family} {language}"]["overlap"] = round(sum(hits) / len(hits), 3)
    return facts


def table(facts: dict) -> str:
    """The report as lines for a reader."""
    lines = []
    for file, values in facts.items():
        known = values.get("share_with_13_gram_in_train")
        lines.append(f"{file}: {values['rows']} rows, {values['mean_characters']} characters on average, "
                     f"{values['max_characters']} at most" +
                     (f"; {known:.1%} of questions share 13 tokens in a row with train" if known is not None else ""))
        lines += [f"  {kind:16}{counts['rows']:>7} rows {counts['shapes']:>6} shapes" +
                  (f"  overlap {counts['overlap']:.1%}" if "overlap" in counts else "")
                  for kind, counts in values["by_family"].items()]
    return "\n".join(lines)
