"""The factors of every target, matrix by matrix: spectra where they decide the ranks, then B = U√σ and A = √σVᵀ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from deltaw.activations.matching import MatrixInputs
from deltaw.delta.difference import Delta, difference
from deltaw.edits.budget import Menu, spend
from deltaw.edits.curve import EnergyCurve, energy_curve
from deltaw.edits.directions import KnownSpectrum, residual, spread, triplets
from deltaw.edits.for_data import MatrixData
from deltaw.edits.parts import EditFolder, FinishedMatrix, MatrixKept
from deltaw.edits.placement import PairTarget, Placement
from deltaw.edits.policies import Policy, menus
from deltaw.edits.units import Show, each
from deltaw.errors import EditError, TensorError
from deltaw.measurement.engines.sharing import Workers
from deltaw.spectra import Triplets
from deltaw.types import Pair, Reason, Skipped


@dataclass(frozen=True)
class Made:
    """What the matrices gave.

    Attributes:
        placed: What was asked for; of the targets those with a pair.
        ranks: Their ranks, by the tensor's name.
        found: What is finished of each matrix, by its key.
        skipped: What is left out.
        gap: Of a budget.
        read: Reads the factors of a matrix.
        curve: What more or fewer numbers would keep; None for pairs that were made for a data set.
    """

    placed: Placement
    ranks: Mapping[str, int]
    found: Mapping[str, FinishedMatrix]
    skipped: tuple[Skipped, ...]
    gap: float
    read: Callable[[str], tuple[Tensor, Tensor]]
    curve: EnergyCurve | None = None


class Maker:
    """Makes the factors of all targets, matrix by matrix."""

    def __init__(
        self,
        parts: EditFolder,
        policy: Policy,
        dtype: str,
        workers: Workers,
        progress: Show | None,
        inputs: MatrixInputs | None = None,
    ) -> None:
        self.parts, self.policy, self.dtype = parts, policy, dtype
        self.workers, self.progress, self.inputs = workers, progress, inputs

    def make(self, placed: Placement) -> Made:
        """Spectra where they decide the ranks, then factors.

        Raises:
            EditError: Nothing is kept, or the budget is too small.
        """
        policy = self.policy
        alone = {t.pairs[0].key: t for t in placed.targets if len(t.pairs) == 1}
        pairs = placed.pairs
        at_once = policy.parameters is None
        first = partial(self._first, alone=alone if at_once else {})
        found = self._each(pairs, first)
        failed = [Skipped(p.label, Reason.FAILED, subject=why) for p in pairs if isinstance(why := found[p.key], str)]
        targets = [t for t in placed.targets if not any(isinstance(found[p.key], str) for p in t.pairs)]
        known = {key: part for key, part in found.items() if isinstance(part, FinishedMatrix)}
        ranks, gap = self._ranks(targets, known, placed)
        later = {p.key: ranks[t.name] for t in targets for p in t.pairs if ranks[t.name] and known[p.key].kept is None}
        if later:
            rest = [p for p in pairs if p.key in later]
            again = self._each(rest, lambda pair, device: self._factors(pair, device, later[pair.key], known[pair.key]))
            failed += [Skipped(p.label, Reason.FAILED, subject=w) for p in rest if isinstance(w := again[p.key], str)]
            known |= {key: part for key, part in again.items() if isinstance(part, FinishedMatrix)}
        bad = {s.name for s in failed}
        kept = tuple(t for t in targets if ranks[t.name] and not any(p.label in bad for p in t.pairs))
        if not kept:
            raise EditError(self._nothing(known, failed, placed))
        noise = [Skipped(t.name, Reason.NO_DELTA, self._why(t, known)) for t in targets if not ranks[t.name]]
        told = tuple(s for s in noise if s.detail)
        return Made(
            replace(placed, targets=kept),
            {t.name: ranks[t.name] for t in kept},
            known,
            (*placed.left_out, *told, *failed),
            gap,
            partial(self._read, {p.key: (p, ranks[t.name]) for t in kept for p in t.pairs}, known),
            None if self.inputs is not None else energy_curve(placed, known),
        )

    def _each(
        self, pairs: Sequence[Pair], function: Callable[[Pair, torch.device], FinishedMatrix]
    ) -> dict[str, FinishedMatrix | str]:
        return each(pairs, function, self.workers, self.progress, on_data=self.inputs is not None)

    def _first(self, pair: Pair, device: torch.device, *, alone: Mapping[str, PairTarget]) -> FinishedMatrix:
        """The spectrum of one matrix, and its factors where nothing else has a say in its rank."""
        done = self.parts.get(pair.key)
        if done is not None:
            return done
        delta = difference(pair, device)
        if delta.value is None or not delta.sums.delta_row_sq.any():
            return self._put(pair, FinishedMatrix(_nothing_changed(), MatrixKept(0, 0.0, 0.0, 0.0, 0)), {})
        wanted = self.policy.rank if self.policy.keeps_noise else None
        k = min(pair.shape)
        asked = None if wanted is None else min(self.policy.snapped(wanted), k)
        data = self._data(pair, device)
        known, found = spread(delta, asked) if data is None else data.spread(delta, asked)
        if asked is None and pair.key not in alone:
            return self._put(pair, FinishedMatrix(known), {})
        rank = self.policy.wanted([known.above])
        if not rank:
            return self._put(pair, FinishedMatrix(known, _nothing_kept(known, delta, data)), {})
        keep = min(rank, k) if self.policy.keeps_noise else min(rank, len(known.above))
        top = found if found is not None else triplets(delta, keep)
        kept, factors = _pair(delta, top, keep, rank, self.dtype, data)
        kept = replace(kept, signal=known.signal)
        return self._put(pair, FinishedMatrix(known, kept), factors)

    def _data(self, pair: Pair, device: torch.device) -> MatrixData | None:
        return None if self.inputs is None else MatrixData.of(pair, self.inputs, device)

    def _factors(self, pair: Pair, device: torch.device, rank: int, known: FinishedMatrix) -> FinishedMatrix:
        """The factors of a matrix whose rank was decided among others."""
        done = self.parts.get(pair.key)
        if done is not None and done.kept is not None and done.kept.rank == rank:
            return done
        keep = min(rank, len(known.spread.above))
        data = self._data(pair, device)
        if not keep and data is None:
            return self._put(pair, FinishedMatrix(known.spread, _nothing_kept(known.spread)), {})
        delta = difference(pair, device)
        if not keep:
            return self._put(pair, FinishedMatrix(known.spread, _nothing_kept(known.spread, delta, data)), {})
        top = triplets(delta, keep) if data is None else data.best(delta, len(known.spread.above))
        kept, factors = _pair(delta, top, keep, rank, self.dtype, data)
        return self._put(pair, FinishedMatrix(known.spread, replace(kept, signal=known.spread.signal)), factors)

    def _read(
        self, asked: Mapping[str, tuple[Pair, int]], known: Mapping[str, FinishedMatrix], key: str
    ) -> tuple[Tensor, Tensor]:
        """The factors of a matrix; zeros for an expert that did not change among others that did."""
        kept = known[key].kept
        if kept is not None and kept.rank:
            return self.parts.factors(key)
        pair, rank = asked[key]
        (m, n), stored = pair.shape, getattr(torch, self.dtype)
        return torch.zeros(m, rank, dtype=stored), torch.zeros(rank, n, dtype=stored)

    def _put(self, pair: Pair, part: FinishedMatrix, factors: Mapping[str, Tensor]) -> FinishedMatrix:
        self.parts.put(pair.key, part, factors)
        return part

    def _ranks(
        self, targets: Sequence[PairTarget], known: Mapping[str, FinishedMatrix], placed: Placement
    ) -> tuple[dict[str, int], float]:
        """The rank of every target; and by how much the best choice may keep more.

        Raises:
            EditError: The budget holds no direction.
        """
        policy = self.policy
        above = [[known[p.key].spread.above for p in t.pairs] for t in targets]
        if policy.parameters is None:
            changed = [any(known[p.key].spread.energy for p in t.pairs) for t in targets]
            wanted = zip(targets, above, changed, strict=True)
            return {t.name: policy.wanted(s) if there else 0 for t, s, there in wanted}, 0.0
        whole = sum(w.parameters for w in placed.whole)
        left = policy.parameters - whole
        offers = [Menu(t.cost, *menu) for t, menu in zip(targets, menus(policy, above), strict=True)]
        least = min((int(o.ranks[0]) * o.cost for o in offers if len(o.ranks)), default=0)
        if least and left < least:
            taken = f"{whole:,} of them are stored whole (--save-modules none leaves that out) and " if whole else ""
            raise EditError(
                f"a budget of {policy.parameters:,} numbers holds no direction: {taken}the smallest pair takes "
                f"{least:,}"
            )
        spent = spend(offers, left)
        return {t.name: r for t, r in zip(targets, spent.ranks, strict=True)}, spent.gap

    def _why(self, target: PairTarget, known: Mapping[str, FinishedMatrix]) -> str:
        """Why a target has no pair; empty where it did not change."""
        if not any(known[p.key].spread.energy for p in target.pairs):
            return ""
        if self.policy.parameters is not None and any(len(known[p.key].spread.above) for p in target.pairs):
            return "the budget keeps more elsewhere"
        return "nothing of its update stands above the rounding of its storage"

    def _nothing(self, known: Mapping[str, FinishedMatrix], failed: Sequence[Skipped], placed: Placement) -> str:
        if failed:
            return f"no matrix could be kept ({failed[0].name}: {failed[0].subject})"
        if not any(part.spread.energy for part in known.values()):
            others = [(w.name, w.why) for w in placed.whole] + [(s.name, s.detail or s.reason) for s in placed.left_out]
            if not others:
                return "no matrix changed: there is no update to extract"
            first, why = others[0]
            more = f"; so are {len(others) - 1:,} more" if len(others) > 1 else ""
            return f"no matrix that an adapter could hold as factors changed ({first} is left aside: {why}{more})"
        return (
            "nothing of the update stands above the rounding of its storage, so there is nothing to keep; "
            "--rank keeps directions whether they are noise or not"
        )


def _nothing_changed() -> KnownSpectrum:
    return KnownSpectrum(np.zeros(0), 0.0, 0.0, 0)


def _nothing_kept(known: KnownSpectrum, delta: Delta | None = None, data: MatrixData | None = None) -> MatrixKept:
    value = None if delta is None else delta.value
    size = None if data is None or value is None else data.within(value, math.sqrt(known.energy))[0]
    return MatrixKept(0, known.energy, 0.0, math.sqrt(known.energy), known.signal, size, size)


def _pair(
    delta: Delta, top: Triplets, keep: int, rank: int, dtype: str, data: MatrixData | None
) -> tuple[MatrixKept, dict[str, Tensor]]:
    """B and A as they are stored, padded with zeros to the rank; and what they keep.

    Raises:
        TensorError: An entry does not fit into the dtype.
    """
    stored: torch.dtype = getattr(torch, dtype)
    keep = min(keep, len(top.S))  # thin factors have no more directions
    root = top.S[:keep].clamp(min=0).sqrt()
    B, A = top.U[:, :keep] * root, root[:, None] * top.Vh[:keep]
    B, A = (f.to(stored).cpu() for f in (B, A))
    if not bool(B.isfinite().all() and A.isfinite().all()):
        raise TensorError(f"a factor does not fit into {dtype}; choose --dtype bfloat16 or float32")
    pad = rank - keep
    B = torch.nn.functional.pad(B, (0, pad))
    A = torch.nn.functional.pad(A, (0, 0, 0, pad))
    energy = float(delta.sums.delta_row_sq.sum())
    held = min(energy, float((top.S[:keep].double() ** 2).sum()))
    kept = MatrixKept(rank, energy, held, residual(delta, B, A), None)
    if data is not None and delta.value is not None:
        size, _ = data.within(delta.value, math.sqrt(energy))
        kept = replace(kept, size_on_data=size, error_on_data=data.error(delta, B, A, kept.error))
    return kept, {"B": B, "A": A}
