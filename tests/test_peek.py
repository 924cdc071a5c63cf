"""What peek prints is what the model does: every number is checked against the model itself."""

import json
import math

import pytest
import torch
from conftest import cpu_seconds
from torch.utils.flop_counter import FlopCounterMode

from tinyllm import checkpoint, peek
from tinyllm.data import IGNORE, Batch, next_token_batch
from tinyllm.generate import document_prompt
from tinyllm.model import KVCache, ModelConfig, TinyLLM, attend
from tinyllm.train import TrainConfig, next_token_loss

TEXT = "The cat sat.\n小猫坐在垫子上。"


@pytest.fixture
def ids(tokenizer):
    return document_prompt(tokenizer, TEXT)


@pytest.fixture
def folder(config, tokenizer, tmp_path):
    """A checkpoint with random weights, and token files beside its tokenizer."""
    config.vocab_size = tokenizer.vocab_size
    folder = checkpoint.save(tmp_path / "run", TinyLLM(config), tokenizer, TrainConfig(), {"step": 1})
    tokens = torch.tensor(document_prompt(tokenizer, TEXT) * 30, dtype=torch.uint16).numpy()
    tokens.tofile(folder / "train.bin")
    (folder / "meta.json").write_text(json.dumps({
        "vocab_size": config.vocab_size, "train": {"bytes": 1, "tokens": len(tokens), "files": ["train.bin"]}}))
    return folder


@pytest.mark.parametrize("config", [
    peek.PeekParams(preset="base").shape(), peek.PeekParams(preset="nano").shape(),
    ModelConfig(dim=48, n_heads=6, n_kv_heads=2)])
def test_the_parts_add_up_to_the_whole_model(config):
    """Nothing is forgotten and the tied embedding is counted once; also when query heads share key/value heads."""
    with torch.device("meta"):
        model = TinyLLM(config)
    rows = peek.parameter_table(config)
    assert sum(row["parameters"] for row in rows) == sum(weight.numel() for weight in model.parameters())
    named = {row["part"]: row for row in rows}
    for name in ("wq", "wk", "wv", "wo"):
        assert named[name]["weight"] == tuple(getattr(model.blocks[0].attention, name).weight.shape)
    for name in ("gate", "up", "down"):
        assert named[name]["weight"] == tuple(getattr(model.blocks[0].ffn, name).weight.shape)


def test_the_flop_formula_agrees_with_counting_the_operations(config, model):
    """T tokens that look at T keys each: PyTorch counts every product, also of scores that are masked."""
    T = 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, T, dtype=torch.long))
    assert counter.get_total_flops() == T * sum(row["flops"] for row in peek.parameter_table(config, T))


def test_training_costs_three_forward_passes(config, model):
    """Each product a @ b needs two more on the way back: one for the gradient of a, one for that of b."""
    T, tokens = 24, torch.zeros(1, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model, Batch(tokens, tokens))[0].backward()
    forward = T * sum(row["flops"] for row in peek.parameter_table(config, T))
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("cached", [0, 5])
def test_the_letters_of_every_tensor_give_its_shape(cached):
    """All sizes differ, so a wrong letter cannot pass; in blocks after the first everything repeats."""
    config = ModelConfig(vocab_size=97, dim=48, n_layers=2, n_heads=6, n_kv_heads=3, ffn_dim=50, context=32)
    model, cache = TinyLLM(config).eval(), KVCache(config, batch=2, room=20)
    cache.length = cached
    rows = peek.shape_table(model, torch.zeros(2, 7, dtype=torch.long), cache)
    sizes = {name[0]: n for name, n in peek.letters(config, 2, 7, cached + 7).items()}
    for row in rows:
        assert row["shape"] == [math.prod(sizes[letter] for letter in product.split("·"))
                                for product in row["letters"].split()], row["tensor"]
    first, second = ([(row["tensor"].replace(f"blocks.{i}", ""), row["shape"], row["weight"]) for row in rows
                      if row["tensor"].startswith(f"blocks.{i}")] for i in (0, 1))
    assert first == second and len(first) == 17
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("cached", [0, 5])
def test_the_shapes_inside_attention_are_those_that_attention_gets(config, model, cached, monkeypatch):
    """No hook sees q, k and v, so peek derives them; here the call itself is overheard."""
    heard = {}

    def overhear(q, k, v, *rest):
        out = attend(q, k, v, *rest)
        heard.update({name: list(x.shape) for name, x in zip(("q", "k", "v", "out"), (q, k, v, out))})
        return out

    monkeypatch.setattr("tinyllm.model.attend", overhear)
    cache = KVCache(config, batch=2, room=20)
    cache.length = cached
    rows = peek.shape_table(model, torch.zeros(2, 7, dtype=torch.long), cache)
    shown = {row["tensor"].removeprefix("blocks.0.attention."): row["shape"] for row in rows}
    assert len(heard) == 4
    for name, shape in heard.items():
        assert shown[name] == shape


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2, -1])
def test_the_attention_shown_is_the_attention_used(model, ids, layer):
    """Mixing the values with it, by hand, gives the output of the layer."""
    weights = peek.attention_weights(model, ids, layer)                       # (H, T, T)
    H, T, _ = weights.shape
    torch.testing.assert_close(weights.sum(-1), torch.ones(H, T))
    assert weights.shape == (4, len(ids), len(ids)) and (weights.triu(1) == 0).all() and (weights >= 0).all()

    caught, attention = [], model.blocks[layer].attention
    with attention.register_forward_hook(lambda module, inputs, out: caught.append((inputs[0], out))):
        model(torch.tensor([ids]))
    x, expected = caught[0]
    v = attention.wv(x).view(T, 2, 8).transpose(0, 1).repeat_interleave(2, dim=0)       # (H, T, E)
    torch.testing.assert_close(attention.wo((weights @ v).transpose(0, 1).reshape(1, T, -1)), expected,
                               rtol=1e-4, atol=1e-4)


