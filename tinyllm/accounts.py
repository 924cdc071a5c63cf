"""Word problems from an account: several numbers at once, changes to some, a question about one, all, or a difference.

A template knows which numbers its question needs; here the same sentences stand before every question, so a reader has
to choose. In: the sentences of problems_accounts.txt. Out: an exercise. Used by exercises.py; explained by
tests/test_accounts.py.
"""

import random
from dataclasses import dataclass, field

from tinyllm.arithmetic import value_of
from tinyllm.lexicon import Concept, alike
from tinyllm.telling import Exercise, Lines, around, going_on, noted, running
from tinyllm.unheard import renamed, told_as
from tinyllm.wordings import Scene, Schema, choices, draw, draw_next, pick, say, schemas

TOPS = (12, 20, 60, 60, 100, 600, 6000)                          # largest numbers of an account
AT_MOST = {"times": 200, "parts": 600}                           # in a day or a class there are no thousands


@dataclass(eq=False)
class Entry:
    """Somebody or something with a number: what it was at first, and what came and went since."""
    owner: object                                                # a concept, or words
    start: int
    changes: list[int] = field(default_factory=list)

    @property
    def now(self) -> int:
        return self.start + sum(self.changes)

    def lines(self, name: str) -> Lines:
        """The number now; `name` is its label where nothing has changed."""
        lines, number = [("start" if self.changes else name, f"{self.start}")], self.start
        for change in self.changes:
            sign, size, result = ("+", "more", "now") if change > 0 else ("-", "less", "left")
            lines += [(size, f"{abs(change)}"), (result, f"{number}{sign}{abs(change)}")]
            number += change
        return lines


