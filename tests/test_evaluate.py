"""Evaluation: numbers that can be checked by hand, on questions whose answers are known."""

import json
import math

import pytest
import torch

from tinyllm import chat, checkpoint, evaluate, report
from tinyllm.evaluate import bits_per_byte, read_questions
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.report import Answered, accuracy, facts, interval
from tinyllm.sft import SFTConfig
from tinyllm.train import TrainConfig
from tinyllm.vote import to_sample


def sample(answer, steps="1+1=2", logprob=-1.0):
    final = f"\n[Final answer]\n{answer}" if answer else ""
    return to_sample(f"[Reasoning]\n{steps}{final}", logprob, 9)


def asked(final, greedy, *drawn, family="sum", language="en"):
    return Answered(final, family, language, sample(greedy), [sample(answer) for answer in drawn])


def test_an_interval_covers_the_truth_in_95_of_100_cases():
    """Draw many samples of 40 with a known share and count how often the interval holds it."""
    hits = torch.distributions.Binomial(40, torch.tensor(0.8)).sample((4000,)).int().tolist()
    covered = sum(low <= 0.8 <= high for low, high in (interval(n, 40) for n in hits)) / 4000
    assert 0.93 < covered < 0.97
    assert interval(0, 20)[0] == 0 and interval(20, 20)[1] == pytest.approx(1) and interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_an_interval_holds_the_share_itself(share):
    """All right, or none: the bound is that very share, and no rounding may put it on the wrong side, where a plot of
    the interval would fail after hours of asking."""
    for n in range(1, 2000):
        hits = round(share * n)
        low, high = interval(hits, n)
        assert 0 <= low <= hits / n <= high <= 1


def test_votes_of_more_samples_are_counted_from_the_same_samples():
    """One sample is the first, 8; three vote 8, 7, 7; the greedy answer stands apart."""
    fact = facts([asked("7", "8", "8", "7", "7"), asked("5", "5", "4", "5", "5")])
    assert fact["greedy"]["accuracy"] == 0.5
    assert {k: vote["accuracy"] for k, vote in fact["vote"].items()} == {1: 0.0, 3: 1.0}
    assert fact["vote"][1]["n"] == 2


def test_format_false_steps_and_abstentions_are_shares_of_samples():
    """Of four samples one has no final answer, one a false step, and one answers without a heading."""
    bare = to_sample("7", -1.0, 1)
    one = Answered("7", "sum", "en", sample("7"), [sample("7"), sample(None), sample("7", "1+1=3"), bare])
    fact = facts([one])
    assert (fact["format"], fact["abstained"], fact["false_steps_per_answer"]) == (0.5, 0.25, 0.25)


def test_reliability_tells_whether_agreement_predicts_correctness():
    """Full agreement was right once in two, a bare majority never."""
    fact = facts([asked("7", "7", "7", "7", "7"), asked("7", "7", "8", "8", "8"), asked("7", "7", "8", "8", "7")])
    assert [(round(level["agreement"], 2), level["n"], level["accuracy"]) for level in fact["reliability"]] == \
        [(1.0, 2, 0.5), (0.67, 1, 0.0)]


def test_without_samples_only_greedy_is_reported():
    fact = facts([asked("7", "7"), asked("7", "6")])
    assert fact["greedy"]["accuracy"] == 0.5 and fact["vote"] == {} and "reliability" not in fact


@pytest.mark.parametrize("drawn,columns", [("", []), ("7", ["one sample"]), ("777", ["one sample", "vote of 3"])])
def test_a_comparison_shows_no_column_twice(drawn, columns):
    """Of one sample there is no vote; of three the vote of all counts, and of none there is the greedy answer."""
    head, row = report.in_short([facts([asked("7", "7", *drawn)])])
    assert head == ["greedy", *columns, "format"] and len(row) == len(head)


