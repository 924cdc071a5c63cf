"""Preparing text: what comes out is what went in minus what the report says, whatever happens on the way."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyllm import parts as parts_module
from tinyllm import prepare as prepare_module
from tinyllm.config import hold
from tinyllm.made_by import sources
from tinyllm.prepare import PrepareConfig, main, make_plan, prepare, sample, table
from tinyllm.tokenizer import Tokenizer, train

EN = ["owl", "fox", "river", "stone", "night", "moon", "bread", "garden", "winter", "letter", "silver", "window", "the"]
ZH = "山水风雨日月花鸟人家天地春秋来去大小多少上下左右东西南北红白黑青"


def story(index: int, n_words: int = 40) -> str:
    """The same different story for the same index: English if even, Chinese if odd."""
    rng = random.Random(index)
    if index % 2 == 0:
        return " ".join(rng.choice(EN) + rng.choice(EN) for _ in range(n_words)) + "."
    return "".join(rng.choice(ZH) for _ in range(4 * n_words)) + "。"


def altered(text: str) -> str:
    """A near copy: one word (or character) in the middle is another."""
    middle = text.find(" ", len(text) // 2) if " " in text else len(text) // 2
    return text[:middle] + ("s " if " " in text else "变") + text[middle + 1:]


def shingles(text: str) -> set[str]:
    return {text[i:i + 5] for i in range(len(text) - 4)}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A small tokenizer for both languages, so that most tests need not train one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train((altered(story(i)) for i in range(300)), 500, folder)
    return folder / "tokenizer.model"


@pytest.fixture
def corpus(tmp_path) -> Path:
    """300 stories in three formats; some come twice, some come back slightly altered."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    stories = [story(i) for i in range(300)]
    (folder / "a.txt").write_text("\n\n".join(stories[:100]), encoding="utf-8")
    rows = [json.dumps({"text": text}) for text in [*stories[100:200], *stories[:20]]]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    texts = [*stories[200:], *map(altered, stories[20:50])]
    (folder / "c.md").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


@pytest.fixture
def config(tmp_path, corpus, words) -> PrepareConfig:
    return PrepareConfig(input=[str(corpus)], out=str(tmp_path / "tokens"), tokenizer=str(words), val_share=0.1,
                         part_chars=10_000, workers=1)


def read_split(folder: str | Path, split: str) -> list[str]:
    """The documents of a split, decoded from its tokens."""
    meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(folder)
    ids = np.concatenate([np.fromfile(Path(folder) / name, "<u2") for name in meta[split]["files"]])
    assert ids[-1] == meta["eos"] and len(ids) == meta[split]["tokens"]
    documents = np.split(ids, np.flatnonzero(ids == meta["eos"]) + 1)[:-1]
    return [tokenizer.decode(document[:-1].tolist()) for document in documents]


