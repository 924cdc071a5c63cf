"""Cleaning and near-duplicate detection: text -> cleaned text and a count of what was taken out of it and why.

A model learns whatever repeats most, so cookie banners and copies cost more than their share. Every rule here is
conservative: when in doubt the text stays. Pure functions, no files; explained by tests/test_clean.py.
"""

import contextlib
import functools
import re
import unicodedata
from collections import Counter
from html.parser import HTMLParser

import numpy as np

from tinyllm.corpus import Tally

LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Everything invisible except newline and tab. The joiners U+200C and U+200D stay: scripts and emoji need them.
# Lone surrogates can be written in JSON ("\ud800") but not in UTF-8.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069"
                     "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff]")
BLANK_LINES = re.compile("\n{3,}")

# Only plain ASCII counts as a blob: Chinese, Japanese, Thai ... write whole paragraphs without a space.
BLOB = re.compile("[!-~]{201,}")

PAGE = re.compile(r"<!doctype html|<html[\s>]|<body[\s>]|<script[\s>](?:(?!<script).)*?</script|"
                  r"<style[\s>](?:(?!<style).)*?</style", re.I | re.S)
TAG = re.compile(r"</?(?:a|b|blockquote|br|center|div|em|font|h[1-6]|hr|i|img|li|nav|ol|p|pre|section|small|span|"
                 r"strong|sub|sup|table|td|th|tr|u|ul)(?:\s[^<>]*)?/?>", re.I)
OWN_LINE = frozenset(["address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt", "footer",
                      "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "option",
                      "p", "pre", "section", "table", "td", "th", "title", "tr", "ul"])
NOT_TEXT = frozenset(["script", "style", "template", "nav"])

BOILERPLATE = re.compile(
    r"(?:(?:copyright\s*)?©|copyright\s*\(c\)|copyright(?=\s*(?:19|20)\d\d)).{0,20}(?:19|20)\d\d.*"
    r"|(?:版权所有|版權所有)\W.*|.*\ball rights reserved\W*|.*(?:版权所有|保留所有权利|翻印必究)\W*"
    r"|.*\b(?:we|this (?:web)?site) uses? cookies\b.*|(?:accept|manage|reject) (?:all )?cookies\W*"
    r"|.*(?:本网站|本站|我们)使用\s?cookie.*"
    r"|(?:skip to (?:main )?content|back to top|click here to subscribe|share (?:this|on) (?:facebook|twitter)|"
    r"返回顶部|回到顶部|跳到内容|点击此处订阅|分享到微博|扫码关注.{0,20})\W*", re.I)
NAVIGATION = re.compile(r"home|menu|about(?: us)?|contact(?: us)?|log ?in|sign (?:in|up)|register|search|help|faq|"
                        r"next|prev(?:ious)?|privacy(?: policy)?|terms(?: of (?:use|service))?|site ?map|"
                        r"首页|主页|关于我们|联系我们|登录|注册|搜索|帮助|上一页|下一页|上一篇|下一篇|隐私政策|"
                        r"网站地图", re.I)

N_BANDS, BAND_ROWS, SHINGLE = 12, 5, 5
LEADERS = 100


def clean(text: str) -> tuple[str, Tally]:
    """(cleaned text, what was removed from it); the text is "" when nothing is left.

    Unicode NFC; one kind of line end; no control characters; markup only where the document looks like HTML; lines
    that are blobs (base64, minified code), copyright and cookie notices or navigation are dropped. Leading spaces
    stay, because code needs them.
    """
    removed, before = Tally(), len(text)
    if looks_like_html(text):
        text = html_text(text)
        removed.add("HTML markup", 1, before - len(text))
    size = len(text)
    text = LINE_ENDS.sub("\n", text).replace("\xa0", " ")
    text, count = CONTROL.subn("", text)
    removed.add("control characters", count, count)
    kept = []
    for line in unicodedata.normalize("NFC", text).split("\n"):
        line = line.rstrip()
        reason = line_fault(line)
        if reason:
            removed.add(reason, 1, len(line) + 1)
        else:
            kept.append(line)
    text = BLANK_LINES.sub("\n\n", "\n".join(kept)).strip("\n")
    explained = sum(characters for reason, (_, characters) in removed.items() if reason != "HTML markup")
    removed.add("spaces and line ends", 0, size - explained - len(text))
    return text, removed


def line_fault(line: str) -> str:
    """Why a line is not text worth learning, or ""."""
    if len(line) > 200:
        blobs = BLOB.findall(line)
        return "over-long line" if blobs and 2 * sum(map(len, blobs)) > len(line) else ""
    bare = line.strip()
    if BOILERPLATE.fullmatch(bare):
        return "boilerplate line"
    items = re.split(r"\s*[|»›·•]\s*", bare.strip("|»›·• ")) if bare else []
    return "navigation line" if len(items) > 1 and all(map(NAVIGATION.fullmatch, items)) else ""


def looks_like_html(text: str) -> bool:
    """True for a web page or a piece of one; "a < b", code with <T> and texts that quote HTML in `` stay."""
    if "<" not in text or text.count("<") > 2 * text.count(">") + 100:       # of `<a <a <a` the parser would make hours
        return False
    if PAGE.search(text):
        return "```" not in text
    tags = TAG.findall(text)
    closing = any(tag.startswith("</") or tag[1:3].lower() in ("br", "hr") for tag in tags)
    return len(tags) >= 2 and closing and "`" not in text


