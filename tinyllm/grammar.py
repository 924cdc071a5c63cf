"""How the world is told: plots read from `world_plots.txt`, and a step of a plot turned into a sentence.

In: the grammar file (its first lines explain the notation). Out: plots as steps with templates, and their wording.
Explained by tests/test_world.py.
"""

import functools
import random
import re
from dataclasses import dataclass, field

from tinyllm.lexicon import LANGUAGES, counted, data_lines, number, word

# ---- what can happen: world_plots.txt ------------------------------------------------------------------------------

@dataclass(eq=False)
class Step:
    """One line of a plot: something that happens (or is only said), or another plot to tell here."""
    include: str = ""                                            # name of the plot to tell, else an event
    optional: bool = False
    action: str = ""                                             # "" says something without anything happening
    arguments: list[str] = field(default_factory=list)           # role names: actor, object; or what include is given
    marks: dict[str, str] = field(default_factory=dict)          # > recipient, @ place, # count, < causes
    texts: dict[str, list] = field(default_factory=lambda: {"en": [], "zh": []})


@dataclass(eq=False)
class Plot:
    """A named sequence of steps and the roles it needs: [("A", "child"), ("N", "2..9")]."""
    name: str
    roles: list[tuple[str, str]]
    steps: list[Step]


@dataclass
class Grammar:
    """Everything in world_plots.txt."""
    plots: dict[str, list[Plot]]                                 # name -> the ways it can go
    effects: dict[str, str]                                      # action -> gain, lose, pass, grant or go
    weights: dict[str, int]                                      # kind of document -> how often


@functools.cache
def grammar() -> Grammar:
    """world_plots.txt, parsed; its first lines explain the notation."""
    rules, phrases = Grammar({}, {}, {}), {}
    for line in data_lines("world_plots.txt"):
        mark, _, rest = line.partition(" ")
        if mark == "!":
            effect, *actions = rest.split()
            rules.effects |= dict.fromkeys(actions, effect)
        elif mark == "%":
            rules.weights[rest.split()[0]] = int(rest.split()[1])
        elif mark == "==":
            title, *roles = rest.split()
            plot = Plot(title, [tuple((role + "=").split("=", 1)) for role in roles], [])
            plot.roles = [(role, spec.rstrip("=")) for role, spec in plot.roles]
            rules.plots.setdefault(title, []).append(plot)
        elif mark == ":":
            texts = phrases.setdefault(rest, {"en": [], "zh": []})
        elif mark in ("+", "?+", "-", "?-"):
            plot.steps.append(_step(mark, rest.split()))
            texts = plot.steps[-1].texts
        else:
            assert mark in LANGUAGES, f"world_plots.txt: cannot read {line!r}"
            texts[mark].append(template(rest, mark, phrases))
    return rules


def _step(mark: str, words: list[str]) -> Step:
    step = Step(optional=mark[0] == "?")
    plain = [word for word in words if word[0] not in ">@#<"]
    step.marks = {word[0]: word[1:] for word in words if word[0] in ">@#<"}
    if mark[-1] == "+":
        step.include, step.arguments = plain[0], plain[1:]
    elif plain:
        step.action, step.arguments = plain[0], plain[1:]
    return step


def template(text: str, language: str, phrases: dict) -> list:
    """A wording as a list of strings, slots (tuples) and choices (lists of templates)."""
    stack: list[list] = [[[]]]                                   # each level holds the alternatives read so far
    for token in re.findall(r"[\[\]|]|\{[^}]*\}|<[^>]*>|[^\[\]|{<]+", text.replace("\\n", "\n")):
        if token == "[":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == "]":
            choice = stack.pop()
            stack[-1][-1].append(choice)
        elif token[0] == "{":
            first, _, second = token[1:-1].partition(" ")
            stack[-1][-1].append((first, second, None) if second else (*(first + ".").split(".", 1), ""))
        elif token[0] == "<":
            stack[-1][-1].append(phrases.setdefault(token[1:-1], {"en": [], "zh": []})[language])
        else:
            stack[-1][-1].append(token)
    assert len(stack) == 1, f"world_plots.txt: brackets do not match in {text!r}"
    return [stack[0]] if len(stack[0]) > 1 else stack[0][0]


def wording(parsed: list, roles: dict, language: str, rng: random.Random) -> str:
    """What template() made, as text: its slots filled from `roles`, one of each choice drawn."""
    parts = []
    for part in parsed:
        if type(part) is str:
            parts.append(part)
        elif type(part) is list:
            parts.append(wording(part[int(rng.random() * len(part))], roles, language, rng))
        else:
            role, path, plain = part
            value = roles[role]
            if plain is None:                                    # {N X}: a number of things
                parts.append(counted(value, roles[path][0].key, language))
            elif isinstance(value, int):
                parts.append(str(value) if path else number(value, language))
            else:
                parts.append(word(value[0], path.rstrip("."), language, value[1]))
    return "".join(parts)


def polished(text: str, language: str) -> str:
    """English with a capital at each start of a sentence; Chinese with 两 for a counted two."""
    if language == "zh":
        return re.sub(r"(?<![十百第期零一二三四五六七八九])二(?=[天个点条只枚岁次篮块步]|年(?!级))", "两", text)
    return re.sub(r'(^"?|[.]" "?|[.!?] "?|[:] "|\n"?)([a-z])', lambda found: found[1] + found[2].upper(), text)
