"""Where another checkpoint keeps each tensor of a base: under another name, in other pieces, the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from deltaw.checkpoints import Checkpoint
from deltaw.pairs.experts import pieces
from deltaw.pairs.matching import Joined, join
from deltaw.pairs.orientation import orientations
from deltaw.pairs.piece import Piece
from deltaw.tensors.layout import Layout
from deltaw.tensors.slices import Assembled, Slice
from deltaw.types import Handle


class Counterparts(NamedTuple):
    """The other checkpoint's tensors by the base's names, each of the base's shape where it can be.

    Attributes:
        found: Handles by the base's names.
        lacking: The base's tensors that the other checkpoint does not have.
        extra: The other checkpoint's tensors that the base does not have.
    """

    found: dict[str, Handle]
    lacking: list[str]
    extra: list[str]


def counterparts(tensors: Mapping[str, Handle], base: Checkpoint, other: Checkpoint) -> Counterparts:
    """Look every tensor up, by the rules by which checkpoints are paired.

    Args:
        tensors: The base's tensors, and what an adapter adds to them.
        base: The base, for its config.
        other: The checkpoint that is searched.
    """
    layouts = (
        Layout.of(((n, h.shape) for n, h in tensors.items()), base.config or other.config),
        Layout.of(((n, h.shape) for n, h in other.tensors.items()), other.config or base.config),
    )
    left, right = pieces(tensors, other.tensors, layouts)
    ours, theirs = ({n: p.handle.shape for n, p in side.items()} for side in (left, right))
    joined = join(ours, theirs, base.config, other.config)
    there = {b: f for f, b in joined.pairs.items()}
    ways = orientations((b, left[b].handle.shape, right[f].handle.shape) for b, f in there.items())
    found: dict[str, Handle] = {}
    parts: dict[str, list[tuple[Slice, Handle]]] = {}
    for at, piece in left.items():
        if at not in there:
            continue
        handle = right[there[at]].handle
        if isinstance(piece.handle, Slice) and piece.part:
            parts.setdefault(piece.name, []).append((piece.handle, handle))
        else:
            found[at] = Slice(handle.name, handle, transposed=True) if ways.get(at) == "turned" else handle
    wanted = _pieces_of(left)
    found |= {n: Assembled(n, tensors[n].shape, tuple(p)) for n, p in parts.items() if len(p) == wanted[n]}
    return Counterparts(found, [n for n in tensors if n not in found], _extra(joined, right))


def _pieces_of(side: Mapping[str, Piece]) -> dict[str, int]:
    """How many pieces each tensor was cut into."""
    out: dict[str, int] = {}
    for piece in side.values():
        out[piece.name] = out.get(piece.name, 0) + 1
    return out


def _extra(joined: Joined, right: Mapping[str, Piece]) -> list[str]:
    return list(dict.fromkeys(right[at].name for at in joined.right))
