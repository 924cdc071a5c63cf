"""Practice in choosing: a tree says what separate readings say, drills give nothing away, and choosing is learnt."""

import json
import shutil

import pytest
import torch

from tinyllm import checkpoint, cot_sft
from tinyllm.config import PRESETS
from tinyllm.data import Batch
from tinyllm.drills import LONG_AT, LONG_FROM, drill
from tinyllm.fork import read
from tinyllm.induction import plant_induction
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.options import Encoded, Question, encode
from tinyllm.practice import TRUNK, WEIGHT, accuracy, beside, drill_batch, main, read_trees, tree, with_drills
from tinyllm.sft import SFTConfig
from tinyllm.train import TrainConfig, loss_sums, train

DRILLS = [*range(12), *range(LONG_AT, LONG_AT + 12)]


@pytest.fixture
def reader(tokenizer):
    """A random model with room for a long drill in a vocabulary that spells most words in letters."""
    return TinyLLM(ModelConfig(vocab_size=tokenizer.vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48,
                               context=400)).eval()


def paths(grown, question):
    """(prefix, options) of a question as ids, picked out of its tree."""
    chosen = lambda option: [i for i, asked, part in zip(grown.ids, grown.question, grown.option)
                             if asked in (TRUNK, question) and part == option]
    prefix = chosen(TRUNK)
    return prefix, [chosen(option) for option in range(len(grown.ends[question]))]


