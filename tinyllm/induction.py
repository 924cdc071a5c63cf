"""Heads a model begins with: in the first block some that look one, two, three ... tokens back, in the second some that
copy what followed the last time.

Together they continue "Tang Yan is older ... Max > Tang" with "Yan": an induction head (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, arXiv:2209.11895). And with four heads that look
back all that the sum needs is in one place at the "=" of "17+5=". Every model finds both, after millions of tokens;
here they stand in the random weights, and training may change them at will. In and out: a fresh model. Explained by
tests/test_induction.py.
Shapes: D width, E head width, H heads, K key/value heads.
"""

import torch

from tinyllm.model import TinyLLM, rope_tables, rotate

N_PAIRS = 5                                                          # the fastest rotary pairs tell neighbours apart


@torch.no_grad()
def plant_induction(model: TinyLLM, seed: int = 0) -> bool:
    """Writes an induction circuit into the first two blocks; False, and nothing changes, if they have no room for it.

    Every row of the embedding gets one direction in common, for the heads that look at places. In block 0, head h of
    the first half finds the token h + 1 before; the other half stays random. What the first one finds is written where
    block 1 expects it. In block 1 every head asks "behind which token like me did it stand?" and copies the token it
    finds to the output, each a share of it.
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
    per_key = config.n_heads // config.n_kv_heads                    # query heads that share one K/V head
    n_back = max(1, config.n_heads // 2)
    n_keys = -(-n_back // per_key)                                   # K/V heads that these look with
    for weight in (back.wq.weight[:n_back * E], back.wk.weight[:n_keys * E], copy.wq.weight, copy.wk.weight):
        weight *= 0.1                  # what stays random is quiet, but not 0: a score of 0 * 0 has no gradient either
    here = (torch.arange(E) % (E // 2) < N_PAIRS).float()            # (E,)
    back.wk.weight[:n_keys * E] += 0.3 * torch.outer(here, common).repeat(n_keys, 1)
    back.wv.weight[:n_keys * E] = 0.6 * name.T.repeat(n_keys, 1)
    cos, sin = rope_tables(config.n_heads + 1, E, config.rope_theta)
    taken = torch.linalg.qr(torch.cat([common[:, None], name, before], dim=1))[0]    # (D, 1 + 2E)
    for head in range(n_back):
        rows, far = slice(E * head, E * (head + 1)), slice(head + 1, head + 2)
        there = rotate(here[None, None, None], cos[far], -sin[far])[0, 0, 0]         # (E,) meets a key head + 1 before
        back.wq.weight[rows] += 0.3 * torch.outer(there, common)
        place = draw(D, E)
        if D > 3 * E:                                                # room that says neither which token nor the last
            place -= taken @ (taken.T @ place)
        place = before if head == 0 else torch.linalg.qr(place)[0]
        # About as long as an embedding, 0.02 * sqrt(D), so that both are heard.
        back.wo.weight[:, rows] = (0.15 if head == 0 else 0.06) * place

    # Which token it is must not depend on how far away it stands: only the half of the pairs that turn slowly tells.
    slow = (torch.arange(E) % (E // 2) >= E // 4).float()[:, None]   # (E, 1)
    for key in range(config.n_kv_heads):
        rows, share = slice(E * key, E * (key + 1)), torch.linalg.qr(draw(D, E))[0]  # (D, E)
        copy.wk.weight[rows] += 0.3 * slow * before.T
        copy.wv.weight[rows] = 0.45 * share.T
        for query in range(per_key * key, per_key * (key + 1)):
            columns = slice(E * query, E * (query + 1))
            copy.wq.weight[columns] += 0.3 * slow * name.T
            copy.wo.weight[:, columns] = 0.45 / per_key * share
    return True

