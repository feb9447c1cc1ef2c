"""Is a merged checkpoint its base plus the adapter? Every tensor is compared with W0 + ΔW, in blocks of rows.

What counts as rounding (u is the unit roundoff of the coarser of the two storage dtypes, 2^-8 for bfloat16):

* half an ulp of the merged entry, for storing it, and half an ulp of W0 in the merged dtype where that is narrower;
* where an update is added, 4u·|B|·|A|: a merge in the storage dtype rounds the factors, their product and the scaled
  product, each by u at most; plus the accumulation of an r-term sum in float32;
* for dense methods (DoRA, rotations, …) 8u·(|W0| + |ΔW|) and as much of its root mean square over the row, because
  they mix the entries of a row; plus the float32 arithmetic of decompositions;
* nothing else. Tensors that the adapter does not touch must be the base's, cast.

A quantised merge is checked against its own cells: an entry may differ from W0 + ΔW by as much as rounding to its code
moves it, no further, and how much of the update that leaves (c) is told, not judged.

The bound alone would let pass what leaves a small update out, so the merge must also hold the right multiple of it:
c = ⟨W − W0, ΔW⟩/‖ΔW‖² against the c of a correctly rounded merge. Where c is far from it, it says what happened: 0 no
update, 2 merged twice, 1/s the scaling forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, cast

import torch

from deltaw.adapters import Adapter
from deltaw.adapters.base import Base
from deltaw.adapters.keys import adapter_names, saved_name
from deltaw.adapters.merging import expected_blocks
from deltaw.adapters.trained import same
from deltaw.checkpoints import Checkpoint, numeric, open_checkpoint, why_unread
from deltaw.delta.cells import cells
from deltaw.errors import CheckpointError
from deltaw.pairs.counterparts import counterparts
from deltaw.pairs.views import is_floating, size
from deltaw.tensors.names import has_vocabulary
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, JsonValue, Pair, Reason, Update, is_update
from deltaw.verification.opening import Progress, opened_updates
from deltaw.verification.sums import CodeGrid, TensorSums, TensorVerdict, Work

WORDS = {"equal": "equal", "rounding": "equal up to storage rounding", "differs": "differs", "missing": "missing"}


@dataclass(frozen=True)
class Verification:
    """The verdict on every tensor of a base, an adapter and a merged checkpoint."""

    base: str
    adapter: str
    merged: str
    tensors: tuple[TensorVerdict, ...] = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by status."""
        return {s: sum(t.status == s for t in self.tensors) for s in WORDS}

    @property
    def passed(self) -> bool:
        """Whether every tensor is what it should be."""
        return not (self.counts["differs"] or self.counts["missing"])

    @property
    def survival(self) -> float | None:
        """C over all quantised tensors together; None where none that the adapter changes is quantised."""
        known = [(t.survival, t.update_norm**2) for t in self.tensors if t.survival is not None]
        total = sum(size for _, size in known)
        return sum(c * size for c, size in known) / total if total else None

    def to_dict(self) -> dict[str, JsonValue]:
        """One JSON object."""
        return {
            "base": self.base,
            "adapter": self.adapter,
            "merged": self.merged,
            "passed": self.passed,
            "counts": self.counts,
            "survival": self.survival,
            "tensors": [asdict(t) for t in self.tensors],
        }

    def lines(self) -> list[str]:
        """One line per tensor that is not equal, then the summary."""
        odd = [t for t in self.tensors if t.status != "equal"]
        out = [f"{t.name}: {WORDS[t.status]}{', ' + t.detail if t.detail else ''}" for t in odd]
        touched = sum(t.touched for t in self.tensors)
        counts = ", ".join(f"{n:,} {words}" for s, words in WORDS.items() if (n := self.counts[s]))
        verdict = "is" if self.passed else "is NOT"
        what = f"{self.merged} {verdict} {self.base} plus {self.adapter}"
        out.append(f"{what}: {counts} ({touched:,} changed by the adapter){self._kept()}")
        return out

    def _kept(self) -> str:
        """What the quantisation of the merged checkpoint left of the update, in words."""
        known = [(t.survival, t.name) for t in self.tensors if t.survival is not None]
        if self.survival is None or not known:
            return ""
        least, name = min(known)
        shown = f", least in {name} ({100 * least:.3g} %)" if len(known) > 1 else ""
        return f"; {100 * self.survival:.3g} % of the update survived its quantisation{shown}"


def verify(
    base: Any,
    adapter: str | Path | Adapter,
    merged: Any,
    *,
    progress: Progress | None = None,
) -> Verification:
    """Hold a merged checkpoint against its base and adapter.

    Args:
        base, merged: Path, Hub id, `nn.Module`, state dict or opened checkpoint.
        adapter: Path, Hub id or opened adapter.
        progress: Called with (done, total, name) before each tensor.

    Raises:
        CheckpointError: One of the three cannot be opened or read.
        AdapterError: The adapter does not fit the base, or part of its ΔW cannot be known.
    """
    found = opened_updates(base, adapter)
    base, adapter, updates = found.base, found.adapter, found.by_name
    merged = open_checkpoint(merged)
    called = adapter_names(adapter.tensors)
    stored = {saved_name(n, called): h for n, h in adapter.tensors.items()}
    new = {s.name: stored[s.name] for s in found.matched.skipped if s.because == Reason.ONLY_IN_FT and s.name in stored}
    tensors = _verdicts(base, merged, updates, new, progress)
    return Verification(base.source, adapter.source, merged.source, tuple(tensors))


