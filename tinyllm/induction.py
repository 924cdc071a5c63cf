"""Heads a model begins with: one that looks one token back, and some that copy what followed the last time.

Together they continue "Tang Yan is older ... Max > Tang" with "Yan": an induction head (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, arXiv:2209.11895). Every model finds it, but
after millions of tokens; until then no name of a question reaches the answer. Here it stands in the random weights, and
training may change it at will. In and out: a fresh model. Explained by tests/test_induction.py.
Shapes: D width, E head width, H heads, K key/value heads.
"""

import torch

from tinyllm.model import TinyLLM, rope_tables, rotate

N_PAIRS = 5                                                          # the fastest rotary pairs tell neighbours apart


@torch.no_grad()
def plant_induction(model: TinyLLM, seed: int = 0) -> bool:
    """Writes an induction circuit into the first two blocks; False, and nothing changes, if they have no room for it.

    In block 0, head 0 finds the token before and writes it where block 1 expects it. In block 1 every head asks "behind
    which token like me did it stand?" and copies the token it finds to the output, each a share of it.
    """
    config, D, E = model.config, model.config.dim, model.config.head_dim
    if config.n_layers < 2 or 2 * E > D:
        return False
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows, columns: torch.randn(rows, columns, generator=generator)
    # What all tokens have in common: the only thing a head can use that looks at places, not at words. It adds the same
    # amount to the score of every token, so the model is as unsure as before.
    common = draw(1, D)[0]
    model.embed.weight += 0.02 * common
    common = common / common.norm()
    frame = torch.linalg.qr(draw(D, 2 * E))[0]                       # (D, 2E), orthonormal columns
    name, before = (frame - torch.outer(common, common @ frame)).split(E, dim=1)     # (D, E) each: where a token ...
    # ... says which one it is, and where it says which one stood before it.

    back, copy = model.blocks[0].attention, model.blocks[1].attention
    here = (torch.arange(E) % (E // 2) < N_PAIRS).float()            # (E,)
    cos, sin = rope_tables(2, E, config.rope_theta)                  # a key one position on meets the query there
    one_on = rotate(here[None, None, None], cos[1:], sin[1:])[0, 0, 0]               # (E,)
    back.wq.weight[:E], back.wk.weight[:E] = 0.3 * torch.outer(here, common), 0.3 * torch.outer(one_on, common)
    back.wv.weight[:E], back.wo.weight[:, :E] = 0.6 * name.T, 0.6 * before

    per_key = config.n_heads // config.n_kv_heads                    # query heads that share one K/V head
    for key in range(config.n_kv_heads):
        rows, share = slice(E * key, E * (key + 1)), torch.linalg.qr(draw(D, E))[0]  # (D, E)
        copy.wk.weight[rows], copy.wv.weight[rows] = 0.3 * before.T, 0.45 * share.T
        for query in range(per_key * key, per_key * (key + 1)):
            columns = slice(E * query, E * (query + 1))
            copy.wq.weight[columns], copy.wo.weight[:, columns] = 0.3 * name.T, 0.45 / per_key * share
    return True

