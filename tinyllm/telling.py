"""Whole problems from a schema: the question sentence by sentence, the lines that work it out, the answer.

In: a schema and a random generator. Out: an exercise: a story, a chain of changes, people compared in a row.
Explained by tests/test_problems.py.
"""

import random
import re

from tinyllm.arithmetic import worked
from tinyllm.grammar import polished, template
from tinyllm.lexicon import Concept, plurals, word
from tinyllm.unheard import invented, renamed, told_as
from tinyllm.wordings import NO_CHOICE, Schema, choices, draw, draw_next, joined, pick, say, schemas

Exercise = tuple[str, list[str], str]                             # question, steps, answer
Lines = list[tuple[str, str]]                                     # of a solution: label, expression
LABELS = {"start": "开始", "more": "增加", "less": "减少", "now": "现在", "left": "剩下", "before": "之前",
          "first": "第一", "second": "第二", "third": "第三", "so far": "前两个", "in all": "一共", "rest": "其余",
          "difference": "相差", "more than": "多", "fewer": "少", "times": "倍数", "used": "用去", "number": "份数",
          "each": "每份", "full": "装满"}
BEGINNINGS = {"A", "All", "Along", "Altogether", "Among", "An", "Another", "Apart", "Autumn", "Before", "Besides",
              "Cards", "Children", "Compared", "Each", "Earlier", "Every", "Everybody", "Everyone", "First", "Going",
              "Half", "He", "In", "It", "Later", "Meals", "Nearby", "Next", "Now", "Of", "On", "One", "Only",
              "Originally", "Out", "Pupils", "Seats", "She", "So", "Some", "Someone", "Soon", "Spring", "Summer",
              "That", "The", "Their", "Then", "There", "They", "Those", "Three", "Tickets", "Today", "Together",
              "Two", "Until", "We", "What", "Winter", "With", "Without", "Yesterday"}     # of sentences, and no names
# First words of sentences that already say where or when.
UNPLACED = ("After", "At ", "By ", "During", "For ", "From ", "If ", "In ", "On ", "When ", "While ", "Last ", "Next ",
            "This ", "To ", "With ", "Without ", "Altogether", "Together", "Later ", "Now ", "Soon ", "Yesterday",
            "Today", "在", "从", "当", "如果", "上", "下", "早", "昨", "今", "去")
# Beside these there is no room for a time of day: what is so at any hour, and what says its own time.
UNTIMED = {"en": re.compile(r"\b(is|are|has|have|holds|can|number|square|angle|May|June|July|days?|night|noon|hours?|"
                            r"round|lunch)\b"),
           "zh": re.compile(r"[周天第日月年夜午点时角数长宽重]|^[^了]*$")}
# What always holds (`The edge of a cube is`, `Every box holds`), prices, weights, and what says its own time, have no
# place or hour before them.
TIMELESS = re.compile(
    r"\b(morning|afternoon|evening|yesterday|today|last|this|each|every|per|years? old|long|wide|high|area|edge|side|"
    r"length|diameter|radius|speed|fraction|two numbers|weighs?|costs?|likes?|used to)\b|"
    r"岁|厘米|面积|半径|速度|分子|两个?数|昨|今|每|早|晚|重|元|原来|[上这]周|[去前]年|上半年|月|星期", re.I)
# A question with one of these points at what came last.
POINTING = re.compile(r"\b(its?|they|them|their|these|those|that|this|he|she|his|her|him)\b|[它他她那这]|第二个|前一天",
                      re.I)


def tell(schema: Schema, rng: random.Random, language: str, hard: bool = False, longer: bool = False) -> Exercise:
    """(question, steps, answer) of one drawing of `schema`; `longer`: one that can go on does."""
    roles = draw(schema, rng, hard)
    names = renamed(roles, fixed_in(schema), rng)
    told, steps = told_as(roles, names), steps_of(schema.steps, roles, language)
    if schema.leaves and longer:
        given = {role: roles[role] for role in ("A", "X", "$") if role in roles} | {"n": roles[schema.steps[-1][0]]}
        further = draw_next("next/", rng, hard, given)
        sentences = [pick(fact, told, language, rng) for fact in schema.facts]
        sentences, question, more, answer = going_on(sentences, further, schema.leaves == "left", names, language, rng)
        return running(sentences, question, around(told, language, rng), language, rng), steps + more, answer
    return worded(schema, told, rng, language), steps, answer_of(schema, told, language, rng)


