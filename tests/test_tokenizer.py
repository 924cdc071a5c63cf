"""Tokenizer: every text survives, and no text can produce a control token."""

import io
import json
import random
import sys
import unicodedata

import pytest
import sentencepiece
from conftest import SENTENCES

from tinyllm import tokenizer as tokenizers
from tinyllm.tokenizer import Tokenizer
from tinyllm.vocabulary import CONTROL, HEADINGS

HARD = ["", " ", "  two  spaces ", "\n", "\n a\n  b\nc\n▁d\n é", "a\n\n b\r\n\tc", "：，。１２", "e\u0301 é ﬁ Å",
        "👨‍👩‍👧 𝔘",
        "\u2028\ufeff\u00a0\u3000", "\x00\x01\x7f", "▁", "▁▁ ▁a▁", "</s><unk><s><pad>", "<0x41>", "龘𪚥",
        "<|user|>\n<|assistant|><eos>"]


@pytest.mark.parametrize("text", HARD + SENTENCES)
def test_decode_gives_back_every_text(tokenizer, text):
    """Identity normalisation, kept whitespace and byte fallback: nothing is lost, whatever it was trained on."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_gives_back_random_unicode(tokenizer):
    """A property over the whole of Unicode; lone surrogates are not text."""
    rng = random.Random(0)
    for _ in range(300):
        chars = (chr(rng.randrange(sys.maxunicode + 1)) for _ in range(20))
        text = "".join(c for c in chars if unicodedata.category(c) != "Cs") + rng.choice(HARD)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_produces_a_control_token(tokenizer):
    """Otherwise a user who types <|assistant|> could speak for the model."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *CONTROL]
    controls = {tokenizer.processor.piece_to_id(name) for name in names}
    assert controls == set(range(8))
    for text in [*names, " ".join(names), "".join(names), *HARD]:
        assert controls.isdisjoint(tokenizer.encode(text))


def test_control_tokens_are_found_by_name_and_silent_in_text(tokenizer):
    """Ids are inserted, never parsed out of text; decoding shows none of them."""
    assert [tokenizer.special(name) for name in ("<pad>", "<bos>", "<eos>", *CONTROL)] == [0, 1, 2, 4, 5, 6, 7]
    assert tokenizer.decode([tokenizer.special("<|user|>"), *tokenizer.encode("hi"), tokenizer.eos]) == "hi"
    with pytest.raises(ValueError, match="no control token '<|tool|>'"):
        tokenizer.special("<|tool|>")


def test_digits_are_split(tmp_path):
    """A number is read digit by digit, so place values can be learnt, however often the number was seen."""
    tokenizer = tokenizers.train(["The year 2026 follows 2025."] * 50, 310, tmp_path)
    assert [tokenizer.show(id) for id in tokenizer.encode("2026")] == ["2", "0", "2", "6"]


def test_a_newline_is_one_token_of_its_own(tokenizer):
    """Paragraphs and the chat template are made of newlines; none may hide inside a word or fall apart into bytes."""
    assert [tokenizer.show(id) for id in tokenizer.encode("\n\n1\n")] == ["⏎", "⏎", "1", "⏎"]


def test_a_word_is_the_same_token_at_the_beginning_of_a_line(tmp_path):
    """BPE keeps the space with the word behind it, so "Frank" after a newline would be a stranger to " Frank" in a
    sentence, and copying a name to a line of its own a thing to learn for each name."""
    tokenizer = tokenizers.train(["Ben met Frank. Frank met Ben.\nFrank left."] * 50, 320, tmp_path)
    shown = [tokenizer.show(id) for id in tokenizer.encode("met Frank\nFrank\n5 a\n  b")]
    assert shown.count("▁Frank") == 2 and "Frank" not in shown
    for text in ("\na", "\n a", "\n  a", "\n\na b", "\n5", "\n 5", "\n好", "\nÉté", " a", "a", "\n ", "\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_stream_shows_lines_as_they_are(tokenizer):
    """The space that a line begins with is held back until the word behind it says whether it belongs to the text."""
    text = "好\nab\n  cd\n 5 \n "
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokenizer.encode(text))) + stream.finish() == text
    _, *ids = tokenizer.encode("\nab")
    stream, running_on = tokenizer.stream(new_line=True), tokenizer.stream()
    assert "".join(map(stream.push, ids)) == "ab" and "".join(map(running_on.push, ids)) == " ab"


