"""Pretraining, end to end on a tiny model: a folder of text becomes a model that has learnt something from it."""

import json
import shutil

import pytest

from tinyllm import checkpoint, generate, plot, prepare, pretrain, world
from tinyllm.decode import stream
from tinyllm.generate import document_prompt
from tinyllm.pretrain import PretrainConfig

TINY = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 64, "context": 32, "batch_size": 8,
        "start_context": 16, "compile": "off", "dtype": "float32", "val_tokens": 2000, "val_every": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """150 documents of the world as tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "world.txt").write_text("\n\n".join(world.documents(150)), encoding="utf-8")
    prepare.prepare(prepare.PrepareConfig(input=[str(folder)], out=str(folder / "tokens"), vocab_size=700,
                                          val_share=0.1, workers=1))
    return str(folder / "tokens")


def test_text_becomes_a_model_that_writes(data, tmp_path, capsys):
    """Text -> tokens -> batches -> loss -> checkpoint -> text, with what was learnt measured on held-out text."""
    out = str(tmp_path / "run")
    pretrain.main(["--data", data, "--out", out, "--max-steps", "60", "--json",
                   *(word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", str(value)))])
    result = json.loads(capsys.readouterr().out)
    curve = [row["bits_per_byte"] for row in plot.read_metrics(out) if "val_loss" in row]
    assert result["steps"] == 60 and result["bits_per_byte"] == curve[-1] < 0.9 * curve[0]
    model, tokenizer = checkpoint.load(out)
    ids = [id for (id,) in stream(model, document_prompt(tokenizer, "从前"), end=tokenizer.eos, max_new_tokens=9)]
    assert ids and all(id < model.config.vocab_size for id in ids)
    generate.main(["Once upon a time", "--checkpoint", out, "--max-new-tokens", "9"])
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_the_data_decides_the_vocabulary(data, tmp_path):
    """A row of the embedding for a token that does not exist would be wasted; one too few would crash."""
    config = PretrainConfig(**TINY, data=data, out=str(tmp_path), max_steps=1)
    pretrain.pretrain(config)
    model, tokenizer = checkpoint.load(tmp_path)
    assert config.vocab_size == 16000 and model.config.vocab_size == tokenizer.vocab_size <= 700


def test_a_tokenizer_that_the_text_was_not_prepared_with_is_refused(data, tmp_path, tokenizer):
    """Its ids would mean other words, or rows of the embedding that do not exist."""
    shutil.copytree(data, tmp_path / "mixed")
    tokenizer.save(tmp_path / "mixed" / "tokenizer.model")
    with pytest.raises(ValueError, match="the tokenizer has .* tokens but the text was prepared with"):
        pretrain.pretrain(PretrainConfig(**TINY, data=str(tmp_path / "mixed"), out=str(tmp_path / "run"), max_steps=1))


def test_a_run_can_start_from_another_ones_weights(data, tmp_path):
    """--init continues what a model knows: its first loss is the other's last one, not ln V."""
    first = pretrain.pretrain(PretrainConfig(**TINY, data=data, out=str(tmp_path / "a"), max_steps=40))
    pretrain.pretrain(PretrainConfig(**TINY, data=data, out=str(tmp_path / "b"), init=str(tmp_path / "a"), max_steps=1))
    start = next(row["val_loss"] for row in plot.read_metrics(tmp_path / "b") if "val_loss" in row)
    assert start == pytest.approx(first["val_loss"], rel=1e-5)
    with pytest.raises(ValueError, match="would replace the checkpoint that the training starts from"):
        pretrain.pretrain(PretrainConfig(**TINY, data=data, out=str(tmp_path / "a"), init=str(tmp_path / "a")))
    with pytest.raises(ValueError, match="another shape than asked for; give its --preset, or --n-layers 2 --qk-norm"):
        pretrain.pretrain(PretrainConfig(**TINY | {"n_layers": 1, "qk_norm": False}, data=data,
                                         out=str(tmp_path / "c"), init=str(tmp_path / "a"), max_steps=1))


