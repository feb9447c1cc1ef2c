"""LoRA and AdaLoRA as PEFT saves them: the tensors of each module → its update, by the layout of its layer.

Hu et al. 2021 (LoRA), Zhang et al. 2023 (AdaLoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA). The
arithmetic is that of `peft.tuners.lora.layer` (0.21), which the tests hold it against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from deltaw.adapters import mora
from deltaw.adapters.base import Base, stored_transposed
from deltaw.adapters.dense import Added, Dora, Kasa
from deltaw.adapters.factored import (
    FactorSource,
    LowRank,
    SomeRows,
    Term,
    block_diagonal,
    matrix,
    scaled_rows,
    transpose,
)
from deltaw.adapters.keys import LoraModule
from deltaw.adapters.scaling import rank, scale
from deltaw.checkpoints import why_unread
from deltaw.documents import Document
from deltaw.errors import AdapterError
from deltaw.tensors.names import has_vocabulary
from deltaw.types import Handle, Pair, Reason, Skipped, Update, View, times

# PEFT divides by ranknum + 1e-5, where ranknum is init_r even after pruning ("exactly as the previous").
ADALORA_EPSILON = 1e-5


@dataclass(frozen=True)
class Context:
    """What the update of every module of one adapter needs to know.

    Attributes:
        source: The adapter, for messages.
        config: Its adapter_config.json.
        base: The base, None with `--no-base`.
        initial: The modules of the stored initial adapter, by path, with its config; None where B·A is the update.
    """

    source: str
    config: Document
    base: Base | None
    initial: tuple[Mapping[str, LoraModule], Document] | None = None

    @property
    def adalora(self) -> bool:
        """Whether the factors carry singular values."""
        return self.config.text("peft_type") == "ADALORA"


def module_pairs(context: Context, module: LoraModule) -> list[Pair | Skipped]:
    """The pairs of one module: its weight, and its bias with `lora_bias`.

    Raises:
        AdapterError: A factor is missing, contradicts the config, or does not fit the base.
    """
    if context.config.says("use_mora"):
        return [mora_pair(context, module)]
    embedding = "lora_embedding_A" in module.parts or "lora_embedding_B" in module.parts
    A, B = _factors(context, module, "lora_embedding_" if embedding else "lora_")
    stored = context.base.weight(module.path) if context.base is not None else None
    if context.base is not None and stored is None:
        raise context.base.missing(module.path, context.source)
    if _grouped(A.shape, B.shape, context.base[stored].shape if context.base is not None and stored else None):
        why = "its convolution has groups, LoRA mixes all inputs, and peft itself does not merge it"
        return [Skipped(stored or module.path + ".weight", Reason.NO_DELTA, why)]
    update, base = _weight(context, module, A, B, embedding)
    rows = update.shape[0] if base is not None and has_vocabulary(update.name, 2) else None
    crop = rows if base is not None and rows is not None and rows < base.shape[0] else None
    view = View(crop=crop, transposed=update.transposed)
    out: list[Pair | Skipped] = [Pair(update.name, base, update, view)]
    outputs = _product(context, module, A, B, embedding)[0]
    if rows is not None and rows < outputs:
        out.append(added_rows(update.name, rows, outputs))
    if update.needs_base and base is None:
        out = [Skipped(update.name, Reason.NEEDS_BASE, f"ΔW of {update.adapter_type} depends on the base's weight")]
    if "lora_B.bias" in module.parts:
        out.append(_bias(context, module, update))
    return out


def _factors(context: Context, module: LoraModule, prefix: str) -> tuple[Handle, Handle]:
    """A and B.

    Raises:
        AdapterError: One is missing.
    """
    for have, lack in (("A", "B"), ("B", "A")):
        if prefix + have in module.parts and prefix + lack not in module.parts:
            raise AdapterError(
                f"{context.source}: {module.path} has {prefix}{have} but no {prefix}{lack}; both are needed for ΔW, "
                "the file is incomplete"
            )
    if prefix + "A" not in module.parts:
        raise AdapterError(
            f"{context.source}: {module.path} has {', '.join(module.parts)} but no {prefix}A and {prefix}B"
        )
    return module.parts[prefix + "A"], module.parts[prefix + "B"]


def _grouped(a: tuple[int, ...], b: tuple[int, ...], base: tuple[int, ...] | None) -> bool:
    """Whether the base is a convolution in groups: B is in groups too, or A sees all inputs and the weight a share."""
    if len(a) < 3 or len(b) < 3:
        return False
    shared = base is not None and a[2:] == base[2:] and b[0] == base[0] and a[1] > base[1] > 0
    return shared or (0 < b[1] < a[0] and a[0] % b[1] == 0)


def _weight(
    context: Context, module: LoraModule, A: Handle, B: Handle, embedding: bool
) -> tuple[Update, Handle | None]:
    """The update of a module's weight and the base's handle.

    Raises:
        AdapterError: DoRA without its magnitudes, or magnitudes without DoRA.
    """
    r, s = _adalora(context, module, A, B) if context.adalora else _lora(context, module, A, B)
    low_rank = LowRank(
        name=module.path + ".weight",
        shape=_product(context, module, A, B, embedding),
        terms=(_term(context, module, s, embedding), *_initial(context, module, embedding)),
        adapter_type="adalora" if context.adalora else "lora",
        rank=r,
        scaling=s,
    )
    base: Handle | None = None
    if context.base is not None:
        low_rank, base = _placed(context, context.base, module.path, low_rank, embedding)
    if context.config.says("kasa_config"):
        return Kasa(replace(low_rank, adapter_type="kasa")), base
    if magnitude := module.parts.get("lora_magnitude_vector"):
        if "use_dora" in context.config and not context.config.says("use_dora"):
            raise AdapterError(
                f"{context.source}: {module.path} has a lora_magnitude_vector, but use_dora is off in "
                "adapter_config.json, so that PEFT would leave it out; set use_dora, or take the magnitudes out"
            )
        return Dora(replace(low_rank, adapter_type="dora"), magnitude, columns=embedding), base
    if context.config.says("use_dora"):
        raise AdapterError(
            f"{context.source}: use_dora is set but {module.path} has no lora_magnitude_vector; it is incomplete"
        )
    return low_rank, base


def _placed(context: Context, base: Base, path: str, update: LowRank, embedding: bool) -> tuple[LowRank, Handle]:
    """The update on the base's tensor: its name there, and which way round it is stored.

    Raises:
        AdapterError: The shapes do not fit.
    """
    name = base.weight(path)
    assert name is not None
    handle = base[name]
    if why_unread(handle) is not None:  # the shape is that of its codes
        return replace(update, name=base.named(path, name)), handle
    transposed = stored_transposed(
        handle.shape,
        update.shape,
        context.config,
        base.inputs_first(name),
        "model_type" in base.checkpoint.config,
    )
    if (rows := _common_rows(name, handle.shape, update.shape)) is not None:
        own = tuple(replace(t, B=SomeRows(t.B, 0, rows)) for t in update.terms)
        return replace(update, name=base.named(path, name), terms=own, shape=(rows, update.shape[1])), handle
    if transposed is None or (embedding and transposed):
        what = times(handle.shape)
        raise AdapterError(
            f"{context.source} changes {path} as {update.shape[0]}×{update.shape[1]}, but {name} is {what} in "
            f"{base.source}; give the base that the adapter was trained on"
        )
    return replace(update, name=base.named(path, name), transposed=transposed and not embedding), handle


def _common_rows(name: str, base: tuple[int, ...], product: tuple[int, int]) -> int | None:
    """The tokens that a table of the base and an update of it have in common, where one has more than the other."""
    grown = len(base) == 2 and base[1] == product[1] and base[0] != product[0]
    return min(base[0], product[0]) if grown and has_vocabulary(name, 2) else None


def added_rows(name: str, start: int, stop: int) -> Skipped:
    """The rows of a vocabulary that grew: the base has nothing that they could be compared with."""
    detail = f"{stop - start:,} rows that the base does not have ({start:,} to {stop - 1:,})"
    return Skipped(f"{name}[rows]", Reason.ONLY_IN_FT, detail)


def _lora(context: Context, module: LoraModule, A: Handle, B: Handle) -> tuple[int, float]:
    """Rank and scaling from the config, checked against the tensors.

    Raises:
        AdapterError: The tensors have another rank.
    """
    r = rank(context.config, module.path)
    blocks = _blocks(context.config, module.path)[1] or 1
    if len(A.shape) < 2 or len(B.shape) < 2 or A.shape[0] != r or B.shape[1] * blocks != r:
        where = "rank_pattern" if context.config.says("rank_pattern") else "r"
        raise AdapterError(
            f"{context.source}: {where} in adapter_config.json gives {module.path} rank {r}, but its tensors are "
            f"{A.name.rsplit('.', 2)[-2]} {_size(A)} and {B.name.rsplit('.', 2)[-2]} {_size(B)}"
        )
    return r, scale(context.config, module.path)


def _adalora(context: Context, module: LoraModule, A: Handle, B: Handle) -> tuple[int, float]:
    """Stored rank and α/(init_r + 1e-5): pruning keeps the scaling of the initial rank.

    Raises:
        AdapterError: Λ is missing, or the tensors have another rank than the config gives.
    """
    if "lora_E" not in module.parts:
        raise AdapterError(f"{context.source}: {module.path} has lora_A and lora_B but no lora_E; AdaLoRA needs its Λ")
    r, init = A.shape[0], context.config.whole("init_r", 12)
    masks = context.config.inner("rank_pattern").values
    mask = next((m for n, m in masks.items() if n.split(".lora_E")[0].endswith(module.path)), None)
    kept = sum(map(bool, mask)) if isinstance(mask, list) else init
    if r != kept or B.shape[1] != r or prod(module.parts["lora_E"].shape) != r:
        raise AdapterError(
            f"{context.source}: adapter_config.json gives {module.path} rank {kept}, but its tensors are "
            f"lora_A {_size(A)}, lora_B {_size(B)} and lora_E {_size(module.parts['lora_E'])}"
        )
    alpha = context.config.number("lora_alpha", 8)
    return r, (alpha if alpha > 0 else float(init)) / (init + ADALORA_EPSILON)


def _size(handle: Handle) -> str:
    return times(handle.shape)


def _blocks(config: Document, path: str) -> tuple[int, int]:
    """BD-LoRA: the number of blocks of A and of B, 0 where a factor is stored whole."""
    if not config.says("use_bdlora"):
        return 0, 0
    bd = config.inner("use_bdlora")
    n = bd.whole("nblocks", 1)
    a, b = (n if any(p in path for p in bd.texts(f"target_modules_bd_{x}")) else 0 for x in "ab")
    return a, b


def _product(context: Context, module: LoraModule, A: Handle, B: Handle, embedding: bool) -> tuple[int, int]:
    """Outputs × inputs of the product."""
    if embedding:
        return A.shape[1], B.shape[0]
    return B.shape[0], prod(A.shape[1:]) * (_blocks(context.config, module.path)[0] or 1)


def _term(context: Context, module: LoraModule, s: float, embedding: bool) -> Term:
    parts = module.parts
    if embedding:  # W + (B·A)ᵀ
        return Term(
            s,
            FactorSource((parts["lora_embedding_A"],), transpose),
            FactorSource((parts["lora_embedding_B"],), transpose),
        )
    if "lora_E" in parts:
        return Term(
            s, FactorSource((parts["lora_B"],), matrix), FactorSource((parts["lora_A"], parts["lora_E"]), scaled_rows)
        )
    if "lora_diag" in parts:
        return Term(
            s,
            FactorSource((parts["lora_B"],), matrix),
            FactorSource((parts["lora_A"], parts["lora_diag"]), scaled_rows),
        )
    a, b = (partial(block_diagonal, blocks=n) if n else matrix for n in _blocks(context.config, module.path))
    return Term(s, FactorSource((parts["lora_B"],), b), FactorSource((parts["lora_A"],), a))


def _initial(context: Context, module: LoraModule, embedding: bool) -> tuple[Term, ...]:
    """What training began with, taken away: ΔW = s·B·A − s0·B0·A0.

    Raises:
        AdapterError: The initial adapter lacks the module.
    """
    if context.initial is None:
        return ()
    modules, config = context.initial
    start = modules.get(module.path)
    if start is None:
        raise AdapterError(
            f"{context.source}: the initial adapter beside it lacks {module.path}; they do not belong together"
        )
    before = Context(context.source, config, None)
    return (_term(before, start, -scale(config, module.path), embedding),)


def _bias(context: Context, module: LoraModule, update: Update) -> Pair | Skipped:
    """The update of a bias; a base without one cannot take it (PEFT refuses the same).

    Raises:
        AdapterError: The base has no such bias, or one of another size.
    """
    handle = module.parts["lora_B.bias"]
    name: str | None = update.name.removesuffix(".weight") + ".bias"
    assert name is not None
    if context.base is not None:
        name = context.base.find(module.path + ".bias")
        if name is None:
            raise AdapterError(
                f"{context.source} adds to the bias of {module.path}, but {context.base.source} has no bias there"
            )
        if context.base[name].shape != handle.shape:
            found = _size(context.base[name])
            raise AdapterError(
                f"{context.source} adds {_size(handle)} values to {name}, which has {found} in {context.base.source}"
            )
    assert update.scaling is not None
    bias = Added(name, (handle.shape[0], 1), handle, update.rank, update.scaling, update.adapter_type)
    return Pair(name, context.base[name] if context.base is not None else None, bias)


def mora_pair(context: Context, module: LoraModule) -> Pair | Skipped:
    """MoRA's square matrix; its width says only in + out, so the base must say the shape.

    Raises:
        AdapterError: M is not square, does not have the size that the rank gives, or the base lacks the module.
    """
    handle = module.parts.get("lora_A") or module.parts.get("lora_B")
    if handle is None or len(handle.shape) != 2 or handle.shape[0] != handle.shape[1]:
        found = _size(handle) if handle is not None else "nothing"
        raise AdapterError(f"{context.source}: MoRA needs a square lora_A for {module.path}, found {found}")
    if context.base is None:
        return Skipped(module.path + ".weight", Reason.NEEDS_BASE, "the shape of MoRA's ΔW is known from the base only")
    name = context.base.weight(module.path)
    if name is None:
        raise context.base.missing(module.path, context.source)
    base = context.base[name]
    if (why := why_unread(base)) is not None:
        return replace(why, name=name)
    transposed = context.base.inputs_first(name)
    rows, cols = base.shape[0], prod(base.shape[1:])
    update = mora.Mora(
        name=name,
        shape=(cols, rows) if transposed else (rows, cols),
        handle=handle,
        kind=context.config.whole("mora_type", 1),
        transposed=transposed,
    )
    r = rank(context.config, module.path)
    mora.check(update, r, context.source)
    return Pair(name, base, update, View(transposed=transposed))