def going_on(sentences: list[str], further: tuple[Schema, dict], left: bool, names: dict, language: str,
             rng: random.Random) -> tuple[list[str], str, list[str], str]:
    """What becomes of the rest (`left`) or of all of them: the sentences with it, the new question, the steps it adds
    and the answer. What holds for each of all, `One box holds 6`, may come first."""
    schema, drawn = further
    roles, (of_the_rest, of_all, *of_each) = told_as(drawn, names), schema.facts
    question = pick(schema.asks, roles, language, rng)
    if of_each and not left and rng.random() < 0.5:
        sentences = [pick(of_each[0], roles, language, rng), *sentences]
    else:
        sentences = [*sentences, pick(of_the_rest if left else of_all, roles, language, rng)]
    return sentences, question, steps_of(schema.steps, drawn, language), str(drawn["r"])


def fixed_in(schema: Schema) -> set[str]:
    """The roles of `schema` whose words the steps write again."""
    written = " ".join(text for _, expression, label in schema.steps for text in (expression, *label.values()))
    return set(re.findall(r"{([A-Z])", written))


def worded(schema: Schema, roles: dict, rng: random.Random, language: str) -> str:
    """The question: in one piece, or sentence by sentence, now and then with one that does not matter."""
    if schema.wholes.get(language) and (not schema.facts or rng.random() < 0.3):
        return polished(pick(schema.wholes, roles, language, rng), language)
    sentences = [pick(fact, roles, language, rng) for fact in schema.facts]
    idle = around(roles, language, rng) if schema.name.startswith("scene") else ([], [])
    if schema.name.startswith("story") and rng.random() < 0.2:
        rng.choice(idle).append(beside_the_point(roles["A"], schema.name, language, rng))
    return running(sentences, pick(schema.asks, roles, language, rng), idle, language, rng)


def running(sentences: list[str], question: str, idle: tuple[list[str], list[str]], language: str,
            rng: random.Random) -> str:
    """Sentences and question as running text, between the `idle` ones, or behind all of them if the question points: a
    noun and its pronoun stay together. Now and then a question comes first that points at nothing, or Chinese sentences
    are joined by commas."""
    sentences = together(placed(sentences, language, rng), language, rng)
    sentences, question = folded(sentences, question, language, rng)
    (before, behind), pointing = idle, POINTING.search(question)
    sentences = [*before, *behind, *sentences] if pointing else [*before, *sentences, *behind]
    if sentences and not pointing and rng.random() < 0.12:
        return joined([question, *sentences], language)
    text = joined([*sentences, question], language)
    return text[:-1].replace("。", "，") + text[-1] if language == "zh" and rng.random() < 0.5 else text


def around(roles: dict, language: str, rng: random.Random) -> tuple[list[str], list[str]]:
    """Sentences that do not matter: some to stand before a problem about `roles`, some behind it."""
    idle: tuple[list[str], list[str]] = ([], [])
    if rng.random() < 0.12:
        rng.choice(idle).append(aside(roles, language, rng))
    if rng.random() < 0.15:
        idle[0].insert(0, opening(roles, language, rng))
    if rng.random() < 0.05:
        idle[1].append(pick(rng.choice(schemas()["remark/"]).facts[0], unheard_of(language, rng), language, rng))
    return idle


def folded(sentences: list[str], question: str, language: str, rng: random.Random) -> tuple[list[str], str]:
    """Now and then, in English, the last fact as a part of the question: `If she buys 8 more, how many ...?`"""
    fact = re.sub(r"^(Then|But) ", "", sentences[-1]) if sentences else ""
    whole = fact[-1:] == "." and not re.search(r"[.;?]", fact[:-1]) and not unplaced(fact)
    if language != "en" or not whole or question.startswith("If ") or rng.random() >= 0.25:
        return sentences, question
    return sentences[:-1], f"If {inside(fact)[:-1]}, {question[0].lower()}{question[1:]}"


def unplaced(sentence: str) -> bool:
    """Whether a sentence already says where or when, so that no place can stand before it; `at the fair ...` gets its
    capital later."""
    return (sentence[:1].upper() + sentence[1:]).startswith(UNPLACED)


def placed(sentences: list[str], language: str, rng: random.Random) -> list[str]:
    """Now and then the first sentence says where, or when: `At the blick fair Tom bought 3 apples.`"""
    if not sentences or unplaced(sentences[0]) or TIMELESS.search(sentences[0]) or rng.random() >= 0.15:
        return sentences
    setting = rng.choice(schemas()["setting/"])
    if setting.name != "setting/where" and any(UNTIMED[language].search(sentence) for sentence in sentences):
        return sentences
    where = pick(setting.facts[0], draw(setting, rng, given=unheard_of(language, rng)), language, rng)
    return [where + inside(sentences[0]), *sentences[1:]]