def contents(folder: str | Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def test_the_tokens_are_the_documents_minus_the_copies(config):
    """Decoding train and val gives every distinct story exactly once, in both languages."""
    report = prepare(config)
    train_texts, val_texts = read_split(config.out, "train"), read_split(config.out, "val")
    assert sorted(train_texts + val_texts) == sorted(story(i) for i in range(300))
    assert report["dropped"]["exact duplicate"][0] == 20
    assert report["dropped"]["near duplicate"][0] == 30
    meta = json.loads((Path(config.out) / "meta.json").read_text(encoding="utf-8"))
    for split, texts in (("train", train_texts), ("val", val_texts)):
        assert meta[split]["bytes"] == sum(len(text.encode()) for text in texts)
        assert meta[split]["documents"] == len(texts)
    assert sorted(os.listdir(config.out)) == [".lock", "meta.json", "tokenizer.model", "train-00000.bin",
                                              "val-00000.bin"]


def test_validation_text_resembles_nothing_in_training(config):
    """A copy on the other side would make the validation loss measure memory."""
    prepare(config)
    train_sets = [shingles(text) for text in read_split(config.out, "train")]
    for text in read_split(config.out, "val"):
        own = shingles(text)
        assert max(len(own & other) / len(own | other) for other in train_sets) < 0.8


def test_the_number_of_workers_changes_nothing(config, tmp_path):
    """Which process cleans which part is chance; what is kept is decided afterwards, in order."""
    prepare(config)
    prepare(replace(config, workers=3, out=str(tmp_path / "three")))
    assert contents(config.out) == contents(tmp_path / "three")


def test_a_document_keeps_its_split_when_the_order_changes(config, corpus, tmp_path):
    """The lot is a hash of the text, so new files never move an old document from val to train."""
    prepare(config)
    lone = tmp_path / "lone.txt"
    lone.write_text("\n\n".join(story(i) for i in reversed(range(0, 300, 3))), encoding="utf-8")
    prepare(replace(config, input=[str(lone)], out=str(tmp_path / "other")))
    assert set(read_split(tmp_path / "other", "val")) == \
        set(read_split(config.out, "val")) & {story(i) for i in range(0, 300, 3)}


def run_in_background(config: PrepareConfig, n_parts: int) -> subprocess.Popen:
    """The command in a process of its own, stopped at a moment when some parts are finished and others are not."""
    arguments = ["--input", *config.input, "--out", config.out, "--tokenizer", config.tokenizer, "--workers", "2",
                 "--val-share", str(config.val_share), "--part-chars", str(config.part_chars)]
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit SIG_IGN
    process = subprocess.Popen([sys.executable, "-m", "tinyllm.prepare", *arguments], stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, deaf)
    deadline = time.time() + 60
    while len(list(Path(config.out).glob("parts/part-*.npz"))) < n_parts:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.001)
    return process


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_continues_and_ends_the_same(config, corpus, tmp_path, how, capsys):
    """Finished parts are not made again, no worker is left behind, and the result is the same byte for byte."""
    with (corpus / "d.txt").open("w", encoding="utf-8") as file:
        file.write("\n\n".join(story(i, 100) for i in range(1000, 2500)))
    config = replace(config, part_chars=10_000)
    process = run_in_background(config, n_parts=4)
    workers = children(process.pid)
    process.send_signal(how)
    code = process.wait(timeout=30)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    deadline = time.time() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.time() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)

    finished = {part: part.stat().st_mtime_ns for part in Path(config.out).glob("parts/part-*.npz")}
    assert finished and not (Path(config.out) / "meta.json").exists()
    if how == signal.SIGINT:
        assert b"the same command continues" in process.stderr.read()
    made = []
    original = parts_module.make_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "make_part", lambda path, *rest: (made.append(path), original(path, *rest)))
        prepare(config)
    assert made and not finished.keys() & set(made)
    assert f"continuing after {len(finished)} finished parts" in capsys.readouterr().err
    prepare(replace(config, out=str(tmp_path / "unbroken")))
    assert contents(config.out) == contents(tmp_path / "unbroken")


def test_the_same_command_again_has_nothing_to_do_and_another_starts_over(config, corpus, capsys):
    """meta.json is written last: if it is there and was made from the same input and settings, all is done."""
    report = prepare(config)
    before = {path.name: path.stat().st_mtime_ns for path in Path(config.out).iterdir()}
    again = prepare(replace(config, workers=2))
    assert "already holds exactly this" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in Path(config.out).iterdir()} == before
    assert again == {key: value for key, value in report.items() if key not in ("seconds", "megabytes_per_second")}
    prepare(replace(config, restart=True))
    assert {path.name: path.stat().st_mtime_ns for path in Path(config.out).iterdir()} != before
    (corpus / "e.txt").write_text(story(5000), encoding="utf-8")
    assert prepare(config)["kept"]["documents"] == 301
    tokens = next(Path(config.out).glob("train-*.bin"))
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])                                   # a file cut off is made again
    prepare(config)
    assert tokens.read_bytes() == whole
    meta = Path(config.out) / "meta.json"
    stored = meta.read_text(encoding="utf-8")
    plan = json.loads(stored)
    for damaged in ("", json.dumps(plan | {"train": {}}), json.dumps(plan | {"train": 5})):
        meta.write_text(damaged, encoding="utf-8")
        prepare(config)
        assert json.loads(meta.read_text(encoding="utf-8"))["train"] == plan["train"]


