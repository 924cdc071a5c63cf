"""Weights of fewer bytes: the same model within bounds that can be derived, and nothing left out."""

import json
from dataclasses import replace

import pytest
import reference
import torch
import torch.nn.functional as F
from test_reference import SHAPES, make
from torch import nn

from tinyllm import chat, checkpoint, evaluate, generate, weights
from tinyllm.data import next_token_batch
from tinyllm.decode import decode
from tinyllm.model import RMSNorm, TinyLLM
from tinyllm.sft import SFTConfig
from tinyllm.train import next_token_loss
from tinyllm.weights import PRODUCTS, QuickLLM, QuickNorm, dequantised, fused, quantise, read_as

BF16 = 2.0 ** -8                                                     # rounding to bfloat16 changes no number by more


def matrix(n_rows, n_columns):
    """Rows of very different size, with an outlier in one and nothing in another."""
    weight = torch.randn(n_rows, n_columns) * 10.0 ** torch.linspace(-6, 4, n_rows)[:, None]
    weight[1, 3] *= 100
    weight[2] = 0
    return weight


def test_no_weight_is_off_by_more_than_half_a_step():
    """Each row has its own step, a 127th of its largest weight: an outlier costs its own row precision, no other."""
    weight = matrix(40, 64)
    numbers, step = quantise(weight)
    off = (numbers.double() * step.double()[:, None] - weight).abs()
    assert bool((off <= step.double()[:, None] / 2 * (1 + 1e-6)).all())
    largest = weight.abs().amax(1)
    assert bool((step.double() * 127 <= largest * (1 + BF16) + 1e-25).all()) and not numbers[2].any()


needs_bytes = pytest.mark.skipif(not weights.Bytes.works(), reason="this CPU does not multiply bytes by bytes")


@needs_bytes
@pytest.mark.parametrize("n_rows", [1, 5, 64])
def test_activations_of_one_byte_keep_their_bound_whatever_stands_beside_them(n_rows):
    """A row is off by at most a 127th of its own largest activation, and its neighbours may be a million times larger.

    Full bytes times full bytes, where products that are added in 16 bits would overflow, are among them."""
    weight, x = matrix(50, 96), torch.randn(n_rows, 96) * 10.0 ** torch.linspace(0, 6, n_rows)[:, None]
    weight[5], x[0] = 3.0, 2.0
    off = (weights.Bytes(weight)(x).double() - x.double() @ weight.double().T).abs()
    of_weights = x.double().abs().sum(1)[:, None] * quantise(weight)[1].double() / 2
    of_x = x.double().abs().amax(1)[:, None] / 127 * weight.double().abs().sum(1)
    bound = (1 + 1 / 127) * (of_weights + of_x) + 1e-5 * (x.double().abs() @ weight.double().abs().T) + 1e-25
    assert bool((off <= bound).all()) and bool((off > bound / 1000).any())


