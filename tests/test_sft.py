"""Fine-tuning: only answers are learnt, examples in one row do not see each other, and nothing is dropped silently."""

import functools
import json
import random

import pytest
import torch

from tinyllm import chat, checkpoint, cot_sft, evaluate, pretrain, sft
from tinyllm.cot_sft import CoTConfig, mix
from tinyllm.data import IGNORE, Batch, Example, PackedExamples, pack, rows_at
from tinyllm.model import ModelConfig, TinyLLM, visible
from tinyllm.sft import Row, SFTConfig, default_files, to_examples
from tinyllm.train import TrainConfig, next_token_loss, train
from tinyllm.vote import sample_answers

SHAPE = ModelConfig(vocab_size=420, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, context=64)


def example(*ids, learn_from):
    return Example(list(ids), [position >= learn_from for position in range(len(ids))])


def random_examples(n, longest=20, seed=0):
    rng, made = random.Random(seed), []
    for _ in range(n):
        length = rng.randint(4, longest)
        made.append(example(*(rng.randrange(9, 400) for _ in range(length)), learn_from=rng.randint(1, length - 1)))
    return made


def fresh(seed=0, **changes):
    torch.manual_seed(seed)
    return TinyLLM(ModelConfig(**{**vars(SHAPE), **changes}))


def test_labels_of_a_packed_row_are_these():
    """By hand: 5 6 are read, 7 8 are learnt; 9 is read, 10 is learnt. A label is the next token, and the last token of
    an example never predicts the first of its neighbour."""
    rows = PackedExamples([example(5, 6, 7, 8, learn_from=2), example(9, 10, learn_from=1)], context=7, rows=1, seed=0)
    batch = rows(0)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 10, 0]]
    assert batch.targets.tolist() == [[IGNORE, 7, 8, IGNORE, 10, IGNORE, IGNORE]]
    assert batch.starts.tolist() == [[0, 0, 0, 0, 4, 4, 6]]


@torch.no_grad()
def test_an_example_sees_only_itself():
    """Packed or alone, the same losses: no attention crosses from one example to the next, none reaches the padding."""
    model, examples = fresh().eval(), random_examples(12)
    packed = [next_token_loss(model, batch) for batch in PackedExamples(examples, 40, 2, 0).batches()]
    alone = [next_token_loss(model, PackedExamples([one], 40, 1, 0)(0)) for one in examples]
    assert sum(int(n) for _, n in packed) == sum(int(n) for _, n in alone)
    assert float(sum(loss for loss, _ in packed)) == pytest.approx(float(sum(loss for loss, _ in alone)), rel=1e-5)