def together(sentences: list[str], language: str, rng: random.Random) -> list[str]:
    """Now and then two English sentences as one: `Tom had 3 apples, and he bought 4 more.`"""
    if language != "en" or len(sentences) < 2 or rng.random() >= 0.15 or unplaced(sentences[1]):
        return sentences
    second = re.sub(r"^(Then|But|And) ", "", sentences[1])
    link = rng.choice((", and ", " and ", "; ")) if second == sentences[1] else ", and then "
    return [sentences[0][:-1] + link + inside(second), *sentences[2:]] if sentences[0][-1] == "." else sentences


def inside(sentence: str) -> str:
    """An English sentence as it stands behind other words of the same: a small letter, unless a name comes first."""
    first, *others = sentence.split(maxsplit=2)
    surname = first == "He" and others and others[0][0].isupper()      # He Ping is somebody
    return sentence[0].lower() + sentence[1:] if first in BEGINNINGS and not surname else sentence


def beside_the_point(person: Concept, topic: str, language: str, rng: random.Random) -> str:
    """A sentence with a number that the answer does not need, about something else than `topic`."""
    extra = rng.choice([extra for extra in schemas()["extra/"] if extra.name.split("/")[1] not in topic])
    return pick(extra.facts[0], draw(extra, rng, given={"A": person}), language, rng)


def aside(roles: dict, language: str, rng: random.Random) -> str:
    """A sentence with a number of something else; it names nobody and nothing in `roles`, not even inside a word."""
    named = [one for one in roles.values() if isinstance(one, Concept)]
    names = [word(one, "", language, None) or one.measure for one in named] + [
        plurals(one) for one in named if language == "en" and one.plural[:1] not in ("~", "=")]      # strawberries
    while True:
        schema = rng.choice(schemas()["aside/"])
        said = pick(schema.facts[0], draw(schema, rng), language, rng)
        if not any(name in said for name in names):
            return said


def opening(roles: dict, language: str, rng: random.Random) -> str:
    """A sentence without numbers to begin with, about those in `roles`; of a library or a dog nothing is said."""
    fit = {role for role, one in roles.items() if role != "A" or one.features.get("sex", ["it"]) != ["it"]}
    schema = rng.choice([schema for schema in schemas()["intro/"] if all(role in fit for role, _ in schema.roles)])
    known = {role: roles[role] for role, _ in schema.roles}
    return pick(schema.facts[0], known | unheard_of(language, rng), language, rng)


def unheard_of(language: str, rng: random.Random) -> dict[str, str]:
    """A word nobody has heard of, as a word and as a name."""
    new = invented(language, rng)
    return {"w": new, "v": new.capitalize()}


def steps_of(steps: list, roles: dict, language: str) -> list[str]:
    """The written steps: `label: value`, `label: a+b=c`, or a quoted line as it stands."""
    lines = []
    for _, expression, label in steps:
        prefix = labelled(label[language], roles, language)
        if expression[0] == "'":
            line = say(template(expression[1:], language, {}), roles, language, NO_CHOICE, words=0)
            lines.append(prefix + (line if language == "en" else line.replace(" ", "")))
            continue
        work, value = worked(expression, roles)
        if lines and len(work) > 1 and lines[-1].endswith(f"={work[0]}"):      # an equation that has just said it
            work = work[1:]
        first, *rest = work or [str(value)]
        lines += [prefix + first, *rest]
    return lines


def noted(lines: Lines, language: str) -> list[str]:
    """The written steps of lines whose labels are common to all problems."""
    return steps_of([("", expression, {"en": label, "zh": LABELS[label]}) for label, expression in lines], {}, language)


def spaced(sign: str, language: str) -> str:
    """" > ", ", ", ": " in English; >，： in Chinese, where a word behind a space would be another token than in the
    question, which no model can copy."""
    return sign if language == "en" else sign.strip().translate(str.maketrans(",:", "，："))


def labelled(label: str, roles: dict, language: str) -> str:
    """What a step is about, with its colon; empty stays empty."""
    text = say(template(label, language, {}), roles, language, NO_CHOICE, words=0) if label else ""
    return text + spaced(": ", language) if text else ""


