"""Labels from logits: one position, the first tokens of the class words, an expected value."""

import json

import pytest
import torch

from tinyllm import chat, checkpoint
from tinyllm import tokenizer as tokenizers
from tinyllm.generate import document_prompt
from tinyllm.labels import (
    LabelsConfig,
    auc,
    expected_value,
    first_tokens,
    label,
    label_table,
    measure,
    probabilities,
    read_labelled,
)
from tinyllm.model import TinyLLM
from tinyllm.sft import SFTConfig
from tinyllm.train import TrainConfig

NAMES, VALUES = ["exact", "substitute", "complement", "irrelevant"], [3.0, 2.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A vocabulary that has seen the class words at the beginning of a line, as fine-tuning writes them."""
    return tokenizers.train(["\n".join(["sat warm", *NAMES])] * 50, 340, tmp_path_factory.mktemp("labels"))


def test_the_score_is_the_expected_value():
    """(3 * 0.5 + 2 * 0.2 + 1 * 0.2) / 3 by hand; certainty gives 1 and 0."""
    chances = torch.tensor([[0.5, 0.2, 0.2, 0.1], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert expected_value(chances, VALUES).tolist() == pytest.approx([0.7, 1.0, 0.0])
    for unit in (1e39, 1e-50):                                       # which float32 cannot hold
        assert expected_value(chances, [value * unit for value in VALUES]).tolist() == pytest.approx([0.7, 1.0, 0.0])


@torch.no_grad()
def test_probabilities_are_read_at_each_prompt_s_last_token(model):
    """Batched with padding or alone, and whatever the order: the same softmax over the class words' first tokens."""
    prompts, first = [[9, 10, 11], [12], [13, 14, 15, 16, 17, 18]], [20, 30, 40]
    made = probabilities(model, prompts, first, batch_size=2)
    assert torch.allclose(made.sum(-1), torch.ones(3))
    for prompt, row in zip(prompts, made):
        torch.testing.assert_close(row, model(torch.tensor([prompt]))[0, -1, first].softmax(-1), rtol=1e-4, atol=1e-5)


def test_labels_with_the_same_first_token_cannot_be_told_apart(tokenizer):
    """One position is read, so it must decide: said with both words."""
    with pytest.raises(ValueError, match="'sat' and 'sat down' both begin with the token"):
        first_tokens(tokenizer, ["sat", "warm", "sat down"])
    assert len(set(first_tokens(tokenizer, NAMES))) == 4


def test_auc_is_the_share_of_pairs_in_order():
    """By hand, ties count half; against all pairs one by one."""
    assert auc([0.9, 0.4], [1, 0]) == 1 and auc([0.4, 0.9], [1, 0]) == 0 and auc([0.5, 0.5], [1, 0]) == 0.5
    assert auc([0.1, 0.2], [1, 1]) is None
    scores, values = torch.rand(60).round(decimals=1).tolist(), torch.randint(0, 4, (60,)).tolist()
    pairs = [(a > b) + 0.5 * (a == b) for a, x in zip(scores, values) for b, y in zip(scores, values) if x > y]
    assert auc(scores, values) == pytest.approx(sum(pairs) / len(pairs))


def test_the_measures_of_a_perfect_classifier():
    truth = [0, 1, 2, 3, 3]
    result = measure(torch.eye(4)[truth], truth, NAMES, VALUES)
    assert result["accuracy"]["accuracy"] == 1 and result["auc"] == 1 and result["most_frequent"] == 0.4
    assert result["confusion"] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]]
    assert list(result["mean_score"].values()) == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_the_command_reads_a_file(model, tokenizer, tmp_path, capsys):
    """Rows that end with another word are counted, the table has a line for each class."""
    model.config.vocab_size = tokenizer.vocab_size
    model = TinyLLM(model.config).eval()
    folder = checkpoint.save(tmp_path / "run", model, tokenizer, SFTConfig(), {"step": 1})
    rows = [{"user": f"cat {n}", "assistant": name} for n, name in enumerate([*NAMES, "other"])]
    rows.insert(0, {"user": "cat " * 99, "assistant": NAMES[0]})     # longer than the context
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = label(LabelsConfig(checkpoint=str(folder), data=str(path)))
    assert result["n"] == 4 and result["skipped"] == 2 and len(result["rows"]) == 4
    assert "1 rows end with another word and 1 are longer" in capsys.readouterr().err
    first = first_tokens(tokenizer, NAMES)
    for row, read in zip(rows[1:], result["rows"]):                  # each row has its own probabilities
        prompt = chat.render_prompt(tokenizer, [{"role": "user", "content": row["user"]}])
        assert read["label"] == row["assistant"]
        assert read["probabilities"] == pytest.approx(probabilities(model, [prompt], first)[0].tolist(), abs=1e-5)
    assert all(name in label_table(result) for name in NAMES)
    plain = checkpoint.save(tmp_path / "plain", model, tokenizer, TrainConfig(), {"step": 1})
    continued = label(LabelsConfig(checkpoint=str(plain), data=str(path)))["rows"]     # asked without a template
    prompt = document_prompt(tokenizer, f"{rows[1]['user']}\n")
    assert continued[0]["probabilities"] == pytest.approx(probabilities(model, [prompt], first)[0].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="no row ends with one of"):
        read_labelled(path, ["yes", "no"])


@pytest.mark.parametrize("settings, complaint", [
    ({"labels": "one"}, "two different words"), ({"labels": "a,a"}, "two different words"),
    ({"values": "1,2"}, "each of 4 labels"), ({"values": "a,b,c,d"}, "numbers with commas"),
    ({"values": "0,0,0,0"}, "above 0"), ({"values": "3,2,1,nan"}, "number of at least 0")])
def test_wrong_labels_are_explained(settings, complaint):
    config = LabelsConfig(**settings)
    with pytest.raises(ValueError, match=complaint):
        config.names(), config.numbers()
