"""What is taken out of a text, what must stay, and which texts count as copies of each other."""

import random
import unicodedata

import numpy as np
import pytest
from conftest import cpu_seconds

from tinyllm.clean import (
    clean,
    drop_repeated_lines,
    looks_like_html,
    near_duplicates,
    signature,
)

PAGE = """<!DOCTYPE html><html><head><title>Owls</title><style>p { color: red }</style>
<script>if (a < b) { alert("no") }</script></head><body><nav><a href="/">Home</a></nav>
<p>Owls hunt at&nbsp;night &amp; sleep by day.</p><!-- secret --><p>猫头鹰在夜里<b>捕猎</b>。</p></body></html>"""


def sentences(rng: random.Random, n: int) -> str:
    words = ["owl", "fox", "river", "stone", "night", "moon", "bread", "garden", "winter", "letter", "silver", "window"]
    return " ".join(rng.choice(words) + str(rng.randrange(100)) for _ in range(n))


def shingles(text: str) -> set[str]:
    return {text[i:i + 5] for i in range(len(text) - 4)}


def jaccard(a: str, b: str) -> float:
    """The slow definition: shared 5-character pieces among all pieces."""
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_a_web_page_is_reduced_to_what_a_reader_sees():
    """Tags, scripts, styles, comments and menus are not language; entities are characters in disguise."""
    text, removed = clean(PAGE)
    assert [line for line in text.split("\n") if line] == [
        "Owls", "Owls hunt at night & sleep by day.", "猫头鹰在夜里捕猎。"]
    assert removed["HTML markup"][0] == 1


def test_a_page_that_python_s_parser_gives_up_on_costs_no_run():
    """`<![foo[` raises an AssertionError there; what stood before it is kept."""
    text, _ = clean("<!DOCTYPE html><html><body><p>Owls hunt at night.</p><p>x <![foo[ b ]]></p></body></html>")
    assert text.startswith("Owls hunt at night.")


@pytest.mark.parametrize("text", [
    "if a < b and b > c: the set is empty",
    "std::vector<int> v; std::map<std::string, List<T>> m;",
    "Write `<p>text</p>` for a paragraph and `<br>` for a line end.",
    "```html\n<html>\n<body><p>Hi</p></body>\n```",
    "The user typed <|user|> and <eos> and <a, b>.",
    "def f(x):\n    if x < 0:\n        return -x\n\n    return x",
    "AT&T &amp; others",
    "She said <3 and left. 5 > 3",
])
def test_code_and_comparisons_are_not_taken_for_html(text):
    """A rule that ate every "<...>" would eat programs and mathematics."""
    assert clean(text)[0] == text


def test_a_piece_of_a_page_without_its_frame_is_still_html():
    """Blocks between blank lines have lost <html>; two known tags, one of them closing, give them away."""
    assert looks_like_html('<div class="x">\n<p>Hello <b>you</b></p>')
    assert not looks_like_html("a <b")


@pytest.mark.parametrize("text", ["<p><br></p>" + 30_000 * "<a ", 30_000 * "<script>"])
def test_broken_markup_takes_no_hours(text):
    """Of 90 kB like that, every page of a corpus that is looked at must take a moment."""
    assert cpu_seconds(lambda: clean(text)) < 5


def test_a_script_that_never_ends_does_not_swallow_silently():
    """What disappears with markup is counted character by character."""
    raw = "<html><body>Good.<script>var x = 1;"
    text, removed = clean(raw)
    assert text == "Good."
    assert len(text) + sum(characters for _, characters in removed.values()) == len(raw)


def test_invisible_characters_leave_and_letters_are_composed():
    """Two spellings of "é" would be two different tokens for the same letter."""
    text, removed = clean("\ufeffcafe\u0301\x00\u200b 中\u00ad文\x07\ud800\r\nsecond\u2028third\xa0word  \r\n")
    assert text == "café 中文\nsecond\nthird word"
    assert unicodedata.is_normalized("NFC", text)
    assert removed["control characters"] == [6, 6]


def test_joiners_stay_because_emoji_and_scripts_are_made_of_them():
    """U+200D glues a family emoji together; U+200C separates letters in Persian."""
    for text in ("👩\u200d👧 family", "می\u200cخواهم"):
        assert clean(text)[0] == text


