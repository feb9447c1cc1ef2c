"""The matrices of all adapters, side by side: which of them have which, how large each is, of what kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys.parts import Looked
from deltaw.tensors.names import kind, natural
from deltaw.types import Matrix as Array
from deltaw.types import Vector

if TYPE_CHECKING:
    from numpy.typing import NDArray


def name_of(key: str) -> str:
    """The tensor of a matrix's key, see `matrix_key`."""
    return str(json.loads(key)[0]) if key.startswith('["') else key


@lru_cache(maxsize=1 << 16)
def kind_of(key: str) -> str:
    """The kind of module that a matrix belongs to."""
    return kind(name_of(key), 2)


@dataclass(frozen=True)
class SharedMatrix:
    """A matrix that some adapters change; of the same name and another shape is another one."""

    key: str
    shape: tuple[int, int]

    @property
    def kind(self) -> str:
        """Of the module."""
        return kind_of(self.key)


@dataclass(frozen=True)
class UpdateTable:
    """N adapters by K matrices.

    Attributes:
        columns: The matrices.
        index: Which of an adapter's own matrices each is, (N, K); −1 where it has none.
        norms: ‖ΔW‖F, (N, K); 0 where it has none.
        ranks: Directions of factored updates, (N, K); 0 for dense ones, and where there is none.
        dense: Whether the update is no product of factors, (N, K).
    """

    columns: tuple[SharedMatrix, ...]
    index: NDArray[np.int64]
    norms: Array
    ranks: NDArray[np.int64]
    dense: NDArray[np.bool_]

    @cached_property
    def has(self) -> NDArray[np.bool_]:
        """Which adapter has which, (N, K)."""
        return self.index >= 0

    @property
    def sizes(self) -> Vector:
        """Entries of each matrix, (K,)."""
        return np.array([m * n for m, n in (c.shape for c in self.columns)], dtype=np.float64)

    @property
    def kinds(self) -> Mapping[str, NDArray[np.bool_]]:
        """Kinds of modules, and which matrices are of each, (K,)."""
        found = np.array([c.kind for c in self.columns])
        return {str(k): found == k for k in sorted(set(found.tolist()))}

    @staticmethod
    def of(all_: Sequence[Looked]) -> UpdateTable:
        """The table of adapters that were read."""
        known: dict[SharedMatrix, None] = {}
        for looked in all_:
            known.update(dict.fromkeys(map(SharedMatrix, looked.keys, looked.shapes)))
        columns = tuple(sorted(known, key=lambda c: (natural(c.key), c.shape)))
        place = {column: k for k, column in enumerate(columns)}
        shape = (len(all_), len(columns))
        index, ranks = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        norms, dense = np.zeros(shape), np.zeros(shape, dtype=np.bool_)
        for i, looked in enumerate(all_):
            at = [place[SharedMatrix(k, s)] for k, s in zip(looked.keys, looked.shapes, strict=True)]
            index[i, at], norms[i, at], ranks[i, at] = range(len(at)), looked.norms, looked.ranks
            dense[i, at] = np.array(looked.ranks, dtype=np.int64) == 0
        return UpdateTable(columns, index, norms, ranks, dense)