def test_a_tree_says_what_separate_readings_say(reader, tokenizer):
    """All questions of a passage and all their options in one pass, next to trees of other sizes: each state is the one
    that the forked cache finds for that question alone."""
    trees = [tree(drill(number), tokenizer, 400) for number in DRILLS]
    hidden = read_trees(reader, trees)
    for row, grown in enumerate(trees):
        for question, ends in enumerate(grown.ends):
            alone = read(reader, [Encoded(*paths(grown, question))]).last[0]
            torch.testing.assert_close(hidden[row, ends], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_trees_need_no_compiler(reader, tokenizer, training):
    """Blocks that a long run has compiled are read plainly: each tree has a shape of its own, and where the compiler is
    broken the exam at the end of the run must not be lost."""

    def broken(*_):
        raise RuntimeError("no compiler")

    for block in reader.train(training).blocks:
        block.compile(backend=broken)
    trees = [tree(drill(number), tokenizer, 400) for number in DRILLS[:2]]
    assert accuracy(reader, trees, tokenizer.eos) >= 0 and read_trees(reader, trees).isfinite().all()


def test_a_drill_is_read_as_the_scorer_reads_it(tokenizer):
    """The same ids: what is practised is what is measured."""
    compared = 0
    for number in DRILLS:
        one = drill(number)
        grown = tree(one, tokenizer, 800)
        for question, asked in enumerate(one.asked):
            heading, _, reply = asked.prompt.strip().partition("\n")
            if reply:
                text = heading.split({"en": "Question: ", "zh": "问题："}[one.language])[1]
                row = Question(one.context, text, [option.strip() for option in asked.options], asked.answer, 0, {})
                assert encode(row, tokenizer, 800)[:2] == paths(grown, question)
                compared += 1
    assert compared > 30


def test_too_long_a_passage_loses_its_beginning(tokenizer):
    one = drill(LONG_AT)
    grown, cut = (tree(one, tokenizer, context) for context in (400, 120))
    assert max(grown.position) + 1 > 120 == max(cut.position) + 1
    assert cut.ids[0] == tokenizer.eos and len(cut.told) == len(grown.told)
    trunk = cut.question.count(TRUNK)
    assert cut.ids[1:trunk] == grown.ids[grown.question.count(TRUNK) - trunk + 1:grown.question.count(TRUNK)]


    with pytest.raises(ValueError, match="context=30"):
        tree(one, tokenizer, 30)


def test_drills_begin_short_and_become_long():
    """A curriculum, and a pure function of the number, so a run that is resumed goes on with the drills it would have
    had."""
    size = lambda start: sum(len(drill(number).context) for number in range(start, start + 60)) / 60
    assert size(0) < 0.6 * size((LONG_FROM + LONG_AT) // 2) and size(0) < 0.4 * size(LONG_AT)
    assert drill(5) == drill(5) != drill(5, seed=1)


def test_every_option_of_a_drill_is_an_answer_of_its_passage():
    """Nothing but the question tells which option is right: each stands in the passage, and over many drills the right
    one is as often first, last or longest as chance says."""
    first, longest, chance = 0.0, 0.0, 0.0
    asked = [(one, question) for one in map(drill, range(600)) for question in one.asked]
    for one, question in asked:
        assert all(option.strip().removeprefix("a ").removeprefix("an ").removeprefix("the ").lower()
                   in one.context.lower() for option in question.options), (one.context, question)
        lengths = [len(option) for option in question.options]
        best = [i for i, length in enumerate(lengths) if length == max(lengths)]
        first += question.answer == 0
        longest += (question.answer in best) / len(best)
        chance += 1 / len(lengths)
    assert abs(first - chance) < 0.06 * len(asked) and abs(longest - chance) < 0.06 * len(asked)


def test_the_drills_of_a_step_are_one_more_micro_batch(reader, tokenizer):
    """Beside the rows of text and in the same mean: sums of losses and counts of targets simply add up."""
    def texts(step):
        tokens = torch.randint(3, 100, (4, 6), generator=torch.Generator().manual_seed(step))
        return Batch(tokens[:, :-1], tokens[:, 1:])

    loss_fn = with_drills(tokenizer, 400, 0)
    together = beside(texts, 3)(7).split(2)
    assert [part.tokens.shape for part in together] == [(2, 5), (2, 5), (3, 1)]
    assert together[-1].tokens[:, 0].tolist() == [21, 22, 23]
    rows, drills = loss_sums(reader, together[:2], loss_fn), loss_sums(reader, together[2:], loss_fn)
    whole = loss_sums(reader, together, loss_fn)
    assert whole == (pytest.approx(rows[0] + drills[0]), rows[1] + drills[1])
    grown = [tree(drill(number), tokenizer, 400) for number in (21, 22, 23)]
    assert drills[1] == WEIGHT * sum(len(one.right) + len(one.told) for one in grown)
    assert beside(texts, 0) is texts


def test_choosing_is_learnt_from_drills(tokenizer):
    """Four drills, again and again: from guessing to knowing."""
    shape = {name: value for name, value in PRESETS["nano"].items() if name in ModelConfig.__dataclass_fields__}
    model = TinyLLM(ModelConfig(**shape | {"vocab_size": tokenizer.vocab_size, "n_layers": 2, "dim": 64, "n_heads": 4,
                                           "n_kv_heads": 4, "ffn_dim": 96}))
    plant_induction(model)
    trees = [tree(drill(number), tokenizer, 256) for number in range(4)]
    before = accuracy(model, trees, tokenizer.eos)
    config = TrainConfig(max_steps=60, muon_lr=0.02, lr=5e-3, schedule="linear", batch_size=4, compile="off")
    train(model, lambda step: drill_batch(0, 4), config, loss_fn=with_drills(tokenizer, 256, 0))
    assert before < 0.8 and accuracy(model, trees, tokenizer.eos) > 0.95


def test_a_stopped_practice_goes_on_as_if_nothing_had_happened(reader, tokenizer, tmp_path):
    start = checkpoint.save(tmp_path / "start", reader, tokenizer, SFTConfig(), {"step": 1})
    settings = ["--init", str(start), "--out", str(tmp_path / "run"), "--max-steps", "4", "--save-every", "2",
                "--effective-batch-size", "2", "--json"]
    main(settings)
    whole = checkpoint.load(tmp_path / "run")[0].state_dict()
    shutil.rmtree(tmp_path / "run" / "step-00000004")                # as if killed after the save of step 2
    main(settings)
    again = checkpoint.load(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert checkpoint.is_chat(tmp_path / "run")


def test_chains_of_thought_are_learnt_with_drills_beside_them(reader, tokenizer, tmp_path, capsys):
    """The loop, the rows and the validation of stage 3; the result also says how many options were chosen right."""
    start = checkpoint.save(tmp_path / "start", reader, tokenizer, SFTConfig(), {"step": 1})
    rows = [{"user": f"{a}+1?", "cot": f"{a}+1={a + 1}", "final": str(a + 1)} for a in range(30)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cot_sft.main(["--data", str(data), "--val", str(data), "--plain-share", "0", "--init", str(start), "--drills", "1",
                  "--out", str(tmp_path / "run"), "--max-steps", "12", "--val-every", "12", "--lr", "0.02", "--json"])
    result = json.loads(capsys.readouterr().out)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in metrics if "val_loss" in row]
    assert losses[-1] < 0.8 * losses[0] and 0 < result["chance"] < 1 and 0 <= result["choice"] <= 1
