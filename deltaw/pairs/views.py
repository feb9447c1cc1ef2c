"""The matrices of one pair of stored tensors: one, one per expert, or one per part of a fused tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from math import prod

from deltaw.checkpoints import numeric
from deltaw.tensors.layout import Layout, parts
from deltaw.tensors.names import has_vocabulary, kind, place
from deltaw.types import Cell, Handle, Pair, Reason, Skipped, View, times


def is_floating(handle: Handle) -> bool:
    """Whether a tensor holds real floating-point numbers; bare exponents, the scales of MXFP8 blocks, are not."""
    return _floats(handle.dtype)


@lru_cache(maxsize=256)
def _floats(dtype: str) -> bool:
    return numeric(dtype).startswith(("float", "bfloat")) and dtype != "float8_e8m0fnu"


def view_of(b: Handle, f: Handle) -> View | Skipped:
    """How two tensors of one name are compared, or why they are not."""
    if not (is_floating(b) and is_floating(f)):
        dtypes = b.dtype if b.dtype == f.dtype else f"{b.dtype} in the base, {f.dtype} in the fine-tuned checkpoint"
        return Skipped(f.name, Reason.NOT_FLOATING, dtypes)
    if b.shape == f.shape:
        return View()
    resized = len(b.shape) == len(f.shape) >= 1 and b.shape[1:] == f.shape[1:] and b.shape[0] and f.shape[0]
    if resized and has_vocabulary(f.name, len(f.shape)):
        return View(crop=min(b.shape[0], f.shape[0]))
    return Skipped(f.name, Reason.SHAPE_MISMATCH, f"{size(b)} in the base, {size(f)} in the fine-tuned checkpoint")


def matrices(pair: Pair, layout: Layout, *, split: bool) -> Iterable[Pair]:
    """The matrices of one pair of stored tensors.

    Args:
        pair: The tensors, and how many of their rows are compared.
        layout: How the fine-tuned side stores matrices.
        split: One per part of a fused tensor.
    """
    shape = pair.ft.shape
    if pair.view.crop is not None:
        shape = (pair.view.crop, *shape[1:])
    if len(shape) < 2 or not prod(shape):
        yield pair
        return
    piece = bool(pair.view.part)  # cut out of a stack, and turned round already
    transposed = not piece and layout.inputs_first(pair.name, shape)
    if pair.name in layout.stacks and not piece:
        alone = shape[0] == 1  # a leading 1 is no stack
        stack = [replace(pair.view, expert=e, part="" if alone else f"expert {e}") for e in range(shape[0])]
        rows, cols = shape[1:]
    else:
        stack = [pair.view]
        rows, cols = shape[0], prod(shape[1:])
    if transposed:
        rows, cols = cols, rows
    slices = parts(pair.name, rows, cols, layout.config) if split and not piece else None
    for view in stack:
        if transposed:
            view = replace(view, transposed=True)
        if slices is None:
            yield pair if view is pair.view else replace(pair, view=view)
        else:
            for part, ranges in slices.items():
                yield replace(pair, view=replace(view, rows=ranges, part=f"{view.part} {part}".strip()))


def split_update(pair: Pair, layout: Layout) -> Iterable[Pair]:
    """The parts of a fused tensor that an adapter changes as one."""
    whole = len(pair.ft.shape) != 2 or any(part in pair.view.part.split() for part in ("gate", "up"))
    slices = None if whole else parts(pair.name, *pair.shape, layout.config)
    if slices is None:
        return (pair,)
    view = pair.view
    return [
        replace(pair, view=replace(view, rows=ranges, part=f"{view.part} {part}".strip()))
        for part, ranges in slices.items()
    ]


def identity(pair: Pair) -> dict[str, Cell]:
    """The identity columns of a pair's row."""
    where = place(pair.name)
    rows, cols = pair.shape
    base_dtype, ft_dtype = pair.dtypes
    return {
        "name": pair.name,
        "stack": where.stack,
        "layer": where.layer,
        "module": where.module,
        "kind": kind(pair.name, pair.ndim),
        "part": pair.view.part,
        "rows": rows,
        "cols": cols,
        "ndim": pair.ndim,
        "base_dtype": base_dtype,
        "ft_dtype": ft_dtype,
    }


def size(handle: Handle) -> str:
    """A shape in words: `4×16`."""
    return times(handle.shape)