def test_the_same_seed_gives_the_same_loss(data, tmp_path):
    """And another seed another one: nothing else is random."""
    losses = [pretrain.pretrain(PretrainConfig(**TINY, data=data, out=str(tmp_path / str(i)), max_steps=5, seed=seed))
              ["val_loss"] for i, seed in enumerate((1, 1, 2))]
    assert losses[0] == losses[1] != losses[2]


def test_the_classic_recipe_learns_less_from_equal_tokens(data, tmp_path, capsys):
    """It spends them on a few large, careful steps: 64 rows each, where `fast` takes 16 times as many of 4 rows. Both
    begin knowing nothing; only `classic` begins with nothing but noise in its weights."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({key: value for key, value in TINY.items() if key != "start_context"} | {
        "data": data, "max_tokens": 24_576, "val_every": 1000, "json": True}))

    def run(recipe):
        pretrain.main(["--config", str(settings), "--recipe", recipe, "--out", str(tmp_path / recipe)])
        return json.loads(capsys.readouterr().out)

    fast, classic = run("fast"), run("classic")
    assert (fast["steps"], classic["steps"]) == (192, 12) and fast["tokens"] == classic["tokens"]
    assert fast["bits_per_byte"] < 0.8 * classic["bits_per_byte"]
    shapes = [checkpoint.load(tmp_path / recipe)[0].config for recipe in ("fast", "classic")]
    assert [shape.qk_norm for shape in shapes] == [True, False]
    with pytest.raises(SystemExit) as exit:
        pretrain.main(["--config", str(settings), "--out", str(tmp_path / "classic")])
    assert exit.value.code == 2 and "was trained with --recipe classic, not fast" in capsys.readouterr().err


def test_without_limits_a_run_takes_an_hour():
    """A default that works: the clock ends it, and the schedule knows when."""
    assert PretrainConfig().max_minutes == 60.0 and PretrainConfig(max_steps=5).max_minutes == 0


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--data", "nowhere"], "nowhere: no prepared tokens here (meta.json is missing)"),
    (["--data", "{data}", "--init", "nowhere"], "nowhere: no checkpoint here"),
    (["--data", "{data}", "--context", "65536"], "do not fill one row of context=65536"),
    (["--context", "384"], "--start-context 256 does not divide --context 384"),
    (["--data", "{data}", "--out", "{data}/meta.json"], "meta.json"),
    (["--dim", "100", "--n-heads", "8"], "dim=100 must be n_heads=8 times an even head width"),
])
def test_mistakes_are_one_sentence(flags, sentence, data, capsys, tmp_path):
    """What, where, limit, remedy; exit code 2."""
    out = [] if "--out" in flags else ["--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as exit:
        pretrain.main([flag.format(data=data) for flag in flags] + out + ["--max-steps", "1"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit.value.code == 2 and sentence in last


def test_without_data_the_world_is_prepared_first(tmp_path, monkeypatch, capsys):
    """A fresh machine has something real to learn from, and the command says what it does."""
    monkeypatch.chdir(tmp_path)
    small = prepare.prepare
    monkeypatch.setattr(prepare, "prepare", lambda config: small(
        prepare.PrepareConfig(out=config.out, vocab_size=600, world_documents=60, workers=1)))
    pretrain.pretrain(PretrainConfig(**TINY, out="run", max_steps=1))
    assert "preparing the built-in texts first" in capsys.readouterr().err
    assert (tmp_path / "data" / "tokens" / "meta.json").is_file()


def test_the_loss_curve_is_a_picture_where_matplotlib_is(data, tmp_path, capsys):
    """Without it, one line says how to get it."""
    pretrain.pretrain(PretrainConfig(**TINY, data=data, out=str(tmp_path), max_steps=3))
    picture = plot.draw_losses(tmp_path)
    if picture is None:
        assert "pip install -e '.[plot]'" in capsys.readouterr().err
    else:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_heads_that_copy_need_two_layers_and_who_asks_for_fewer_is_told(data, tmp_path, capsys):
    for layers, lines in ((1, 1), (2, 0)):
        pretrain.pretrain(PretrainConfig(**TINY | {"n_layers": layers}, data=data, out=str(tmp_path / str(layers)),
                                         max_steps=1))
        assert capsys.readouterr().err.count("no heads that copy are planted") == lines