def answer_of(schema: Schema, roles: dict, language: str, rng: random.Random) -> str:
    """The answer as the section words it; without a wording, the last result."""
    if schema.answers.get(language):
        return pick(schema.answers, roles, language, rng, words=0)
    return str(roles[schema.steps[-1][0]])


def tell_chain(rng: random.Random, language: str, hard: bool) -> Exercise:
    """Someone's number of things changes several times; asked for is the end, or (undoing each change) the start.

    The first line notes number and changes as they are told: `20, *2, +12`, or `?, *2, +12, 52` when the start is
    unknown. What comes next then stands behind what came last.
    """
    frame, back, undo = rng.choice(schemas()["chain"]), rng.random() < 0.35, []
    told, hidden, end, ask_end, ask_start = frame.facts
    roles = draw(frame, rng, hard)
    start, names = roles["n"], renamed(roles, set(), rng)
    sentences, steps = [pick(hidden if back else told, told_as(roles, names), language, rng)], []
    notes = ["?" if back else str(start)]
    told_before: set[Schema] = set()
    for _ in range(rng.randint(4, 5) if hard else rng.randint(2, 3)):
        schema, roles = draw_next("change/", rng, hard, roles, told_before)
        told_before.add(schema)
        sentences.append(pick(schema.facts[0], told_as(roles, names), language, rng))
        last = [result for result, _, _ in schema.steps].index("r") + 1
        note, *lines = steps_of(schema.steps[:last], roles, language)
        notes, steps = [*notes, note], steps + lines
        undo = steps_of(schema.steps[last:], roles, language) + undo
        roles = {"A": roles["A"], "X": roles["X"], "n": roles["r"]}
    if back:
        sentences.append(pick(end, told_as(roles, names), language, rng))
        notes, steps = [*notes, str(roles["n"])], undo
    if rng.random() < 0.1:
        sentences.insert(0, beside_the_point(told_as(roles, names)["A"], "", language, rng))
    sentences.append(pick(ask_start if back else ask_end, told_as(roles, names), language, rng))
    return joined(sentences, language), [spaced(", ", language).join(notes), *steps], str(start if back else roles["n"])


def tell_relations(rng: random.Random, language: str, hard: bool) -> Exercise:
    """Each has more, fewer or so many times as many as the one before; asked for: the last, all, or a difference."""
    frame = rng.choice(schemas()["relations"])
    roles = draw(frame, rng, hard)
    told, ask_last, ask_all, ask_more = frame.facts
    people, totals, names = [roles["A"]], [roles["n"]], renamed(roles, {"A"}, rng)     # the steps write who has what
    sentences = [pick(told, told_as(roles, names), language, rng)]
    steps = steps_of([("", "n", {"en": "{A}", "zh": "{A}"})], roles, language)
    for _ in range(rng.randint(3, 4) if hard else rng.randint(1, 2)):
        given = {"A": people[-1], "X": roles["X"], "n": totals[-1]}
        given["B"] = rng.choice([person for person in choices("person") if person not in people])
        schema, drawn = draw_next("relation/", rng, hard, given)
        sentences.append(pick(schema.facts[0], told_as(drawn, names), language, rng))
        steps += steps_of(schema.steps, drawn, language)
        people.append(drawn["B"])
        totals.append(drawn["r"])
    if rng.random() < 0.25:
        sentences.reverse()
    if rng.random() < 0.1:
        sentences.insert(0, beside_the_point(rng.choice(people), "", language, rng))
    less, more = sorted([0, -1], key=lambda place: totals[place])
    kind = rng.choice(("last", "all", "more" if totals[less] < totals[more] else "last"))
    question = {"last": ask_last, "all": ask_all, "more": ask_more}[kind]
    roles |= {"A": people[more], "B": people[less]} if kind == "more" else {"B": people[-1]}
    asked = pick(question, told_as(roles, names), language, rng)
    work, total = worked({"last": str(totals[-1]), "all": "+".join(map(str, totals)),
                          "more": f"{totals[more]}-{totals[less]}"}[kind])
    steps, answer = steps + work, str(total)
    if kind == "all" and rng.random() < 0.3:                     # what becomes of all of them
        further = draw_next("next/", rng, hard, {"X": roles["X"], "n": total})
        sentences, asked, more, answer = going_on(sentences, further, False, names, language, rng)
        steps += more
    return joined([*sentences, asked], language), steps, answer


def listed(items: list[str], language: str) -> str:
    """`a, b and c` / a、b和c."""
    comma, last = {"en": (", ", " and "), "zh": ("、", "和")}[language]
    return comma.join(items[:-1]) + last + items[-1]
