"""The same model with matrices that are quicker to read, for writing and measuring; skip this at first reading.

A token of one answer reads every matrix once and multiplies each weight once, so it takes as long as the bytes take to
arrive. In: a TinyLLM. Out: one whose products read fp32, bf16 or int8; what lies between them stays fp32. Nothing on
disk changes, and this model does not learn. Explained by tests/test_weights.py.
Shapes as in model.py; R rows of any kind, N outputs of a product.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.config import opt
from tinyllm.model import Attention, RMSNorm, SwiGLU, TinyLLM, rotate
from tinyllm.train import pick_dtype

KINDS = ("auto", "fp32", "bf16", "int8")
WEIGHTS = opt("auto", "what the matrices are read as: bf16 halves the bytes, int8 quarters them (quickest for a few "
              "answers); auto: bf16 where the CPU computes in it, else fp32", choices=KINDS)
FEW = 16                                                             # with more rows, writing the weights out pays back


# --- products: a matrix W (N, D) in, a module out that makes x (..., D) into x W^T (..., N) ---

class Packed(nn.Module):
    """W in `dtype`, laid out once in the order in which the CPU reads it: F.linear finds that order anew each time."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.weight = dtype, weight.detach().to(dtype)
        self.packed = torch.backends.mkldnn.is_available() and (
            dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, None, "none", [], "").to(x.dtype)
        return F.linear(x.to(self.dtype), self.weight).to(x.dtype)


class Int8(nn.Module):
    """W as whole numbers of one byte and a step for each row."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.numbers, self.step = quantise(weight)                   # (N, D), (N,)
        # torch reads whole vector registers and does not check: past the end of a row of another length.
        self.fits = weight.shape[1] % 32 == 0 and hasattr(torch.ops.aten, "_weight_int8pack_mm")

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])                            # (R, D)
        product = fused if rows.shape[0] <= FEW and self.fits else dequantised
        return product(rows, self.numbers, self.step).to(x.dtype).view(*x.shape[:-1], -1)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 (N, D) and a step for each row (N,): W is about step * numbers.

    A step is a 127th of the largest weight of its row, and no weight is off by more than half a step.
    """
    step = (weight.abs().amax(1) / 127).clamp_min(1e-30).bfloat16()  # rounded first, so that the numbers fit it
    return (weight / step.float()[:, None]).round().to(torch.int8), step


def fused(rows: Tensor, numbers: Tensor, step: Tensor) -> Tensor:
    """rows (R, D) -> (R, N), the numbers read as the bytes they are. The time grows with R."""
    return torch.ops.aten._weight_int8pack_mm(rows.bfloat16(), numbers, step)


def dequantised(rows: Tensor, numbers: Tensor, step: Tensor) -> Tensor:
    """The same from weights that are written out first: quicker for many rows, and where torch has no fused product."""
    dtype = pick_dtype("auto")
    return F.linear(rows.bfloat16().to(dtype), numbers.to(dtype)).float() * step


PRODUCTS: dict[str, Callable[[Tensor], nn.Module]] = {
    "fp32": lambda weight: Packed(weight, torch.float32), "bf16": lambda weight: Packed(weight, torch.bfloat16),
    "int8": Int8}


# --- a model of products ---

class QuickAttention(Attention):
    """Attention whose queries, keys and values come from one product, normed and rotated together."""

    def __init__(self, attention: Attention, product: Callable[[Tensor], nn.Module]) -> None:
        nn.Module.__init__(self)
        q, k, v, E = attention.wq.weight, attention.wk.weight, attention.wv.weight, attention.head_dim
        self.layer, self.head_dim, self.drop = attention.layer, E, attention.drop
        self.n_heads, self.n_kv_heads = len(q) // E, len(k) // E
        self.qkv, self.wo = product(torch.cat([q, k, v])), product(attention.wo.weight)
        self.norm = None
        if isinstance(attention.q_norm, RMSNorm):
            norms = (attention.q_norm, self.n_heads), (attention.k_norm, self.n_kv_heads)
            self.norm = torch.cat([norm.weight.expand(n, 1, E) for norm, n in norms])          # (H + K, 1, E)
            self.eps = attention.q_norm.eps

    def heads(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_dim).transpose(1, 2)     # (B, H + 2K, T, E)
        qk, v = heads.split([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=1)
        if self.norm is not None:
            qk = F.rms_norm(qk, (self.head_dim,), None, self.eps) * self.norm
        return *rotate(qk, *rope).split([self.n_heads, self.n_kv_heads], dim=1), v


class QuickSwiGLU(nn.Module):
    """SwiGLU whose gate and up are one product."""

    def __init__(self, ffn: SwiGLU, product: Callable[[Tensor], nn.Module]) -> None:
        super().__init__()
        self.gate_up = product(torch.cat([ffn.gate.weight, ffn.up.weight]))
        self.down = product(ffn.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)                           # (B, T, F) each
        return self.down(F.silu(gate) * up)                                   # (B, T, D)


class QuickLLM(TinyLLM):
    """A TinyLLM of products; the head is one too, beside the embedding whose rows are looked up."""

    def __init__(self, model: TinyLLM, product: Callable[[Tensor], nn.Module]) -> None:
        nn.Module.__init__(self)                                     # no new weights: the rest is shared with `model`
        self.__dict__.update(with_products(model, product).__dict__)
        self.head = product(model.embed.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def with_products(module: nn.Module, product: Callable[[Tensor], nn.Module]) -> nn.Module:
    """A copy of `module` that shares everything with it but attention and feed-forward parts; without dropout."""
    if isinstance(module, (Attention, SwiGLU)):
        return (QuickAttention if isinstance(module, Attention) else QuickSwiGLU)(module, product)
    if isinstance(module, nn.Dropout):
        return nn.Identity()                                         # asking whether to drop takes longer than adding
    other = copy.copy(module)
    other._modules = {name: with_products(child, product) for name, child in module._modules.items()}
    return other


def kind_of(weights: str) -> str:
    """What "auto" means on this machine: "bf16" where the CPU computes in it, else "fp32"; others mean themselves."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[pick_dtype("auto")] if weights == "auto" else weights


@torch.no_grad()
def read_as(weights: str, model: TinyLLM) -> QuickLLM:
    """`model` for reading and writing with its matrices as `weights` says. The model itself stays as it is."""
    return QuickLLM(model, PRODUCTS[kind_of(weights)]).eval()
