"""Training a head: the loop is the one loop, the best head is kept, and what learns is what was asked for."""

import json
import random

import pytest
import torch

from tinyllm import checkpoint, optim
from tinyllm.fork import stored_states
from tinyllm.head import Head, Scorer, choice_loss
from tinyllm.model import TinyLLM
from tinyllm.options import encode_all, load_questions
from tinyllm.scorer import load_scorer
from tinyllm.sft import SFTConfig
from tinyllm.train_head import Best, ScorerConfig, as_batch, question_batches, train_scorer


@pytest.fixture
def base(model, tokenizer, tmp_path):
    """A checkpoint of a random model."""
    model.config.vocab_size = tokenizer.vocab_size
    return checkpoint.save(tmp_path / "base", TinyLLM(model.config).eval(), tokenizer, SFTConfig(), {"step": 1})


def easy_rows(n):
    """Questions that any head can learn: the right option is the one that says `cat`."""
    others = ["a dog", "the rain", "two pears", "a tree"]
    rows = []
    for i in range(n):
        options = [others[(i + k) % 4] for k in range(1 + i % 4)]
        options.insert(i % (len(options) + 1), "the cat")
        rows.append({"context": f"Day {i}.", "question": f"Which one is it, {i}?", "options": options,
                     "answer": options.index("the cat")})
    return rows


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in easy_rows(120)), encoding="utf-8")
    return str(path)


def settings(base, data, tmp_path, **changes):
    return ScorerConfig(**{"checkpoint": str(base), "data": [data], "out": str(tmp_path / "head"), "epochs": 30,
                           "states": str(tmp_path / "states"), "hidden": 16, "lr": 1e-2, "patience": 99} | changes)


@pytest.mark.parametrize("schedule_steps", [10, 47, 500])
def test_one_cycle_is_that_of_pytorch(schedule_steps):
    """The same curve as torch.optim.lr_scheduler.OneCycleLR with its defaults, as a function of progress alone."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=schedule_steps + 1)
    up = 0.3 * (schedule_steps + 1) - 1                              # where PyTorch puts the peak
    for step in range(schedule_steps + 1):
        progress = 0.3 * step / up if step < up else 0.3 + 0.7 * (step - up) / (schedule_steps - up)
        assert optim.decay_at(progress, "one-cycle") == pytest.approx(reference.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        if step < schedule_steps:
            reference.step()


def test_a_head_learns_from_stored_states(base, data, tmp_path):
    """Also with random weights below, an option's own words are in its state; mixed numbers of options; the split of
    one file by its questions; and the model's checkpoint is not touched."""
    before = (base / "model.safetensors").read_bytes()
    result = train_scorer(settings(base, data, tmp_path))
    assert set(result["accuracy"]) == {"val", "test"}
    assert result["accuracy"]["test"]["head"]["accuracy"] > 0.9 > result["accuracy"]["test"]["chance"]["accuracy"]
    assert (base / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "head").iterdir() if path.name[0] != ".") == [
        "head.safetensors", "metrics.jsonl", "scorer.json"]


def test_a_run_repeats_itself(base, data, tmp_path):
    """Everything random is a function of the seed."""
    first, again, other = (train_scorer(settings(base, data, tmp_path, epochs=2, seed=seed)) for seed in (0, 0, 1))
    assert first["val_loss"] == again["val_loss"] != other["val_loss"]


def test_unfrozen_blocks_are_trained_and_saved(base, data, tmp_path):
    """--unfreeze 1: the last block moves, the others do not; the folder holds the model that belongs to the head."""
    train_scorer(settings(base, data, tmp_path, unfreeze=1, epochs=1, limit=40))
    before, _ = checkpoint.load(base)
    after, _ = checkpoint.load(tmp_path / "head" / "model")
    moved = {name for (name, a), b in zip(before.named_parameters(), after.parameters()) if not torch.equal(a, b)}
    assert moved and all(name.startswith(("blocks.2.", "norm.")) for name in moved)
    assert checkpoint.is_chat(tmp_path / "head" / "model") == checkpoint.is_chat(base)
    with pytest.raises(ValueError, match="the model has 3 blocks"):
        train_scorer(settings(base, data, tmp_path, unfreeze=4))
    train_scorer(settings(base, data, tmp_path, epochs=1, limit=40))
    assert not (tmp_path / "head" / "model").exists()                # that head belongs to the checkpoint itself


def test_a_folder_that_belongs_to_no_head_is_left_alone(base, data, tmp_path):
    """Somebody's runs may lie in a folder called `model`."""
    mine = tmp_path / "head" / "model" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(ValueError, match="is there already and belongs to no head"):
        train_scorer(settings(base, data, tmp_path, unfreeze=1))
    train_scorer(settings(base, data, tmp_path, epochs=1, limit=40))
    assert mine.is_dir()


def test_the_best_head_is_kept_and_patience_ends():
    """Loss 2, 1, then worse: the weights of 1 come back, and after `patience` validations it stops."""
    scorer = Scorer(Head(4, 4))
    best = Best(scorer, patience=2, show=lambda row: None)
    for step, loss in enumerate([2.0, 1.0, 1.5, 1.4]):
        assert not best.should_stop()
        with torch.no_grad():
            scorer.head.net[1].bias.fill_(step)
        best.report({"step": step, "val_loss": loss})
    assert best.should_stop() and best.step == 1
    best.put_back()
    assert scorer.head.net[1].bias.tolist() == [1.0] * 4


def test_the_best_head_of_a_run_that_learns_by_heart_is_the_one_saved(base, data, tmp_path):
    """Answers drawn by lot cannot be foretold: the training loss falls, that of other questions soon rises. The run
    stops there, and what is saved has the lowest loss seen, on the questions kept apart."""
    rng, rows = random.Random(0), easy_rows(80)
    rows = [row | {"answer": rng.randrange(len(row["options"]))} for row in rows]
    for name, part in (("train", rows[:40]), ("val", rows[40:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    config = settings(base, str(tmp_path / "train"), tmp_path, val=[str(tmp_path / "val")], epochs=200, patience=3)
    result = train_scorer(config)
    logged = [json.loads(line) for line in (tmp_path / "head" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in logged if "val_loss" in row]
    assert min(losses) == result["val_loss"] < losses[-1] and logged[-1]["step"] < 200
    head, model, tokenizer, fingerprint = load_scorer(config.out)
    questions, _ = load_questions(config.val)
    states = stored_states(config.states, fingerprint, model, encode_all(questions, tokenizer, model.config.context))
    answers = [question.answer for question in questions]
    nats, n = choice_loss(states.of)(Scorer(head), as_batch(range(len(questions)), answers))
    assert nats.item() / int(n) == pytest.approx(result["val_loss"], rel=1e-4)


def test_every_question_comes_once_an_epoch():
    """A batch is a function of (seed, step); the epoch's border may fall inside a step."""
    batch_at = question_batches(list(range(10, 20)), n=10, rows=4, seed=0)
    seen = torch.cat([batch_at(step).tokens for step in range(5)])[:, 0].tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert torch.equal(batch_at(3).tokens + 10, batch_at(3).targets)


def test_the_last_place_for_a_head_must_have_rows(base, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(easy_rows(1)[0]) + "\n" + json.dumps(easy_rows(2)[1]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no question is left for val"):
        train_scorer(settings(base, str(path), tmp_path))


def test_a_file_in_the_place_of_the_folder_is_named_before_the_states_are_read(base, tmp_path):
    (tmp_path / "head").write_text("", encoding="utf-8")
    with pytest.raises(FileExistsError, match="head"):
        train_scorer(settings(base, "missing.jsonl", tmp_path))