@pytest.mark.parametrize("blob", ["QUJD" * 100, "a=1;b=2;" * 60, "https://x.org/" + "a%20" * 100, "=" * 300])
def test_blobs_are_dropped_with_their_line(blob):
    """Base64, minified code and rulers teach nothing and fill thousands of tokens."""
    text, removed = clean(f"before\n{blob}\nafter")
    assert text == "before\nafter"
    assert removed["over-long line"] == [1, len(blob) + 1]


@pytest.mark.parametrize("line", [
    "从前有一座山：山上有一座庙庙里有一个老和尚在给小和尚讲故事" * 40,
    "これは長い日本語の文章です" * 40,
    "ภาษาไทยไม่เว้นวรรคระหว่างคำ" * 40,
    "A long paragraph is still prose. " * 100 + "end",
    "See https://example.org/" + "a" * 220 + " which explains it. " + "It is a long explanation. " * 20 + ".",
])
def test_long_lines_of_prose_stay_in_every_script(line):
    """Chinese, Japanese and Thai write a paragraph without a single space: length alone is no fault."""
    assert clean(line)[0] == line


@pytest.mark.parametrize("line", [
    "Copyright © 2014 The Owl Press", "© 2020 example.org. All rights reserved.", "copyright 2001-2005 Jane Doe",
    "版权所有 © 2019 某某公司", "This website uses cookies to improve your experience.", "Accept all cookies",
    "本网站使用cookie以改善体验。", "Home | About us | Contact", "首页 | 登录 | 注册", "Skip to main content",
    "返回顶部",
])
def test_boilerplate_lines_are_dropped(line):
    """They are the most frequent sentences of the web and the least worth learning."""
    text, removed = clean(f"The story begins.\n{line}\n故事开始了。")
    assert text == "The story begins.\n故事开始了。"
    assert removed.keys() == {"navigation line"} if "|" in line else {"boilerplate line"}


@pytest.mark.parametrize("line", [
    "The Copyright Act of 1911 was passed in London.", "She reserved all rights to the song.", "Home",
    "Next morning the fox came back.", "| a | b |", "The cookies were still warm.", "Copyright is a law.",
    "(c) In 1985 he moved to Paris.", "版权是一种权利。", "Search the house | search the garden",
    "他吃了一块cookie。", "Help", "1 | 2 | 3",
])
def test_sentences_that_resemble_boilerplate_stay(line):
    """When in doubt the text stays: a lost sentence is worse than a kept banner."""
    assert clean(line)[0] == line


def test_cleaning_twice_changes_nothing_more():
    """Otherwise the hash of a document would depend on how often it has been prepared."""
    for raw in (PAGE, "a\r\n\r\n\r\n\r\nb \n", "  indented\n\tcode  \n", "e\u0301" * 10, ""):
        once = clean(raw)[0]
        assert clean(once)[0] == once


def test_every_removed_character_has_a_reason():
    """Kept + removed = read, or something was dropped in silence."""
    for raw in (PAGE, "x\r\ny  \n\n\n\nz\x00\n" + "A" * 500 + "\nCopyright 2001 Me\n", "e\u0301", "", "\n \n"):
        text, removed = clean(raw)
        assert len(text) + sum(characters for _, characters in removed.values()) == len(raw)


def test_a_footer_shared_by_many_documents_leaves_them():
    """The same line in 30 different texts is a template, not writing."""
    footer = "Read more stories like this one on our page"
    bodies = [sentences(random.Random(i), 30) for i in range(100)]
    texts = [f"{body}\n{footer}" if i < 30 else body for i, body in enumerate(bodies)]
    kept, removed = drop_repeated_lines(texts)
    assert kept == bodies
    assert removed == {"repeated line": [30, 30 * (len(footer) + 1)]}


def test_copies_do_not_lose_the_lines_they_share():
    """30 copies share every line; if shared lines were dropped, not even one copy would survive."""
    story = "\n".join(sentences(random.Random(i), 12) for i in range(5))
    copies = [f"{story}\nversion {i}" for i in range(30)]
    assert drop_repeated_lines(copies)[0] == copies
    assert drop_repeated_lines([story] * 50)[0] == [story] * 50


