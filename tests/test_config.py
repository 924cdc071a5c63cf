"""Settings: what a user types is either understood exactly or refused in one sentence."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tinyllm import tokenizer
from tinyllm.config import RECIPES, Settings, command, opt, read_command, read_settings
from tinyllm.cot_sft import CoTConfig
from tinyllm.model import ModelConfig
from tinyllm.prepare import PrepareConfig
from tinyllm.pretrain import PretrainConfig
from tinyllm.sft import SFTConfig


@dataclass
class Recipe(Settings):
    """Bake.

    Example:
      bake --eggs 3
    """

    eggs: int = opt(2, "how many", low=1, high=12)
    heat: float = opt(180.0, "degrees")
    glaze: bool = opt(False, "shiny top")
    shape: str = opt("round", "of the cake", choices=("", "round", "square"))
    rolls: int = opt(1, "how many", high=2 ** 20)
    topping: list[str] = opt([], "any number of toppings")
    layers: list[int] = opt([3, 4], "of sponge, of cream")


@command
def bake(argv=None):
    print(json.dumps(read_settings(Recipe, "bake", argv).__dict__))


def test_flag_wins_over_file_and_file_over_default(tmp_path):
    """The nearer the user's hand, the stronger."""
    file = tmp_path / "cake.json"
    file.write_text('{"eggs": 4, "heat": 150}')
    recipe = read_settings(Recipe, "bake", ["--config", str(file), "--heat", "90.5", "--topping", "nuts", "figs"])
    assert (recipe.eggs, recipe.heat, recipe.shape, recipe.topping) == (4, 90.5, "round", ["nuts", "figs"])


def test_preset_gives_way_to_file_and_flag(tmp_path):
    """A preset is only a better default."""
    file = tmp_path / "run.json"
    file.write_text('{"preset": "nano", "ffn_dim": 99}')
    config = read_settings(PretrainConfig, "pretrain", ["--config", str(file), "--n-layers", "3"])
    assert (config.dim, config.ffn_dim, config.n_layers) == (256, 99, 3)


def test_a_recipe_gives_way_to_file_and_flag_but_not_to_the_preset(tmp_path):
    """The preset says what is trained and the recipe how: `nano` has a rate of its own, for `fast` alone."""
    file = tmp_path / "run.json"
    file.write_text('{"recipe": "classic", "clip": 0.5, "warmup_steps": 9}')
    flags = ["--config", str(file), "--preset", "nano"]
    config = read_settings(PretrainConfig, "pretrain", [*flags, "--warmup-steps", "3"])
    assert (config.lr, config.effective_batch_size, config.clip, config.warmup_steps) == (3e-4, 64, 0.5, 3)
    assert (config.dim, config.recipe) == (256, "classic")
    fast = read_settings(PretrainConfig, "pretrain", [*flags, "--recipe", "fast"])
    assert (fast.lr, fast.effective_batch_size, fast.optimizer, fast.clip) == (4e-3, 8, "muon", 0.5)


@pytest.mark.parametrize("cls", [PretrainConfig, SFTConfig, CoTConfig])
def test_the_classic_recipe_is_the_same_in_every_stage(cls):
    """What a stage does not have (a fine-tuned model's shape is given) is left out; everything else must arrive."""
    config, fields = read_settings(cls, "stage", ["--recipe", "classic"]), cls.__dataclass_fields__
    assert (config.optimizer, config.lr, config.effective_batch_size, config.schedule) == ("adamw", 3e-4, 64, "cosine")
    assert all(getattr(config, name) == value for name, value in RECIPES["classic"].items() if name in fields)
    assert RECIPES["classic"].keys() - fields.keys() == (set() if cls is PretrainConfig else {"induction", "qk_norm"})


def test_base_is_the_default_preset():
    """ModelConfig() and `pretrain` without flags are the model that the project is about."""
    config = read_settings(PretrainConfig, "pretrain", [])
    assert (config.n_layers, config.dim, config.n_heads, config.ffn_dim, config.vocab_size, config.context) \
        == (8, 512, 8, 2048, 16000, 512)
    assert (ModelConfig().n_layers, ModelConfig().dim, ModelConfig().vocab_size) == (8, 512, 16000)


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--egs", "3"], "unknown argument --egs; did you mean --eggs?"),
    (["--egg", "3"], "unknown argument --egg; did you mean --eggs?"),
    (["--eggs", "0"], "--eggs must be at least 1, not 0"),
    (["--eggs", "13"], "--eggs must be at most 12, not 13"),
    (["--eggs", "two"], "argument --eggs: invalid int value: 'two'"),
    (["--heat", "nan"], "--heat must be a finite number, not nan"),
    (["--eggs", "1" + 400 * "0"], "--eggs must be at most 12"),
    (["--heat", "2e12"], "--heat must be at most 1e+12"),
    ([""], 'unknown argument ""'),
    (["--topping", ""], "--topping is empty; give a value or leave it out"),
    (["--rolls", "1048577"], "--rolls must be at most 1,048,576, not 1048577"),
    (["--topping"], "argument --topping: expected at least one argument"),
    (["--shape", "star"], "--shape must be one of round, square, not 'star'"),
    (["--config", "missing.json"], "missing.json: No such file or directory; check the path"),
])
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(flags, sentence, capsys):
    """No traceback for a user's mistake."""
    with pytest.raises(SystemExit) as exit:
        bake(flags)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and sentence in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(("text", "sentence"), [
    ('{"egs": 3}', "unknown setting 'egs'; did you mean eggs?"),
    ('{"eggs": "3"}', "bad.json: eggs must be int, not '3'"),
    ('{"eggs": true}', "bad.json: eggs must be int, not True"),
    ('{"topping": "nuts"}', "bad.json: topping must be a list of str, not 'nuts'"),
    ('{"eggs": 3', "not valid JSON at line 1"),
    ("[1]", "expected one JSON object"),
    ('{"eggs": ' + 5000 * "9" + "}", "bad.json: not JSON that can be read"),
    (100_000 * "[", "bad.json: not JSON that can be read"),
    ('\ufeff{"eggs": 13}', "bad.json: eggs must be at most 12"),
])
def test_a_wrong_config_file_is_named_with_what_is_wrong(text, sentence, tmp_path, capsys):
    """A typo in a file must not train for an hour with the default."""
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(SystemExit) as exit:
        bake(["--config", str(file)])
    assert exit.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                   RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_too_little_memory_is_one_sentence_and_another_fault_keeps_its_traceback(error, capsys):
    """Python and torch say it in different ways; a fault of the program must not hide behind either."""

    @command
    def fail(argv=None):
        raise error

    with pytest.raises(SystemExit) as exit:
        fail([])
    assert exit.value.code == 2 and "not enough memory; choose a smaller model" in capsys.readouterr().err
    error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fail([])


