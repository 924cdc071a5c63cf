"""The loop: what one step learns from, and that stopping costs nothing."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SENTENCES

from tinyllm import checkpoint, optim, parallel, plot, pretrain, train
from tinyllm import stage as stage_module
from tinyllm import tokenizer as tokenizers
from tinyllm.data import IGNORE, Batch, next_token_batch
from tinyllm.decode import decode
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.sft import SFTConfig
from tinyllm.stage import _stop_on_signal, run_stage
from tinyllm.train import TrainConfig, TrainState, next_token_loss

SHAPE = ModelConfig(vocab_size=420, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, context=16)
CONFIG = TrainConfig(max_steps=20, batch_size=2, effective_batch_size=4, dtype="float32", compile="off", val_every=5,
                     save_every=100, warmup_steps=3, start_context=8, dropout=0.1)


def batch_at(step):
    """Four rows of a language in which every token is followed by its successor; a function of the step alone."""
    start = torch.randint(0, 420, (4, 1), generator=torch.Generator().manual_seed(step))
    return next_token_batch((start + torch.arange(17)) % 420)


def fresh(shape=SHAPE):
    torch.manual_seed(5)
    return TinyLLM(shape)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_same(a, b):
    assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(rows):
    """With unequal numbers of targets a mean of means would be wrong: sums are added, then divided once."""
    batch = batch_at(0)
    for row, masked in enumerate((0, 3, 9, 15)):
        batch.targets[row, :masked] = IGNORE

    def one_step(micro):
        model = fresh()
        config = replace(CONFIG, max_steps=1, batch_size=micro, optimizer="adamw", start_context=0, dropout=0.0)
        rows = []
        train.train(model, lambda step: batch, config, report=rows.append)
        return weights(model), rows[0]

    model = fresh()
    loss, count = next_token_loss(model, batch)
    (loss / count).backward()
    by_hand = torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm()
    (whole, row), (split, other) = one_step(4), one_step(rows)
    for name in whole:
        # AdamW divides by the gradient, so the rounding of one that is nearly 0 shows: 5e-6, at a rate of 1e-3.
        torch.testing.assert_close(whole[name], split[name], rtol=1e-4, atol=5e-6)
    assert row["loss"] == pytest.approx(other["loss"])
    assert row["grad_norm"] == pytest.approx(float(by_hand), rel=1e-4)
    assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_warm_up_counts_optimizer_steps_not_micro_batches():
    """Four micro-batches make one step, so the fourth step is the first at the full rate; then it falls to nothing."""
    rows = []
    train.train(fresh(), batch_at, replace(CONFIG, max_steps=8, batch_size=1, warmup_steps=4), report=rows.append)
    assert [row["lr"] / CONFIG.lr for row in rows] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.9375, 0.625, 0.3125])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_rate_of_a_step_is_the_length_of_the_step(optimizer):
    """At a millionth of the peak rate no weight moves further than that, whichever optimizer moves it."""
    model = fresh()
    train.train(model, batch_at, replace(CONFIG, max_steps=1, warmup_steps=1_000_000, optimizer=optimizer))
    before = weights(fresh())
    assert 0 < max(float((weight - before[name]).abs().max()) for name, weight in weights(model).items()) < 1e-7


def test_each_step_and_each_seed_drops_other_activations():
    """Without a step of any length only dropout tells the steps apart; one mask for ever would train one subnetwork."""
    def losses(seed, dropout):
        rows = []
        config = replace(CONFIG, max_steps=12, lr=0.0, muon_lr=0.0, start_context=0, seed=seed, dropout=dropout)
        train.train(fresh(), lambda step: batch_at(0), config, report=rows.append)
        return [row["loss"] for row in rows][:3]                     # later dropout is another one

    assert len({*losses(0, 0.3), *losses(1, 0.3)}) == 6 and len(set(losses(0, 0.0))) == 1


def test_a_long_gradient_is_cut_to_its_largest_norm():
    """Adam's first momentum is a tenth of the gradient it was given."""
    kept, rows = {}, []
    train.train(fresh(), batch_at, replace(CONFIG, max_steps=1, optimizer="adamw", clip=0.01), report=rows.append,
                save=lambda state, tensors: kept.update(tensors))
    momentum = torch.cat([tensor.flatten() for name, tensor in kept.items() if name.endswith(":exp_avg")])
    assert rows[0]["grad_norm"] > 0.02 and float(momentum.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_one_batch_can_be_memorised():
    """If the loop works at all, the loss on a single batch goes to nothing."""
    model = fresh()
    state = train.train(model, lambda step: batch_at(0), replace(CONFIG, max_steps=250, start_context=0, dropout=0.0))
    assert state.loss < 0.05


def test_ignored_targets_teach_nothing():
    """Padding and prompts are IGNORE: the loss is the sum over all the other targets, and they alone are counted."""
    batch = batch_at(0)
    batch.targets[:, :10] = IGNORE
    loss, count = next_token_loss(fresh().eval(), batch)
    logits = fresh().eval()(batch.tokens)[:, 10:].log_softmax(-1)
    by_hand = -logits.gather(-1, batch.targets[:, 10:, None]).sum()
    torch.testing.assert_close(loss, by_hand)
    assert int(count) == 24


def test_a_batch_without_targets_is_an_error_not_a_nan():
    """0 / 0 would poison every weight."""
    empty = Batch(torch.zeros(2, 4, dtype=torch.long), torch.full((2, 4), IGNORE))
    with pytest.raises(ValueError, match="step 0 has no target to learn"):
        train.train(fresh(), lambda step: empty, replace(CONFIG, start_context=0))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_equals_unbroken(optimizer):
    """20 steps == 9, stop, 11 more, bit for bit: weights, momentum, schedule, dropout and row length."""
    config = replace(CONFIG, optimizer=optimizer)
    unbroken = fresh()
    train.train(unbroken, batch_at, config)

    first, kept, steps = fresh(), {}, []
    train.train(first, batch_at, config, report=steps.append, should_stop=lambda: len(steps) == 9,
                save=lambda state, tensors: kept.update(
                    state=replace(state), tensors={name: tensor.clone() for name, tensor in tensors.items()}))
    assert kept["state"].step == 9
    second = TinyLLM(SHAPE)
    second.load_state_dict(first.state_dict())
    state = train.train(second, batch_at, config, resume=(kept["state"], kept["tensors"]))
    assert_same(weights(unbroken), weights(second))
    assert state.step == 20 and state.tokens == 20 * 64


def test_rows_are_short_first_and_a_step_keeps_its_tokens():
    """The curriculum: half-length rows until the middle of the run."""
    rows = []
    train.train(fresh(), batch_at, replace(CONFIG, max_steps=4), report=rows.append)
    assert [row["context"] for row in rows] == [8, 8, 16, 16]
    assert [row["tokens"] for row in rows] == [64, 128, 192, 256]


@pytest.mark.parametrize(("limit", "steps"), [({"max_tokens": 200}, 4), ({"max_steps": 3}, 3),
                                              ({"max_steps": 3, "max_tokens": 64}, 1)])
def test_a_run_ends_at_the_first_limit(limit, steps):
    """Steps, tokens or minutes, whichever comes first."""
    assert train.train(fresh(), batch_at, replace(CONFIG, max_steps=0, **limit) if "max_steps" not in limit
                       else replace(CONFIG, **limit)).step == steps


def test_a_run_without_an_end_is_refused():
    """Otherwise the schedule has no shape."""
    with pytest.raises(ValueError, match="give --max-steps, --max-tokens or --max-minutes"):
        train.train(fresh(), batch_at, replace(CONFIG, max_steps=0))


def test_the_clock_can_end_a_run():
    """--max-minutes counts the time of earlier sittings too."""
    state = train.train(fresh(), batch_at, replace(CONFIG, max_steps=0, max_minutes=0.01))
    assert state.step > 0 and 0.6 <= state.seconds < 10
    again = train.train(fresh(), batch_at, replace(CONFIG, max_steps=0, max_minutes=0.01), resume=(state, {}))
    assert again.step == state.step
    longer = TrainState(step=1, seconds=30.0)
    assert train.train(fresh(), batch_at, replace(CONFIG, max_steps=2), resume=(longer, {})).seconds > 30


def test_nan_stops_with_the_step_and_the_likely_cause():
    """A loss that is not a number never gets better by itself."""
    model = fresh()
    with torch.no_grad():
        model.embed.weight[3] = math.nan
    with pytest.raises(ValueError, match=r"step 0: loss is nan .*learning rate that is too high.*--dtype float32"):
        train.train(model, lambda step: next_token_batch(torch.arange(17).repeat(4, 1)), CONFIG)


def test_a_gradient_that_is_not_finite_stops_too():
    """The loss can look healthy while its slope is infinite, as that of a square root at zero is."""
    def loss_fn(model, batch):
        loss, count = next_token_loss(model, batch)
        return loss + (model.norm.weight * 0).sqrt().sum(), count

    with pytest.raises(ValueError, match=r"step 0: loss is \d.* gradient norm nan"):
        train.train(fresh(), batch_at, CONFIG, loss_fn=loss_fn)


@torch.no_grad()
def test_validation_is_the_mean_over_all_targets_without_dropout():
    """A batch with few targets must not weigh as much as a full one, and the same weights get the same number."""
    few, many = batch_at(0), batch_at(1)
    few.targets[:, 2:] = IGNORE
    model = fresh().train()
    train.set_dropout(model, 0.3)
    total, count = train.loss_sums(model, [few, many])
    measured = total / count
    (a, n), (b, m) = (next_token_loss(model.eval(), batch) for batch in (few, many))
    assert int(n) == 8 and int(m) == 64 and measured == pytest.approx(float((a + b) / (n + m)))


def test_bfloat16_activations_learn_what_float32_learns():
    """Weights stay float32; the loss after a few steps agrees to bfloat16's three digits."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        model = fresh()
        losses.append(train.train(model, batch_at, replace(CONFIG, dtype=dtype, dropout=0.0)).loss)
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_code_learns_what_the_readable_code_learns(capsys):
    """Fused and in bfloat16 it rounds elsewhere, no more: twenty steps lose what they lose in plain float32."""
    losses = {}
    for compile, dtype in (("off", "float32"), ("on", "bfloat16")):
        rows = []
        config = replace(CONFIG, compile=compile, dtype=dtype, dropout=0.0, start_context=0, lr=0.01)
        train.train(fresh(), batch_at, config, report=rows.append)
        losses[compile] = [row["loss"] for row in rows]
    assert capsys.readouterr().err == ""                             # "no C++ compiler", "torch.compile failed"
    assert losses["off"][-1] < losses["off"][0] - 0.3
    assert losses["on"] == pytest.approx(losses["off"], rel=0.01)


@pytest.mark.parametrize("limits, compiles", [
    ({"max_minutes": 3}, True), ({"max_minutes": 2.9}, False), ({"max_tokens": 10 ** 9}, True),
    ({"max_tokens": 10 ** 9, "max_minutes": 1}, False), ({"max_tokens": 10 ** 5}, False),
    ({"max_steps": 10 ** 7}, True), ({"max_steps": 10 ** 7, "max_tokens": 10 ** 5}, False)])
def test_only_a_long_run_is_compiled(limits, compiles):
    """Compiling takes half a minute. 62,000 weights: 1e9 tokens are 4e14 operations, 1e5 tokens none worth it."""
    config = replace(CONFIG, **{"max_steps": 0, "compile": "auto"} | limits)
    assert train.worth_compiling(fresh(), batch_at, config) == compiles


# --- another device ---

def test_every_tensor_is_made_where_the_model_is():
    """What is made without saying where would lie in the CPU's memory beside a model on a GPU. Here everybody who does
    not say gets a tensor without any memory, and mixing the two is an error."""
    model, batch = fresh(), batch_at(0)
    batch.targets[:, :3], batch.starts = IGNORE, torch.zeros_like(batch.tokens)
    optimizers = optim.make_optimizers(model, "muon", lr=0.01, muon_lr=0.01, weight_decay=0.1)
    before = weights(model)
    with torch.device("meta"):
        loss, count = next_token_loss(model, batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert count == 4 * 13 and loss.device.type == "cpu"
    assert not any(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_batches_follow_the_model_to_its_device_and_the_model_comes_back(monkeypatch):
    """Training and validation alike."""
    asked, moved = [], Batch.to
    monkeypatch.setattr(Batch, "to", lambda batch, device: asked.append(device) or moved(batch, device))
    model = fresh()
    train.train(model, batch_at, replace(CONFIG, max_steps=2), val={"rows": [batch_at(9)]})
    assert asked == [torch.device("cpu")] * (1 + 2 * 2 + 1)          # before, two steps of two micro-batches, after
    assert batch_at(0).to(torch.device("meta")).tokens.device.type == "meta"
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("device", ["abacus", "meta"])
def test_a_device_that_is_not_there_is_said_in_one_sentence(device, capsys):
    """Before any work, with what to do."""
    with pytest.raises(SystemExit) as stopped:
        pretrain.main(["--device", device])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"--device {device} cannot be used here" in said and "leave it out" in said and "Traceback" not in said


def test_the_last_state_is_saved_with_its_loss():
    """The best state of a run is the one that is used; one without a loss would be taken for a worse one."""
    saved = {}
    config = replace(CONFIG, max_steps=6, val_every=4, save_every=3)
    train.train(fresh(), batch_at, config, val={"rows": [batch_at(99)]},
                save=lambda state, tensors: saved.update({state.step: state.val_loss}))
    assert saved.keys() == {3, 6} and saved[3] is None and saved[6] < 7


def test_clipping_at_zero_is_none():
    """It would otherwise be a gradient of nothing, and a run that learns nothing."""
    clipped, free = fresh(), fresh()
    train.train(clipped, batch_at, replace(CONFIG, clip=0.0, max_steps=3))
    train.train(free, batch_at, replace(CONFIG, clip=1e9, max_steps=3))
    assert_same(weights(clipped), weights(free))


def test_validation_does_not_change_training():
    """Looking at the held-out text must leave no trace."""
    with_val, without = fresh(), fresh()
    rows = []
    train.train(with_val, batch_at, CONFIG, val={"rows": [batch_at(99)]}, report=rows.append)
    train.train(without, batch_at, CONFIG)
    assert_same(weights(with_val), weights(without))
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 5, 10, 15, 20]


@pytest.fixture
def graphs(monkeypatch):
    """Every graph that torch.compile is asked to make, by a compiler that leaves it as it is."""
    made, plain_compile = [], torch.compile
    counted = lambda graph, examples: made.append(graph) or graph.forward
    monkeypatch.setattr(torch, "compile", lambda call, **options: plain_compile(call, backend=counted, **options))
    monkeypatch.setattr(train.shutil, "which", lambda name: name)
    return made


def test_only_training_steps_are_compiled(graphs):
    """Validation and decoding come in ever new shapes; compiling each would cost more than it gains."""
    model = fresh()
    train.train(model, batch_at, replace(CONFIG, compile="on", max_steps=2), val={"rows": batch_at(99).split(3)})
    assert (n_graphs := len(graphs)) > 0
    list(decode(model, [[1, 2, 3]], end=0, max_new_tokens=4))
    assert len(graphs) == n_graphs


def test_the_cross_entropy_is_compiled_once_for_any_number_of_targets(graphs):
    """Every batch of answers has another number of learnt tokens; a compiler that makes each anew never ends."""
    model = fresh()
    train.compiled(model, train.next_token_loss)
    for n in (40, 17, 33, 5):
        logits, targets = torch.randn(n, 50), torch.randint(0, 50, (n,))
        expected = F.cross_entropy(logits, targets, reduction="sum")
        torch.testing.assert_close(model.cross_entropy(logits, targets), expected)
    assert len(graphs) == 1


def test_a_compiler_that_fails_costs_one_line_not_the_run(monkeypatch, capsys):
    """Many machines have a compiler that cannot build what torch.compile asks for; training goes on without it."""
    def broken(graph, examples):
        raise RuntimeError("omp.h not found\nand a hundred lines more")

    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: plain_compile(call, backend=broken, **options))
    monkeypatch.setattr(train.shutil, "which", lambda name: name)    # there is a compiler, it only does not work
    compiled, plain = fresh(), fresh()
    train.train(compiled, batch_at, replace(CONFIG, compile="on"))
    said = capsys.readouterr().err
    assert said.startswith("torch.compile failed (") and "omp.h not found): training without it\n" in said
    assert said.count("\n") == 1
    train.train(plain, batch_at, CONFIG)
    assert_same(weights(compiled), weights(plain))


def test_too_little_memory_is_not_blamed_on_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(train.shutil, "which", lambda name: name)
    def full(model, batch):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        train.compiled(fresh(), full)(None, None)
    assert "torch.compile failed" not in capsys.readouterr().err


# --- a stage in a folder ---

def stage(folder, tokenizer, config=CONFIG, shape=SHAPE, **more):
    model = fresh(replace(shape, vocab_size=tokenizer.vocab_size))
    small = lambda ids: ids % tokenizer.vocab_size
    rows = lambda step: Batch(small(batch_at(step).tokens), small(batch_at(step).targets))
    state = run_stage(model, tokenizer, rows, config, folder, val={"rows": [rows(99)]}, bytes_per_token=2.0, **more)
    return model, state


def test_a_run_goes_on_with_its_seed_and_says_what_else_has_changed(tmp_path, tokenizer, capsys):
    """Another seed in the same folder would get the first one's model under its own name."""
    stage(tmp_path, tokenizer, replace(CONFIG, max_steps=3))
    with pytest.raises(ValueError, match="trained with --seed 0, not 1; resume with that"):
        stage(tmp_path, tokenizer, replace(CONFIG, max_steps=6, seed=1))
    capsys.readouterr()
    stage(tmp_path, tokenizer, replace(CONFIG, max_steps=6, muon_lr=0.03, val_every=2))
    said = capsys.readouterr().err
    assert "differ from those of the sitting before: --muon-lr 0.03 (0.02), --val-every 2 (5)\n" in said
    assert "began with" not in said
    torch.manual_seed(99)
    other = TinyLLM(replace(SHAPE, vocab_size=tokenizer.vocab_size))         # as if --init had been trained on
    run_stage(other, tokenizer, batch_at, replace(CONFIG, max_steps=6, muon_lr=0.03, val_every=2), tmp_path, val={})
    assert "began with have changed since; it goes on from its own" in capsys.readouterr().err


def test_a_stage_saves_logs_and_has_nothing_left_to_do(tmp_path, tokenizer, capsys):
    """metrics.jsonl has a row per step and per validation, with bits per byte = nats / bytes / ln 2."""
    stage(tmp_path, tokenizer)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21)) and len(validated) == 5
    assert validated[-1]["bits_per_byte"] == pytest.approx(validated[-1]["val_loss"] / 2.0 / math.log(2))
    assert checkpoint.steps(tmp_path)[-1].name == "step-00000020"
    _, again = stage(tmp_path, tokenizer)
    assert again.step == 20 and "already reached its limit" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, tokenizer):
    """The step is finished, the state is saved, and what follows equals a run that was never interrupted."""
    unbroken, _ = stage(tmp_path / "a", tokenizer)

    def interrupt(row):
        if row["step"] == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "b", tokenizer, report=interrupt)
    assert checkpoint.steps(tmp_path / "b")[-1].name == "step-00000007"
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:       # damaged numbers are no reason to lose a run
        file.write('[1]\n{"loss": 1.0}\n{"st')
    resumed, _ = stage(tmp_path / "b", tokenizer)
    assert_same(weights(unbroken), weights(resumed))
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(21))


