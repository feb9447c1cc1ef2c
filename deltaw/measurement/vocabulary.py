"""Which tokens the leading directions of an update write or read: the logit lens on its singular vectors.

What `o_proj` and `down_proj` add lies in the residual stream: a left singular vector u moves the logits by W_U·(g ⊙ u),
g the final norm's weights. What `q_proj`, `k_proj`, `v_proj`, `gate_proj` and `up_proj` read comes from it: a token's
embedding e meets a right one v by (g ⊙ v)·e, g the weights of the norm before. Both signs of a direction are looked at:
a singular vector has none. Beside each stands what random directions would reach.

Source: nostalgebraist 2020 (the logit lens); Millidge & Black 2022 (of singular vectors).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deltaw.delta.difference import difference
from deltaw.documents import Document
from deltaw.errors import OptionError, UnknownNameError
from deltaw.measurement.sides import Sides, open_sides
from deltaw.pairs.selection import Selection
from deltaw.spectra import Triplets, factored_svd, seeded, top_triplets
from deltaw.tensors.layout import text_config
from deltaw.tensors.names import kind, natural, place
from deltaw.types import Cell, Factors, Handle, Pair, matrix_label

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.analysis import Analysis

WRITES = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|down_proj|wo|w2|fc2|dense_4h_to_h|attention\.dense|output\.dense)\.weight$"
)
READS = re.compile(
    r"(^|\.)([qkv]_proj|qkv_proj|c_attn|query_key_value|query|key|value|gate_proj|up_proj|gate_up_proj|c_fc|w[13]|fc1|"
    r"dense_h_to_4h|lm_head)\.weight$"
)
BEFORE = {  # the norms that stand before what a kind of module reads
    "attention": ("input_layernorm", "ln_1", "attention_norm", "self_attn_layer_norm"),
    "mlp": ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm", "final_layer_norm"),
}
RANDOM = 64  # random directions that the null is of
QUANTILE = 0.95


class Side(NamedTuple):
    """Where a direction meets the vocabulary.

    Attributes:
        role: `writes` or `reads`.
        table: Of the tokens, (vocabulary, hidden), float32.
        norm: The weights of the norm between, (hidden,); None where there is none.
        through: The names of the table and the norm.
    """

    role: str
    table: Tensor
    norm: Tensor | None
    through: str

    def scores(self, x: Tensor) -> Tensor:
        """How much unit directions (hidden, k), seen through the norm, move each token: (vocabulary, k)."""
        x = x.float() if self.norm is None else self.norm[:, None] * x.float()
        met: Tensor = self.table @ (x / x.norm(dim=0).clamp(min=1e-30))
        return met


def directions(
    result: Analysis, tensor: str, tokenizer: Any, *, part: str = "", top: int = 4, tokens: int = 10
) -> pd.DataFrame:
    """Which tokens the leading directions of one matrix's update write or read.

    Args:
        result: The analysis; both of its sides have to be where they were.
        tensor: The matrix's name.
        tokenizer: Of the base: anything with `decode([token])`.
        part: The part of a fused tensor.
        top: How many directions.
        tokens: How many tokens of each, in each sign.

    Returns:
        One row per direction, sign and token: `direction` (from 1), `sigma`, `role` (`writes` or `reads`), `sign`,
        `place` (from 1), `token`, `token_id`, `score` (of a direction of length 1 behind the norm), `null` (the largest
        score that 95 % of random directions stay below), and `through` (the tables it went through).

    Raises:
        UnknownNameError: The analysis has no such matrix.
        OptionError: Its sides are not on disk, it meets the residual stream on no side, or the base's tables are not
            found.
    """
    import pandas as pd

    if top < 1 or tokens < 1:
        raise OptionError(f"top is {top} and tokens {tokens}; expected 1 or more")
    sides, pair = _pair(result, tensor, part)
    found = _triplets(pair, top)
    side = _side(sides, tensor, (found.U.shape[0], found.Vh.shape[1]))
    vectors = found.U if side.role == "writes" else found.Vh.T
    null = _null(side)
    rows: list[dict[str, Cell]] = []
    scores = side.scores(vectors)
    for i in range(vectors.shape[1]):
        for sign, signed in (("+", scores[:, i]), ("-", -scores[:, i])):
            best = signed.topk(min(tokens, len(signed)))
            for at, (score, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
                about: dict[str, Cell] = {"direction": i + 1, "sigma": float(found.S[i]), "role": side.role}
                about |= {"sign": sign, "place": at, "token": str(tokenizer.decode([token])), "token_id": token}
                rows.append(about | {"score": score, "null": null, "through": side.through})
    return pd.DataFrame(rows)


def _pair(result: Analysis, tensor: str, part: str) -> tuple[Sides, Pair]:
    """The sides of an analysis, opened again, and the pair of one matrix.

    Raises:
        UnknownNameError: There is none.
        OptionError: A side is not on disk.
    """
    result.spectrum(tensor, part)  # or the message with near names
    if result.base is None or not (result.base.files and result.ft.files):
        raise OptionError("directions need both sides on disk; analyze a base and a fine-tune given as paths")
    sides = open_sides(result.base.argument, result.ft.argument)
    split = bool(result.options.get("split_fused"))
    planned = sides.plan(Selection.of(include=f"^{re.escape(tensor)}$", split_fused=split))
    pair = next((p for p in planned.pairs if p.view.part == part), None)
    if pair is None:
        raise UnknownNameError(f"{matrix_label(tensor, part)} is no longer in {result.ft.path}; analyze again")
    return sides, pair


def _triplets(pair: Pair, top: int) -> Triplets:
    """The leading triplets of a ΔW.

    Raises:
        OptionError: ΔW = 0.
    """
    cpu = torch.device("cpu")
    delta = difference(pair, cpu).value
    if delta is None:
        raise OptionError(f"{pair.label} did not change; expected a matrix that did")
    if isinstance(delta, Factors):
        whole = factored_svd(delta)
    else:
        found = top_triplets(delta, top, generator=seeded(cpu, pair.key))
        whole = Triplets(found.U, found.S, found.Vh)
    kept = min(top, int((1e-6 * whole.S[0] < whole.S).sum()))  # of a rank that is smaller, the others are no directions
    return Triplets(whole.U[:, :kept], whole.S[:kept], whole.Vh[:kept])


def _side(sides: Sides, tensor: str, shape: tuple[int, int]) -> Side:
    """Where a matrix meets the vocabulary.

    Raises:
        OptionError: Nowhere, or the tables are not found.
    """
    assert sides.base is not None
    base, config = sides.base.tensors, sides.base.config
    hidden, role = (shape[0], "writes") if WRITES.search(tensor) else (shape[1], "reads")
    if role == "reads" and not READS.search(tensor):
        raise OptionError(
            f"{tensor} neither writes to the residual stream nor reads from it; expected a matrix such as o_proj, "
            "down_proj (writes), q_proj, k_proj, v_proj, gate_proj or up_proj (reads)"
        )
    table = _table(base, hidden, head=role == "writes")
    if table is None:
        raise OptionError(
            f"{sides.base.source}: has no embedding of {hidden} columns, which {tensor} would be read with; expected a "
            "language model"
        )
    norm = _norm(base, tensor, hidden, final=role == "writes")
    weights = None if norm is None else base[norm].read().float() + _offset(config)
    through = " and ".join(filter(None, (table, norm)))
    return Side(role, base[table].read().float(), weights, through)


def _table(tensors: Mapping[str, Handle], hidden: int, *, head: bool) -> str | None:
    """The name of the unembedding or of the embedding; a tied head is the embedding."""
    fitting = {n: h.shape[0] for n, h in tensors.items() if len(h.shape) == 2 and h.shape[1] == hidden}
    for wanted in ("head", "embedding") if head else ("embedding",):
        named = [n for n in fitting if kind(n, 2) == wanted]
        if named:
            return max(named, key=lambda n: fitting[n])
    return None


def _norm(tensors: Mapping[str, Handle], tensor: str, hidden: int, *, final: bool) -> str | None:
    """The norm between: the model's last one, or the one before the module in its layer."""
    here = place(tensor)
    norms = [n for n, h in tensors.items() if h.shape == (hidden,) and n.endswith(".weight") and kind(n, 1) == "norm"]
    if final:
        outside = [n for n in sorted(norms, key=natural) if place(n).layer is None and "emb" not in n.lower()]
        return outside[-1] if outside else None
    mine = {place(n).module: n for n in norms if place(n)[:2] == here[:2] and here.layer is not None}
    return next((mine[m] for m in BEFORE.get(kind(tensor, 2), ()) if m in mine), None)


def _offset(config: Document) -> float:
    """What a norm adds to its stored weights: Gemma stores them less 1."""
    return 1.0 if text_config(config).text("model_type").startswith("gemma") else 0.0


def _null(side: Side) -> float:
    """The largest score that 95 % of random directions stay below."""
    hidden = side.table.shape[1]
    drawn = torch.randn(hidden, RANDOM, generator=torch.Generator().manual_seed(0))
    return float(side.scores(drawn).amax(dim=0).quantile(QUANTILE))
