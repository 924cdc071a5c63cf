"""Quickstart: the whole story really runs, and says what it did."""

from tinyllm import quickstart
from tinyllm.quickstart import PROMPTS, QuickstartConfig


def test_the_story_has_all_its_parts(tmp_path, capsys):
    """World, tokens, training and text, from an empty folder; the same prompts before, during and after."""
    report = quickstart.quickstart(QuickstartConfig(minutes=0.15, world_documents=80, data=str(tmp_path / "data"),
                                                    out=str(tmp_path / "run")))
    assert list(report["samples"]) == ["before", "during", "after"]
    assert all(list(texts) == list(PROMPTS) for texts in report["samples"].values())
    assert report["validation"][-1]["val_loss"] < report["validation"][0]["val_loss"]
    shown = quickstart.table(report)
    assert "bits/byte" in shown and shown.count(" s  ") == len(report["seconds"]) + 1
    assert "what it writes before training" in capsys.readouterr().out
