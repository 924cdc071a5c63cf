"""The same model with matrices that are quicker to read, for writing and measuring; skip this at first reading.

A token of one answer reads every matrix once and multiplies each weight once, so it takes as long as the bytes take to
arrive; and each of the many small operations between takes longer than its arithmetic. In: a TinyLLM. Out: one whose
products read fp32, bf16 or int8, with fewer operations. Nothing on disk changes, and this model does not learn.
Shapes as in model.py; R rows of any kind, N outputs of a product. Explained by tests/test_weights.py.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.config import opt
from tinyllm.model import Block, KVCache, RMSNorm, TinyLLM
from tinyllm.train import pick_dtype

KINDS = ("auto", "fp32", "bf16", "int8")
WEIGHTS = opt("auto", "what the matrices are read as: bf16 halves the bytes, int8 quarters them (quickest for a few "
              "answers); auto: bf16 where the CPU computes in it, else fp32", choices=KINDS)
FEW = 16                                                             # with more rows, writing the weights out pays back
FULL = 4                                                             # rows that oneDNN multiplies quicker than one row
LARGE = 2 ** 19                                                      # weights; with fewer, rounding x does not pay back


# --- products: a matrix W (N, D) in, a function out that makes x (..., D) into x W^T (..., N), in bfloat16 or fp32 ---

class Packed:
    """W in `dtype`, laid out once in the order in which the CPU reads it: F.linear finds that order anew each time."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.dtype, self.weight = dtype, weight.detach().to(dtype)
        self.packed = torch.backends.mkldnn.is_available() and (
            dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])             # (R, D)
        if not self.packed:
            return F.linear(rows, self.weight).view(*x.shape[:-1], -1)
        padded = rows.expand(FULL, -1) if rows.shape[0] == 1 else rows
        out = torch.ops.mkldnn._linear_pointwise(padded, self.weight, None, "none", [], "")
        return out[:rows.shape[0]].view(*x.shape[:-1], -1)


class Int8:
    """W as whole numbers of one byte and a step for each row."""

    def __init__(self, weight: Tensor) -> None:
        self.numbers, self.step = quantise(weight)                   # (N, D), (N,)
        # torch reads whole vector registers and does not check: past the end of a row of another length.
        self.fits = weight.shape[1] % 32 == 0 and hasattr(torch.ops.aten, "_weight_int8pack_mm")

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])                            # (R, D)
        product = fused if rows.shape[0] <= FEW and self.fits else dequantised
        return product(rows, self.numbers, self.step).view(*x.shape[:-1], -1)


class Bytes:
    """Int8 where the CPU multiplies bytes by bytes (VNNI): activations become bytes too, with a step for each row."""

    def __init__(self, weight: Tensor) -> None:
        numbers, step = quantise(weight)
        with warnings.catch_warnings():                              # once torch has dropped it, Int8 does the work
            warnings.filterwarnings("ignore", ".*quantized tensor creation functions.*deprecated")
            made = torch._make_per_channel_quantized_tensor(numbers, step.double(), torch.zeros(len(step)).long(), 0)
        self.packed = torch.ops.quantized.linear_prepack(made, None)

    @staticmethod
    def works() -> bool:
        return (getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
                and torch.backends.quantized.engine in ("x86", "fbgemm")
                and hasattr(torch, "_make_per_channel_quantized_tensor"))

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()                    # (R, D)
        product = torch.ops.quantized.linear_dynamic.default
        if rows.shape[0] == 1:
            out = product(rows, self.packed, False)
        else:                                                        # torch has one step for all rows: all end at 1
            largest = rows.abs().amax(1, keepdim=True).clamp_min(1e-30)      # (R, 1)
            out = product(rows / largest, self.packed, False) * largest
        return out.view(*x.shape[:-1], -1)


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


def int8(weight: Tensor) -> Bytes | Int8:
    """W in bytes: multiplied as bytes where it is large and the CPU can, else read as bytes."""
    return Bytes(weight) if weight.numel() >= LARGE and Bytes.works() else Int8(weight)


Product = Callable[[Tensor], Callable[[Tensor], Tensor]]
PRODUCTS: dict[str, Product] = {
    "fp32": lambda weight: Packed(weight, torch.float32), "bf16": lambda weight: Packed(weight, torch.bfloat16),
    "int8": int8}