def test_one_prepare_at_a_time_writes_in_a_folder(config):
    """Two first commands would take each other's parts away."""
    with hold(config.out, "prepare"), pytest.raises(ValueError, match="another prepare is writing here"):
        prepare(config)


def test_a_damaged_part_is_named(config):
    """Cut off by a full disk; what was read of others is not lost."""
    folder = Path(config.out) / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "merge", lambda *all: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    part = min(folder.glob("part-*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{part.name}: damaged; remove it"):
        prepare(config)
    part.unlink()
    assert prepare(config)["kept"]["documents"] == 300


def test_the_built_in_texts_are_written_anew_when_what_makes_them_changes(monkeypatch):
    """A module of the generator that the plan forgets would leave the old texts in place, without a word."""
    made_by = {path.stem for path in sources("world", "schoolbook")}
    assert {"lexicon", "unheard", "accounts", "groups", "typed", "sums", "reading", "simulation"} <= made_by
    assert not made_by & {"model", "train", "pretrain"}
    code = lambda: make_plan(PrepareConfig(), [])["code"]
    before = code()
    assert code() == before
    read = Path.read_bytes
    for name in ("groups.py", "problems_forms.txt", "world_plots.txt", "clean.py", "prepare.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
        assert code() != before, name


@pytest.mark.parametrize("plan", ['{"version": "other"}', "", '{"vers'])
def test_parts_of_another_plan_are_not_mixed_in(config, capsys, plan):
    """Parts cleaned under other settings would poison the result silently."""
    folder = Path(config.out) / "parts"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan, encoding="utf-8")
    (folder / "part-000000.npz").write_bytes(b"foreign")
    assert prepare(config)["kept"]["documents"] == 300
    assert "starting over" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["write_shards", "write_atomically", "rmtree"])