class _Text(HTMLParser):
    """Collects the visible text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden: list[str] = []                                   # open elements whose content is not text

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in NOT_TEXT:
            self.hidden.append(tag)
        if tag in OWN_LINE:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self.hidden and tag == self.hidden[-1]:
            self.hidden.pop()
        if tag in OWN_LINE:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def html_text(page: str) -> str:
    """The visible text of an HTML page: no tags, scripts, styles, comments or menus; entities become characters.

    What stands behind a declaration that Python's parser gives up on is lost.
    """
    parser = _Text()
    with contextlib.suppress(AssertionError):                        # `<![foo[`
        parser.feed(page)
        parser.close()
    return "".join(parser.pieces)


def drop_repeated_lines(texts: list[str]) -> tuple[list[str], Tally]:
    """`texts` without the lines of 20 bytes and more that 20 different texts and 5% of all share, and the count.

    Such lines are headers and footers. A text that would lose half of its characters is left alone: it is a copy,
    and copies are the business of `near_duplicates`, which keeps one of them.
    """
    removed = Tally()
    different = {text for text in texts if "\n" in text}
    seen_in = Counter(line for text in different for line in set(text.split("\n")) if len(line.encode()) >= 20)
    often = {line for line, count in seen_in.items() if count >= max(20, 0.05 * len(texts))}
    if not often:
        return texts, removed
    result = []
    for text in texts:
        kept = [line for line in text.split("\n") if line not in often]
        shorter = BLANK_LINES.sub("\n\n", "\n".join(kept)).strip("\n")
        if 2 * len(shorter) > len(text) > len(shorter):
            removed.add("repeated line", text.count("\n") + 1 - len(kept), len(text) - len(shorter))
            text = shorter
        result.append(text)
    return result, removed


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1997)
    shape = (N_BANDS * BAND_ROWS, 1)
    multiply = rng.integers(0, 2**32, shape, dtype=np.uint32) | np.uint32(1)    # odd, so each map is a permutation
    return multiply, rng.integers(0, 2**32, shape, dtype=np.uint32)


def signature(text: str) -> np.ndarray:
    """MinHash of the 5-character shingles of `text`, (60,) uint8: two texts agree in a place as often as they overlap.

    Broder 1997, "On the resemblance and containment of documents"; one byte of each minimum is kept (Li & König
    2010, arXiv:0910.3349). Case and spacing do not count. Arithmetic is modulo 2**32.
    """
    normal = " ".join(text.casefold().split()).ljust(SHINGLE)
    codes = np.frombuffer(normal.encode("utf-32-le"), "<u4")
    n = len(codes) - SHINGLE + 1
    shingles = codes[:n].astype(np.uint32)                                       # (n,)
    for i in range(1, SHINGLE):
        shingles = shingles * np.uint32(0x01000193) + codes[i:n + i]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):          # mix high and low bits
        shingles = (shingles ^ (shingles >> np.uint32(shift))) * np.uint32(factor)
    multiply, add = _permutations()
    lowest = np.full(len(multiply), 2**32 - 1, np.uint32)
    for start in range(0, n, 1024):                                              # blocks that fit the cache
        block = multiply * shingles[start:start + 1024] + add                    # (60, 1024)
        np.minimum(lowest, block.min(axis=1), out=lowest)
    return ((lowest * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


def near_duplicates(signatures: np.ndarray, threshold: float, ignore: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows of (n, 60) signatures resemble an earlier row by an estimated Jaccard >= threshold.

    Rows that `ignore` (n,) marks are as if absent.
    Locality-sensitive hashing (Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", ch. 3): only texts that
    agree in all 5 places of one of 12 bands are compared, which finds 99% of the pairs with resemblance 0.8. Within
    a band each text meets up to 100 leaders, so the work stays bounded. The estimate has a standard error of 0.05. One
    text of every chain of copies survives.
    Memory is 60 bytes a text plus about 60 while sorting.
    """
    n = len(signatures)
    gone = ignore.copy()
    for band in range(N_BANDS):
        padded = np.zeros((n, 8), np.uint8)
        padded[:, :BAND_ROWS] = signatures[:, band * BAND_ROWS:(band + 1) * BAND_ROWS]
        keys = padded.view(np.uint64).ravel()                                    # (n,)
        order = np.argsort(keys, kind="stable")                                  # equal keys together, earlier first
        order = order[~gone[order]]
        for _ in range(LEADERS):
            sorted_keys = keys[order]
            first = np.ones(len(order), bool)
            first[1:] = sorted_keys[1:] != sorted_keys[:-1]
            if first.all():
                break
            leaders = order[first][np.cumsum(first) - 1]
            order, leaders = order[~first], leaders[~first]
            alike = np.concatenate([                                             # in slices: 60 bytes a pair
                (signatures[order[i:i + 65536]] == signatures[leaders[i:i + 65536]]).mean(axis=1) >= threshold - 1e-9
                for i in range(0, len(order), 65536)])
            gone[order[alike]] = True
            order = order[~alike]                                                # unlike their leader: try the next
    return gone & ~ignore
