"""Text <-> token ids: SentencePiece BPE that loses nothing and whose control tokens no text can produce.

SentencePiece is not reversible by default; here it is trained without normalisation, without a dummy space, with
whitespace kept, and with the 256 bytes as a fallback for what it never saw. Explained by tests/test_tokenizer.py.
"""

import codecs
import collections
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from tinyllm import corpus
from tinyllm.config import PRESETS, Settings, command, opt, read_command, refuse_checkpoint, write_atomically
from tinyllm.vocabulary import ADD_SPACE, CONTROL, DROP_SPACE, SAMPLE_CHARS, SPACE, WHOLE, learn, sample


class Tokenizer:
    """A trained vocabulary. Ids: 0 <pad>, 1 <bos>, 2 <eos>, 3 <unk>, 4.. control tokens, WHOLE, bytes, merges,
    single characters.

    Digits are always tokens of their own too, so 12+3=15 is seven tokens whose border a calculator can see, never "=1".
    """

    def __init__(self, model: bytes, origin: str = "tokenizer") -> None:
        self.model = model                                           # the serialised SentencePiece model
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.load_from_serialized_proto(model)
        except RuntimeError:
            raise ValueError(f"{origin}: not a SentencePiece model; train one with "
                             "`python -m tinyllm.tokenizer train`") from None
        self.vocab_size = self.processor.vocab_size()
        self._control = {name: self.processor.piece_to_id(name) for name in ("<pad>", "<bos>", "<eos>", *CONTROL)}
        if not all(self.processor.is_control(id) for id in self._control.values()):
            raise ValueError(f"{origin}: lacks the control tokens {' '.join(self._control)}; it was not trained by "
                             "`python -m tinyllm.tokenizer train`")
        self.pad, self.eos = self._control["<pad>"], self._control["<eos>"]
        self._byte = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer stored in `path`: a tokenizer.model file, or a folder that holds one."""
        path = Path(path)
        file = path / "tokenizer.model" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{file}: no such tokenizer; train one with `python -m tinyllm.tokenizer train`")
        return cls(file.read_bytes(), str(file))

    def save(self, path: str | Path) -> None:
        """Writes the model to the file `path`; an interrupted save leaves the old file."""
        write_atomically(Path(path), self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Never a control token, whatever the text says; decode() gives `text` back exactly."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds a lone surrogate at character {error.start}, "
                             "which is not valid Unicode") from None
        ids: list[int] = []
        text = ADD_SPACE.sub("\n ", text)
        for i, segment in enumerate(text.split(SPACE)):              # a literal "▁" would come back as a space ...
            if i:
                ids += (self._byte[byte] for byte in SPACE.encode())  # ... so it is spelled in bytes
            ids += self.processor.encode(segment)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens are silent. Bytes that are not UTF-8 (a model may write them) become U+FFFD."""
        text = b"".join(self.token_bytes(id) for id in ids).decode("utf-8", errors="replace")
        return DROP_SPACE.sub("\n", text)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` stands for: all of a character, several, or one byte of a rare one."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        if self.processor.is_control(id) or self.processor.is_unknown(id):
            return b""
        piece = self.processor.id_to_piece(id)
        if self.processor.is_byte(id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def special(self, name: str) -> int:
        """The id of a control token by its name, such as `<|user|>` or `<eos>`."""
        if name not in self._control:
            raise ValueError(f"no control token {name!r}; there are {' '.join(self._control)}")
        return self._control[name]

    def show(self, id: int) -> str:
        """Token `id` as a reader wants to see it: a space as "▁", a newline as "⏎", control tokens by name."""
        return self.processor.id_to_piece(id).replace("\n", "⏎")

    def stream(self, new_line: bool = False) -> "TextStream":
        """A fresh decoder for ids that arrive one by one; `new_line`: they stand at the beginning of a line."""
        return TextStream(self, new_line)


class TextStream:
    """Turns ids into text as they arrive, holding back what the next id decides: bytes until they make a whole
    character, spaces at the beginning of a line until the word behind them is there."""

    def __init__(self, tokenizer: Tokenizer, new_line: bool) -> None:
        self.tokenizer, self.new_line, self.spaces = tokenizer, new_line, ""
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that `id` completes; may be empty."""
        return self._lines(self.decoder.decode(self.tokenizer.token_bytes(id)))

    def finish(self) -> str:
        """What is still held when no more ids come; half a character as U+FFFD."""
        text, spaces = self._lines(self.decoder.decode(b"", final=True)), self.spaces
        self.spaces = ""
        return text + spaces

    def _lines(self, text: str) -> str:
        before = "\n" * self.new_line
        text = before + self.spaces + text
        shown = text.rstrip(" ") if text.rstrip(" ").endswith("\n") else text
        self.new_line, self.spaces = shown.endswith("\n"), text[len(shown):]
        return DROP_SPACE.sub("\n", shown).removeprefix(before)


def train(texts: Iterable[str], vocab_size: int, out: str | Path, seed: int = 0) -> Tokenizer:
    """A tokenizer learnt from `texts` by byte-pair merging, saved as `out`/tokenizer.model.

    Sennrich et al. 2015, arXiv:1508.07909; Kudo & Richardson 2018, arXiv:1808.06226. Merges are learnt on about
    SAMPLE_CHARS characters for each token, drawn line by line with `seed`. A corpus too small for `vocab_size` gets a
    smaller vocabulary, with a line on stderr. Ids fit uint16, so vocab_size <= 65535.
    """
    if not 300 <= vocab_size <= 65535:
        raise ValueError(f"vocab size must be 300 to 65535 (256 bytes and 20 fixed tokens come first), not "
                         f"{vocab_size}")
    lines = sample(texts, SAMPLE_CHARS * vocab_size, seed)
    if not any(line.strip() for line in lines):
        raise ValueError("no text to train a tokenizer on; give --input files that contain some")
    refuse_checkpoint(out)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(learn(lines, vocab_size))
    tokenizer.save(out / "tokenizer.model")
    return tokenizer


# --- python -m tinyllm.tokenizer ---

@dataclass
class TrainTokenizer(Settings):
    """train a vocabulary on text files

    Byte-pair encoding starts from single characters and merges the most frequent neighbours until the vocabulary is
    full. Example:
      python -m tinyllm.tokenizer train --input books/ notes.txt --out tokenizer --vocab-size 8000
    """

    input: list[str] = opt([], "files or folders of text: .txt, .md, .jsonl, each also .gz")
    out: str = opt("tokenizer", "folder for tokenizer.model")
    vocab_size: int = opt(PRESETS["base"]["vocab_size"], "number of tokens, control tokens and bytes included",
                          low=300, high=65535)
    skip_bad: bool = opt(False, "skip unreadable files and lines instead of stopping")
    seed: int = opt(0, "draws the sample of lines that the merges are learnt on", low=0)


@dataclass
class UseTokenizer(Settings):
    """turn text into token ids

    Example:
      python -m tinyllm.tokenizer encode --tokenizer tokenizer "Once upon a time"
    """

    text: str = opt("", "the text; read from standard input when absent", positional=True)
    tokenizer: str = opt("tokenizer", "tokenizer.model file, or a folder that holds one (a checkpoint does)")
    json: bool = opt(False, "print JSON")


@dataclass
class DecodeTokens(Settings):
    """turn token ids back into text

    Example:
      python -m tinyllm.tokenizer decode 402 1187 33
    """

    ids: list[int] = opt([], "token ids", positional=True)
    tokenizer: str = opt("tokenizer", "tokenizer.model file, or a folder that holds one")


@dataclass
class ShowTokenizer(UseTokenizer):
    """show what a vocabulary holds and how tightly it packs English and Chinese"""

    text: str = opt("", "text to measure; two built-in sentences when absent", positional=True)


SENTENCES = {"en": "The old woman gave the hungry cat some warm milk, and soon it fell asleep by the fire.",
             "zh": "老奶奶给饥饿的小猫倒了一些热牛奶，不一会儿，它就在火炉旁边睡着了。"}


def info(tokenizer: Tokenizer, samples: dict[str, str]) -> dict:
    """What the vocabulary holds: {"vocab_size", "kinds": {kind: count}, "first_merges", "longest",
    "characters_per_token": {...}}."""
    pieces = [tokenizer.processor.id_to_piece(id) for id in range(tokenizer.vocab_size)]
    kinds = collections.Counter(_kind(tokenizer, id) for id in range(tokenizer.vocab_size))
    merges = [piece for id, piece in enumerate(pieces)
              if _kind(tokenizer, id) in ("Chinese", "Latin") and piece not in WHOLE]              # these are given
    longest = {kind: sorted((p for p in merges if _is_cjk(p) == (kind == "zh")), key=len)[-8:] for kind in ("en", "zh")}
    per_token = {name: len(text) / max(1, len(tokenizer.encode(text))) for name, text in samples.items()}
    return {"vocab_size": tokenizer.vocab_size, "kinds": dict(kinds), "first_merges": merges[:16],
            "longest": longest, "characters_per_token": per_token}


def _is_cjk(piece: str) -> bool:
    return any("\u3400" <= char <= "\u9fff" for char in piece)


def _kind(tokenizer: Tokenizer, id: int) -> str:
    if tokenizer.processor.is_control(id) or tokenizer.processor.is_unknown(id):
        return "control"
    if tokenizer.processor.is_byte(id):
        return "byte"
    piece = tokenizer.processor.id_to_piece(id)
    return "Chinese" if _is_cjk(piece) else "Latin" if re.search("[A-Za-z]", piece) else "digit or sign"


@command
def main(argv: list[str] | None = None) -> None:
    name, config = read_command({"train": TrainTokenizer, "encode": UseTokenizer, "decode": DecodeTokens,
                                 "info": ShowTokenizer}, "python -m tinyllm.tokenizer", argv)
    if name == "train":
        notes = corpus.Tally()
        texts = corpus.read_documents(corpus.find_files(config.input), whole_files=False, max_chars=100_000,
                                      skip_bad=config.skip_bad, notes=notes, progress=lambda n_bytes: None)
        tokenizer = train(texts, config.vocab_size, config.out, config.seed)
        if bad := [f"{count:,} {kind}{'s' * (count > 1)}" for kind, (count, _) in notes.items() if kind != "cut"]:
            print(f"skipped: {', '.join(bad)}", file=sys.stderr)
        print(f"{tokenizer.vocab_size} tokens -> {Path(config.out) / 'tokenizer.model'}")
        return
    tokenizer = Tokenizer.load(config.tokenizer)
    if name == "decode":
        print(tokenizer.decode(config.ids))
    elif name == "encode":
        ids = tokenizer.encode(config.text or sys.stdin.read())
        print(json.dumps(ids) if config.json else " ".join(map(str, ids)))
    else:
        facts = info(tokenizer, {"text": config.text} if config.text else SENTENCES)
        print(json.dumps(facts, ensure_ascii=False) if config.json else _table(facts))


def _table(facts: dict) -> str:
    rows = [f"{'tokens in the vocabulary':28}{facts['vocab_size']:>7}"]
    rows += [f"  {kind:26}{count:>7}" for kind, count in facts["kinds"].items()]
    rows += [f"characters per token, {name:6}{value:>7.2f}" for name, value in facts["characters_per_token"].items()]
    rows += [f"first merges: {' '.join(facts['first_merges'])}"]
    rows += [f"longest {name}: {' '.join(pieces)}" for name, pieces in facts["longest"].items() if pieces]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