def test_a_crash_at_the_end_is_repaired_by_the_same_command(config, tmp_path, monkeypatch, step):
    """Between two steps of the last stage the folder is either incomplete, and says so, or complete."""
    prepare(replace(config, out=str(tmp_path / "unbroken")))
    config = replace(config, val_share=0.3)
    prepare(config)                                                  # an older result lies in the folder
    config = replace(config, val_share=0.1)

    def crash(*arguments):
        if step != "write_atomically" or arguments[0].name == "meta.json":
            raise KeyboardInterrupt
        return parts_module.write_atomically(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(f"tinyllm.prepare.{'shutil.' if step == 'rmtree' else ''}{step}", crash)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert (Path(config.out) / "meta.json").exists() == (step != "write_atomically")
    prepare(config)
    assert contents(config.out) == contents(tmp_path / "unbroken")


def test_long_corpora_fill_several_files(config, monkeypatch):
    """Files of bounded size; together they hold the same tokens in the same order."""
    prepare(config)
    whole = read_split(config.out, "train")
    monkeypatch.setattr(parts_module, "SHARD_TOKENS", 2000)
    prepare(replace(config, restart=True))
    assert len(list(Path(config.out).glob("train-*.bin"))) > 2
    assert read_split(config.out, "train") == whole
    monkeypatch.setattr(parts_module, "SHARD_TOKENS", 64_000_000)
    prepare(replace(config, restart=True))
    assert len(list(Path(config.out).glob("train-*.bin"))) == 1       # no stale file of the earlier run


def test_every_character_read_is_kept_or_has_a_reason(config, corpus):
    """The table adds up, so nothing was dropped in silence."""
    blocks = ["tiny", "\x00\x01", "Copyright 2001 Me", "<p>Hello <b>bold</b> new world of owls</p>", story(7000) + "\r",
              "QUJD" * 100]
    (corpus / "f.txt").write_text("\n\n".join(blocks), encoding="utf-8")
    report = prepare(config)
    gone = [*report["dropped"].values(), *report["removed"].values()]
    assert report["read"]["characters"] == report["kept"]["characters"] + sum(characters for _, characters in gone)
    assert report["read"]["documents"] == \
        report["kept"]["documents"] + sum(count for count, _ in report["dropped"].values())
    assert {"too short", "empty after cleaning"} < report["dropped"].keys()
    assert {"HTML markup", "control characters", "over-long line", "boilerplate line"} < report["removed"].keys()
    for reason in [*report["dropped"], *report["removed"]]:
        assert reason in table(report)


def test_a_typed_control_token_stays_plain_text(config, corpus):
    """Text from the internet must not be able to open a chat turn or end a document."""
    text = "The manual says: write <|user|> and <|assistant|> and <eos> in your file.<eos>"
    (corpus / "g.txt").write_text(text, encoding="utf-8")
    prepare(config)
    assert text in read_split(config.out, "train") + read_split(config.out, "val")


def test_a_file_can_be_one_document(config, corpus):
    """Books need their context: with `documents="file"` blank lines are part of the text."""
    prepare(replace(config, documents="file", near_duplicates=0.0, input=[str(corpus / "a.txt"), str(corpus / "c.md")]))
    texts = read_split(config.out, "train") + read_split(config.out, "val")
    assert sorted(map(len, texts)) == sorted(len((corpus / name).read_text("utf-8")) for name in ("a.txt", "c.md"))


def test_the_tokenizer_is_trained_on_the_whole_input(config, corpus, tmp_path):
    """Without a tokenizer one is learnt, from both languages though all the Chinese comes last."""
    (corpus / "a.txt").write_text("\n\n".join(story(i) for i in range(0, 600, 2)), encoding="utf-8")
    (corpus / "z.txt").write_text("\n\n".join(story(i) for i in range(1, 600, 2)), encoding="utf-8")
    report = prepare(replace(config, tokenizer="", vocab_size=450))
    tokenizer = Tokenizer.load(config.out)
    assert report["vocab_size"] == tokenizer.vocab_size == 450
    assert len(tokenizer.encode(story(0))) < len(story(0)) / 1.5
    assert len(tokenizer.encode(story(1))) <= len(story(1))           # whole characters, not three bytes each
    again = replace(config, tokenizer="", vocab_size=450, out=str(tmp_path / "again"), workers=2)
    prepare(again)
    assert contents(config.out) == contents(again.out)


def test_a_part_gets_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    """A part cut off in the middle of being written must not look finished to the next run."""
    def power_cut(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        parts_module.write_atomically(tmp_path / "part-000000.npz", b"half of it")
    assert not (tmp_path / "part-000000.npz").exists()


def test_the_sample_is_spread_over_the_input_and_holds_no_validation_text():
    """However large the input, every part of it is as likely to be seen; also of two languages that alternate."""
    texts = [f"document {i} about nothing" for i in range(1000)]
    numbers = [int(text.split()[1]) for text in sample(texts, 3000, 1e-6, seed=0)]
    assert 30 < len(numbers) <= 3000 // len(texts[0])
    assert all(sum(start <= i < start + 250 for i in numbers) >= 5 for start in range(0, 1000, 250))
    assert 0.25 < sum(i % 2 for i in numbers) / len(numbers) < 0.75
    assert 0 < len(list(sample(texts, 3000, 0.5, seed=0))) < 0.75 * len(numbers)


def test_without_input_the_world_is_the_corpus(tmp_path, words, capsys):
    """A user with no data can run everything."""
    report = prepare(PrepareConfig(out=str(tmp_path / "t"), tokenizer=str(words), world_documents=60))
    assert "no --input: taking 60 documents of the generated world" in capsys.readouterr().err
    assert report["read"]["documents"] == 60
    assert report["val"]["documents"] >= 1


def test_another_tokenizer_in_the_same_folder_is_really_used(config, tmp_path):
    """One process may prepare twice; a tokenizer remembered from the first time would write wrong ids."""
    prepare(config)
    train((story(i) for i in range(300)), 400, tmp_path)
    prepare(replace(config, tokenizer=str(tmp_path / "tokenizer.model")))
    texts = read_split(config.out, "train") + read_split(config.out, "val")
    assert sorted(texts) == sorted(story(i) for i in range(300))


def test_two_documents_are_enough_and_one_is_not(tmp_path, words):
    """One to train on and one to validate on."""
    file = tmp_path / "a.txt"
    config = PrepareConfig(input=[str(file)], out=str(tmp_path / "t"), tokenizer=str(words))
    file.write_text(f"{story(0)}\n\n{story(1)}", encoding="utf-8")
    report = prepare(config)
    assert report["train"]["documents"] == report["val"]["documents"] == 1
    file.write_text(f"{story(0)}\n\n{story(0)}", encoding="utf-8")
    with pytest.raises(ValueError, match="1 document is left"):
        prepare(config)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"input": ["nowhere"]}, "nowhere: no such file or folder"),
    ({"tokenizer": "nowhere.model"}, "nowhere.model: no such tokenizer"),
    ({"tokenizer": __file__}, "not a SentencePiece model"),
    ({"out": __file__}, "is a file; give a folder"),
    ({"val_share": 0.9}, "--val-share must be at most 0.5, not 0.9"),
    ({"val_share": 0.0}, "--val-share must be at least 1e-06"),
    ({"vocab_size": 70_000}, "--vocab-size must be at most 65,535, not 70000"),
    ({"near_duplicates": 0.2}, "--near-duplicates must be 0 or at least 0.5, not 0.2"),
    ({"documents": "page"}, "--documents must be one of block, file, not 'page'"),
])
def test_a_mistake_is_one_sentence(config, changes, sentence):
    """The value, the limit and the remedy; no traceback."""
    with pytest.raises(ValueError) as error:
        prepare(replace(config, **changes))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_folder_called_parts_that_is_the_user_s_is_left_alone(config, tmp_path):
    """With --out in a book's own folder, --restart would otherwise remove its chapters."""
    chapter = Path(config.out) / "parts" / "chapter1.txt"
    chapter.parent.mkdir(parents=True)
    chapter.write_text(story(1), encoding="utf-8")
    for restart in (False, True):
        with pytest.raises(ValueError, match="files that prepare did not write"):
            prepare(replace(config, restart=restart))
    assert chapter.read_text(encoding="utf-8") == story(1)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\x01\x02\n\n\x03"])
