"""The benchmark counts what it says it counts, and times the code that users run."""

import importlib.machinery
import importlib.util
import json
import math
import sys
import time
import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinyllm import bench, generate, scaling, train
from tinyllm.config import read_settings
from tinyllm.model import ModelConfig, TinyLLM

ROW_KEYS = {"name", "value", "unit", "ratios", "runs", "low", "high"}
TINY = ["--vocab-size", "90", "--dim", "16", "--n-layers", "1", "--n-heads", "2", "--n-kv-heads", "1", "--ffn-dim",
        "24", "--context", "16", "--prompt-tokens", "4", "--new-tokens", "6", "--repeats", "2", "--dtype", "float32"]


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine without a C++ compiler, where nothing takes long."""
    monkeypatch.setattr(train.shutil, "which", lambda name: None)
    small = bench.matmul_rates
    monkeypatch.setattr(bench, "matmul_rates", lambda repeats: small(repeats, size=32))
    read = bench.read_rates
    monkeypatch.setattr(bench, "read_rates", lambda repeats: read(repeats, n_bytes=1 << 16))


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_the_flop_formula_equals_a_count_of_every_product(n_kv_heads):
    """6 per matrix weight and 12 T per head and channel for attention is what forward and backward multiply and add."""
    config = ModelConfig(vocab_size=90, dim=32, n_layers=3, n_heads=4, n_kv_heads=n_kv_heads, ffn_dim=40, context=20)
    model = TinyLLM(config)
    batch = bench.random_batch(model, 2, 20)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:     # as products it can see
        train.next_token_loss(model, batch)[0].backward()
    assert counter.get_total_flops() == bench.flops_per_token(config, 20) * batch.tokens.numel()


def test_jobs_take_turns_until_the_time_is_used_up():
    """Alternating spreads a busy moment over all; a slow job stops early, but nothing is left unmeasured."""
    order = []

    def job(name, seconds):
        return lambda: order.append(name) or seconds

    assert bench.alternate({"a": job("a", 1.0), "b": job("b", 2.0)}, 3, math.inf) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert order == ["a", "b"] * 3
    times = bench.alternate({"fast": job("fast", 1.0), "slow": job("slow", 10.0)}, 5, seconds=14)
    assert times == {"fast": [1.0] * 4, "slow": [10.0]}
    assert bench.alternate({"slow": job("slow", 10.0)}, 5, seconds=0) == {"slow": [10.0]}


def test_a_row_is_the_median_and_its_ratios():
    """One slow run must not move the number, and a ratio is the number over its yardstick."""
    row = bench.make_row("speed", [4.0, 1.0, 5.0], "tokens/s", {"limit": 8.0})
    assert row == {"name": "speed", "value": 4.0, "unit": "tokens/s", "runs": 3, "low": 1.0, "high": 5.0,
                   "ratios": {"limit": 0.5}}


@pytest.mark.parametrize("n", [1, 5])
def test_decoding_counts_the_tokens_after_the_first(model, monkeypatch, n):
    """The clock starts when the prompt has been read, so that it times decoding alone, whatever n is."""
    steps, stream = [], generate.stream
    monkeypatch.setattr(generate, "stream", lambda *args, **kwargs: (
        steps.append(ids) or ids for ids in stream(*args, **kwargs)))
    assert 0 < bench.decode(model, [1, 2, 3], n, 9) < 60
    assert len(steps) == 10 and all(len(ids) == n for ids in steps)


def test_a_step_reads_the_tokens_of_a_default_step(model):
    """Rows of half the context make twice as many rows: speeds of two shapes are speeds of equally large steps."""
    config = train.TrainConfig(batch_size=2, max_steps=4, dtype="float32", compile="off")
    (step, first), seconds = bench.measure_steps(model, 2, 24, 100.0, config, 60.0)
    assert step["runs"] == 3 and first["runs"] == 1
    assert step["value"] * seconds == pytest.approx(config.effective_batch_size * 48)
    per_second = 100e9 / bench.flops_per_token(model.config, 24)
    assert step["ratios"]["matmul ceiling"] == pytest.approx(step["value"] / per_second)


def test_memory_grows_with_the_tokens_of_a_micro_batch_not_with_the_weights(model):
    """What a row keeps for the backward pass does not depend on the other rows; what all share (mask, rotations) is
    little. Each token keeps at least its hidden state before and behind every layer, and its logits."""
    kept = {shape: scaling.kept_bytes(model, bench.random_batch(model, *shape), torch.float32)
            for shape in ((1, 12), (1, 24), (1, 48), (2, 48), (4, 48))}
    assert kept[4, 48] - kept[2, 48] == 2 * (kept[2, 48] - kept[1, 48])
    assert kept[2, 48] == pytest.approx(2 * kept[1, 48], rel=0.02)
    assert kept[1, 24] > 1.9 * kept[1, 12] and kept[1, 48] > 1.9 * kept[1, 24]
    config = model.config
    assert kept[1, 48] > 48 * 4 * (2 * config.n_layers * config.dim + config.vocab_size)
    weights = sum(weight.nbytes for weight in model.parameters())
    assert scaling.kept_bytes(model, bench.random_batch(model, 1, 2), torch.float32) < weights / 4


def test_what_several_operations_keep_is_in_memory_once(model, monkeypatch):
    """Query, key and value all read one normed state: three references, one piece of memory."""
    monkeypatch.setattr(scaling, "next_token_loss", lambda model, batch: (
        (model.norm.weight.exp().view(4, 8) * 2).square().sum(), None))
    one = scaling.kept_bytes(model, None, torch.float32)
    monkeypatch.setattr(scaling, "next_token_loss", lambda model, batch: (
        (state := model.norm.weight.exp() * 2) @ state.view(4, 8).flatten() + state.view(2, 16).square().sum(), None))
    assert scaling.kept_bytes(model, None, torch.float32) == one == 2 * 32 * 4          # exp() keeps its result, too


def test_a_curve_leaves_out_the_points_that_are_known_and_the_threads_as_they_were(model):
    """Eight times the length, twice the rows, twice the layers; nothing is timed twice."""
    before = torch.get_num_threads()
    rows = scaling.measure_scaling(model.config, 8, 6, 100.0, torch.float32, 1, 0.0,
                                   known=["forward+backward 4x12, eager float32"])
    assert torch.get_num_threads() == before
    names = [row["name"] for row in rows]
    assert names[:4] == [f"forward+backward {shape}, eager float32" for shape in ("16x3", "8x6", "2x24", "1x48")]
    assert names[4:8] == [f"forward+backward {n}x6, eager float32" for n in (1, 2, 4, 16)]
    assert names[8:13] == [f"kept for backward, 1x{t}" for t in (3, 6, 12, 24, 48)]
    assert [name.split(",")[1] for name in names[13:]] == [" 1 layers", " 3 layers", " 6 layers", " threads: 1",
                                                            " threads: 2"]


def test_the_command_prints_the_documented_json(no_compiler, capsys):
    """Every number has a unit, is positive and finite, and stands beside a yardstick."""
    bench.main([*TINY, "--json"])
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert set(result) == {"machine", "settings", "rows", "notes"}
    assert result["settings"]["shapes"] == ["128x16"]
    assert result["notes"][-1] == "no compiled rows: there is no C++ compiler" and "measuring decoding" in err
    peers = any("best peer" in row["ratios"] for row in result["rows"])
    assert ("no rows of others' code: transformers is not installed" in result["notes"]) != peers
    ratios = {row["name"]: row["ratios"] for row in result["rows"]}
    five, one = (next(row["value"] for row in result["rows"] if row["name"] == f"decode, {n}, int8")
                 for n in ("5 continuations", "1 continuation"))
    assert ratios["decode, 5 continuations, int8"]["1 of this kind"] == pytest.approx(five / one)
    for row in result["rows"]:
        assert set(row) == ROW_KEYS and row["unit"] and row["ratios"] and row["runs"] >= 1
        assert all(0 < number < math.inf for number in (row["value"], row["low"], row["high"], *row["ratios"].values()))
        assert row["low"] <= row["value"] <= row["high"]
    names = [row["name"] for row in result["rows"]]
    assert len(names) == len(set(names))
    for wanted in ("matmul", "memory read", "training step 128x16", "forward+backward 128x16, eager float32",
                   "forward+backward 128x16, textbook", "optimizer step, adamw", "optimizer step, muon",
                   "forward+backward 64x32, eager float32", "forward+backward 16x128, eager float32",
                   "forward+backward 256x16, eager float32", "forward+backward 16x16, eager float32",
                   "kept for backward, 1x8", "kept for backward, 1x128", "128x16, 1 layers", "128x16, 2 layers",
                   "128x16, threads: 1", "128x16, threads: 2", "decode, 1 continuation, fp32",
                   "decode, 5 continuations, fp32", "decode, 1 continuation, int8", "decode, 5 continuations, int8",
                   "decode, textbook"):
        assert any(name.startswith(wanted) for name in names), wanted


def test_others_are_measured_beside_ours_where_hugging_face_is_installed(model, no_compiler, monkeypatch):
    """At our shape, from tokens to gradients; a stand-in is enough to see what it is asked for."""
    shapes, written = [], []

    class Llama(torch.nn.Module):
        def __init__(self, shape):
            super().__init__()
            shapes.append(shape)
            self.embed = torch.nn.Embedding(shape["vocab_size"], shape["hidden_size"])

        def forward(self, input_ids, labels):
            assert self.embed.weight.grad is None and torch.equal(input_ids, labels)
            return types.SimpleNamespace(loss=self.embed(input_ids).square().mean())

        def generate(self, ids, max_new_tokens, **more):
            written.append(max_new_tokens)
            time.sleep(0.001 * max_new_tokens)

    module = types.ModuleType("transformers")
    module.__spec__ = importlib.machinery.ModuleSpec("transformers", None)
    module.LlamaConfig, module.LlamaForCausalLM = (lambda **shape: shape), Llama
    monkeypatch.setitem(sys.modules, "transformers", module)
    ways = bench.loss_functions(model, None, torch.bfloat16)
    ways |= bench.load_yardstick(bench.PEERS).losses(model.config, torch.bfloat16, False)
    assert list(ways) == ["eager bfloat16", "HF bfloat16", "HF all bfloat16", "nanoGPT style bfloat16",
                          "MiniMind style bfloat16"]
    rows = bench.measure_gradients(model, 2, 8, 100.0, ways, 2, 1.0)
    assert rows[0]["ratios"]["best peer"] == pytest.approx(rows[0]["value"] / max(row["value"] for row in rows[1:]))
    assert (shapes[0]["hidden_size"], shapes[0]["num_hidden_layers"], shapes[0]["intermediate_size"]) == (
        model.config.dim, model.config.n_layers, model.config.ffn_dim)
    rows = bench.measure_decoding(model, 4, 3, None, 10.0, 1, 1.0)
    assert set(written) == {1, 3, 4} and rows[-1]["name"] == "decode, HF fp32" and rows[0]["ratios"]["HF fp32"] > 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    peers = bench.load_yardstick(bench.PEERS)
    assert peers.losses(model.config, torch.float32, True) == {} and peers.decode_seconds(model.config, [1]) is None


def test_peers_have_the_size_of_ours_and_see_no_future():
    """A speed is worth comparing at equal work: as many weights (nanoGPT's has positions to learn beside), and one
    token's loss does not depend on what comes later."""
    peers = bench.load_yardstick(bench.PEERS)
    config = ModelConfig(vocab_size=90, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, ffn_dim=96, context=16,
                         qk_norm=False)
    size = lambda model: sum(weight.numel() for weight in model.parameters())
    assert size(peers.MiniMind(config)) == size(TinyLLM(config))
    assert size(peers.NanoGPT(config)) == size(TinyLLM(config)) + 16 * 32
    ids = torch.randint(0, 90, (1, 16))
    later = ids.clone()
    later[0, 9:] = (ids[0, 9:] + 1) % 90
    targets = torch.full_like(ids, -100)
    targets[0, 8] = 7
    for make in (peers.NanoGPT, peers.MiniMind):
        peer = make(config)
        assert float(peer(ids, targets)) == pytest.approx(float(peer(later, targets)), rel=1e-5)
        assert float(peer(ids, targets)) != pytest.approx(float(peer(ids.flip(1), targets)), rel=1e-5)


def test_without_the_tests_folder_the_textbook_is_left_out(no_compiler, monkeypatch, tmp_path, capsys):
    """An installed package can still measure itself; it says which row is missing and why."""
    monkeypatch.setattr(bench, "TEXTBOOK", tmp_path / "reference.py")
    bench.main([*TINY, "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith(("decode, textbook", "forward+backward")) and ", textbook" in line for line in lines)
    assert any(line.startswith(f"no textbook rows: {tmp_path / 'reference.py'} is not there") for line in lines)
    assert any(line.startswith("decode, 5 continuations") and "tokens/s" in line for line in lines)


@pytest.mark.parametrize("preset, shapes", [("base", ["8x256", "4x512"]), ("nano", ["8x256"])])
def test_presets_are_timed_at_2048_tokens(preset, shapes):
    """Both lengths that training uses, at equally many tokens."""
    assert read_settings(bench.BenchConfig, "bench", ["--preset", preset]).shapes == shapes


@pytest.mark.parametrize("settings, message", [
    ({"shapes": ["4by512"]}, "--shapes takes ROWSxTOKENS of at most context=512 tokens, not '4by512'"),
    ({"shapes": ["0x8"]}, "not '0x8'"),
    ({"shapes": ["4x513"]}, "not '4x513'"),
    ({"new_tokens": 448}, "--prompt-tokens 64 and --new-tokens 448 do not fit in context=512"),
])
def test_a_setting_that_cannot_be_timed_is_refused(settings, message):
    """The remedy stands in the message."""
    with pytest.raises(ValueError, match=message):
        bench.BenchConfig(**settings)