@torch.no_grad()
def test_bits_per_byte_of_a_model_that_knows_nothing(tokenizer):
    """All tokens equally likely: log2 V bits a token, however the text was cut into windows."""
    model = TinyLLM(ModelConfig(vocab_size=tokenizer.vocab_size, dim=32, n_layers=1, n_heads=2, n_kv_heads=2,
                                ffn_dim=32, context=16))
    model.embed.weight.zero_()
    text = "The cat sat on the warm mat. 猫坐在垫子上。" * 3
    n_tokens = len(tokenizer.encode(text))
    expected = n_tokens * math.log2(tokenizer.vocab_size) / len(text.encode())
    assert bits_per_byte(model, tokenizer, text) == pytest.approx(expected, rel=1e-4)


# --- files and the command ---

def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_any_row_with_an_answer_is_a_question(tmp_path):
    """{"user", "final"} is enough; rows to train on work too, and a rationale is never part of the prompt."""
    path = write(tmp_path / "q.jsonl", [
        {"user": "3+4?", "final": "7"},
        {"system": "Think.", "user": "几？", "cot": "3+4=7", "final": "7", "family": "sum"},
        {"user": "hi", "assistant": "ho"},
        {"user": "1+1?", "assistant": "[Reasoning]\n1+1=2\n[Final answer]\n2"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    questions = read_questions(path)
    assert [question.final for question in questions] == ["7", "7", "ho", "2", "b"]
    assert [question.messages[-1]["content"] for question in questions] == ["3+4?", "几？", "hi", "1+1?", "a"]
    assert questions[1].family == "sum" and questions[1].language == "zh"
    assert [message["role"] for message in questions[1].messages] == ["system", "user"]
    assert len(read_questions(path, limit=2)) == 2


@pytest.fixture
def folder(tmp_path, tokenizer, config):
    config.vocab_size = tokenizer.vocab_size
    return str(checkpoint.save(tmp_path / "sft", TinyLLM(config), tokenizer, SFTConfig(max_steps=1), {"step": 1}))


def test_the_command_measures_compares_and_writes_a_page(tmp_path, folder, tokenizer, config, capsys):
    """Two checkpoints in one table, one without a chat template; a page, a JSON file, a plot where there can be."""
    config.vocab_size = tokenizer.vocab_size
    plain = str(checkpoint.save(tmp_path / "pretrain", TinyLLM(config), tokenizer, TrainConfig(), {"step": 1}))
    data = write(tmp_path / "q.jsonl", [{"user": "3+4?", "final": "7", "language": name} for name in ("en", "zh")])
    book = tmp_path / "book.txt"
    book.write_text("The cat sat. 猫坐着。", encoding="utf-8")
    out = tmp_path / "out"
    evaluate.main(["--checkpoint", folder, plain, "--data", data, "--text", str(book), "--self-consistency", "3",
                   "--max-new-tokens", "6", "--calculator", "--out", str(out)])
    shown, err = capsys.readouterr()
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ([] if "pip install -e '.[plot]'" in err else ["votes.png", "votes1.png"])
    assert "Compared on q" in shown and "vote of 3 + calculator" in shown and "Bits per byte" in shown
    assert "Does agreement predict correctness?" in shown
    assert (out / "report.md").read_text(encoding="utf-8").strip() == shown.strip()
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    groups = result["checkpoints"][folder]["files"]["q"]
    assert set(groups["by_language"]) == {"en", "zh"} and groups["all"]["vote"]["3"]["n"] == 2


def test_greedy_is_greedy_samples_are_drawn_and_the_calculator_computes(chat_folder):
    """A model that knows two answers by heart: the likeliest text whatever the seed, at a high temperature another one
    each time; what was learnt wrong comes out right with the calculator, and only with it."""
    model, tokenizer = checkpoint.load(chat_folder)
    questions = [evaluate.Question([{"role": "user", "content": text}], final, "sum", "en")
                 for text, final in (("3+4?", "7"), ("几？", "5"))]
    settings = lambda seed: evaluate.EvaluateConfig(self_consistency=3, temperature=5.0, top_p=1.0, seed=seed,
                                                    max_new_tokens=40)
    first, again = (evaluate.ask(model, tokenizer, questions, settings(seed)) for seed in (0, 7))
    assert [one.greedy.answer for one in first] == ["7", "5"]
    assert [one.greedy.text for one in first] == [one.greedy.text for one in again]
    assert {one.text for one in first[0].samples}.isdisjoint({one.text for one in again[0].samples})
    exact = evaluate.ask(model, tokenizer, questions, settings(0), calculator=True)
    assert "2+2=5" in first[1].greedy.reasoning and "2+2=4" in exact[1].greedy.reasoning


def test_a_model_that_only_continues_texts_is_asked_without_a_template(folder, tokenizer, monkeypatch):
    """It has never seen a question mark between control tokens; its answer is the line that follows."""
    calls = []

    def blank(model, words, prompts, n, end, temperature, **more):
        calls.append((prompts, end, n, temperature))
        return [[sample("7")] * n] * len(prompts)

    monkeypatch.setattr(evaluate, "sample_answers", blank)
    model, _ = checkpoint.load(folder)
    question = evaluate.Question([{"role": "user", "content": "3+4?"}], "7", "sum", "en")
    for is_chat, prompt, end in ((False, [tokenizer.eos, *tokenizer.encode("3+4?\n")], tokenizer.encode("\n")[0]),
                                 (True, chat.render_prompt(tokenizer, question.messages), tokenizer.eos)):
        calls.clear()
        evaluate.ask(model, tokenizer, [question], evaluate.EvaluateConfig(temperature=0.7), is_chat=is_chat)
        assert calls == [([prompt], end, 1, 0.0), ([prompt], end, 7, 0.7)]           # greedy, and what is drawn


def test_a_family_may_have_any_name():
    """A user's family called "all", or "en", is a row of its own and hides no total."""
    answered = [asked("7", "7", family="all"), asked("7", "8", family="en"), asked("7", "8", family="a\nb")]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in report.by_group(evaluate.grouped(answered))[2:]]
    assert rows == [["all", "3"], ["en", "3"], ["all", "1"], ["en", "1"], ["a b", "1"]]


def test_the_columns_with_calculator_are_greedy_and_the_last_vote():
    """Each under its own name: with the calculator the first is right here, and the vote of all three wrong."""
    plain, exact = facts([asked("7", "8", "8", "8", "8")]), facts([asked("7", "7", "8", "8", "8")])
    one = {"files": {"q": {"all": plain}}, "calculator": {"q": {"all": exact}}}
    head, _, row = evaluate.comparison({"a": one}, "q")
    shown = dict(zip([cell.strip() for cell in head.split("|")], [cell.strip() for cell in row.split("|")]))
    assert shown["greedy + calculator"].startswith("100.0%") and shown["vote of 3 + calculator"].startswith("0.0%")


def test_every_answer_can_be_read(folder, tmp_path, monkeypatch):
    """Whoever wants to know why must see the steps: one line a question, right and wrong as they were counted."""
    written = iter([[asked("7", "7", "7", "8", "8"), asked("5", "4", "5", "5", "4")],
                    [asked("7", "7"), asked("5", "4")]])
    monkeypatch.setattr(evaluate, "ask", lambda *args, **more: next(written))
    data = write(tmp_path / "q.jsonl", [{"user": "3+4", "final": "7"}, {"user": "2+3", "final": "5"}])
    out = tmp_path / "out"
    for votes in ("3", "0"):
        evaluate.main(["--checkpoint", folder, "--data", data, "--self-consistency", votes, "--out", str(out)])
        lines = [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]
        assert [(row["user"], row["final"], row["answer"], row["right"]) for row in lines] == [
            ("3+4", "7", "7", True), ("2+3", "5", "4", False)]
        assert {row["reasoning"] for row in lines} == {"1+1=2"} and {row["file"] for row in lines} == {"q"}
        if votes == "3":
            assert [(row["voted"], row["voted_right"]) for row in lines] == [("8", False), ("5", True)]
            assert lines[0]["votes"] == {"8": 2, "7": 1}


def test_a_mistake_leaves_earlier_answers_alone(folder, tmp_path, capsys):
    """A text that is not there, or no checkpoint: nothing has been asked, so nothing is written over."""
    data, out = write(tmp_path / "q.jsonl", [{"user": "3+4", "final": "7"}]), tmp_path / "out"
    out.mkdir()
    (out / "answers.jsonl").write_text("hours of work", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.safetensors").write_text("nothing", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\ufeff", encoding="utf-8")
    for mistake in (["--checkpoint", folder, "--text", "nowhere.txt"], ["--checkpoint", str(tmp_path / "empty")],
                    ["--checkpoint", folder, "--text", str(tmp_path / "empty.txt")]):
        with pytest.raises(SystemExit):
            evaluate.main([*mistake, "--data", data, "--out", str(out)])
    assert (out / "answers.jsonl").read_text(encoding="utf-8") == "hours of work"


def test_a_question_that_is_too_long_counts_as_not_answered(folder, tmp_path, capsys):
    """Leaving it out would flatter the model."""
    data = write(tmp_path / "q.jsonl", [{"user": "x " * 99, "final": "7"}])
    evaluate.main(["--checkpoint", folder, "--data", data, "--self-consistency", "1", "--json",
                   "--out", str(tmp_path / "out")])
    captured = capsys.readouterr()
    facts = json.loads(captured.out)["checkpoints"][folder]["files"]["q"]["all"]
    assert facts["greedy"]["n"] == 1 and facts["abstained"] == 1 and "1 of 1 questions are longer" in captured.err


def test_two_files_of_one_name_are_two_files(folder, tmp_path, capsys):
    """train/test.jsonl and other/test.jsonl must not be one row of the table."""
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        paths.append(write(tmp_path / name / "q.jsonl", [{"user": name, "final": "7"}]))
    evaluate.main(["--checkpoint", folder, "--data", *paths, "--self-consistency", "0", "--max-new-tokens", "2",
                   "--json", "--out", str(tmp_path / "out")])
    assert set(json.loads(capsys.readouterr().out)["checkpoints"][folder]["files"]) == set(paths)


def test_a_report_that_has_no_place_is_said_before_any_work(folder, tmp_path, monkeypatch):
    """An hour of questions, and then no file to write them to."""
    monkeypatch.setattr(evaluate, "ask", lambda *args, **more: pytest.fail("it has begun"))
    path = write(tmp_path / "q.jsonl", [{"user": "x", "final": "7"}])
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", folder, "--data", path, "--out", path])


@pytest.mark.parametrize(("content", "sentence"), [
    ("", "no questions in this file"), ('{"user": "x"}', "line 1: no"), ("[1]", "line 1: expected an object"),
    ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "final": 2}',
     '"final" must be a string, not 2')])
def test_a_bad_file_is_one_sentence(folder, tmp_path, capsys, content, sentence):
    path = tmp_path / "q.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        evaluate.main(["--checkpoint", folder, "--data", str(path)])
    assert exit.value.code == 2 and sentence in capsys.readouterr().err


def test_a_page_lines_up():
    """Markdown that also reads well in a terminal."""
    lines = report.grid([["", "n"], ["all", "12"]])
    assert lines == ["|     | n  |", "|-----|----|", "| all | 12 |"]
    assert report.grid([["", "n"], ["算术", "1"], ["a|b", "2"]]) == [
        "|      | n |", "|------|---|", "| 算术 | 1 |", "| a\\|b | 2 |"]
    assert report.percent(accuracy([True, False])) == " 50.0% [9.5, 90.5]"