def test_an_empty_corpus_is_one_sentence(config, tmp_path, content, trained):
    """Nothing to learn from is a mistake, not an empty token file."""
    (tmp_path / "empty.txt").write_bytes(content)
    config = replace(config, input=[str(tmp_path / "empty.txt")], tokenizer=config.tokenizer if trained else "")
    with pytest.raises(ValueError, match="no text"):
        prepare(config)
    assert not (Path(config.out) / "meta.json").exists()


def test_the_tokenizer_of_a_model_is_not_replaced(config, corpus):
    """Beside the weights of a checkpoint its words would be those of another model."""
    out = Path(config.out)
    out.mkdir(exist_ok=True)
    (out / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="holds the checkpoint of a model; choose another --out"):
        prepare(config)
    with pytest.raises(ValueError, match="holds the checkpoint of a model; choose another --out"):
        train(["some text"], 300, out)
    assert os.listdir(out) == ["model.safetensors"]


def test_a_broken_link_is_an_unreadable_file(config, corpus):
    (corpus / "z.txt").symlink_to(corpus / "nowhere.txt")
    with pytest.raises(ValueError, match="z.txt: No such file or directory; .*--skip-bad"):
        prepare(config)
    assert prepare(replace(config, skip_bad=True))["notes"]["unreadable file"][0] == 1


def test_skipped_lines_are_counted_in_the_table(config, corpus, capsys):
    """By default a bad line stops the run with its place; --skip-bad counts it."""
    (corpus / "h.jsonl").write_text('{"text": 1}\n{"tex', encoding="utf-8")
    arguments = ["--input", str(corpus), "--out", config.out, "--tokenizer", config.tokenizer, "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().split("\n")[-1]
    assert "h.jsonl, line 1: expected an object" in message
    main([*arguments, "--skip-bad"])
    shown = capsys.readouterr().out
    assert any(line.split() == ["bad", "line", "2"] for line in shown.split("\n"))
    assert "MB/s" in shown and f"written to {config.out}" in shown
    main([*arguments, "--skip-bad", "--json"])
    assert json.loads(capsys.readouterr().out)["kept"]["documents"] == 300
