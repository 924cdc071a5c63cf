"""Checkpoints: what is on disk is whole, is what was saved, and is refused in one sentence when it is not."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tinyllm import checkpoint
from tinyllm.train import TrainConfig


@pytest.fixture
def run(tmp_path, model, tokenizer):
    """A run folder `r` with a function that saves step n with a validation loss."""
    def save(step, val_loss=None):
        state = {"step": step, "val_loss": val_loss}
        return checkpoint.save(tmp_path / "r", model, tokenizer, TrainConfig(), state, {"x": torch.ones(2)})

    save.folder = tmp_path / "r"
    return save


@pytest.fixture
def model(config, tokenizer):
    from tinyllm.model import TinyLLM
    config.vocab_size = tokenizer.vocab_size
    return TinyLLM(config)


def test_loading_gives_back_what_was_saved(run, model, tokenizer):
    """Weights to the bit, the shape, the tokenizer, and the settings beside them; ready to read, not to train."""
    folder = run(3)
    loaded, words = checkpoint.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert loaded.config == model.config and words.model == tokenizer.model and not loaded.training
    stored = json.loads((folder / "config.json").read_text())
    assert stored["step"] == 3 and stored["settings"]["weight_decay"] == 0.1 and stored["versions"]["torch"]


def test_a_run_folder_means_its_best_state(run):
    """The last step is not always the best one."""
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5), (4, None), (5, 2.6)):
        run(step, loss)
    assert checkpoint.resolve(run.folder).name == "step-00000002"
    assert [folder.name[-1] for folder in checkpoint.steps(run.folder)] == ["2", "4", "5"]


def test_a_half_written_state_is_never_seen(run):
    """A folder counts only under its final name, which it gets last; leftovers of a crash are swept away."""
    run(1)
    (run.folder / ".writing-step-00000002").mkdir()
    (run.folder / ".removing-step-00000000").mkdir()
    assert [folder.name for folder in checkpoint.steps(run.folder)] == ["step-00000001"]
    run(2)
    assert not list(run.folder.glob(".*-step-*"))


def test_a_full_disk_costs_nothing_that_was_saved(run, monkeypatch):
    """The failed attempt gives its space back and the earlier state still loads."""
    run(1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run(2)
    assert [path.name for path in run.folder.iterdir() if "step" in path.name] == ["step-00000001"]
    checkpoint.load(run.folder)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_one_sentence(run, share):
    """What is wrong, in which file, and what helps."""
    file = run(1) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"model.safetensors: truncated or not a safetensors file"):
        checkpoint.load(run.folder)


def test_foreign_files_are_one_sentence(run, model, tokenizer, tmp_path):
    """Other weights, another shape, another tokenizer, a pickle, an empty folder: each is named."""
    folder = run(1)
    file = folder / "model.safetensors"
    good = file.read_bytes()
    save_file({"a": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="not the weights that config.json describes"):
        checkpoint.load(folder)
    torch.save({"a": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="not a safetensors file"):
        checkpoint.load(folder)
    file.write_bytes(good)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"model": stored["model"] | {"ffn_dim": 50}}))
    with pytest.raises(ValueError, match=r"blocks.0.ffn.* expected shape .* found shape|expected shape"):
        checkpoint.load(folder)
    (folder / "config.json").write_text(json.dumps(stored | {"model": stored["model"] | {"vocab_size": 9}}))
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens but the model has 9"):
        checkpoint.load(folder)
    (folder / "config.json").write_text(json.dumps(stored | {"model": {"depth": 9}}))
    with pytest.raises(ValueError, match="unknown setting 'depth'"):
        checkpoint.load(folder)
    with pytest.raises(ValueError, match="no checkpoint here; train one with"):
        checkpoint.load(tmp_path)


def test_without_a_name_the_most_skilled_stage_is_used(run, tmp_path, monkeypatch, model, tokenizer):
    """cot_sft before sft before pretrain; without any, the sentence says how to make one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint under checkpoints/ yet; .*quickstart"):
        checkpoint.default()
    for stage in ("pretrain", "sft"):
        checkpoint.save(tmp_path / "checkpoints" / stage, model, tokenizer, TrainConfig(), {"step": 1})
        assert checkpoint.default().parent.name == stage


def test_a_second_trainer_is_refused_until_the_first_is_gone(tmp_path):
    """Two writers would mix two runs; the system frees the lock even after kill -9."""
    code = "import sys, time\nfrom tinyllm import checkpoint\nwith checkpoint.lock(sys.argv[1]):\n" \
           "    print('locked', flush=True)\n    time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another trainer is writing here"), checkpoint.lock(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with checkpoint.lock(tmp_path):
        pass
