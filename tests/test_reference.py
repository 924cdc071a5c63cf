"""The fast code computes what the textbook says: each claim compares tinyllm with tests/reference.py."""

import pytest
import reference
import torch

from tinyllm import decode, generate, optim
from tinyllm.data import IGNORE, Batch
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.train import next_token_loss, set_dropout

SHAPES = {                                                           # dim, n_layers, n_heads, n_kv_heads, ffn_dim, T
    "one head": (8, 1, 1, 1, 24, 5),
    "every head its own keys": (32, 2, 4, 4, 48, 17),
    "pairs of heads share keys": (48, 3, 4, 2, 40, 31),
    "all heads share keys": (24, 2, 6, 1, 64, 9),
    "a single token": (32, 2, 4, 2, 48, 1),
    "the whole context": (32, 1, 2, 1, 16, 40),
}


def make(dim, n_layers, n_heads, n_kv_heads, ffn_dim, T):
    """A model whose weights are large and whose norms are not 1, so that every term of the formula matters."""
    model = TinyLLM(ModelConfig(vocab_size=71, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
                                ffn_dim=ffn_dim, context=40)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 if weight.ndim == 2 else torch.rand_like(weight) + 0.5)
    return model, torch.randint(0, 71, (3, T))


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_equal_the_textbook(shape):
    """Fused kernels, real rotations and shared heads change how the formula is computed, never what it says."""
    model, tokens = make(*shape)
    torch.testing.assert_close(model(tokens), reference.logits(model, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_equal_the_textbook(shape):
    """What is learnt from a batch is the derivative of the same formula, for every weight."""
    model, tokens = make(*shape)
    batch = Batch(tokens, tokens.roll(-1, dims=1))
    weights = list(model.parameters())
    ours = torch.autograd.grad(next_token_loss(model, batch)[0], weights)
    textbook = torch.autograd.grad(reference.loss_sum(reference.logits(model, tokens), batch.targets, IGNORE), weights)
    for (name, _), mine, theirs in zip(model.named_parameters(), ours, textbook):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, scale),
                                   msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_dropout_acts_where_the_textbook_says():
    """Single passes differ by chance; their means over many draws agree, and both differ from no dropout at all."""
    model, tokens = make(16, 1, 2, 2, 24, 6)
    still = model(tokens[:1])
    rows = tokens[:1].expand(8000, -1)
    set_dropout(model.train(), 0.4)
    ours, textbook = model(rows), reference.logits(model, rows)
    spread = (ours.var(0) + textbook.var(0)).div(len(rows)).sqrt()            # standard error of the difference
    assert float(((ours.mean(0) - textbook.mean(0)) / spread).pow(2).mean().sqrt()) < 2
    torch.testing.assert_close(ours.std(0).mean(), textbook.std(0).mean(), rtol=0.03, atol=0)
    assert float(((ours.mean(0) - still[0]) / spread).pow(2).mean().sqrt()) > 5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_greedy_decoding_equals_reading_everything_again(shape):
    """The cache only saves work: token for token, the text is that of a model without memory."""
    model, tokens = make(*shape[:-1], T=7)
    prompt = tokens[0].tolist()
    streamed = [id for (id,) in generate.stream(model, prompt, end=-1, max_new_tokens=20, temperature=0)]
    assert streamed == reference.generate_greedy(model, prompt, 20)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.7), (5, 0.5), (40, 0.95), (1, 1.0), (0, 0.0)])
def test_sampling_probabilities_equal_the_loop(temperature, top_k, top_p):
    """Sorting and cumulative sums choose the tokens that going down the list one by one would choose, ties included."""
    logits = torch.randn(4, 30) * 2
    logits[1, 4] = logits[1, 9] = logits[1, 20] = logits[1].max()             # three tokens share the first place
    ours = decode.next_token_probabilities(logits, temperature, top_k, top_p)
    textbook = [reference.sampling_probabilities(row.tolist(), temperature, top_k, top_p) for row in logits]
    torch.testing.assert_close(ours, torch.tensor(textbook), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_loss_equals_the_loop_over_labels():
    """A masked label adds nothing to the sum and is not counted."""
    model, tokens = make(*SHAPES["pairs of heads share keys"])
    targets = tokens.roll(-1, dims=1).masked_fill(torch.rand(tokens.shape) < 0.4, IGNORE)
    loss, count = next_token_loss(model, Batch(tokens, targets))
    assert int(count) == sum(target != IGNORE for row in targets.tolist() for target in row) < targets.numel()
    torch.testing.assert_close(loss, reference.loss_sum(model(tokens), targets, IGNORE), rtol=1e-5, atol=1e-4)


def test_any_number_of_learnt_positions_makes_the_same_few_shapes(monkeypatch):
    """torch keeps code for each shape of a matrix product; a new shape in every step would fill the memory. What fills
    the shape up has no share in loss or gradient."""
    model, tokens = make(*SHAPES["pairs of heads share keys"])
    shapes, plain = set(), model.cross_entropy.forward
    monkeypatch.setattr(model.cross_entropy, "forward", lambda logits, targets: (
        shapes.add(len(logits)), plain(logits, targets))[1])
    for n in (1, 7, tokens.numel() - 1):
        targets = torch.full_like(tokens, IGNORE).flatten()
        targets[-n:] = tokens.flatten()[-n:]                         # the first position, which fills up, is not learnt
        targets = targets.view_as(tokens)
        ours = torch.autograd.grad(next_token_loss(model, Batch(tokens, targets))[0], model.embed.weight)[0]
        theirs = torch.autograd.grad(reference.loss_sum(model(tokens), targets, IGNORE), model.embed.weight)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(shapes) == 1 and max(shapes) <= tokens.numel(), shapes


@pytest.mark.parametrize("rows, columns", [(24, 24), (16, 64), (64, 16)])
def test_muon_keeps_the_directions_and_evens_out_their_lengths(rows, columns):
    """Newton-Schulz works on the singular values alone: seen from the singular vectors of G, the step is diagonal,
    with entries near the 1 that the exact polar factor has there. Jordan et al. 2024, "Muon"."""
    matrix = torch.randn(rows, columns)
    U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
    seen = U.T @ optim.orthogonalise(matrix) @ Vt.T
    torch.testing.assert_close(U.T @ reference.polar_factor(matrix) @ Vt.T, torch.eye(len(seen)), rtol=0, atol=1e-4)
    lengths = seen.diagonal()
    assert float((seen - lengths.diag()).abs().max()) < 1e-3
    assert float(lengths.min()) > 0.6 and float(lengths.max()) < 1.3
