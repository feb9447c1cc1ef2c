"""The factors of every adapter, read again for the pairs: a matrix at a time, in any order."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np

from deltaw.checkpoints import Checkpoint
from deltaw.errors import TensorError
from deltaw.pairs.selection import Selection
from deltaw.spectra import factored_svd
from deltaw.surveys.exact import Thin
from deltaw.surveys.opened import open_member
from deltaw.surveys.parts import SurveyFolder
from deltaw.surveys.table import UpdateTable
from deltaw.tensors.matrix import outputs
from deltaw.types import Factors, Pair, is_update

RELATIVE = 1e-14  # of σ1: singular values below are rounding, and their directions anything


class Factored:
    """Reads thin SVDs by the numbers of adapter and matrix; safe from several threads.

    Args:
        base: The base.
        sources: The adapters, in the order of the table.
        selection: Which of their matrices are looked at.
        table: Adapters by matrices.
        parts: Where leading directions of dense updates were kept.
        identities: Of the adapters, in `parts`.

    Raises:
        DeltaWError: An adapter is gone.
    """

    def __init__(
        self,
        base: Checkpoint | None,
        sources: Sequence[str],
        selection: Selection,
        table: UpdateTable,
        parts: SurveyFolder,
        identities: Sequence[str],
    ) -> None:
        self._table, self._parts, self._identities = table, parts, identities
        # Pickled, since the handles of a hundred thousand matrices would take more memory than their vectors.
        self._pairs: list[dict[str, bytes]] = []
        for i, source in enumerate(sources):
            wanted = {
                c.key
                for c, has, dense in zip(table.columns, table.has[i], table.dense[i], strict=True)
                if has and not dense
            }
            opened = open_member(base, source, selection).pairs if wanted else {}
            self._pairs.append({key: pickle.dumps(opened[key]) for key in wanted if key in opened})

    def __call__(self, adapter: int, column: int) -> Thin:
        """The SVD of one matrix of one adapter.

        Raises:
            DeltaWError: It cannot be read any more.
            TensorError: The adapter was changed meanwhile.
        """
        import torch

        key = self._table.columns[column].key
        if self._table.dense[adapter, column]:
            at, of = self._table.index[adapter, column], self._identities[adapter]
            U, V = (torch.from_numpy(self._parts.tensor(of, f"{side}.{at}")).double() for side in ("left", "right"))
            return Thin(U, torch.zeros(U.shape[1], dtype=torch.float64), V)
        kept = self._pairs[adapter].get(key)
        if kept is None:
            raise TensorError(f"{key}: an adapter was changed while it was read; run again")
        pair: Pair = pickle.loads(kept)
        assert is_update(pair.ft)
        value = pair.ft.delta(None)
        assert isinstance(value, Factors)
        thin = factored_svd(Factors(outputs(value.B, pair.view), value.A))
        r = int(np.count_nonzero(thin.S.numpy() > RELATIVE * float(thin.S[0])))
        return Thin(thin.U[:, :r], thin.S[:r], thin.Vh[:r].T)