# --- a model of products ---

class QuickBlock(nn.Module):
    """A Block as one function of few operations: each takes microseconds to begin, and modules inside modules do too.

    Queries, keys and values come from one product and are normed and rotated together; so do gate and up. What lies
    between two products is fp32, but for the inside of the feed-forward part.
    """

    def __init__(self, block: Block, product: Product) -> None:
        super().__init__()
        attention, ffn, E = block.attention, block.ffn, block.attention.head_dim
        self.layer, self.head_dim = attention.layer, E
        matrices = [attention.wq.weight, attention.wk.weight, attention.wv.weight]
        self.n_heads = [len(matrix) // E for matrix in matrices]                      # H, K, K
        self.qkv, self.wo = product(torch.cat(matrices)), product(attention.wo.weight)
        self.gate_up, self.down = product(torch.cat([ffn.gate.weight, ffn.up.weight])), product(ffn.down.weight)
        eps = block.ffn_norm.eps
        self.attention_norm = QuickNorm(block.attention_norm.weight, eps)
        self.ffn_norm = QuickNorm(block.ffn_norm.weight, eps)
        self.qk_norm = None
        if isinstance(attention.q_norm, RMSNorm):
            norms = zip((attention.q_norm, attention.k_norm), self.n_heads)
            self.qk_norm = QuickNorm(torch.cat([norm.weight.expand(n, 1, E) for norm, n in norms]), eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        B, T, _ = x.shape
        (cos, sin), E = rope, self.head_dim                                   # (T, E) each, as QuickLLM has them
        heads = self.qkv(self.attention_norm(x)).float()
        heads = heads.view(B, T, -1, E).transpose(1, 2)                       # (B, H + 2K, T, E)
        H, K, _ = self.n_heads
        qk, v = heads[:, :H + K], heads[:, H + K:]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        qk = torch.addcmul(qk * cos, qk.roll(E // 2, -1), sin)                # rotate() of model.py
        q, k = qk[:, :H], qk[:, H:]
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                             # (B, K, S, E)
        mask = None if mask is None else mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=H != K)      # attend(): (B, H, T, E)
        x = x + self.wo(out.transpose(1, 2).reshape(B, T, -1))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)            # (B, T, F) each
        return x + self.down(F.silu(gate) * up)                               # (B, T, D)


class QuickNorm:
    """An RMSNorm in four operations, for torch has none of its own on the CPU and takes seven.

    x / sqrt(|x|^2 / D + eps) is sqrt(D) x / hypot(|x|, sqrt(D eps)): the length of x is one operation, and so is the
    hypotenuse, which never squares what it is given.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:                   # (..., D), as it multiplies x
        root = weight.shape[-1] ** 0.5                                        # sqrt(D)
        self.weight, self.floor = weight.detach() * root, torch.tensor(root * eps ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor) * self.weight


class QuickLLM(TinyLLM):
    """A TinyLLM of products; the head is one too, beside the embedding whose rows are looked up."""

    def __init__(self, model: TinyLLM, product: Product) -> None:
        nn.Module.__init__(self)                                     # no new weights: the embedding is the model's own
        self.config, self.embed, self.drop = model.config, model.embed, nn.Identity()
        self.cross_entropy = model.cross_entropy
        self.blocks = nn.ModuleList(QuickBlock(block, product) for block in model.blocks)
        self.head, self.norm = product(model.embed.weight), QuickNorm(model.norm.weight, model.config.norm_eps)
        self.rope_cos = model.rope_cos.repeat(1, 2)                  # (context, E): (cos, cos) and (-sin, sin)
        self.rope_sin = torch.cat([-model.rope_sin, model.rope_sin], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).float()


def kind_of(weights: str) -> str:
    """What "auto" means on this machine: "bf16" where the CPU computes in it, else "fp32"; others mean themselves."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[pick_dtype("auto")] if weights == "auto" else weights


@torch.no_grad()
def read_as(weights: str, model: TinyLLM) -> QuickLLM:
    """`model` for reading and writing with its matrices as `weights` says. The model itself stays as it is."""
    return QuickLLM(model, PRODUCTS[kind_of(weights)]).eval()