@pytest.mark.parametrize("works", [True, False])
def test_bytes_are_multiplied_only_where_the_cpu_does(monkeypatch, works):
    """Elsewhere torch adds products in 16 bits, which overflow."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: works, raising=False)
    if works and not weights.Bytes.works():
        pytest.skip("this torch has no product of bytes")
    assert type(PRODUCTS["int8"](torch.ones(weights.LARGE // 32, 32))) is (weights.Bytes if works else weights.Int8)


@pytest.mark.parametrize("n_rows", [1, 5, 16, 17, 64])
def test_an_int8_product_keeps_its_bound(n_rows):
    """|error| <= half a step for every unit of |x|, and the rounding of activations and result to bfloat16."""
    weight, x = matrix(50, 96), torch.randn(n_rows, 96)
    step = quantise(weight)[1].double()
    exact = x.double() @ weight.double().T
    bound = (1 + BF16) ** 2 * x.double().abs().sum(1)[:, None] * step / 2 \
        + 2 * BF16 * (x.double().abs() @ weight.double().abs().T) + 1e-25
    off = (weights.Int8(weight)(x).double() - exact).abs()
    assert bool((off <= bound).all()) and bool((off > bound / 1000).any())


@pytest.mark.parametrize("n_outputs, n_inputs", [(1, 32), (7, 64), (90, 96), (421, 704)])
@pytest.mark.parametrize("n_rows", [1, 3, 16])
def test_the_fused_product_equals_the_written_out_one(n_outputs, n_inputs, n_rows):
    """Both sum in fp32 and round once to bfloat16, so they differ by one unit in its last place at most."""
    numbers, step = quantise(torch.randn(n_outputs, n_inputs))
    x = torch.randn(n_rows, n_inputs)
    exact = x.bfloat16().double() @ (numbers.double() * step.double()[:, None]).T
    for product in (fused, dequantised):
        torch.testing.assert_close(product(x, numbers, step).double(), exact, rtol=BF16, atol=1e-4)


def test_a_row_of_odd_length_is_never_given_to_the_fused_product(monkeypatch):
    """torch reads whole registers past the end of such a row without a check, and the process may die."""
    monkeypatch.setattr(weights, "fused", lambda *parts: pytest.fail("read past the end of a row"))
    weight, x = torch.randn(6, 33), torch.randn(2, 33)
    torch.testing.assert_close(weights.Int8(weight)(x), x @ weight.T, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_no_matrix_is_left_out(model, kind):
    """A layer that stays fp32 by mistake costs its time and shows in no number: so every weight is counted."""
    made = []
    quick = QuickLLM(model, lambda weight: made.append(weight.numel()) or PRODUCTS[kind](weight))
    assert sum(made) == sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert not any(isinstance(module, nn.Linear) for module in quick.modules())
    assert [name for name, weight in quick.named_parameters() if weight.ndim == 2] == ["embed.weight"]
    before = quick.logits(hidden := torch.randn(2, 32))
    with torch.no_grad():
        model.embed.weight.zero_()                                   # rows are looked up there, the head is another
    assert torch.equal(quick.logits(hidden), before)


@torch.no_grad()
@pytest.mark.parametrize("size", [0, 1e-18, 1e-4, 1, 1e18])
def test_a_quick_norm_is_the_norm(size):
    """Of nothing, of vectors that eps holds down, and of vectors whose squares a float could barely hold."""
    norm, x = RMSNorm(24, 1e-5), torch.randn(5, 24) * size
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(QuickNorm(norm.weight, norm.eps)(x), norm(x), rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fp32_weights_write_what_the_textbook_writes(shape, qk_norm):
    """Merged and laid out anew, the products are the same sums: logits agree to rounding, greedy texts to the token."""
    model, tokens = make(*shape[:-1], T=7)
    if not qk_norm:
        plain = TinyLLM(replace(model.config, qk_norm=False)).eval()
        plain.load_state_dict(model.state_dict(), strict=False)      # all but the weights of the two norms
        model = plain
    quick = read_as("fp32", model)
    torch.testing.assert_close(quick(tokens), reference.logits(model, tokens), rtol=1e-4, atol=1e-5)
    prompt = tokens[0].tolist()
    written = [id for (id,) in generate.stream(quick, prompt, end=-1, max_new_tokens=20, temperature=0)]
    assert written == reference.generate_greedy(model, prompt, 20)


def test_padded_prompts_are_written_on_as_the_textbook_does(model):
    """Rows that begin later count their positions from there, and padding stays out of sight."""
    prompts = [[5, 9, 13, 2, 7], [3], [11, 4]]
    book, quick = ([step.ids for step in decode(one, prompts, end=0, max_new_tokens=8, temperature=0)]
                   for one in (model.eval(), read_as("fp32", model)))
    assert book == quick


@torch.no_grad()
@pytest.mark.parametrize("kind, limit", [("fp32", 1e-7), ("bf16", 2e-3), ("int8", 5e-3)])
def test_the_shipped_model_believes_nearly_the_same(kind, limit):
    """Of a text that it wrote itself: mean divergence of the next token's distribution in nats, and its choices."""
    model, tokenizer = checkpoint.load(checkpoint.SHIPPED)
    prompt = chat.render_prompt(tokenizer, [{"role": "user", "content": "计算：12*(3+4)-10"}])
    written = [id for (id,) in generate.stream(model, prompt, end=tokenizer.eos, max_new_tokens=80, temperature=0)]
    tokens = torch.tensor([prompt + written])
    before, after = (one(tokens).log_softmax(-1) for one in (model, read_as(kind, model)))
    assert float(F.kl_div(after, before, log_target=True, reduction="none").sum(-1).mean()) < limit
    assert bool((before.argmax(-1) == after.argmax(-1))[0, len(prompt) - 1:].all())


def test_the_model_that_learns_is_untouched(model):
    """Whatever is made from it: the same weights and the same gradients, so it may go on learning."""
    batch = next_token_batch(torch.randint(model.config.vocab_size, (2, 9)))
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    gradients = torch.autograd.grad(next_token_loss(model, batch)[0], list(model.parameters()))
    quick = [read_as(kind, model) for kind in PRODUCTS]
    assert all(torch.equal(kept[name], weight) for name, weight in model.state_dict().items())
    again = torch.autograd.grad(next_token_loss(model, batch)[0], list(model.parameters()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients, again))
    assert not any(one.training for one in quick)


# --- commands ---

@pytest.fixture
def folder(tmp_path, tokenizer, config):
    model = TinyLLM(replace(config, vocab_size=tokenizer.vocab_size))
    return str(checkpoint.save(tmp_path / "sft", model, tokenizer, SFTConfig(), {"step": 1}))


@pytest.fixture
def kinds(monkeypatch):
    """The kinds of all models that are made."""
    made = []
    for kind, product in PRODUCTS.items():
        monkeypatch.setitem(PRODUCTS, kind, lambda weight, kind=kind, product=product: (
            made.append(kind) or product(weight)))
    return made


@pytest.mark.parametrize("kind", PRODUCTS)
def test_generate_reads_the_weights_that_were_asked_for(folder, kinds, kind, capsys):
    generate.main(["3+4?", "--checkpoint", folder, "--max-new-tokens", "4", "--weights", kind, "--json"])
    assert json.loads(capsys.readouterr().out)["samples"][0]["tokens"] and set(kinds) == {kind}


@pytest.mark.parametrize("bf16", [True, False])
def test_auto_is_bf16_only_where_the_cpu_computes_in_it(folder, kinds, monkeypatch, tmp_path, capsys, bf16):
    """Elsewhere bfloat16 is emulated and slow. What it was goes into the report."""
    monkeypatch.setattr(weights, "pick_dtype", lambda name: torch.bfloat16 if bf16 else torch.float32)
    book = tmp_path / "book.txt"
    book.write_text("The cat sat.", encoding="utf-8")
    evaluate.main(["--checkpoint", folder, "--text", str(book), "--out", str(tmp_path / "out"), "--json"])
    measured = json.loads(capsys.readouterr().out)["checkpoints"][folder]
    assert set(kinds) == {measured["weights"]} == {"bf16" if bf16 else "fp32"}