def test_a_second_ctrl_c_stops_at_once_unless_torchrun_sent_it(monkeypatch):
    """The terminal sends Ctrl-C to every process and torchrun passes it on: two signals, one wish to stop and save."""
    with pytest.raises(KeyboardInterrupt), _stop_on_signal():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(parallel, "size", lambda: 2)
    with _stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stop


def test_restart_begins_again(tmp_path, tokenizer):
    """Without it a finished folder would be left as it is."""
    stage(tmp_path, tokenizer)
    _, state = stage(tmp_path, tokenizer, replace(CONFIG, max_steps=2, restart=True))
    assert state.step == 2 and [folder.name for folder in checkpoint.steps(tmp_path)] == ["step-00000002"]
    assert max(json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="a run needs an end"):      # nothing is removed for a run that cannot be
        stage(tmp_path, tokenizer, replace(CONFIG, max_steps=0, restart=True))
    assert len(checkpoint.steps(tmp_path)) == 1


def test_who_stops_a_restarted_run_is_told_not_to_restart_it_again(tmp_path, tokenizer, capsys):
    """The same command would remove what it has just saved. A stop in the last step ends what comes after, too."""
    for last, said in ((4, "without --restart goes on from here"), (20, "it was the last one")):
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, tokenizer, replace(CONFIG, restart=True), report=lambda row, last=last: (
                signal.raise_signal(signal.SIGINT) if row["step"] == last and "loss" in row else None))
        assert f"stopped and saved at step {last}; " in (err := capsys.readouterr().err) and said in err
        assert checkpoint.steps(tmp_path)[-1].name == f"step-{last:08}"