def _verdicts(
    base: Checkpoint,
    merged: Checkpoint,
    updates: Mapping[str, Sequence[Pair]],
    new: Mapping[str, Handle],
    progress: Progress | None,
) -> list[TensorVerdict]:
    own = {name: pairs[0].base for name, pairs in updates.items() if pairs[0].base is not None}
    tensors = {**own, **new, **base.tensors}
    there = counterparts(tensors, base, merged)
    out = []
    for i, (name, handle) in enumerate(there.found.items()):
        if progress is not None:
            progress(i, len(there.found), name)
        out.append(_compare(name, tensors[name], updates.get(name, ()), handle))
    out.extend(_lacking(name, base, merged, updates.get(name, ()), there.found) for name in there.lacking)
    out.extend(_extra(name, base, merged, updates) for name in there.extra)
    return out


def _lacking(
    name: str, base: Checkpoint, merged: Checkpoint, pairs: Sequence[Pair], there: Collection[str]
) -> TensorVerdict:
    """A tensor that the merged checkpoint does not store: tied to one that it does, or missing."""
    module = name.removesuffix(".weight")
    memory = base.tensors[name].storage if name in base.tensors else None
    shared = next((n for n, h in base.tensors.items() if n != name and h.storage == memory), None)
    if shared in there and not pairs:
        return TensorVerdict(name, "equal", f"the base keeps it in the same memory as {shared}")
    tied = Base(merged).tied(module) if name.endswith(".weight") else None
    if tied is None or not Base(base).tied(module):
        return TensorVerdict(name, "missing", "the merged checkpoint does not have it", bool(pairs))
    if not pairs:
        return TensorVerdict(name, "equal", "tied to the embedding")
    # The adapter changes the head itself: what the merged checkpoint has for a head must hold that.
    assert pairs[0].base is not None
    found = _compare(name, pairs[0].base, pairs, merged.tensors[tied])
    return replace(found, detail=f"{found.detail} (tied to {tied})".strip())


def _extra(name: str, base: Checkpoint, merged: Checkpoint, updates: Mapping[str, Sequence[Pair]]) -> TensorVerdict:
    """A tensor that only the merged checkpoint stores: a tied head written out, or one that should not be there."""
    tied = Base(base).tied(name.removesuffix(".weight")) if name.endswith(".weight") else None
    if tied is None:
        return TensorVerdict(name, "differs", "only the merged checkpoint has it")
    found = _compare(name, base.tensors[tied], updates.get(tied, ()), merged.tensors[name])
    return replace(found, detail=f"{found.detail} (tied to {tied})".strip())


def _compare(name: str, base: Handle, pairs: Sequence[Pair], merged: Handle) -> TensorVerdict:
    """The verdict on one tensor that both sides store.

    Raises:
        CheckpointError: It is of a format that is not read.
    """
    whole = [p for p in pairs if not is_update(p.ft)]
    adds = [p for p in pairs if is_update(p.ft)]
    source = cast("Handle", whole[-1].ft) if whole else base
    touched = bool(pairs)
    for handle in (source, merged):
        if (why := why_unread(handle)) is not None:
            raise CheckpointError(f"{name} cannot be verified ({why.reason}: {why.detail})")
    more = merged.shape[0] - source.shape[0] if source.shape and merged.shape else 0
    if more > 0 and source.shape[1:] == merged.shape[1:] and has_vocabulary(name, len(source.shape)):
        found = _compare(name, base, pairs, Slice(merged.name, merged, rows=range(source.shape[0])))
        return replace(found, detail=f"{found.detail} ({more:,} rows that the base does not have)".strip())
    if source.shape != merged.shape:
        return TensorVerdict(name, "differs", f"{size(merged)} where {size(source)} is expected", touched, inf)
    if not (is_floating(source) and is_floating(merged)):
        equal = source.dtype == merged.dtype and same(source, merged)
        return TensorVerdict(
            name, "equal" if equal else "differs", "" if equal else f"{merged.dtype}, other values", touched
        )
    if not adds and source.dtype == merged.dtype and same(source, merged):
        return TensorVerdict(name, "equal", "", touched)
    sums = TensorSums(getattr(torch, numeric(source.dtype)), Work.of([cast("Update", p.ft) for p in adds]))
    variances = cells(merged)
    grid = None if variances is None else CodeGrid(merged.dtype, source.dtype == merged.dtype)
    for block in expected_blocks(source, adds):
        sums.add(block, block.read(merged), grid, None if variances is None else block.read(variances))
    verdict = sums.verdict(name, touched)
    if whole and verdict.status == "differs":
        in_base = base.shape == merged.shape and same(base, merged)
        what = (
            "identical to the base: "
            if in_base
            else f"{sums.entries - sums.exact:,} of {sums.entries:,} entries are off: "
        )
        return replace(verdict, detail=f"{what}the weight that the adapter stores is not in it")
    return verdict