def test_next_tokens_are_sorted_and_at_most_certain(model, ids):
    """All of them sum to one; the entropy is that of the whole distribution, not of those shown."""
    top, entropy = peek.next_tokens(model, ids, 10)
    probabilities = [p for _, p in top]
    assert len(top) == 10 and probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1
    every, same = peek.next_tokens(model, ids, 10_000)
    assert sum(p for _, p in every) == pytest.approx(1, abs=1e-5) and len(every) == model.config.vocab_size
    assert entropy == same == pytest.approx(-sum(p * math.log2(p) for _, p in every if p), rel=1e-4)


def test_a_model_that_knows_nothing_is_as_unsure_as_a_blind_guess(model, ids):
    """With all logits equal every token costs log2 V bits, whatever the text."""
    model.embed.weight.data.zero_()
    assert peek.next_tokens(model, ids)[1] == pytest.approx(math.log2(420), rel=1e-5)
    torch.testing.assert_close(peek.surprises(model, ids), torch.full((len(ids) - 1,), math.log2(420)))


def test_surprises_add_up_to_the_training_loss(model, ids):
    """Training minimises exactly this number, in nats instead of bits."""
    loss, n_targets = next_token_loss(model, next_token_batch(torch.tensor([ids])))
    bits = peek.surprises(model, ids)
    assert len(bits) == n_targets and bits.sum().item() * math.log(2) == pytest.approx(loss.item(), rel=1e-5)


def test_a_batch_shows_what_is_not_learnt(tokenizer):
    """A target is the next token; a masked one reads IGNORE."""
    ids = document_prompt(tokenizer, "sat on")
    batch = Batch(torch.tensor([ids[:-1]]), torch.tensor([[IGNORE, *ids[2:]]]))
    rows = peek.batch_table(batch, 0, tokenizer)
    assert rows[0]["token"] == "<eos>" and rows[0]["target"] == "IGNORE" and rows[0]["target id"] == IGNORE
    assert [row["target"] for row in rows[1:-1]] == [row["token"] for row in rows[2:]]


def test_chinese_takes_two_columns_in_a_table():
    """The second column starts at the same place in every line."""
    lines = peek.table([{"token": "猫", "n": 1.5}, {"token": "cat", "n": 12.25}, {"token": "e\u0301", "n": 0.0}])
    assert lines.splitlines() == ["token       n", "猫      1.500", "cat    12.250", "e\u0301       0.000"]


def test_a_long_table_takes_no_longer_than_its_rows():
    """All tokens of a vocabulary, one a row."""
    rows = [{"token": str(n), "p": 0.5} for n in range(4000)]
    assert peek.table(rows).count("\n") == 4000
    assert cpu_seconds(lambda: peek.table(rows)) < 2


def test_colours_appear_only_on_a_terminal_that_wants_them(monkeypatch):
    """Files and pipes get the tokens with | between them; NO_COLOR (no-color.org) is obeyed."""
    assert peek.joined(["a", "⏎", "猫"], [1, 2, 3]) == "a|⏎\n猫"
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert peek.joined(["a", "⏎"], [1, 2]).count("\033[0m") == 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in peek.joined(["a", "⏎"], [1, 2])


