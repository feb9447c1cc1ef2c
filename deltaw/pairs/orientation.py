"""Matrices that the two sides store the other way round: transformers' `Conv1D` against `Linear`.

Exactly transposed shapes say it. A square matrix looks the same both ways, so its siblings decide: the non-square ones
of its own module in the other layers, else those of its stack, else all of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from deltaw.tensors.names import kind, place

Way = Literal["same", "turned", "unknown"]
Sized = tuple[str, tuple[int, ...], tuple[int, ...]]  # the name, and the shape on either side
TABLES = frozenset({"embedding", "head"})  # rows are tokens or classes in every library


def orientations(matched: Iterable[Sized]) -> dict[str, Way]:
    """How the base's matrix lies to the fine-tuned one's, for every 2-D tensor that both sides have.

    Returns:
        `turned` where one is the transpose of the other, `unknown` for a square one whose siblings disagree.
    """
    matrices = [(n, b, f) for n, b, f in matched if len(b) == len(f) == 2]
    out: dict[str, Way] = {}
    votes: dict[str, Counter[Way]] = {}
    oblong = [m for m in matrices if m[1][0] != m[1][1] or m[2][0] != m[2][1]]
    for name, b, f in oblong:
        out[name] = "turned" if b == f[::-1] else "same"
    if "turned" not in out.values():  # nearly always: no square one can be turned either
        return dict.fromkeys((name for name, _, _ in matrices), "same")
    for name, b, f in oblong:
        if kind(name, 2) not in TABLES and b in (f, f[::-1]):
            for family in _families(name):
                votes.setdefault(family, Counter())[out[name]] += 1
    for name, _, _ in matrices:
        if name not in out:
            out[name] = "same" if kind(name, 2) in TABLES else _settled(name, votes)
    return out


def _families(name: str) -> tuple[str, str, str]:
    """What a matrix has siblings by: the module, without the parts of its path that differ; the stack; the model."""
    where = place(name)
    return f"module {where.module.rsplit('.', 1)[-1]}", f"stack {where.stack}", "model"


def _settled(name: str, votes: dict[str, Counter[Way]]) -> Way:
    for family in _families(name):
        found = votes.get(family)
        if found:
            return next(iter(found)) if len(found) == 1 else "unknown"
    return "same"
