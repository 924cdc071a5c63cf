"""Quickstart: the whole story really runs, says what it did, and goes on where it was stopped."""

from dataclasses import replace
from pathlib import Path

import torch

from tinyllm import checkpoint, quickstart
from tinyllm.config import PRESETS, read_json
from tinyllm.model import TinyLLM
from tinyllm.quickstart import QuickstartConfig
from tinyllm.sft import read_files

TINY = {"minutes": 0.05, "documents": 60, "problems": 40, "instructions": 20, "questions": 2, "self_consistency": 2,
        "options": 3}


def test_the_story_has_all_its_parts(tmp_path, capsys):
    """Texts, three stages of training, a test of each, a vote and a head that chooses, from an empty folder; a second
    call has nothing left to train. Seconds are too few for nano: the model is half as wide."""
    config = QuickstartConfig(data=str(tmp_path / "data"), out=str(tmp_path / "run"), **TINY)
    report = quickstart.quickstart(config)
    assert list(report["test"]) == list(report["results"]) == ["pretrain", "sft", "cot_sft"]
    assert all(groups["all"]["greedy"]["n"] == 2 for groups in report["test"].values())
    assert [checkpoint.is_chat(tmp_path / "run" / stage) for stage in report["test"]] == [False, True, True]
    half = checkpoint.resolve(tmp_path / "run" / "cot_sft")
    assert checkpoint.shape(half).dim == PRESETS["nano"]["dim"] // 2
    assert read_json(half / "config.json")["settings"]["muon_lr"] == 0.014
    words = [(tmp_path / "data" / name / "tokenizer.model").read_bytes() for name in ("words", ".")]
    assert words[0] == words[1]                                      # learnt from the questions, used for the texts too
    assert report["chosen"]["head"]["n"] == 1                    # of so few there is one to test
    shown = quickstart.table(report)
    weights = sum(weight.numel() for weight in checkpoint.load(tmp_path / "run" / "cot_sft")[0].parameters())
    assert f"({weights / 1e6:.1f} M weights)" in shown and report["weights"] == weights
    assert "vote of 2" in shown and shown.count(" s  ") == len(report["seconds"]) + 1
    assert "attempt 2 of 2" in capsys.readouterr().out
    again = quickstart.quickstart(config)
    assert {stage: run["steps"] for stage, run in again["results"].items()} == \
        {stage: run["steps"] for stage, run in report["results"].items()}


def test_a_slow_machine_trains_half_the_width(model, tokenizer, tmp_path, monkeypatch):
    """A model that reads fewer tokens than it has weights is too large for its minutes. Whoever names a shape gets it,
    and a run that has begun keeps its own however fast the machine has become."""
    config = QuickstartConfig(out=str(tmp_path))
    seconds = {"batch": 0.0}
    monkeypatch.setattr(quickstart, "forward_backward", lambda *arguments: seconds["batch"])
    limit = 10 * 60 * 2048 / 4_262_000                               # seconds of 2,048 tokens: a token a weight of nano
    for seconds["batch"], half in ((limit * 1.02, True), (limit * 0.98, False)):
        assert quickstart.is_half(config, 10) is half
    assert quickstart.is_half(config, 9)                             # fewer minutes, fewer tokens
    for preset, half in (("half", True), ("nano", False), ("base", False)):
        assert quickstart.is_half(replace(config, preset=preset), 10) is half
    begun = TinyLLM(replace(model.config, dim=128, n_heads=2, n_kv_heads=2))
    checkpoint.save(tmp_path / "pretrain", begun, tokenizer, config, {"step": 1})
    assert quickstart.is_half(config, 10) and not quickstart.is_half(replace(config, restart=True), 10)


def test_other_questions_get_a_vocabulary_of_their_own(tmp_path, monkeypatch):
    """Another seed, or another generator, writes questions and vocabulary anew; the same ones write nothing."""
    config = QuickstartConfig(data=str(tmp_path), out=str(tmp_path / "run"), **TINY)
    monkeypatch.setattr(quickstart.tokenizer, "train", lambda texts, size, folder, seed: (
        folder.mkdir(exist_ok=True), (folder / "tokenizer.model").write_text("".join(texts), encoding="utf-8")))

    def written(config):
        quickstart.write_problems(config)
        return (Path(quickstart.learn_words(config)) / "tokenizer.model").read_text(encoding="utf-8")

    write = quickstart.problems.write
    monkeypatch.setattr(quickstart.problems, "write", lambda config: write(replace(config, val=1, test=1, harder=1)))
    monkeypatch.setattr(quickstart, "code_of", lambda *modules: "one")
    first, again, other = written(config), written(config), written(replace(config, seed=1))
    assert first == again != other
    (tmp_path / "words" / "tokenizer.model").write_text("kept", encoding="utf-8")
    assert written(replace(config, seed=1)) == "kept"
    monkeypatch.setattr(quickstart, "code_of", lambda *modules: "two")
    assert written(replace(config, seed=1)) == other


def test_base_grows_out_of_nano(tmp_path, monkeypatch):
    """With --preset base the third stage is nano's; the larger model begins with what nano had learnt, sits the same
    test and is the one to ask. The same command, given again, trains nothing twice."""
    monkeypatch.setitem(PRESETS, "base", PRESETS["base"] | {"dim": 320, "n_layers": 5, "n_heads": 5, "n_kv_heads": 5,
                                                            "ffn_dim": 768})
    config = QuickstartConfig(preset="base", data=str(tmp_path / "data"), out=str(tmp_path / "run"),
                              **TINY | {"questions": 1, "self_consistency": 1, "options": 0})
    read_by, train = {}, quickstart.cot_sft
    monkeypatch.setattr(quickstart, "cot_sft", lambda stage: read_by.update({Path(stage.out).name: stage.data})
                        or train(stage))
    report = quickstart.quickstart(config)
    assert list(report["test"]) == list(report["results"]) == ["pretrain", "sft", "cot_sft", "base"]
    longest = [row.family for row in read_files(read_by["cot_sft"][1:])]       # a long run has more of what is hard
    assert {*longest} == {"story", "reading"} and len(longest) == config.problems // 2
    assert read_by["base"] == read_by["cot_sft"]
    nano, grown, base = (checkpoint.load(tmp_path / "run" / stage)[0] for stage in ("cot_sft", "grown", "base"))
    assert (nano.config.dim, nano.config.n_layers, base.config.dim, base.config.n_layers) == (256, 4, 320, 5)
    ids = torch.arange(20)[None]
    assert torch.allclose(nano(ids), grown(ids), atol=1e-4) and checkpoint.is_chat(tmp_path / "run" / "base")
    assert not torch.equal(grown.embed.weight, base.embed.weight)    # and then it learnt
    assert quickstart.NAMES["base"] in quickstart.table(report)
    again = quickstart.quickstart(config)
    assert {stage: run["steps"] for stage, run in again["results"].items()} == \
        {stage: run["steps"] for stage, run in report["results"].items()}