@pytest.mark.parametrize("changed", [0, 3, 10, 30, 100])
def test_signatures_estimate_the_jaccard_similarity(changed):
    """The chance that two texts share the minimum of a random order of shingles is their Jaccard similarity."""
    estimates, truths = [], []
    for seed in range(8):
        rng = random.Random(seed)
        words = sentences(rng, 100).split()
        other = list(words)
        for i in rng.sample(range(100), changed):
            other[i] = sentences(rng, 1)
        a, b = " ".join(words), " ".join(other)
        truths.append(jaccard(a, b))
        estimates.append((signature(a) == signature(b)).mean())
    # 8 pairs of 60 places: standard error at most sqrt(0.25 / 480) = 0.023; four of them
    assert np.mean(estimates) == pytest.approx(np.mean(truths), abs=0.092)


def test_case_and_spacing_do_not_make_a_new_text():
    """A reprint with other line breaks is a copy."""
    assert (signature("The  Owl\nhunts at Night.") == signature("the owl hunts at night.")).all()
    assert signature("").shape == signature("猫").shape == (60,)


def near(texts: list[str], threshold: float = 0.8) -> list[bool]:
    signatures = np.array([signature(text) for text in texts])
    return near_duplicates(signatures, threshold, np.zeros(len(texts), bool)).tolist()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_text_with_one_changed_word_is_a_copy_and_another_text_is_not(language):
    """The first text stays, its variant goes, a different text on the same subject stays."""
    first, variant, other = {
        "en": ("The old owl sat in the oak and watched the river all night long, waiting for the moon to rise over the "
               "hills, while the village slept and the dogs dreamt of bones.",
               "The old owl sat in the oak and watched the river all night long, waiting for the sun to rise over the "
               "hills, while the village slept and the dogs dreamt of bones.",
               "All night the village slept. By the river an old owl sat in an oak. The dogs were dreaming of bones "
               "and the moon rose over the hills when nobody was waiting for it."),
        "zh": ("从前有一座高高的山，山脚下住着一位老奶奶和她的小花猫。每天早上，老奶奶都去河边打水，小花猫跟在后面，"
               "一边走一边看着天上的小鸟，心里想着什么时候才能飞起来，像它们一样到远方去看看大海和城市里的灯火。",
               "从前有一座高高的山，山脚下住着一位老爷爷和她的小花猫。每天早上，老奶奶都去河边打水，小花猫跟在后面，"
               "一边走一边看着天上的小鸟，心里想着什么时候才能飞起来，像它们一样到远方去看看大海和城市里的灯火。",
               "老奶奶每天早上都到河边打水。她住在一座高山的脚下，家里有一只小花猫。猫喜欢看小鸟，也喜欢跟在老奶奶身后散步，"
               "它常常想：要是我也能飞，我就去看大海。"),
    }[language]
    assert near([first, variant, other, first]) == [False, True, False, True]


def test_near_duplicates_agree_with_comparing_all_pairs():
    """Hashing into bands only saves comparisons; what it decides is what the slow definition decides."""
    rng, texts = random.Random(0), []
    for _ in range(40):
        words = sentences(rng, 60).split()
        for changed in (0, 1, 20):                                   # a text, its near copy, and a loose variant
            copy = list(words)
            for i in rng.sample(range(60), changed):
                copy[i] = sentences(rng, 1)
            texts.append(" ".join(copy))
    slow = [any(jaccard(texts[j], texts[i]) >= 0.8 for j in range(i)) for i in range(len(texts))]
    assert near(texts) == slow
    assert sum(slow) == 40


def test_one_of_a_chain_of_copies_survives():
    """a ~ b ~ c ... : each resembles the one before, and the first has nobody before it."""
    words, chain = sentences(random.Random(1), 80).split(), []
    for i in range(30):
        words[i] = f"new{i}"
        chain.append(" ".join(words))
    gone = near(chain)
    assert not gone[0] and sum(gone) > 20


def test_a_document_that_is_already_dropped_drops_nobody():
    """Otherwise two copies could send each other away and the text would be lost."""
    text = sentences(random.Random(2), 40)
    signatures = np.array([signature(text)] * 3)
    assert near_duplicates(signatures, 0.8, np.array([True, False, False])).tolist() == [False, False, True]
