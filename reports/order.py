"""The order of a network: embedding, in each layer attention before MLP (q k v o, gate up down), the head last."""

from __future__ import annotations

import re

KINDS = ("embedding", "conv", "attention", "mlp", "other", "norm", "head")
ROLES: tuple[tuple[str, int], ...] = (
    # what a module does, by the last parts of its name; the first that matches decides
    (r"token_type|position|wpe", 1),
    (r"word_embed|embed_tokens|wte|tok_embed", 0),
    (r"q_proj|query(?!_key)|to_q|\bwq\b|\.q\b|q_a|q_b|q_lin|query_key_value|c_attn|qkv|in_proj|Wqkv", 0),
    (r"k_proj|key(?!_value)|to_k|\bwk\b|\.k\b|kv_a|kv_b|k_lin", 1),
    (r"v_proj|value|to_v|\bwv\b|\.v\b|v_lin", 2),
    (r"o_proj|out_proj|out_lin|to_out|\.o\b|attention.*(dense|c_proj|wo\b)|attn.*c_proj|(attn|attention)\.proj", 3),
    (r"router|mlp\.gate\b|block_sparse_moe\.gate\b|gate\.weight", 4),
    (r"gate_proj|gate\b|\bw1\b|wi_0|gate_up", 5),
    (r"down_proj|\bw2\b|fc2|fc_out|4h_to_h|lin2|mlp\.c_proj|\bwo\b|output\.dense|down\b", 7),
    (r"up_proj|\bw3\b|wi|fc1|fc_in|c_fc|h_to_4h|lin1|intermediate|up\b", 6),
    (r"input_layernorm|ln_1|norm1|pre_", 0),
)  # fmt: skip
COMPILED = tuple((re.compile(pattern), rank) for pattern, rank in ROLES)


def place(module: str, kind: str) -> tuple[int, int]:
    """Where a module stands within its layer (or outside of all): sorts by kind, then by role.

    Modules of the same place keep the order of the checkpoint.
    """
    at = KINDS.index(kind) if kind in KINDS else KINDS.index("other")
    role = next((rank for pattern, rank in COMPILED if pattern.search(module)), 8)
    return at, role