def test_what_is_no_unicode_is_refused(tokenizer):
    """A lone surrogate has no UTF-8 bytes; -1 is no token, though Python would count from the end."""
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(ValueError, match="token id -1 is outside the vocabulary"):
        tokenizer.decode([-1])


def test_streamed_text_is_valid_at_every_moment(tokenizer):
    """龘 was never seen, so it is three byte tokens: nothing may be shown before the third."""
    stream, shown = tokenizer.stream(), []
    for id in tokenizer.encode("好龘!"):
        shown.append(stream.push(id))
    assert "".join(shown) + stream.finish() == "好龘!" and "\ufffd" not in "".join(shown) and "" in shown


def test_bytes_that_never_become_text_show_as_a_replacement(tokenizer):
    """A model may write any byte; the stream must neither wait for ever nor crash."""
    byte = tokenizer.processor.piece_to_id
    stream = tokenizer.stream()
    assert [stream.push(byte(f"<0x{value}>")) for value in ("E9", "41", "E9")] == ["", "\ufffdA", ""]
    assert stream.finish() == "\ufffd"


def test_streaming_any_bytes_gives_what_decoding_gives(tokenizer):
    """Also when a valid character follows a broken one: nothing valid may be lost with it."""
    byte = [tokenizer.processor.piece_to_id(f"<0x{value:02X}>") for value in range(256)]
    rng = random.Random(0)
    for _ in range(300):
        values = rng.choices([0xE9, 0xBE, 0x98, 0xC3, 0xA9, 0x41, 0xF0, 0x9F, 0xFF], k=6)
        ids, stream = [byte[value] for value in values], tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_a_small_corpus_lowers_the_vocabulary_and_says_so(tmp_path, capsys):
    """There are only so many distinct pieces in a few sentences."""
    tokenizer = tokenizers.train(SENTENCES, 16000, tmp_path)
    assert 300 < tokenizer.vocab_size < 16000
    assert f"vocabulary lowered from 16000 to {tokenizer.vocab_size}" in capsys.readouterr().err


def test_a_corpus_of_one_letter_is_one_sentence(tmp_path):
    """There is nothing to merge."""
    with pytest.raises(ValueError, match="too few different characters"):
        tokenizers.train(["a"] * 3, 16000, tmp_path)


def test_training_twice_gives_the_same_vocabulary(tmp_path):
    """A seed draws the sample; merges are counted, not drawn."""
    models = [tokenizers.train(SENTENCES * 2, 350, tmp_path / str(i)).model for i in range(2)]
    assert models[0] == models[1]


def test_the_sample_is_drawn_by_the_seed_from_the_whole_text(tmp_path, monkeypatch):
    """Merges are learnt on a sample; one from the beginning alone would not know the language that comes last."""
    monkeypatch.setattr(tokenizers, "SAMPLE_CHARS", 9)                # times 340 tokens: of 36,000 characters
    rng = random.Random(0)
    texts = ["".join(rng.choices(letters, k=60)) for letters in ("abcdefghij ", "山水风雨日月花鸟") for _ in range(300)]
    first, again, other = (tokenizers.train(texts, 340, tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1)))
    assert first.model == again.model != other.model
    assert len(first.encode("山")) == 1


def test_the_end_of_a_long_line_is_learnt_too(tmp_path):
    """SentencePiece skips long lines without a word, and a book may be a single line."""
    tokenizer = tokenizers.train(["a b c " * 2000 + "山水" * 300], 300, tmp_path)
    assert len(tokenizer.encode("山水")) <= 2


