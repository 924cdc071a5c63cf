"""Which pieces a text is cut into: the fixed ones, and the merges that byte-pair encoding learns from a sample.

SentencePiece does the merging; its defaults lose text, so every switch is set here. In: texts. Out: a serialised model
for tokenizer.py, which uses it. Explained by tests/test_tokenizer.py.
"""

import collections
import io
import itertools
import os
import random
import re
import sys
from collections.abc import Iterable

import sentencepiece

CONTROL = ("<|system|>", "<|user|>", "<|assistant|>", "<|sep|>")     # ids 4 to 7
# Always a token of their own: newline, signs of arithmetic, and the headings that an answer with steps begins with.
HEADINGS = {"zh": ("【推理过程】", "【最终答案】"), "en": ("[Reasoning]", "[Final answer]")}
SPACE = "\u2581"                                                     # SentencePiece writes a space as "▁"
WHOLE = ("\n", *"=+-*/()", *(heading.replace(" ", SPACE) for pair in HEADINGS.values() for heading in pair))
# A word at the beginning of a line gets the space that it has everywhere else: "Frank" is one token wherever it stands,
# so a name can be copied from the middle of a question to the beginning of an answer. Undone by decode().
LETTER = "[A-Za-z\u00c0-\u024f\u0370-\u052f]"                         # of the scripts that put spaces between words
SURROGATE = re.compile("[\ud800-\udfff]")                         # half a character: JSON can hold it, UTF-8 cannot
ADD_SPACE = re.compile(rf"\n(?= *{LETTER})")
DROP_SPACE = re.compile(rf"\n (?= *{LETTER})")
SAMPLE_CHARS = 700                      # for each token of the vocabulary; merges hardly change beyond this


def sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Reservoir sample of lines (at most 1,000 characters each) of about `size` characters in all."""
    rng, kept, chars, seen = random.Random(seed), [], 0, 0
    for text in texts:
        for line in ADD_SPACE.sub("\n ", SURROGATE.sub("", text)).split("\n"):
            for start in range(0, len(line), 1000):                  # SentencePiece skips very long lines silently
                piece, seen = line[start:start + 1000], seen + 1
                if chars < size:
                    kept.append(piece)
                    chars += len(piece)
                elif (slot := rng.randrange(seen)) < len(kept):
                    chars += len(piece) - len(kept[slot])
                    kept[slot] = piece
    return kept


def learn(lines: list[str], vocab_size: int) -> bytes:
    """The serialised model. Characters get at most half of the room, and the rarest 0.05% are spelled in bytes."""
    counts = collections.Counter(itertools.chain.from_iterable(lines))
    room, enough, seen, known = (vocab_size - 256 - 20) // 2, 0.9995 * counts.total(), 0, set()
    for char, count in counts.most_common(room):
        if seen >= enough:
            break
        known.add(char)
        seen += count
    if rare := "".join(char for char in counts if char not in known):
        lines = [part for line in lines for part in re.split(f"[{re.escape(rare)}]", line) if part]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, model_type="bpe",
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, byte_fallback=True, split_digits=True,
            character_coverage=1.0, max_sentence_length=8000,
            pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="<pad>", bos_piece="<bos>", eos_piece="<eos>",
            # control_symbols cannot be typed; user_defined_symbols can, so only harmless ones are.
            control_symbols=list(CONTROL), user_defined_symbols=list(WHOLE), minloglevel=2,
            num_threads=os.cpu_count() or 1)
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if "sentences_.empty()" in str(error):
            raise ValueError(f"the corpus has too few different characters ({len(counts)}) to learn a vocabulary from; "
                             "give more text") from None
        if not limit:
            raise
        print(f"the corpus has only {limit[1]} distinct pieces: vocabulary lowered from {vocab_size} to {limit[1]}",
              file=sys.stderr)
        return learn(lines, int(limit[1]))
    return model.getvalue()