class Account:
    """What is told: the roles of a frame, three entries of which some are used, and the sentences so far."""

    def __init__(self, frame: Schema, rng: random.Random, language: str, hard: bool):
        self.name, self.letters, self.rng, self.language = frame.name.split("/")[1], frame.letters, rng, language
        self.sentences, owners, top = [], [], rng.choice(TOPS) * (4 if hard else 1)
        self.top = min(top, AT_MOST.get(self.name, top))
        while len(owners) < 3:
            self.roles = draw(frame, rng)
            owners = self._owners(dict(frame.roles)[self.letters[0]])
        self.entries = [Entry(owner, rng.randint(2, self.top)) for owner in owners]
        self.told: list[Entry] = []
        self.asked: tuple[Entry, ...] = ()                       # in the last sentence: in the end, the question
        self.clear = True                                        # `they` can only be the things the frame is about
        self.names = renamed(self.roles | dict(zip(self.letters, owners)), set(), rng)

    def _owners(self, spec: str) -> list:
        """Three of those that `spec` names, if there are: people, kinds of things, or the columns of a row.

        Kinds are such as exclude each other and are counted alike: no pupils beside children, no litres beside metres.
        """
        drawn = self.roles.pop(self.letters[0])
        if isinstance(drawn, Scene):                             # first, second, third
            return [say(cell, {}, self.language, self.rng) for cell in drawn.cells[self.language].values()]
        row = self.roles.get(spec)
        options = [one for one in choices(row.things if row else spec)
                   if " of " not in one.english and one.kinds[0] not in ("crowd", "rider")]
        owners: list[Concept] = []
        for one in self.rng.sample(options, len(options)):
            if len(owners) < 3 and not any(alike(one, other) for other in owners):
                owners.append(one)
        return owners

    def can(self, *kinds: str) -> bool:
        """Whether this frame has sentences of these kinds."""
        return all(f"{self.name}/{kind}" in schemas() for kind in kinds)

    def tell(self, kind: str, *entries: Entry, **numbers: int) -> str:
        """A sentence of the kind; the first of `entries` is its {A} (or {X}, {T}), the next its {B}."""
        given = self.roles | dict(zip(self.letters, [entry.owner for entry in entries])) | numbers
        schema, self.asked = self.rng.choice(schemas()[f"{self.name}/{kind}"]), entries
        named = [*self.roles.values(), *(entry.owner for entry in self.entries)]
        known = [self.names.get(one, one) for one in named if isinstance(one, Concept)]
        while True:
            roles = draw(schema, self.rng, given=given)
            new = [roles[role] for role in roles.keys() - given.keys() if isinstance(roles[role], Concept)]
            if not any(alike(one, other) for one in new for other in known):     # a friend, a thing, without a number
                return pick(schema.facts[0], told_as(roles, self.names), self.language, self.rng)

    def begin(self, *entries: Entry) -> None:
        """How many there are at first: in one sentence, or one by one."""
        self.told += entries
        together = {2: "two", 3: "three"}.get(len(entries))
        if together and self.rng.random() < 0.5:
            self.sentences.append(self.tell(together, *entries, **dict(zip("nml", [one.start for one in entries]))))
        else:
            self.sentences += [self._told_alone(entry) for entry in entries]

    def _told_alone(self, entry: Entry) -> str:
        """`Joan has 29 carrots`, or now and then, with a number that does not matter, `29 carrots and 14 melons`."""
        if self.can("also") and self.rng.random() < 0.2:
            self.clear = False
            return self.tell("also", entry, n=entry.start, m=self.rng.randint(2, self.top))
        return self.tell("one", entry, n=entry.start)

    def change(self, entry: Entry) -> None:
        """Something comes or goes, or is given to another whose number is known."""
        others, chance = [other for other in self.told if other is not entry], self.rng.random()
        b = self.rng.randint(2, entry.now - 2) if entry.now > 3 else 0       # never one: `1 shells were sold`
        if chance < 0.55 and b:
            gift = bool(others) and self.can("gift") and chance < 0.12
            other = self.rng.choice(others) if gift else entry
            self.sentences.append(self.tell("gift", entry, other, b=b) if gift else self.tell("loss", entry, b=b))
            entry.changes.append(-b)
            if gift:
                other.changes.append(b)
        else:
            b = self.rng.randint(2, max(self.top // 2, 3))
            self.sentences.append(self.tell("gain", entry, b=b))
            entry.changes.append(b)

    def change_unsaid(self, entry: Entry) -> bool:
        """Some more come, or some go, and how many is not said; whether there are more now."""
        gain = self.rng.random() < 0.5 or entry.start < 4
        entry.changes.append(self.rng.randint(2, self.top) if gain else -self.rng.randint(2, entry.start - 2))
        if self.rng.random() < 0.7:
            self.sentences.append(self.tell("some-gain" if gain else "some-loss", entry))
        return gain

    def relate(self, entry: Entry, known: Entry) -> tuple[str, str, int]:
        """How `entry` stands to `known`, told from either side; label, sign and number that lead from known to it."""
        if self.rng.random() < 0.3:
            times, more = self.rng.randint(2, 9), self.rng.random() < 0.5
            small, large = (known, entry) if more else (entry, known)
            small.start, large.start = known.start, known.start * times
            self.sentences.append(self.tell("times-of", large, small, k=times))
            return "times", "*" if more else "/", times
        if abs(entry.start - known.start) < 2:                   # nobody has `1 more shells`
            entry.start = known.start + 2
        more, gap = entry.start > known.start, abs(entry.start - known.start)
        pair, kind = ((entry, known) if more else (known, entry)), "more-than"
        if self.rng.random() < 0.4:
            pair, kind = pair[::-1], "fewer-than"
        self.sentences.append(self.tell(kind, *pair, b=gap))
        return ("more than", "+", gap) if more else ("fewer", "-", gap)

    def happen(self, entries: list[Entry], counts: list[int]) -> None:
        """The entries as they are at first, then so many changes of each: one after the other, or mixed."""
        if not self.can("gain"):
            self.begin(*entries)
        elif self.rng.random() < 0.6:
            self.begin(*entries)
            plan = [entry for entry, n in zip(entries, counts) for _ in range(n)]
            self.rng.shuffle(plan)
            for entry in plan:
                self.change(entry)
        else:
            for entry, n in zip(entries, counts):
                self.begin(entry)
                for _ in range(n):
                    self.change(entry)


# ---- the questions: each tells what it needs, and returns its question and the lines that answer it ----------------

def ask_one(account: Account) -> tuple[str, Lines]:
    """How many there are now of one entry, whatever the others do."""
    entries = account.entries[:account.rng.choice((1, 1, 2, 2, 3))]
    asked = account.rng.choice(entries)
    account.happen(entries, [account.rng.choice((1, 1, 2, 2, 3)) if entry is asked else account.rng.choice((0, 0, 1))
                             for entry in entries])
    return account.tell("ask-one", asked), asked.lines("start")


def ask_total(account: Account) -> tuple[str, Lines]:
    """How many there are in all, or of two of the three. Who lost some may have lost them to somebody else, who is not
    meant: the question names its people then."""
    entries = account.entries[:account.rng.choice((2, 2, 3))]
    account.happen(entries, [account.rng.choice((0, 0, 0, 1)) for _ in entries])
    lost = any(change < 0 for entry in entries for change in entry.changes)
    named = account.can("ask-all2") and (lost or account.rng.random() < 0.5)
    if named and account.rng.random() < 0.4:
        entries = account.rng.sample(entries, 2)
    so_far, lines = entries[0].now, entries[0].lines("first")
    for entry, name in zip(entries[1:], ("second", "third")):
        label = "in all" if entry is entries[-1] else "so far"
        lines += [*entry.lines(name), (label, f"{so_far}+{entry.now}")]
        so_far += entry.now
    kind = f"ask-all{len(entries)}" if named or not account.can("ask-all") else "ask-all"
    return account.tell(kind, *entries), lines


def ask_more(account: Account) -> tuple[str, Lines]:
    """How many more there are of one than of another."""
    entries = account.entries[:account.rng.choice((2, 2, 3))]
    account.happen(entries, [account.rng.choice((0, 0, 1)) for _ in entries])
    small, large = sorted(account.rng.sample(entries, 2), key=lambda entry: entry.now)
    return account.tell("ask-more", large, small), [
        *large.lines("first"), *small.lines("second"), ("difference", f"{large.now}-{small.now}")]


def ask_later(account: Account) -> tuple[str, Lines]:
    """How many more there are of one than of another, now that both have changed: what was at first does not matter."""
    large, small = entries = account.entries[:2]
    account.begin(*account.rng.sample(entries, 2))
    for entry in entries:
        account.change_unsaid(entry)
    if large.now < small.now:
        large, small = small, large
    account.sentences += [account.tell("now", entry, n=entry.now) for entry in account.rng.sample(entries, 2)]
    return account.tell("ask-later", large, small), [
        ("first", f"{large.now}"), ("second", f"{small.now}"), ("difference", f"{large.now}-{small.now}")]


def ask_related(account: Account) -> tuple[str, Lines]:
    """How many there are of one, or of both, where of this one only the relation to the other is told."""
    known, other = account.rng.sample(account.entries[:2], 2)
    label, sign, number = account.relate(other, known)
    account.sentences.insert(account.rng.choice((0, 0, 1)), account.tell("one", known, n=known.start))
    lines = [("first", f"{known.start}"), (label, f"{number}"), ("second", f"{known.start}{sign}{number}")]
    if account.rng.random() < 0.3:
        kind = "ask-all2" if account.can("ask-all2") else "ask-all"
        return account.tell(kind, known, other), [*lines, ("in all", f"{known.start}+{other.start}")]
    return account.tell("ask-rest", other), lines


def ask_start(account: Account) -> tuple[str, Lines]:
    """How many there were at first: the last change is undone first."""
    asked, *others = account.entries[:account.rng.choice((1, 1, 2))]
    account.begin(*others)
    account.sentences.append(account.tell("some", asked))
    for _ in range(account.rng.choice((1, 1, 2))):
        account.change(asked)
    account.sentences.append(account.tell("now", asked, n=asked.now))
    number, lines = asked.now, [("now" if asked.changes[-1] > 0 else "left", f"{asked.now}")]
    for change in reversed(asked.changes):
        sign, size = ("-", "more") if change > 0 else ("+", "less")
        lines += [(size, f"{abs(change)}"), ("before", f"{number}{sign}{abs(change)}")]
        number -= change
    return account.tell("ask-start", asked), [*lines[:-1], ("start", lines[-1][1])]


def ask_change(account: Account) -> tuple[str, Lines]:
    """How many came or went."""
    asked, *others = account.entries[:account.rng.choice((1, 1, 2))]
    late = account.rng.random() < 0.3                            # how many there were is told at the end
    account.begin(*others, *([] if late else [asked]))
    gain = account.change_unsaid(asked)
    others = others if account.rng.random() < 0.5 else []        # and what has become of another
    for other in others:
        account.change_unsaid(other)
    changed = account.rng.sample([asked, *others], 1 + len(others))
    account.sentences += [account.tell("now", entry, n=entry.now) for entry in changed]
    if late:
        account.sentences.append(account.tell("at-first", asked, n=asked.start))
    start, now = asked.start, asked.now
    lines = [("start", f"{start}"), ("now" if gain else "left", f"{now}"),
             ("more", f"{now}-{start}") if gain else ("less", f"{start}-{now}")]
    return account.tell("ask-gain" if gain else "ask-loss", asked), lines


def ask_rest(account: Account) -> tuple[str, Lines]:
    """How many of the whole are those of which nothing is told."""
    entries = account.entries[:account.rng.choice((2, 2, 3))]
    asked, known = account.rng.choice(entries), sum(entry.start for entry in entries)
    others = [entry for entry in entries if entry is not asked]
    account.begin(*others)
    whole = account.tell(f"total{len(entries)}", *entries, n=known)
    account.sentences.insert(account.rng.choice((0, len(account.sentences))), whole)
    lines = [("in all", f"{known}"), ("first", f"{others[0].start}"), ("rest", f"{known}-{others[0].start}")]
    if others[1:]:
        second = others[1].start
        lines += [("second", f"{second}"), ("rest", f"{known - others[0].start}-{second}")]
    return account.tell("ask-rest", asked), lines


# Every question, and the sentences that an account must have for it.
QUESTIONS = {ask_one: ("ask-one", "gain"), ask_total: ("one",), ask_more: ("ask-more",), ask_start: ("ask-start",),
             ask_change: ("ask-gain",), ask_later: ("ask-later",), ask_rest: ("ask-rest",),
             ask_related: ("more-than",)}


def tell_account(rng: random.Random, language: str, hard: bool) -> Exercise:
    """One question about one account; where it asks for things of one kind, it may go on with what becomes of them."""
    answer = 0
    while not 0 < answer < 100000:
        account = Account(rng.choice(schemas()["account/"]), rng, language, hard)
        ask = rng.choice([question for question, kinds in QUESTIONS.items() if account.can(*kinds)])
        question, lines = ask(account)
        answer = value_of(lines[-1][1])
    steps, sentences, final = noted(lines, language), account.sentences, str(answer)
    alone = ask in (ask_one, ask_total) and account.clear and len(account.asked) == len(account.told)
    if "X" in account.roles and alone and rng.random() < 0.35:   # `they` can only be those asked for
        further = draw_next("next/", rng, hard, {"X": account.roles["X"], "n": answer})
        left = ask is ask_one and account.told[0].changes[-1] < 0
        sentences, question, more, final = going_on(sentences, further, left, account.names, language, rng)
        steps += more
    owners = dict(zip(account.letters, [entry.owner for entry in account.entries]))
    idle = around(told_as(account.roles | owners, account.names), language, rng)
    return running(sentences, question, idle, language, rng), steps, final
