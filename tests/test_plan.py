"""A plan says what a run will come to: the arithmetic is exact, the loss comes from runs, a guess is called one."""

import itertools
import json
import re
import time
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tinyllm import bench, config, plan, train
from tinyllm.config import part, read_settings
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.plan import CURVES, Curve, PlanConfig, PowerLaw, Speed, fit, measure, predict
from tinyllm.pretrain import PretrainConfig

TINY = {"vocab_size": 90, "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 24, "context": 16}
NOW = datetime(2026, 2, 28, 22, 0)


def run(*flags):
    return read_settings(PretrainConfig, "pretrain", ["--preset", "nano", *flags])


@pytest.fixture
def tiny(monkeypatch):
    """Presets that take a step in milliseconds."""
    for name in ("nano", "base"):
        monkeypatch.setitem(config.PRESETS, name, config.PRESETS[name] | TINY)


@pytest.mark.parametrize(("text", "n"), [("300k", 300_000), ("50M", 50_000_000), ("1.5B", 1_500_000_000),
                                         ("2048", 2048), ("0.5m", 500_000), (" 7K ", 7_000)])
def test_tokens_are_written_as_people_write_them(text, n):
    """In thousands, millions and billions, of either case."""
    assert plan.parse_tokens(text) == n


@pytest.mark.parametrize("text", ["50X", "M", "-3M", "1,5B", "1e9", "0", "0.0001", "2000B", "nan", "5 M", "٣"])
def test_what_is_no_number_of_tokens_is_refused(text):
    """A guess at what was meant could be wrong by a thousand."""
    with pytest.raises(ValueError, match="--tokens takes a number up to 1000B, such as 300k, 50M or 1.5B, not "):
        plan.parse_tokens(text)


@pytest.mark.parametrize("law", [PowerLaw(0.7, 300.0, 0.5), PowerLaw(0.0, 20.0, 0.2), PowerLaw(1.2, 9000.0, 0.8)])
def test_a_power_law_is_found_again_in_its_own_points(law):
    """Three unknowns, five points without noise: there is one answer, and it foretells what lies beyond."""
    found = fit([(tokens, law.at(tokens)) for tokens in (10_000, 40_000, 160_000, 640_000, 2_560_000)])
    assert found == pytest.approx(law, rel=1e-3, abs=1e-3)
    assert found.at(10 ** 9) == pytest.approx(law.at(10 ** 9), rel=1e-3)


def test_no_text_costs_less_than_nothing():
    """A curve that bends the wrong way would be fitted best with a floor below 0, a loss that no model can have."""
    found = fit([(1000, 3.0), (2000, 2.5), (4000, 1.9), (8000, 1.1)])
    assert found.floor == 0 and 0 < found.at(10 ** 9) < 1.1


@pytest.mark.parametrize("name", CURVES)
def test_more_tokens_are_less_loss(name):
    """In what was measured, and the more so in what is promised beyond it."""
    points = CURVES[name].points
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
    law = fit(points)
    assert law.scale > 0 and law.floor >= 0 and law.at(10 ** 12) < law.at(points[-1][0])


def test_a_plan_says_how_far_its_curve_is_from_the_runs(tiny, monkeypatch, capsys):
    """A law that misses the runs it was made of cannot be trusted beyond them, and no preset is chosen by a guess."""
    monkeypatch.setitem(CURVES, "nano", Curve(((1000, 3.0), (2000, 2.0), (4000, 2.9)), 10 ** 6))
    monkeypatch.setitem(CURVES, "base", Curve(((1000, 3.0), (1500, 2.0), (2000, 1.0)), 10 ** 6))
    flags = ["--tokens", "2000", "--compile", "off", "--seconds", "0"]
    plan.main(flags)
    shown = capsys.readouterr().out
    assert "base: the loss was measured from 1,000 to 2,000 tokens" in shown and "equal tokens: a guess" in shown
    assert "--preset nano --max" in shown and "--preset base --max" in shown
    plan.main([*flags, "--json"])
    result = json.loads(capsys.readouterr().out)
    law = fit(CURVES["nano"].points)
    assert result["plans"][0]["largest_miss"] == pytest.approx(max(law.at(1000) / 3 - 1, law.at(2000) / 2 - 1,
                                                                    1 - law.at(4000) / 2.9))
    assert result["lowest_loss"] is None and [one["extrapolated"] for one in result["plans"]] == [False, True]


def test_every_step_and_every_validation_is_counted():
    """100 steps of 2,048 tokens: one that compiles, 99 others, and five validations, each of 3 seconds: before the
    first step, after 25, 50 and 75, and at the end."""
    speed = Speed(first=10.0, step=2.0, validation=3.0, memory_mb=500.0)
    one = predict("nano", run("--max-tokens", str(100 * 2048), "--val-every", "25"), speed, NOW)
    assert one["steps"] == 100 and one["tokens"] == 204_800
    assert one["hours"] * 3600 == pytest.approx(10 + 99 * 2 + 5 * 3, abs=0.2)
    assert one["ends"] == (NOW + timedelta(seconds=223)).isoformat(timespec="minutes")
    assert one["memory_mb"] == 500


def test_hours_and_tokens_are_two_ends_of_one_run():
    """The hours that a number of tokens takes buy that number of tokens."""
    speed = Speed(first=10.0, step=2.0, validation=0.0, memory_mb=None)
    by_tokens = predict("nano", run("--max-tokens", "5000000"), speed, NOW)
    by_hours = predict("nano", run("--max-minutes", str(by_tokens["hours"] * 60)), speed, NOW)
    assert abs(by_hours["steps"] - by_tokens["steps"]) <= 1
    assert predict("nano", run("--max-minutes", "0.001"), speed, NOW)["steps"] == 1       # the first is always taken


def test_what_is_measured_is_the_training_loop(tiny, monkeypatch):
    """With the optimizer, the step and the validation of the run itself; three steps are timed however slow, and the
    clock ends what is fast."""
    seen, loop = [], train.train
    monkeypatch.setattr(train, "train", lambda model, batch_at, settings, **more: (
        seen.append((settings, batch_at(0))) or loop(model, batch_at, settings, **more)))
    planned = run("--max-tokens", "16", "--compile", "off", "--val-tokens", "1280")
    started = time.monotonic()
    speed = measure(planned, 0.0)
    assert time.monotonic() - started < 20 and speed.first > 0 < speed.step
    settings, batch = seen[0]
    assert (settings.optimizer, settings.effective_batch_size, settings.compile) == ("muon", 8, "off")
    assert batch.tokens.shape == (8, 16) and (speed.memory_mb is None) == (bench.peak_mb() == [])
    monkeypatch.setattr(plan, "replace", lambda config, **more: replace(config, val_every=1, **more))
    assert measure(planned, 0.0).step > 0                            # a validation after each step is none of the steps
    assert measure(replace(planned, val_tokens=128_000), 0.0).validation > 10 * speed.validation


def test_a_guess_is_not_sold_as_a_forecast(tiny, monkeypatch, capsys):
    """Inside the measured range the curve speaks; outside it the plan says so, and where text would be read again."""
    points = ((1_000, 3.0), (10_000, 2.0), (100_000, 1.5))
    monkeypatch.setitem(CURVES, "nano", Curve(points, corpus_tokens=150_000))
    flags = ["--preset", "nano", "--compile", "off", "--seconds", "0"]
    plan.main([*flags, "--tokens", "20k"])
    inside = capsys.readouterr().out
    assert "a guess" not in inside and "extrapolated" not in inside and "read once" not in inside
    plan.main([*flags, "--tokens", "0.3M"])
    outside = capsys.readouterr().out
    assert "(extrapolated)" in outside and "nano: the loss was measured from 1,000 to 100,000 tokens" in outside
    assert "nano: reads the built-in texts 2.0 times" in outside


def test_beyond_the_curves_the_model_fits_that_is_neither_starved_nor_full(tiny, monkeypatch, capsys):
    """Twenty tokens for each weight (Hoffmann et al. 2022): few tokens are for few weights, many for many."""
    for name in ("nano", "base"):
        monkeypatch.setitem(CURVES, name, Curve(((1, 3.0), (2, 2.0), (3, 1.5)), 10 ** 6))
    monkeypatch.setitem(config.PRESETS, "base", config.PRESETS["base"] | TINY | {"dim": 64, "ffn_dim": 256})
    monkeypatch.setattr(plan, "measure", lambda run, seconds: Speed(1.0, 1.0, 0.0, None))
    fits = {}
    for hours in ("0.1", "30"):
        plan.main(["--hours", hours, "--compile", "off"])
        shown = capsys.readouterr().out
        fits[hours], = re.findall("fits these hours: (nano|base), nearest to 20 tokens", shown)
        assert f"--preset {fits[hours]} --max" in shown and shown.count("python -m tinyllm.pretrain") == 1
    assert fits == {"0.1": "nano", "30": "base"}
    one = predict("nano", run("--max-tokens", "1000000"), Speed(1.0, 1.0, 0.0, None), NOW)
    weights = sum(weight.numel() for weight in TinyLLM(part(ModelConfig, run())).parameters())
    assert one["tokens_per_weight"] == one["tokens"] / weights


def test_the_smaller_model_wins_short_runs_and_the_larger_one_long_ones(tiny, monkeypatch, capsys):
    """It learns sooner and ends higher; the plan names the one that fits, in a command that pretrain takes."""
    grid = (1_000, 100_000, 10 ** 9)
    for name, law in (("nano", PowerLaw(1.5, 100.0, 0.5)), ("base", PowerLaw(0.5, 300.0, 0.5))):
        monkeypatch.setitem(CURVES, name, Curve(tuple((n, law.at(n)) for n in grid), 10 ** 6))
    for tokens, better in (("2k", "nano"), ("80k", "base")):
        plan.main(["--tokens", tokens, "--compile", "off", "--seconds", "0", "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["lowest_loss"] == better and [one["preset"] for one in result["plans"]] == ["nano", "base"]
        best = next(one for one in result["plans"] if one["preset"] == better)
        settings = read_settings(PretrainConfig, "pretrain", best["command"].split()[3:])
        assert (settings.preset, settings.max_tokens) == (better, plan.parse_tokens(tokens))
    plan.main(["--hours", "0.001", "--compile", "off", "--seconds", "0"])
    shown = capsys.readouterr().out
    assert "lower loss in this time: " in shown and "--max-minutes 0.06" in shown


def test_without_an_end_a_plan_is_of_an_hour():
    """As `pretrain` without limits."""
    assert PlanConfig().hours == 1.0 and PlanConfig(tokens="5M").hours == 0


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--tokens", "50X"], "--tokens takes a number up to 1000B, such as 300k, 50M or 1.5B, not '50X'"),
    (["--tokens", "5M", "--hours", "2"], "--tokens 5M and --hours 2 are two ends of one run; give one"),
    (["--hours", "-1"], "--hours must be at least 0, not -1"),
    (["--preset", "huge"], "--preset must be one of both, nano, base, not 'huge'"),
])
def test_mistakes_are_one_sentence(flags, sentence, capsys):
    """Before anything is measured."""
    with pytest.raises(SystemExit) as exit:
        plan.main(flags)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and sentence in err and err.count("\n") == 1
