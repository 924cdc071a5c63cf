"""Quickstart: the whole story really runs, says what it did, and goes on where it was stopped."""

from tinyllm import checkpoint, quickstart
from tinyllm.quickstart import QuickstartConfig

TINY = {"minutes": 0.05, "documents": 60, "problems": 40, "instructions": 20, "questions": 2, "self_consistency": 2,
        "options": 3}


def test_the_story_has_all_its_parts(tmp_path, capsys):
    """Texts, three stages of training, a test of each, a vote and a head that chooses, from an empty folder; a second
    call has nothing left to train."""
    config = QuickstartConfig(data=str(tmp_path / "data"), out=str(tmp_path / "run"), **TINY)
    report = quickstart.quickstart(config)
    assert list(report["test"]) == list(report["results"]) == ["pretrain", "sft", "cot_sft"]
    assert all(groups["all"]["greedy"]["n"] == 2 for groups in report["test"].values())
    assert [checkpoint.is_chat(tmp_path / "run" / stage) for stage in report["test"]] == [False, True, True]
    words = [(tmp_path / "data" / name / "tokenizer.model").read_bytes() for name in ("words", ".")]
    assert words[0] == words[1]                                      # learnt from the questions, used for the texts too
    assert report["chosen"]["head"]["n"] == 1                    # of so few there is one to test
    shown = quickstart.table(report)
    assert "vote of 2" in shown and shown.count(" s  ") == len(report["seconds"]) + 1
    assert "attempt 2 of 2" in capsys.readouterr().out
    again = quickstart.quickstart(config)
    assert {stage: run["steps"] for stage, run in again["results"].items()} == \
        {stage: run["steps"] for stage, run in report["results"].items()}
