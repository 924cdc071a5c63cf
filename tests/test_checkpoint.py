"""Checkpoints: what is on disk is whole, is what was saved, and is refused in one sentence when it is not."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tinyllm import checkpoint
from tinyllm.model import TinyLLM
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
    run(6, 2.0)
    assert checkpoint.resolve(run.folder).name == "step-00000006"    # of two equals the one that has read more


def test_a_state_whose_record_is_damaged_does_not_hide_the_others(run):
    """Emptied by a crash or removed by hand: the next best is used, and saving goes on."""
    for step, loss in ((1, 3.0), (2, 2.0)):
        run(step, loss)
    first, record = (run.folder / f"step-0000000{step}" / "state.json" for step in (1, 2))
    first.write_text(json.dumps(json.loads(first.read_text()) | {"held_out": 5}))
    for spoil in (lambda: record.write_text('{"val_loss": "x"}'), lambda: record.write_text(""), record.unlink):
        spoil()
        assert checkpoint.resolve(run.folder).name == "step-00000001"
    assert run(3, 2.5).is_dir() and checkpoint.resolve(run.folder).name == "step-00000003"


def test_a_half_written_state_is_never_seen(run):
    """A folder counts only under its final name, which it gets last; leftovers of a crash are swept away."""
    run(1)
    (run.folder / ".writing-step-00000002").mkdir()
    (run.folder / ".removing-step-00000000").mkdir()
    assert [folder.name for folder in checkpoint.steps(run.folder)] == ["step-00000001"]
    run(2)
    assert not list(run.folder.glob(".*-step-*"))


def test_a_crash_between_any_two_writes_leaves_only_whole_states(run, monkeypatch):
    """Dying before each write, rename or removal in turn, or halfway through a removal, never leaves half a state
    under a final name."""
    numbers, crashes = itertools.count(1), 0

    def dying(operation, countdown):
        def wrapped(*args, **more):
            if next(countdown) == 0:
                if operation is shutil.rmtree:
                    for file in list(Path(args[0]).glob("*"))[:1]:
                        file.unlink()
                raise KeyboardInterrupt                              # like kill -9, it is nobody's to handle
            return operation(*args, **more)
        return wrapped

    while True:
        run(next(numbers))
        run(next(numbers))
        with monkeypatch.context() as patch:
            countdown = itertools.count(crashes, -1)
            for owner, name in ((checkpoint, "save_file"), (checkpoint, "_write_json"), (checkpoint, "_sync"),
                                (Path, "rename")):
                patch.setattr(owner, name, dying(getattr(owner, name), countdown))
            patch.setattr(checkpoint, "shutil", SimpleNamespace(rmtree=dying(shutil.rmtree, countdown)))
            try:
                run(next(numbers))
                break
            except KeyboardInterrupt:
                crashes += 1
        for folder in checkpoint.steps(run.folder):
            checkpoint.load(folder)
            checkpoint.read_tensors(folder / "optimizer.safetensors")
            assert json.loads((folder / "state.json").read_text())["step"] == int(folder.name[-8:])
    assert crashes > 10


def test_every_file_is_on_the_disk_before_its_folder_gets_a_name(run, monkeypatch):
    """A rename may reach the disk before the bytes do; after a power cut the folder would look whole."""
    synced, rename, fsync = set(), Path.rename, os.fsync

    def checked_rename(path, target):
        if Path(target).name.startswith("step-"):
            assert {file.stat().st_ino for file in [path, *path.iterdir()]} <= synced
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(Path, "rename", checked_rename)
    run(1)
    assert synced


def test_a_full_disk_costs_nothing_that_was_saved(run):
    """The failed attempt gives its space back, and the earlier state still loads. The system's own limit on the size
    of a file plays the full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    run(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ValueError, match=r"step-00000002 could not be written \(.*\); make room"):
            run(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
    with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.\w+\.weight: expected shape \(.*\), found \("):
        checkpoint.load(folder)
    (folder / "config.json").write_text(json.dumps(stored | {"model": stored["model"] | {"vocab_size": 9}}))
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens but the model has 9"):
        checkpoint.load(folder)
    (folder / "config.json").write_text(json.dumps(stored | {"model": {"depth": 9}}))
    with pytest.raises(ValueError, match="unknown setting 'depth'"):
        checkpoint.load(folder)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}')
    with pytest.raises(ValueError, match="this is not a tinyllm checkpoint"):
        checkpoint.load(folder)
    with pytest.raises(ValueError, match="no checkpoint here; train one with"):
        checkpoint.load(tmp_path)


def test_a_training_does_not_start_from_the_folder_it_writes(run, tmp_path):
    """--restart would remove the very weights to begin with; the run's folder and the state in it are both refused."""
    folder = run(1)
    for out in (folder.parent, folder):
        for start in (folder.parent, folder):
            with pytest.raises(ValueError, match="would replace the checkpoint that the training starts from"):
                checkpoint.refuse_overwriting(start, out)
    checkpoint.refuse_overwriting(folder, tmp_path / "another")


def test_a_run_does_not_begin_beside_weights_that_would_hide_it(run, tmp_path):
    """Of a folder with a copy to give away, the copy is what a reader gets, whatever was trained there since."""
    folder = run(1)
    checkpoint.pack(folder, tmp_path / "copy")
    for out in (tmp_path / "copy", folder):
        with pytest.raises(ValueError, match="holds the checkpoint of a model"), checkpoint.lock(out):
            pass
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        checkpoint.pack(folder, folder.parent)


def test_without_a_name_the_last_stage_is_used(run, tmp_path, monkeypatch, model, tokenizer, capsys):
    """cot_sft before sft before pretrain, then the model that ships; without any, the sentence says how to make one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(ValueError, match=r"no checkpoint under checkpoints/ yet; .*quickstart"):
        checkpoint.default()
    checkpoint.save(tmp_path / "shipped", model, tokenizer, TrainConfig(), {"step": 1})
    assert checkpoint.default().parent.name == "shipped"
    assert "the small model beside the package" in capsys.readouterr().err
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


def test_a_packed_checkpoint_is_small_and_answers_alike(tmp_path, tokenizer, config):
    """bfloat16 keeps three digits of each weight: the logits move by about a hundredth of their spread."""
    config.vocab_size = tokenizer.vocab_size
    model = TinyLLM(config).eval()
    full = checkpoint.save(tmp_path / "run", model, tokenizer, TrainConfig(), {"step": 1}, {"x": torch.zeros(9)})
    size = checkpoint.pack(tmp_path / "run", tmp_path / "small")
    assert size < 0.6 * sum(path.stat().st_size for path in full.iterdir())
    small, words = checkpoint.load(tmp_path / "small")
    assert words.model == tokenizer.model and small.embed.weight.dtype == torch.float32
    tokens = torch.randint(9, 300, (1, 20))
    with torch.no_grad():
        assert (small(tokens) - model(tokens)).abs().max() < 0.05 * model(tokens).std()
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        checkpoint.pack(full, tmp_path / "small")
