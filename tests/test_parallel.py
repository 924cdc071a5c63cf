"""Several processes are one trainer that reads faster: same batches, same loss, same weights."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tinyllm import checkpoint, parallel, prepare
from tinyllm.data import Batch

SMALL = ["--dim", "32", "--n-layers", "2", "--n-heads", "2", "--n-kv-heads", "2", "--ffn-dim", "48", "--context", "32",
         "--effective-batch-size", "3", "--batch-size", "1", "--dtype", "float32", "--compile", "off",
         "--warmup-steps", "1", "--val-every", "6", "--val-tokens", "500", "--start-context", "0", "--save-every", "3",
         "--max-steps", "6", "--lr", "0.01", "--muon-lr", "0.05", "--json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel") / "tokens"
    prepare.prepare(prepare.PrepareConfig(out=str(folder), world_documents=40, vocab_size=600, workers=1))
    return folder


def run(processes, stage, out, *flags):
    """Runs the command of a stage in as many processes; returns the losses of its steps, and what it said."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), "-m", f"tinyllm.{stage}", "--out", str(out), *flags]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row], done.stderr


def pretrain(processes, data, out):
    return run(processes, "pretrain", out, "--data", str(data), *SMALL)[0]


def test_two_processes_are_one_trainer_with_the_same_batch(data, tmp_path):
    """Three rows are shared as two and one: sums of gradients and of targets are added up, so each row counts the same,
    where a mean of the means of two processes would count the third twice. And a run begun by two processes is
    continued by one or by two, for batches depend on the step alone."""
    alone = pretrain(1, data, tmp_path / "one")
    together = pretrain(2, data, tmp_path / "two")
    assert len(alone) == len(together) == 6
    assert together == pytest.approx(alone, abs=2e-4) and min(alone) < alone[0] - 0.3
    one, two = (checkpoint.load(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-3)
    for processes in (1, 2):
        shutil.rmtree(tmp_path / "two" / "step-00000006")            # as if killed before the last save
        assert pretrain(processes, data, tmp_path / "two") == pytest.approx(alone, abs=2e-4)


def test_answers_of_unequal_length_count_by_their_tokens_in_two_processes_too(data, tmp_path):
    """In fine-tuning a row has few or many tokens to learn; only sums tell how much it weighs. One process speaks."""
    pretrain(1, data, tmp_path / "begun")
    rows = [{"user": f"Say {n}", "assistant": "la " * (1 + n % 7), "family": "sing"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--init", str(tmp_path / "begun"), "--data", str(tmp_path / "rows.jsonl"), "--effective-batch-size", "3",
             "--batch-size", "1", "--dtype", "float32", "--compile", "off", "--max-steps", "4", "--dropout", "0",
             "--json"]
    alone, said = run(1, "sft", tmp_path / "one", *flags)
    together, said_by_two = run(2, "sft", tmp_path / "two", *flags)
    assert len(alone) == 4 and together == pytest.approx(alone, abs=2e-4)
    assert said.count("examples of") == said_by_two.count("examples of") == 1


def test_processes_that_would_train_different_models_are_refused(data, tmp_path):
    """Here the second has a folder of its own, as on a machine without the checkpoints of the first."""
    pretrain(1, data, tmp_path / "0")
    script = tmp_path / "train.py"
    script.write_text("import os\nfrom tinyllm import pretrain\n"
                      f"pretrain.main(['--out', {str(tmp_path)!r} + '/' + os.environ['RANK'], '--data', {str(data)!r}, "
                      f"*{[*SMALL, '--max-steps', '9']!r}])\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=120, text=True)
    assert done.returncode and "the processes differ in step and weights and rows; every machine needs" in done.stderr
    assert [folder.name for folder in checkpoint.steps(tmp_path / "0")][-1] == "step-00000006"


def test_the_shares_of_all_processes_are_the_batch(monkeypatch):
    """No row is read twice and none is left out, whether or not they divide evenly."""
    batch = Batch(torch.arange(10).view(5, 2), torch.arange(10).view(5, 2) + 1)
    assert parallel.share(batch) is batch
    monkeypatch.setattr(parallel, "size", lambda: 2)
    rows = []
    for rank in range(2):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        mine = parallel.share(batch)
        assert torch.equal(mine.targets, mine.tokens + 1) and mine.starts is None
        rows += mine.tokens[:, 0].tolist()
    assert sorted(rows) == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="1 rows a step cannot be shared by 2 processes; raise --effective-batch-size"):
        parallel.share(Batch(batch.tokens[:1], batch.targets[:1]))


def test_the_others_do_not_wait_for_ever_when_the_first_fails(monkeypatch):
    """They follow, and meet the same mistake themselves."""
    met = []
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "barrier", lambda: met.append("barrier"))
    with pytest.raises(ValueError), parallel.first_alone():
        raise ValueError
    assert met == ["barrier"]
