"""A larger model can begin where a smaller one stands: it says the same, and every new part can learn."""

import copy
from dataclasses import replace

import pytest
import torch

from tinyllm import checkpoint, generate
from tinyllm.data import next_token_batch
from tinyllm.grow import GrowConfig, grow, grow_checkpoint, main
from tinyllm.model import TinyLLM
from tinyllm.train import TrainConfig, next_token_loss, train

LARGER = {"dim": 48, "n_layers": 5, "n_heads": 6, "n_kv_heads": 3, "ffn_dim": 80, "context": 64}


@pytest.mark.parametrize("changes", [LARGER, {"dim": 40, "n_heads": 5, "n_kv_heads": 5}, {"n_layers": 7},
                                     {"ffn_dim": 49, "context": 50}, {}])
@torch.no_grad()
def test_the_larger_model_says_what_the_smaller_one_says(config, changes):
    """Zeros beside the hidden state are seen by nobody but the norm, which counts them; its weights make up for it."""
    if changes.get("n_kv_heads") == 5:
        config = replace(config, n_kv_heads=4)                       # every head with keys of its own
    small = TinyLLM(config).eval()
    for weight in small.parameters():                                # norms that have learnt, embeddings that are small
        weight.mul_(1 + torch.rand_like(weight) * 5)
    large = grow(small, replace(config, **changes))
    assert sum(map(torch.numel, large.parameters())) >= sum(map(torch.numel, small.parameters()))
    tokens = torch.randint(0, config.vocab_size, (3, 40))
    torch.testing.assert_close(large(tokens), small(tokens), rtol=1e-3, atol=1e-3)


def test_every_weight_can_learn(config):
    """What is zero where it writes hears a gradient from what is random where it reads, and the other way round a step
    later. A part that no gradient reached would be bought for nothing."""
    large = grow(TinyLLM(config), replace(config, **LARGER))
    before = copy.deepcopy(large.state_dict())
    batch = next_token_batch(torch.randint(0, config.vocab_size, (4, 33)))
    train(large, lambda step: batch, TrainConfig(max_steps=3, dtype="float32", compile="off", warmup_steps=1))
    for name, weight in large.state_dict().items():
        unmoved = (weight == before[name]).float().mean()
        assert unmoved < (0.6 if "embed" in name else 0.01), (name, unmoved)       # tokens that were not met stay


def test_old_layers_are_spread_among_new_ones(config):
    """What the new ones come to do may be needed early or late."""
    large = grow(TinyLLM(config), replace(config, n_layers=7))
    assert [number for number, block in enumerate(large.blocks) if block.ffn.down.weight.any()] == [0, 2, 4]


def test_a_grown_model_learns_on_from_where_the_small_one_stood(config):
    """Its first loss is that of the smaller model, not that of random weights, and falls from there."""
    batch = next_token_batch(torch.randint(0, config.vocab_size, (4, 33)))
    settings = TrainConfig(max_steps=30, dtype="float32", compile="off", warmup_steps=1)
    small = TinyLLM(config)
    train(small, lambda step: batch, settings)
    losses = []
    reached = next_token_loss(small, batch)[0].item() / batch.targets.numel()
    train(grow(small, replace(config, **LARGER)), lambda step: batch, settings,
          report=lambda row: losses.append(row["loss"]))
    assert losses[0] == pytest.approx(reached, rel=1e-3) and losses[-1] < 0.7 * reached


def test_what_cannot_grow_is_said(config):
    """Each with the name of what stands in the way."""
    small = TinyLLM(config)
    for changes, said in (({"vocab_size": 500}, "vocab_size"), ({"n_heads": 2, "n_kv_heads": 1}, "head_dim"),
                          ({"n_layers": 2}, "n_layers"), ({"ffn_dim": 20}, "ffn_dim"), ({"qk_norm": False}, "qk_norm"),
                          ({"dim": 48, "n_heads": 6, "n_kv_heads": 6}, "n-kv-heads")):
        with pytest.raises(ValueError, match=said):
            grow(small, replace(config, **changes))


def test_the_command_writes_a_checkpoint_that_answers_as_before(model, tokenizer, tmp_path, capsys):
    """From checkpoint to checkpoint, with its vocabulary, and as much a chat model as it was."""
    settings = GrowConfig(out=str(tmp_path / "small"))
    settings.chat = True
    checkpoint.save(tmp_path / "small", model, tokenizer, settings, {"step": 3})
    wider = [f"--{name.replace('_', '-')}={value}" for name, value in LARGER.items()]
    argv = ["--init", str(tmp_path / "small"), "--out", str(tmp_path / "large"), *wider]
    main(argv)
    large, words = checkpoint.load(capsys.readouterr().out.strip())
    assert large.config.dim == 48 and words.model == tokenizer.model and checkpoint.is_chat(tmp_path / "large")
    tried = generate.GenerateConfig(max_new_tokens=8, temperature=0)
    assert "".join(generate.continue_text(large, words, "The cat", tried)) == "".join(
        generate.continue_text(model, tokenizer, "The cat", tried))
    with pytest.raises(SystemExit):                                  # nothing is written over
        main(argv)
    assert "choose another --out" in capsys.readouterr().err
    checkpoint.pack(tmp_path / "small", tmp_path / "copy")
    with pytest.raises(SystemExit):                                  # nor written where the copy would hide it
        main([*argv[:2], "--out", str(tmp_path / "copy"), *wider])
    assert not checkpoint.steps(tmp_path / "copy")


def test_a_model_that_only_continues_texts_does_so_when_it_has_grown(model, tokenizer, tmp_path):
    small = checkpoint.save(tmp_path / "small", model, tokenizer, GrowConfig(), {"step": 0})
    grown = grow_checkpoint(GrowConfig(**vars(model.config), init=str(small), out=str(tmp_path / "large")))
    assert not checkpoint.is_chat(grown)