def test_a_faster_allocator_is_named_once_where_it_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    for preloaded, library, lines in (("", "libtcmalloc_minimal.so.4", 1), ("", None, 0),
                                      ("/usr/lib/libtcmalloc.so.4", "libtcmalloc.so.4", 0)):
        stage_module.hint_at_allocator.cache_clear()
        monkeypatch.setenv("LD_PRELOAD", preloaded)
        monkeypatch.setattr("ctypes.util.find_library", lambda name, library=library: library)
        stage_module.hint_at_allocator(), stage_module.hint_at_allocator()
        assert capsys.readouterr().err.count(f"LD_PRELOAD={library}") == lines
    stage_module.hint_at_allocator.cache_clear()


def test_losses_on_other_held_out_rows_are_not_compared(tmp_path, tokenizer):
    """A second sitting with harder ones would else be trained and never used."""
    stage(tmp_path, tokenizer, replace(CONFIG, max_steps=4))
    record = tmp_path / "step-00000004" / "state.json"
    state = json.loads(record.read_text())
    record.write_text(json.dumps(state | {"val_loss": 0.0, "held_out": state["held_out"] + 1}))
    stage(tmp_path, tokenizer, replace(CONFIG, max_steps=8))
    assert checkpoint.best(tmp_path).name == "step-00000008"
    record.write_text(json.dumps(state | {"val_loss": 0.0}))
    assert checkpoint.best(tmp_path).name == "step-00000004"