def test_who_may_look_at_whom():
    """By hand: two examples of two tokens, then padding. Every row has a True: softmax of nothing is NaN."""
    mask = visible(5, 5, torch.tensor([[0, 0, 2, 2, 4]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    padded = visible(4, 4, torch.tensor([[2]]))[0, 0].int().tolist()             # two positions of padding in front
    assert padded == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visible(2, 4, torch.tensor([[2]]))[0, 0].int().tolist() == padded[2:]
    assert visible(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]] and visible(1, 9) is None


@torch.no_grad()
def test_what_stands_before_an_example_in_its_row_changes_nothing():
    """Other tokens in the neighbour, the same hidden states: to rotary attention distances alone matter."""
    model = fresh().eval()
    tokens = torch.randint(9, 400, (1, 20))
    starts = torch.tensor([[0] * 8 + [8] * 12])
    other = tokens.clone()
    other[:, :8] = torch.randint(9, 400, (1, 8))
    hidden, changed = (model.last_hidden(row, starts=starts)[:, 8:] for row in (tokens, other))
    torch.testing.assert_close(hidden, changed)
    torch.testing.assert_close(hidden, model.last_hidden(tokens[:, 8:]), rtol=1e-4, atol=1e-5)


def test_rows_are_nearly_full_and_every_example_comes_once():
    """Padding is work without a lesson: at least 90% of the positions are real tokens, and none is lost or doubled."""
    lengths = [len(one.ids) for one in random_examples(500, longest=60)]
    rows = pack(lengths, 65)
    assert sorted(number for row in rows for number in row) == list(range(500))
    assert all(sum(lengths[number] for number in row) <= 65 for row in rows)
    assert sum(lengths) / (65 * len(rows)) >= 0.9
    with pytest.raises(ValueError, match="66 tokens does not fit a row of 65"):
        pack([66], 65)


def test_every_epoch_reads_every_row_in_another_order():
    """A step is a function of (seed, step), so resuming needs no loader state."""
    rows = PackedExamples(random_examples(40), 40, 1, seed=3)
    n = len(rows.packed)
    epochs = [[rows(epoch * n + step).tokens.tolist() for step in range(n)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert rows(5).tokens.equal(PackedExamples(random_examples(40), 40, 1, seed=3)(5).tokens)


def test_a_batch_ramp_doubles_the_rows_and_skips_none():
    """Small steps while the loss falls fast, larger ones later; every row still comes once before any comes again."""
    assert [list(rows_at(step, 2, [3, 5])) for step in range(6)] == [
        [0, 1], [2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13], [*range(14, 22)]]
    rows = PackedExamples(random_examples(200), 40, 1, seed=3, doublings=[4, 6])
    read = [row for step in range(8) for row in rows(step).tokens.tolist()]
    assert [len(rows(step).tokens) for step in range(8)] == [1] * 4 + [2] * 2 + [4] * 2
    assert read == [row for step in range(16) for row in PackedExamples(random_examples(200), 40, 1, seed=3)(step)
                    .tokens.tolist()]


def test_eight_micro_batches_of_one_equal_one_of_eight():
    """Answers of unequal length: the gradient is the sum over all of them divided by all learnt tokens, so it does not
    depend on how the rows were split. A mean of means would weigh a short answer's tokens more."""
    examples = PackedExamples(random_examples(60), 40, 8, 0)
    weights = []
    for size in (1, 8):
        model = fresh(seed=1)
        train(model, examples, TrainConfig(max_steps=3, batch_size=size, effective_batch_size=8, dtype="float32",
                                           compile="off", optimizer="adamw"))
        weights.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-6


def test_only_what_is_learnt_is_scored():
    """Scores are computed where there is a target alone; the loss is that of scoring everything and masking."""
    batch = PackedExamples(random_examples(9), 40, 9, 0)(0)
    model = fresh()
    loss, n = next_token_loss(model, batch)
    logits = model.logits(model.last_hidden(batch.tokens, starts=batch.starts))
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE,
                                              reduction="sum")
    assert int(n) == int((batch.targets != IGNORE).sum()) and loss.item() == pytest.approx(whole.item(), rel=1e-5)


def test_rows_of_whole_examples_are_not_cut_by_the_curriculum():
    """Cutting would separate an answer from its question."""
    batch = Batch(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2, 8))
    assert batch.cut(4) is batch


def test_dropout_falls_to_nothing():
    """Strong at first, when the same rows would be learnt by heart; gone at the end, when the model should be exact."""
    shares = []

    def loss(model, batch):
        shares.append(model.drop.p)
        return next_token_loss(model, batch)

    train(fresh(), PackedExamples(random_examples(9), 40, 1, 0),
          TrainConfig(max_steps=8, dropout=0.3, dtype="float32", compile="off"), loss_fn=loss)
    assert shares == pytest.approx([0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0, 0])


def test_an_example_that_does_not_fit_is_cut_or_dropped_and_counted(tokenizer):
    """A long question loses its beginning; a long answer, cut at its end, would teach answers without an end."""
    rows = [Row([{"role": "user", "content": user}, {"role": "assistant", "content": answer}], "talk")
            for user, answer in (("hi", "ho"), ("hi", "x" * 300), ("y" * 300, "ho"))]
    kept, dropped, cut = to_examples(rows, tokenizer, context=64)
    assert (dropped, cut) == (1, 1) and [family for family, _ in kept] == ["talk"] * 2
    assert all(example.ids[-1] == tokenizer.eos and example.learn[-1] for _, example in kept)
    assert len(kept[1][1].ids) == 65


def test_a_file_of_the_user_s_is_not_written_over(tmp_path, monkeypatch):
    """Where one generated file is missing, only that one is written."""
    mine = tmp_path / "sft_train.jsonl"
    mine.write_text("mine", encoding="utf-8")
    small = {"cot": 4, "direct": 4, "sft": 4, "val": 2, "test": 2, "harder": 2}
    monkeypatch.setattr(sft.problems, "ProblemsConfig", functools.partial(sft.problems.ProblemsConfig, **small))
    assert default_files(["sft", "direct"], "train", str(tmp_path)) == [
        str(mine), str(tmp_path / "direct_train.jsonl")]
    assert mine.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct_train.jsonl", "sft_train.jsonl"]


def test_only_the_rows_that_are_written_are_made(tmp_path, monkeypatch):
    """Forty thousand training problems would be a long wait for a few hundred of a test."""
    made = []
    monkeypatch.setattr(sft.problems, "rows_of", lambda kind, n, config, split: made.append((kind, split)) or [])
    sft.problems.write(sft.problems.ProblemsConfig(out=str(tmp_path)), ["cot_test.jsonl", "direct_val.jsonl"])
    assert sorted(made) == [("cot", "test"), ("cot", "val")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cot_test.jsonl", "direct_val.jsonl"]


def test_plain_rows_that_would_be_left_out_are_named(tmp_path, pretrained, capsys):
    with pytest.raises(SystemExit):
        cot_sft.main([*flags(tmp_path, pretrained, "rows.jsonl"), "--plain", "plain.jsonl", "--plain-share", "0"])
    assert "--plain-share 0 leaves out the rows of --plain" in capsys.readouterr().err


def test_plain_rows_make_up_their_share():
    """One in four, each as often as the others."""
    mixed = mix(["cot"] * 30, ["a", "b", "c"], 0.25, seed=0)
    assert len(mixed) == 40 and {mixed.count(one) for one in "abc"} <= {3, 4} and mixed.count("cot") == 30


# --- the commands ---

def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def pretrained(tmp_path, tokenizer):
    model = fresh(vocab_size=tokenizer.vocab_size, context=96)
    return str(checkpoint.save(tmp_path / "pretrain", model, tokenizer, TrainConfig(), {"step": 1}))


def flags(tmp_path, pretrained, data, **more):
    settings = {"init": pretrained, "data": data, "out": str(tmp_path / "run"), "max-steps": 30, "compile": "off",
                "dtype": "float32", "val-every": 10, "save-every": 10, "dropout": 0, **more}
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def test_a_model_learns_to_answer_and_to_stop(tmp_path, pretrained, capsys):
    """Three questions are soon known by heart; the end token is learnt, so the answer stops by itself."""
    rows = [{"user": user, "assistant": answer, "family": "talk"} for user, answer in
            (("cat?", "meow"), ("dog?", "woof"), ("猫？", "喵"))]
    data = write(tmp_path / "rows.jsonl", rows * 20)
    more = {"max-steps": 80, "lr": 0.01, "muon-lr": 0.03}
    sft.main([*flags(tmp_path, pretrained, data, **more), "--val", data, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 60 and result["dropped"] == 0 and result["fill"] > 0.8
    model, tokenizer = checkpoint.load(tmp_path / "run")
    prompts = [chat.render_prompt(tokenizer, [{"role": "user", "content": row["user"]}]) for row in rows]
    answers = sample_answers(model, tokenizer, prompts, temperature=0)
    assert [one[0].answer for one in answers] == ["meow", "woof", "喵"]
    assert all(one[0].tokens <= 6 for one in answers)                         # it stops: the rest of 200 stays unused
    assert checkpoint.is_chat(tmp_path / "run") and not checkpoint.is_chat(pretrained)


def test_thinking_first_is_another_stage_with_other_rows(tmp_path, pretrained, capsys):
    """Rows with a rationale, a share of plain ones, validation loss for each family, resumed by the same command."""
    rows = [{"user": f"{a}+1?", "cot": f"{a}+1={a + 1}", "final": str(a + 1), "family": "sum" if a % 2 else "odd"}
            for a in range(30)]
    data = write(tmp_path / "cot.jsonl", rows)
    plain = write(tmp_path / "plain.jsonl", [{"user": "hi", "assistant": "ho"}])
    command = [*flags(tmp_path, pretrained, data), "--plain", plain, "--val", data, "--json"]
    cot_sft.main(command)
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 33 and set(result["val_loss_by"]) == {"sum", "odd"}
    assert f"val loss sum        {result['val_loss_by']['sum']:.3f}\n" in pretrain.table(result)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in metrics if "val_loss" in row]
    assert set(validated[-1]["val_loss_by"]) == {"sum", "odd"}
    assert validated[-1]["val_loss"] < validated[0]["val_loss"]
    cot_sft.main(command)
    assert "already reached its limit" in capsys.readouterr().err


def test_the_command_doubles_its_rows_where_it_is_told(tmp_path, pretrained):
    """--batch-ramp arrives in the run: one row of 96 tokens, one, then two, then four."""
    data = write(tmp_path / "rows.jsonl", [{"user": f"{i}?", "assistant": "yes"} for i in range(60)])
    more = {"max-steps": 4, "effective-batch-size": 1}
    sft.main([*flags(tmp_path, pretrained, data, **more), "--batch-ramp", "2", "3"])
    metrics = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [row["tokens"] for row in metrics if "loss" in row] == [96, 192, 384, 768]


def test_without_validation_rows_some_are_held_out(tmp_path):
    """From a user's own file; never the same question on both sides, not even when rows are added later, and one is
    too little. What no validation reads is learnt from."""
    rows = [Row([{"role": "user", "content": f"What is {n}?"}], "x") for n in range(1000) for _ in range(2)]
    kept, held = sft.split_off(rows, 0.02, seed=0)
    assert 20 < len(held) < 70 and len(kept) + len(held) == 2000 and not [row for row in held if row in kept]
    more = [*rows, *(Row([{"role": "user", "content": f"And {n}?"}], "x") for n in range(500))]
    kept_later, held_later = sft.split_off(more, 0.02, seed=0)
    assert all(row in held_later for row in held) and all(row in kept_later for row in kept)
    assert sft.split_off(rows[:4], 0.02, seed=0)[1]                  # one question of two
    words = ["яблоко", "груша", "слива", "вишня", "дыня", "арбуз", "лимон", "банан", "киви", "манго"]
    fruit = [Row([{"role": "user", "content": f"Где {one} и {other}?"}], "x") for one in words for other in words]
    assert len(sft.split_off(fruit, 0.1, seed=0)[0]) > 70            # questions in any script are different ones
    with pytest.raises(ValueError, match="1 question is too little"):
        sft.split_off(rows[:2], 0.02, seed=0)
    assert sft.held_out_share(SFTConfig(val_rows=600), rows * 100) == 0.003


@pytest.mark.parametrize(("line", "sentence"), [
    ('{"user": "x"}', 'line 2: no "assistant"'), ("{", "line 2: not valid JSON"),
    ('{"user": "x", "cot": "", "final": "1"}', 'line 2: "cot" is empty')])
def test_a_bad_row_is_named_with_its_line(tmp_path, pretrained, capsys, line, sentence):
    """Exit code 2 and one sentence; nothing was trained."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"user": "x", "assistant": "y"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        sft.main(flags(tmp_path, pretrained, str(path)))
    assert exit.value.code == 2 and sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_rows_that_do_not_fit_are_named_by_their_kind(tmp_path, pretrained, capsys, kind):
    """A validation file with one long answer says nothing about the rows to learn from."""
    long, short = ([{"user": "x", "assistant": word}] for word in ("yes " * 500, "yes"))
    files = [write(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate((long, short))]
    data, val = files if kind == "training" else reversed(files)
    with pytest.raises(SystemExit) as exit:
        sft.main([*flags(tmp_path, pretrained, data), "--val", val])
    assert exit.value.code == 2 and f"none of 1 {kind} rows fits in context=" in capsys.readouterr().err


@pytest.mark.parametrize("command", [sft.main, cot_sft.main])
def test_a_stage_does_not_write_over_its_start(tmp_path, pretrained, capsys, command):
    """`--restart` would remove the model to begin with."""
    with pytest.raises(SystemExit) as exit:
        command(["--init", pretrained, "--out", pretrained, "--restart"])
    assert exit.value.code == 2 and "would replace the checkpoint" in capsys.readouterr().err
    assert checkpoint.load(pretrained)


def test_defaults_name_the_stage_before():
    """Three commands in a row need no flags."""
    assert SFTConfig().init == "checkpoints/pretrain" and SFTConfig().out == "checkpoints/sft"
    assert CoTConfig().init == "checkpoints/sft" and CoTConfig().out == "checkpoints/cot_sft"


@pytest.mark.parametrize("command", [sft.main, cot_sft.main, evaluate.main])
def test_a_missing_checkpoint_is_said_before_any_work(tmp_path, monkeypatch, capsys, command):
    """Half a minute of writing problems before the sentence would be a poor joke."""
    monkeypatch.chdir(tmp_path)
    flag = "--checkpoint" if command is evaluate.main else "--init"
    with pytest.raises(SystemExit) as exit:
        command([flag, "nowhere"])
    assert exit.value.code == 2 and "nowhere: no checkpoint here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
