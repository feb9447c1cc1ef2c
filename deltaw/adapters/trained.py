"""What an adapter stores whole: modules_to_save, trained biases, embeddings, and the trained rows of an embedding.

These are weights, not differences: each replaces a tensor of the base and is measured like one of a full checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.adapters.lora import Context
from deltaw.checkpoints import why_unread
from deltaw.errors import AdapterError
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, Pair, Reason, Skipped, times

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Renamed:
    """A stored tensor under the name that the base has for it."""

    name: str
    handle: Handle

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.handle.shape

    @property
    def dtype(self) -> str:
        """The stored dtype."""
        return self.handle.dtype

    @property
    def nbytes(self) -> int:
        """The stored size."""
        return self.handle.nbytes

    @property
    def storage(self) -> Hashable:
        """The memory of the stored tensor."""
        return self.handle.storage

    def read(self, rows: slice | None = None) -> Tensor:
        """The stored tensor.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        return self.handle.read(rows)


@dataclass(frozen=True)
class TrainedRows:
    """An embedding of the base in which some rows are replaced; only the rows asked for are read.

    PEFT calls the stored rows `trainable_tokens_delta`, but they are the trained values themselves.
    """

    name: str
    base: Handle
    rows: Handle
    indices: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The base's dtype, which the merged rows are cast to."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """The size of the merged tensor."""
        return self.base.nbytes

    @property
    def storage(self) -> Hashable:
        """Its own: it is neither the base's tensor nor the stored rows."""
        return ("trained rows", self.base.storage, self.rows.storage)

    def read(self, rows: slice | None = None) -> Tensor:
        """The merged tensor, or some of its rows.

        Raises:
            CheckpointError: The bytes of either cannot be read.
        """
        import torch

        merged = self.base.read(rows).clone()
        start, stop, _ = (rows or slice(None)).indices(self.shape[0])
        inside = [(k, i - start) for k, i in enumerate(self.indices) if start <= i < stop]
        if inside:
            take, put = (torch.tensor(t) for t in zip(*inside, strict=True))
            merged[put] = self.rows.read()[take].to(merged.dtype)
        return merged


def saved_pairs(context: Context, saved: Mapping[str, Handle], adapted: Collection[str]) -> list[Pair | Skipped]:
    """Stored weights against the base's; an embedding that LoRA adapts as well is `embeddings`' concern.

    Args:
        context: The adapter and its base.
        saved: Stored tensors by the base's name.
        adapted: Modules that have LoRA factors; their saved base weight is no trained tensor.
    """
    out: list[Pair | Skipped] = []
    for name, handle in saved.items():
        if name.removesuffix(".weight") in adapted:
            continue
        if context.base is None:
            out.append(Skipped(name, Reason.NEEDS_BASE, "stored whole, as a weight and not as a difference"))
            continue
        module = name.removesuffix(".weight")
        stored = context.base.find(name) or (context.base.tied(module) if module != name else None)
        if stored is None:
            out.append(Skipped(name, Reason.ONLY_IN_FT, times(handle.shape)))
        else:
            own = context.base.named(module, stored)
            out.append(Pair(own, context.base[stored], Renamed(own, handle)))
    return out


def token_pairs(context: Context, tokens: Mapping[str, Handle], indices: Any) -> list[Pair | Skipped]:
    """Embeddings of which some rows were trained.

    Args:
        context: The adapter and its base.
        tokens: Trained rows by module.
        indices: `trainable_token_indices` or `token_indices`: a list, or lists by the end of a module's path.

    Raises:
        AdapterError: The rows and their indices do not fit each other, or the base.
    """
    out: list[Pair | Skipped] = []
    for module, handle in tokens.items():
        rows = _indices(indices, module)
        if rows is None or len(rows) != handle.shape[0]:
            given = "none" if rows is None else str(len(rows))
            raise AdapterError(
                f"{context.source}: {handle.shape[0]} trained rows for {module}, but its config names {given} tokens"
            )
        if context.base is None:
            out.append(
                Skipped(f"{module}.weight", Reason.NEEDS_BASE, "trained token rows are weights and not differences")
            )
            continue
        name = context.base.weight(module)
        if name is None:
            raise context.base.missing(module, context.source)
        base = context.base[name]
        if base.shape[1:] != handle.shape[1:] or min(rows) < 0:
            found = times(base.shape)
            raise AdapterError(
                f"{context.source} replaces rows up to {max(rows)}, {handle.shape[1]} wide, in {name}, which is "
                f"{found} in {context.base.source}; give the base that the adapter was trained on"
            )
        own = context.base.named(module, name)
        new = [i for i in rows if i >= base.shape[0]]
        if new:
            detail = f"{len(new):,} trained rows that the base does not have (from {min(new):,})"
            out.append(Skipped(f"{own}[rows]", Reason.ONLY_IN_FT, detail))
        if len(new) < len(rows):
            out.append(Pair(own, base, TrainedRows(own, base, handle, tuple(rows))))
    return out


def _indices(indices: Any, module: str) -> Sequence[int] | None:
    if isinstance(indices, Mapping):
        indices = next((v for k, v in indices.items() if module == k or module.endswith(f".{k}")), None)
    if isinstance(indices, list) and indices and all(isinstance(i, int) for i in indices):
        return indices
    return None


def changed_base(context: Context, saved: Mapping[str, Handle], module: str) -> Skipped | None:
    """Why B·A is not the update of an embedding whose weight is stored beside its factors; None where it is.

    PEFT stores it (`save_embedding_layers`) whether or not it changed. Where it did, the embedding was resized or
    trained, and LoRA came on top.
    """
    handle = saved.get(f"{module}.weight")
    name = context.base.weight(module) if context.base is not None else None
    if handle is None or name is None or context.base is None:
        return None
    base = context.base[name]
    if why := why_unread(base):
        return why
    rows = range(min(base.shape[0], handle.shape[0])) if base.shape and handle.shape else None
    if base.shape[1:] == handle.shape[1:] and same(Slice(name, base, rows=rows), Slice(name, handle, rows=rows)):
        return None  # or a table that has more tokens than the base's, and the same numbers for those that both have
    kept, there = (times(h.shape) for h in (handle, context.base[name]))
    detail = f"the adapter stores a weight of its own ({kept}) below its LoRA factors, not the base's ({there})"
    return Skipped(
        context.base.named(module, name), Reason.SHAPE_MISMATCH if kept != there else Reason.BASE_CHANGED, detail
    )


def same(a: Handle, b: Handle, block: int = 4096) -> bool:
    """Whether two tensors hold the same numbers (or bits: a NaN), compared in row blocks after a common upcast."""
    import torch

    from deltaw.tensors.bits import same_bits

    if a.shape != b.shape:
        return False
    # a scalar has no rows: it is read whole
    blocks = [slice(i, i + block) for i in range(0, a.shape[0], block)] if a.shape else [None]
    for rows in blocks:
        x, y = a.read(rows), b.read(rows)
        if x.dtype != y.dtype:
            common = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(common), y.to(common)
        if not (same_bits(x, y) or torch.equal(x, y)):
            return False
    return True