@pytest.mark.parametrize(("crash", "resumed"), [(1, False), (13, True)])
def test_no_step_is_logged_twice(tmp_path, tokenizer, capsys, crash, resumed):
    """A crash loses the steps since the newest save (12, not the best one, 10), and the log shows each step once."""
    def fail(row):
        if row["step"] == crash:
            raise OSError("the machine went away")

    config = replace(CONFIG, save_every=2)
    with pytest.raises(OSError, match="went away"):
        stage(tmp_path, tokenizer, config, report=fail)
    stage(tmp_path, tokenizer, config)
    assert ("at step 12\n" in capsys.readouterr().err) == resumed
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 5, 10, 15, 20]


def test_a_stage_holds_the_lock_of_its_folder(tmp_path, tokenizer):
    """Two trainers in one folder would mix two runs."""
    with checkpoint.lock(tmp_path), pytest.raises(ValueError, match="another trainer is writing here"):
        stage(tmp_path, tokenizer)


def test_a_damaged_state_is_set_aside_and_the_one_before_used(tmp_path, tokenizer, capsys):
    """A truncated file costs the steps since the checkpoint before it, not the run."""
    config = replace(CONFIG, save_every=5)
    unbroken, _ = stage(tmp_path, tokenizer, config)
    file = checkpoint.steps(tmp_path)[-1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    resumed, _ = stage(tmp_path, tokenizer, config)
    assert "set aside as damaged-step-00000020" in capsys.readouterr().err
    assert_same(weights(unbroken), weights(resumed))


@pytest.mark.parametrize(("more", "complaint"), [
    ({"mood": "good"}, "unknown setting 'mood'"), ({"step": "x"}, "step of a state must be a number, not 'x'")])
def test_a_state_this_version_cannot_read_is_set_aside(tmp_path, tokenizer, capsys, more, complaint):
    """A counter it does not know might matter; the state before it is whole."""
    config = replace(CONFIG, save_every=5)
    stage(tmp_path, tokenizer, config)
    file = checkpoint.steps(tmp_path)[-1] / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    stage(tmp_path, tokenizer, config)
    assert f"{complaint}; set aside as damaged-step-00000020" in capsys.readouterr().err


def test_a_run_is_never_begun_again_unasked(tmp_path, tokenizer):
    """If no state can be read, whatever the cause, the states and the log stay until the user says --restart."""
    stage(tmp_path, tokenizer, replace(CONFIG, save_every=5))
    for file in tmp_path.glob("step-*/state.json"):
        file.write_text("{")
    before = sorted(tmp_path.rglob("*")), (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="none of its 2 states can be read .*state.json.*--restart"):
        stage(tmp_path, tokenizer)
    assert before == (sorted(tmp_path.rglob("*")), (tmp_path / "metrics.jsonl").read_text())
    assert stage(tmp_path, tokenizer, replace(CONFIG, restart=True))[1].step == CONFIG.max_steps


def test_a_folder_with_another_model_is_refused(tmp_path, tokenizer):
    """Resuming must not quietly train something else than was asked for."""
    stage(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"holds a model of another shape.*--restart"):
        stage(tmp_path, tokenizer, shape=replace(SHAPE, n_layers=3))


def test_a_folder_of_another_recipe_is_refused(tmp_path, tokenizer):
    """A curve whose first half is of one recipe and whose second half of the other says nothing about either."""
    stage(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"was trained with --recipe fast, not classic; resume with that, .*--restart"):
        stage(tmp_path, tokenizer, replace(CONFIG, recipe="classic", max_steps=30))


def test_a_folder_of_another_stage_is_refused(tmp_path, tokenizer):
    """`sft --out` with the folder of a pretraining would show the losses of that as its own, and train nothing."""
    stage(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"a run of another stage \(TrainConfig, not SFTConfig\).*--restart"):
        stage(tmp_path, tokenizer, SFTConfig(max_steps=30, compile="off"))


def test_numbers_that_were_lost_do_not_lose_the_run(tmp_path, tokenizer):
    """metrics.jsonl is for people; a line cut off by a crash, or the file, may be missing."""
    stage(tmp_path, tokenizer, replace(CONFIG, max_steps=3))
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-30])
    rows = plot.read_metrics(tmp_path)
    assert len(rows) > 2 and all(row["step"] <= 3 for row in rows)
    file.unlink()
    assert plot.read_metrics(tmp_path) == [] and plot.draw_losses(tmp_path) is None
    assert stage(tmp_path, tokenizer, replace(CONFIG, max_steps=6))[1].step == 6


