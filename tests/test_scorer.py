"""The scorer's commands: what was trained measures the same, writes rows, and refuses what does not fit."""

import contextlib
import io
import json

import pytest

from tinyllm import checkpoint, scorer
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.sft import SFTConfig

ROW = {"context": "The cat sat.", "question": "Who sat?", "options": ["the cat", "a dog", "the rain"], "answer": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a checkpoint, a file of questions with some bad rows, and a trained head."""
    folder = tmp_path_factory.mktemp("scorer")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48,
                         context=48)
    model = TinyLLM(config).eval()
    checkpoint.save(folder / "base", model, tokenizer, SFTConfig(), {"step": 1})
    checkpoint.save(folder / "other", TinyLLM(model.config).eval(), tokenizer, SFTConfig(), {"step": 1})
    checkpoint.save(folder / "model", model, tokenizer, SFTConfig(), {"step": 1})
    (folder / "foreign").mkdir()
    (folder / "foreign" / "scorer.json").write_text("{}", encoding="utf-8")
    (folder / "damaged").mkdir()
    settings = {"checkpoint": "base", "fingerprint": "x", "dim": 32, "hidden": "abc", "dropout": 0, "contrast": True}
    (folder / "damaged" / "scorer.json").write_text(json.dumps(settings), encoding="utf-8")
    rows = [ROW | {"question": f"Who sat on {n}?"} for n in range(60)]
    rows[3] = ROW | {"options": ["alone"]}
    rows[5] = ROW | {"context": "The red bird sang in the old tree near the river. " * 9}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        scorer.main(["train", "--checkpoint", str(folder / "base"), "--data", str(folder / "rows.jsonl"), "--epochs",
                     "20", "--out", str(folder / "head"), "--states", str(folder / "states"), "--hidden", "8",
                     "--json"])
    (folder / "trained.json").write_text(said.getvalue(), encoding="utf-8")
    return folder


def run(capsys, *argv):
    capsys.readouterr()
    scorer.main(list(argv))
    return capsys.readouterr()


def test_training_prints_the_head_beside_every_baseline(place, capsys):
    """A result without its baselines says nothing; a time estimate comes before the work."""
    printed = run(capsys, "train", "--checkpoint", str(place / "base"), "--data", str(place / "rows.jsonl"), "--val",
                  str(place / "rows.jsonl"), "--epochs", "1", "--out", str(place / "again"), "--states",
                  str(place / "states2"), "--json")
    measured = json.loads(printed.out)["accuracy"]["val"]
    assert list(measured) == ["head", "chance", "longest option", "bigrams shared with context",
                              "language model, log-probability", "language model, per token"]
    assert "line 4: 1 option" in printed.err and "prefixes lost their beginning" in printed.err
    assert "tokens: about" in printed.err and "epochs of" in printed.err


def test_eval_measures_what_training_measured(place, capsys):
    """From the same states to the same accuracy, also when the checkpoint has moved."""
    argv = ["eval", "--head", str(place / "head"), "--data", str(place / "rows.jsonl"), "--split", "val", "--states",
            str(place / "states"), "--json"]
    here = json.loads(run(capsys, *argv).out)
    (place / "base").rename(place / "moved")
    there = json.loads(run(capsys, *argv, "--checkpoint", str(place / "moved")).out)
    (place / "moved").rename(place / "base")
    trained = json.loads((place / "trained.json").read_text(encoding="utf-8"))["accuracy"]["val"]
    assert trained["head"]["accuracy"] > 0.9 and here["accuracy"] == trained
    assert here == there and here["skipped"] == 1 and here["accuracy"]["chance"]["accuracy"] == pytest.approx(1 / 3)


def test_states_of_other_weights_are_other_states(place, capsys):
    """What int8 weights read must not be taken for what the head was trained on, nor the other way round."""
    argv = ["eval", "--head", str(place / "head"), "--data", str(place / "rows.jsonl"), "--states",
            str(place / "states3"), "--json"]
    for kind, said in (("fp32", "stored in"), ("int8", "stored in"), ("int8", "read from"), ("fp32", "read from")):
        assert said in run(capsys, *argv, "--weights", kind).err
    one, other = (checkpoint.read_tensors(path)["hidden"] for path in (place / "states3").iterdir())
    assert 0 < float((one - other).norm() / one.norm()) < 0.1


def test_predict_adds_scores_probabilities_and_choice(place, capsys, tmp_path):
    """Each good row comes back whole; probabilities sum to one, the choice is the highest; no answers are needed."""
    unanswered = [{key: value for key, value in ROW.items() if key != "answer"} | {"id": n} for n in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in unanswered), encoding="utf-8")
    argv = ["predict", "--head", str(place / "head"), "--data", str(path), "--states", str(place / "states")]
    rows = [json.loads(line) for line in run(capsys, *argv).out.splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2] and rows[0]["question"] == ROW["question"]
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1) and len(row["scores"]) == 3
        assert row["choice"] == row["scores"].index(max(row["scores"]))
    run(capsys, *argv, "--out", str(tmp_path / "answered.jsonl"))
    assert [json.loads(line) for line in (tmp_path / "answered.jsonl").read_text(encoding="utf-8").splitlines()] == rows


@pytest.mark.parametrize("argv, complaint", [
    (["eval", "--head", "{place}/head", "--data", "{place}/rows.jsonl", "--checkpoint", "{place}/other"],
     "is not the checkpoint that"),
    (["eval", "--head", "{place}/nowhere", "--data", "{place}/rows.jsonl"], "no head here; train one"),
    (["eval", "--head", "{place}/head", "--data", "{place}/none.jsonl"], "No such file"),
    (["train", "--checkpoint", "{place}/base", "--data", "{place}/rows.jsonl", "--unfreeze", "9"], "has 2 blocks"),
    (["eval", "--head", "{place}/foreign", "--data", "{place}/rows.jsonl"], "scorer.json has no checkpoint"),
    (["train", "--checkpoint", "{place}/model", "--data", "{place}/rows.jsonl", "--out", "{place}"],
     "would replace the checkpoint"),
    (["predict", "--head", "{place}/head", "--data", "{place}/rows.jsonl", "--json"], "give --out"),
    (["predict", "--head", "{place}/head", "--data", "{place}/rows.jsonl", "--out", "{place}/head/../rows.jsonl"],
     "its bad rows would be lost"),
    (["predict", "--head", "{place}/head", "--data", "{place}/rows.jsonl", "--out", "{place}"], "is a folder"),
    (["eval", "--head", "{place}/damaged", "--data", "{place}/rows.jsonl"], "scorer.json has no hidden that fits"),
    (["bench", "--prefixes"], "one number or more")])
def test_a_user_s_mistake_is_one_sentence(place, capsys, argv, complaint):
    with pytest.raises(SystemExit) as left:
        scorer.main([word.format(place=place) for word in argv])
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_settings_may_stand_in_a_file(place, capsys, tmp_path):
    """--config holds every setting; a flag wins over it."""
    path = tmp_path / "scorer.json"
    values = {"epochs": 1, "contrast": False, "checkpoint": str(place / "base"), "hidden": 8,
              "data": [str(place / "rows.jsonl")], "states": str(place / "states")}
    path.write_text(json.dumps(values), encoding="utf-8")
    run(capsys, "train", "--config", str(path), "--out", str(tmp_path / "head"))
    stored = json.loads((tmp_path / "head" / "scorer.json").read_text(encoding="utf-8"))
    assert stored["contrast"] is False and stored["settings"]["epochs"] == 1