def test_what_comes_in_is_utf8_under_any_locale(monkeypatch):
    """A pipe with Chinese would else be other characters, without a word; what is not UTF-8 is said."""
    read = []
    main = command(lambda argv=None: read.append(sys.stdin.read()))
    for content in ("小猫".encode(), b"\xff"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
        if content == b"\xff":
            with pytest.raises(SystemExit) as exit:
                main([])
            assert exit.value.code == 2
        else:
            main([])
    assert read == ["小猫"]


def test_a_closed_pipe_is_no_error():
    """`... | head` has seen enough. What is printed last waits in a buffer until Python ends, or is met there."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-m", "tinyllm.calculator", "1+1"], check=False, stdout=writer,
                          stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_text_that_begins_with_a_minus_is_told_how_to_be_given(capsys):
    with pytest.raises(SystemExit):
        tokenizer.main(["encode", "-3+5"])
    assert "unknown argument -3+5; put -- before a text that begins with -" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tokenizer.main(["encode", "3", "+", "5"])
    assert "unknown argument +; put a text with spaces in quotes" in capsys.readouterr().err


def test_a_bad_flag_beside_a_good_file_is_the_flag_s_fault(tmp_path, capsys):
    """And a bad value of the file does not matter where a flag wins over it."""
    (tmp_path / "run.json").write_text('{"eggs": 3}')
    with pytest.raises(SystemExit):
        bake(["--config", str(tmp_path / "run.json"), "--eggs", "13"])
    assert "run.json" not in (said := capsys.readouterr().err) and "--eggs must be at most 12" in said
    (tmp_path / "run.json").write_text('{"eggs": 13}')
    assert read_settings(Recipe, "bake", ["--config", str(tmp_path / "run.json"), "--eggs", "4"]).eggs == 4


def test_an_empty_variable_of_the_shell_is_no_path():
    """`--out "$RUNS"` must not write into the folder one stands in, nor `--input "$BOOKS"` read it."""
    for settings in (lambda: PrepareConfig(out=""), lambda: PrepareConfig(input=[""]), lambda: PretrainConfig(out="")):
        with pytest.raises(ValueError, match="is empty; give a value or leave it out"):
            settings()
    assert PrepareConfig(tokenizer="").tokenizer == ""               # here empty means none


def test_standard_input_is_utf_8_as_it_is_or_one_sentence(tmp_path, tokenizer):
    """Also where lines end as on Windows: what is encoded is what was given."""
    tokenizer.save(tmp_path / "tokenizer.model")
    command = [sys.executable, "-m", "tinyllm.tokenizer", "encode", "--tokenizer", str(tmp_path)]
    run = lambda text: subprocess.run(command, input=text, capture_output=True, check=False)
    assert [int(id) for id in run("a\r\n猫".encode()).stdout.split()] == tokenizer.encode("a\r\n猫")
    done = run(b"3+4\n\xe4\xf6")
    said = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(said) == 1 and "standard input is not UTF-8 text" in said[0]


def test_settings_made_in_python_are_checked_too():
    """One check, in one place, for Python, JSON and flags."""
    with pytest.raises(ValueError, match="--eggs must be at least 1"):
        Recipe(eggs=0)
    with pytest.raises(ValueError, match="n_heads=4 must be a multiple of n_kv_heads=3"):
        ModelConfig(dim=32, n_heads=4, n_kv_heads=3)


def test_help_shows_every_flag_with_its_default(capsys):
    """--help is generated from the fields, so it cannot lag behind them."""
    with pytest.raises(SystemExit) as exit:
        read_settings(Recipe, "bake", ["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0 and "bake --eggs 3" in text
    for word in ("--eggs", "(default: 2)", "(default: 3 4)", "--no-glaze", "{round,square}", "--config"):
        assert word in text


@pytest.mark.parametrize("argv", [[], ["--", "train"]])
def test_a_missing_subcommand_names_the_choices(argv, capsys):
    """`python -m tinyllm.tokenizer` alone says what it can do."""
    with pytest.raises(SystemExit) as exit:
        read_command({"train": Recipe, "info": Recipe}, "tokenizer", argv)
    assert exit.value.code == 2 and re.search(r"train(\||, )info", capsys.readouterr().err)


def test_a_flag_before_the_subcommand_is_told_its_place(capsys):
    with pytest.raises(SystemExit):
        read_command({"train": Recipe, "info": Recipe}, "tokenizer", ["--glaze", "train"])
    assert "the subcommand comes first: one of train, info" in capsys.readouterr().err