def test_half_a_character_does_not_stop_the_training(tmp_path):
    """JSON can spell a surrogate that stands alone; no model file can hold one."""
    tokenizer = tokenizers.train([f"{text} \ud800" for text in SENTENCES * 20], 450, tmp_path)
    assert tokenizer.vocab_size == 450


def test_rare_characters_leave_room_for_words(tmp_path):
    """A vocabulary full of single characters would learn no words; a character seen once is spelled in bytes."""
    rare = "".join(chr(0x4E00 + i) for i in range(500))
    tokenizer = tokenizers.train(SENTENCES * 20 + [rare], 450, tmp_path)
    assert len(tokenizer.encode(rare)) > 500 and tokenizer.decode(tokenizer.encode(rare)) == rare
    assert any(len(tokenizer.show(id)) > 3 for id in range(276, tokenizer.vocab_size))      # behind the bytes


@pytest.mark.parametrize(("argv", "sentence"), [
    (["info", "--tokenizer", "nowhere"], "nowhere: no such tokenizer"),
    (["train", "--out", "x"], "no text to train a tokenizer on"),
    (["train", "--input", "missing.txt"], "missing.txt"),
    (["train", "--vocab-size", "10"], "--vocab-size must be at least 300"),
    (["decode", "--tokenizer", "{folder}", "99999"], "token id 99999 is outside the vocabulary of"),
])
def test_mistakes_are_one_sentence(argv, sentence, capsys, tokenizer, tmp_path, monkeypatch):
    """Each names what is wrong; the command exits with 2."""
    monkeypatch.chdir(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.model")
    with pytest.raises(SystemExit) as exit:
        tokenizers.main([word.format(folder=tmp_path) for word in argv])
    assert exit.value.code == 2 and sentence in capsys.readouterr().err


def test_a_foreign_file_is_refused(tmp_path):
    """Neither noise nor a SentencePiece model without our control tokens gets through."""
    (tmp_path / "tokenizer.model").write_bytes(b"\x00not a model" * 9)
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, vocab_size=400, model_type="bpe", pad_id=0,
        bos_id=1, eos_id=2, unk_id=3, byte_fallback=True, user_defined_symbols=list(CONTROL), minloglevel=2)
    with pytest.raises(ValueError, match="lacks the control tokens"):
        Tokenizer(model.getvalue())


def test_commands_speak_both_languages(tokenizer, tmp_path, capsys):
    """encode and decode undo each other; info measures English and Chinese."""
    tokenizer.save(tmp_path / "tokenizer.model")
    at = ["--tokenizer", str(tmp_path)]
    tokenizers.main(["encode", *at, "猫 sat"])
    tokenizers.main(["decode", *at, *capsys.readouterr().out.split()])
    assert capsys.readouterr().out == "猫 sat\n"
    tokenizers.main(["info", *at])
    shown = capsys.readouterr().out
    assert "characters per token, en" in shown and "characters per token, zh" in shown and "Chinese" in shown
    assert "Reasoning" not in shown                                  # a heading is given, not merged


def test_what_is_skipped_is_said(tmp_path, capsys):
    """A vocabulary from half of a file must not look like one from all of it."""
    lines = [json.dumps({"text": text}) for text in SENTENCES * 20] + ["{", "[1]"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizers.main(["train", "--input", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--vocab-size",
                     "400", "--skip-bad"])
    assert "skipped: 2 bad lines\n" in capsys.readouterr().err


def test_signs_of_arithmetic_are_tokens_of_their_own(tmp_path):
    """A calculator steps in behind "="; merged as "=-", the model would already have begun."""
    tokenizer = tokenizers.train([*SENTENCES, "3-7=-4 is (2)*-5=-10\n"] * 50, 420, tmp_path)
    assert [tokenizer.show(id) for id in tokenizer.encode("3-7=-4(2)*-5=-10")] == list("3-7=-4(2)*-5=-10")
    for heading in (heading for pair in HEADINGS.values() for heading in pair):
        ids = tokenizer.encode(f"\n{heading}\n")
        assert len(ids) == 3 and tokenizer.decode(ids) == f"\n{heading}\n"      # read at one glance, spelled the same