def test_resuming_with_other_tokens_is_refused(tmp_path, tokenizer):
    """Token 300 would suddenly mean another word, and the loss would jump without a reason in sight."""
    stage(tmp_path / "run", tokenizer)
    other = tokenizers.train(["Quite another text, with other words."] * 3 + SENTENCES, tokenizer.vocab_size, tmp_path)
    assert other.vocab_size == tokenizer.vocab_size
    with pytest.raises(ValueError, match=r"trained with another tokenizer than .*--data or --init; .*--restart"):
        stage(tmp_path / "run", other)


def test_signals_are_left_alone_outside_the_main_thread(tmp_path, tokenizer):
    """A notebook or a server may train in a thread, where signals belong to somebody else."""
    thread = threading.Thread(target=stage, args=(tmp_path, tokenizer))
    thread.start()
    thread.join()
    assert checkpoint.steps(tmp_path)[-1].name == "step-00000020"


KILLED = """
import sys, torch
sys.path.insert(0, "tests")
import test_train
from tinyllm.tokenizer import Tokenizer
torch.set_num_threads(1)
test_train.stage(sys.argv[1], Tokenizer.load(sys.argv[2]), test_train.KILL_CONFIG,
                 report=lambda row: print(row["step"], flush=True))
"""
KILLS = int(os.environ.get("TINYLLM_KILLS", "4"))                    # TINYLLM_KILLS=20 for a thorough look
KILL_CONFIG = replace(CONFIG, max_steps=40 * KILLS, save_every=2)    # saving most of the time, to be hit while saving


def test_kill_minus_nine_at_any_moment_loses_no_exactness(tmp_path, tokenizer):
    """Killed at random moments, it resumes every time and ends bit-identical to a run that nobody disturbed."""
    tokenizer.save(tmp_path / "tokenizer.model")
    rng = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "run"), str(tmp_path)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(rng.randrange(1, 40)):
            assert process.stdout.readline(), process.stderr.read()
        time.sleep(rng.random() * 0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    unbroken, _ = stage(tmp_path / "unbroken", tokenizer, replace(KILL_CONFIG, save_every=1000))
    resumed, state = stage(tmp_path / "run", tokenizer, KILL_CONFIG)
    assert state.step == 40 * KILLS
    assert_same(weights(unbroken), weights(resumed))


def test_a_state_counts_the_largest_share_of_any_limit():
    """Progress drives the schedule and the time left."""
    state = TrainState(step=5, tokens=30, seconds=60)
    assert state.progress(replace(CONFIG, max_steps=10, max_tokens=300)) == 0.5
    assert state.progress(replace(CONFIG, max_steps=10, max_minutes=1.25)) == 0.8