@pytest.mark.parametrize(("argv", "sign"), [
    (["tokens", TEXT], "⏎\n"), (["params"], "KV cache, 1 token"), (["params", "--preset", "base"], "41,756,160"),
    (["shapes"], "B K S E"), (["shapes", "--preset", "nano", "--length", "1", "--cached", "9"], "2 × 4 × 1 × 10"),
    (["attention", TEXT], "mean over 4 heads"), (["next", TEXT], "entropy"), (["surprise", TEXT], "per byte"),
    (["batch", "--context", "8", "--effective-batch-size", "2"], "16 targets to learn, 0 IGNORE"),
])
def test_every_subcommand_prints_for_readers_and_for_programs(argv, sign, folder, capsys):
    """The same facts as text and as one JSON object on stdout; which checkpoint was used is on stderr."""
    at = ["--data", str(folder)] if argv[0] == "batch" else [] if "--preset" in argv else ["--checkpoint", str(folder)]
    peek.main([*argv, *at])
    shown = capsys.readouterr()
    assert sign in shown.out and ("using" in shown.err) == ("--checkpoint" in at)
    peek.main([*argv, *at, "--json"])
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_flags_reach_what_is_shown(folder, capsys):
    """The mean of all heads is the mean of each; another step reads other rows, another context asks other numbers."""

    def shown(*argv):
        peek.main([*argv, "--json"])
        return json.loads(capsys.readouterr().out)

    at = ["--checkpoint", str(folder)]
    heads = [torch.tensor(shown("attention", TEXT, *at, "--head", str(head))["weights"]) for head in range(4)]
    mean = torch.tensor(shown("attention", TEXT, *at)["weights"])
    assert not torch.allclose(heads[0], heads[1]) and torch.allclose(sum(heads) / 4, mean, atol=1e-5)
    batch = ["batch", "--data", str(folder), "--context", "8", "--effective-batch-size", "2"]
    assert shown(*batch) != shown(*batch, "--step", "1") and shown(*batch) != shown(*batch, "--seed", "1")
    flops = [shown("params", *at, "--context", str(context))["forward_flops"] for context in (8, 16, 24)]
    assert 0 < flops[1] - flops[0] == flops[2] - flops[1]            # so many more for each key that is looked at


@pytest.mark.parametrize(("argv", "sentence"), [
    (["next"], "no text given; write it after the subcommand"),
    (["attention", "cat", "--layer", "3"], "layer 3 does not exist: this model has layers 0 to 2"),
    (["attention", "cat", "--head", "4"], "head 4 does not exist: this model has heads 0 to 3"),
    (["surprise", "cat sat " * 40], "exceeds the 48 there is room for (context=48); shorten the prompt"),
    (["params", "--preset", "base"], "--preset and --checkpoint both name a model; give one of them"),
    (["shapes", "--length", "49"], "room for 49 tokens exceeds context=48"),
    (["shapes", "--rows", "1000000000000"], "--rows must be at most 1,048,576"),
    (["tokens", "cat", "--tokenizer", "words"], "--tokenizer and --checkpoint each name a tokenizer"),
])
def test_mistakes_are_one_sentence(argv, sentence, folder, capsys):
    """Each names what is wrong and the limit; the command exits with 2."""
    with pytest.raises(SystemExit) as exit:
        peek.main([*argv, "--checkpoint", str(folder)])
    assert exit.value.code == 2 and sentence in capsys.readouterr().err


def test_without_a_checkpoint_the_shape_of_a_preset_is_offered(tmp_path, monkeypatch, capsys):
    """A reader who has no model at all can still look at params and shapes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    with pytest.raises(SystemExit) as exit:
        peek.main(["params"])
    assert exit.value.code == 2 and "--preset base" in capsys.readouterr().err


def test_a_checkpoint_of_another_program_is_not_taken_for_base(folder, capsys):
    """Its config.json has no "model"; showing the defaults in its place would be a wrong answer."""
    (folder / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(SystemExit) as exit:
        peek.main(["params", "--checkpoint", str(folder)])
    assert exit.value.code == 2 and "not a tinyllm checkpoint" in capsys.readouterr().err


def test_a_batch_without_prepared_tokens_names_the_remedy(tmp_path, capsys):
    """The token files are missed first, not the tokenizer that lies beside them."""
    with pytest.raises(SystemExit) as exit:
        peek.main(["batch", "--data", str(tmp_path)])
    assert exit.value.code == 2 and "run `python -m tinyllm.prepare" in capsys.readouterr().err
