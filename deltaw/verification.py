"""Is a merged checkpoint its base plus the adapter? Every tensor is compared with W0 + ΔW, in blocks of rows.

What counts as rounding (u is the unit roundoff of the coarser of the two storage dtypes, 2^-8 for bfloat16):

* half an ulp of the merged entry, for storing it, and half an ulp of W0 in the merged dtype where that is narrower;
* where an update is added, 4u·|B|·|A|: a merge in the storage dtype rounds the factors, their product and the scaled
  product, each by u at most; plus the accumulation of an r-term sum in float32;
* for dense methods (DoRA, rotations, …) 8u·(|W0| + |ΔW|) and as much of its root mean square over the row, because
  they mix the entries of a row; plus the float32 arithmetic of decompositions;
* nothing else. Tensors that the adapter does not touch must be the base's, cast.

The bound alone would let pass what leaves a small update out, so the merge must also hold the right multiple of it:
c = ⟨W − W0, ΔW⟩/‖ΔW‖² against the c of a correctly rounded merge. Where c is far from it, it says what happened: 0 no
update, 2 merged twice, 1/s the scaling forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isnan, sqrt
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from deltaw.adapters import Adapter, missing_base, open_adapter, open_base
from deltaw.adapters.base import Base
from deltaw.adapters.keys import adapter_names, saved_name
from deltaw.adapters.merging import Expected, expected_blocks
from deltaw.adapters.trained import same
from deltaw.checkpoints import Checkpoint, locate, numeric, open_checkpoint, why_unread
from deltaw.delta.cells import cells
from deltaw.errors import AdapterError, CheckpointError
from deltaw.pairs.counterparts import counterparts
from deltaw.pairs.views import is_floating, size
from deltaw.tensors.names import has_vocabulary
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, JsonValue, Pair, Reason, Update, is_update

Status = Literal["equal", "rounding", "differs", "missing"]
WORDS = {"equal": "equal", "rounding": "equal up to storage rounding", "differs": "differs", "missing": "missing"}
Progress = Callable[[int, int, str], None]

MULTIPLE_TOLERANCE = 0.05  # of c; bfloat16 merges of sensible updates stay within 0.01
FLOAT32 = 2.0**-24
FLOAT32_SLACK = 2.0**-22  # a merge in float32 that is then cast
DENSE_SLACK = 2.0**-14  # methods that decompose, invert or rotate W0 in float32
UNKNOWN = (Reason.BASE_CHANGED_AT_INIT, Reason.BASE_CHANGED, Reason.NO_DELTA, Reason.SHAPE_MISMATCH)


@dataclass(frozen=True)
class Verdict:
    """One tensor of the merged checkpoint.

    Attributes:
        name: The base's name (the merged checkpoint's for a tensor that only it has).
        status: `equal`: the correctly rounded sum, bit for bit. `rounding`: within the rounding of a merge. `differs`,
            `missing`.
        detail: What is different, in words.
        touched: Whether the adapter changes it.
        residual: ‖W − (W0 + ΔW)‖ relative to ‖ΔW‖ where there is an update, else to ‖W0‖.
        multiple: c, how many times the update is in it; None where there is none.
    """

    name: str
    status: Status
    detail: str = ""
    touched: bool = False
    residual: float = 0.0
    multiple: float | None = None


@dataclass(frozen=True)
class Verification:
    """The verdict on every tensor of a base, an adapter and a merged checkpoint."""

    base: str
    adapter: str
    merged: str
    tensors: tuple[Verdict, ...] = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by status."""
        return {s: sum(t.status == s for t in self.tensors) for s in WORDS}

    @property
    def passed(self) -> bool:
        """Whether every tensor is what it should be."""
        return not (self.counts["differs"] or self.counts["missing"])

    def to_dict(self) -> dict[str, JsonValue]:
        """One JSON object."""
        return {
            "base": self.base,
            "adapter": self.adapter,
            "merged": self.merged,
            "passed": self.passed,
            "counts": self.counts,
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
        out.append(f"{what}: {counts} ({touched:,} changed by the adapter)")
        return out


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
    if not isinstance(adapter, Adapter):
        adapter = open_adapter(locate(adapter)[0])
    try:
        base = open_base(base)
    except AdapterError:
        raise
    except CheckpointError as e:
        raise CheckpointError(missing_base(e, adapter)) from e
    merged = open_checkpoint(merged)
    found = adapter.updates(base)
    for s in found.skipped:
        if s.because in UNKNOWN:
            raise AdapterError(f"{adapter.source}: {s.name} cannot be verified ({s.reason}: {s.detail})")
    updates: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        updates.setdefault(pair.name, []).append(pair)
    called = adapter_names(adapter.tensors)
    stored = {saved_name(n, called): h for n, h in adapter.tensors.items()}
    new = {s.name: stored[s.name] for s in found.skipped if s.because == Reason.ONLY_IN_FT and s.name in stored}
    tensors = _verdicts(base, merged, updates, new, progress)
    return Verification(base.source, adapter.source, merged.source, tuple(tensors))


def _verdicts(
    base: Checkpoint,
    merged: Checkpoint,
    updates: Mapping[str, Sequence[Pair]],
    new: Mapping[str, Handle],
    progress: Progress | None,
) -> list[Verdict]:
    own = {name: pairs[0].base for name, pairs in updates.items() if pairs[0].base is not None}
    tensors = {**own, **new, **base.tensors}
    there = counterparts(tensors, base, merged)
    out = []
    for i, (name, handle) in enumerate(there.found.items()):
        if progress is not None:
            progress(i, len(there.found), name)
        out.append(_compare(name, tensors[name], updates.get(name, ()), handle))
    out.extend(_lacking(name, base, merged, updates.get(name, ())) for name in there.lacking)
    out.extend(_extra(name, base, merged, updates) for name in there.extra)
    return out


def _lacking(name: str, base: Checkpoint, merged: Checkpoint, pairs: Sequence[Pair]) -> Verdict:
    """A tensor that the merged checkpoint does not store: tied to one that it does, or missing."""
    module = name.removesuffix(".weight")
    tied = Base(merged).tied(module) if name.endswith(".weight") else None
    if tied is None or not Base(base).tied(module):
        return Verdict(name, "missing", "the merged checkpoint does not have it", bool(pairs))
    if not pairs:
        return Verdict(name, "equal", "tied to the embedding")
    # The adapter changes the head itself: what the merged checkpoint has for a head must hold that.
    assert pairs[0].base is not None
    found = _compare(name, pairs[0].base, pairs, merged.tensors[tied])
    return replace(found, detail=f"{found.detail} (tied to {tied})".strip())


def _extra(name: str, base: Checkpoint, merged: Checkpoint, updates: Mapping[str, Sequence[Pair]]) -> Verdict:
    """A tensor that only the merged checkpoint stores: a tied head written out, or one that should not be there."""
    tied = Base(base).tied(name.removesuffix(".weight")) if name.endswith(".weight") else None
    if tied is None:
        return Verdict(name, "differs", "only the merged checkpoint has it")
    found = _compare(name, base.tensors[tied], updates.get(tied, ()), merged.tensors[name])
    return replace(found, detail=f"{found.detail} (tied to {tied})".strip())


def _compare(name: str, base: Handle, pairs: Sequence[Pair], merged: Handle) -> Verdict:
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
        return Verdict(name, "differs", f"{size(merged)} where {size(source)} is expected", touched, inf)
    if not (is_floating(source) and is_floating(merged)):
        equal = source.dtype == merged.dtype and same(source, merged)
        return Verdict(name, "equal" if equal else "differs", "" if equal else f"{merged.dtype}, other values", touched)
    if not adds and source.dtype == merged.dtype and same(source, merged):
        return Verdict(name, "equal", "", touched)
    sums = Sums(getattr(torch, numeric(source.dtype)), Work.of([cast("Update", p.ft) for p in adds]))
    grid = cells(merged)
    for block in expected_blocks(source, adds):
        sums.add(block, block.read(merged), None if grid is None else block.read(grid))
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


@dataclass(frozen=True)
class Work:
    """The arithmetic of a merge: only a product of factors (or a bias) or more, its number of terms, its scaling."""

    thin: bool
    terms: int
    scaling: float | None

    @staticmethod
    def of(updates: Sequence[Update]) -> Work:
        """What the updates of one tensor have in common."""
        ranks = [u.rank or 1 for u in updates]
        thin = all(u.factored or (u.shape[1] == 1 and not u.needs_base) for u in updates)
        return Work(thin, max(ranks, default=1), updates[0].scaling if updates else None)


class Sums:
    """What one tensor's blocks add up to."""

    def __init__(self, dtype: torch.dtype, work: Work) -> None:
        self.dtype, self.work = dtype, work
        self.entries = self.exact = self.outside = self.unchanged = self.lost = 0
        self.residual = self.change = self.delta = self.base = 0.0  # sums of squares
        self.dot = self.due = self.noise = self.magnitude = 0.0
        self.u = 0.0
        self.rows = 0

    def add(self, block: Expected, stored: Tensor, grid: Tensor | None = None) -> None:
        """One block: the merged rows as stored against W0 + ΔW; `grid`: the variances of their codes' rounding."""
        W, W0 = stored.double(), block.base
        X = W0 if block.delta is None else W0 + block.delta
        rounded = X.to(stored.dtype).double()
        allowed = _allowed(block, X, stored, self.dtype, self.work)
        if grid is not None:  # half a cell, of the merged checkpoint's own scales
            allowed += (3 * grid).sqrt()
        residual = W - X
        self.entries += W.numel()
        self.rows += len(W) if W.ndim else 1
        self.exact += int((rounded == W).sum())
        self.unchanged += int((W == W0).sum())
        self.lost += int((rounded == W0).sum())
        # `not <=`: a NaN is outside whatever the bound is
        self.outside += int((~(residual.abs() <= allowed)).sum())
        self.residual += _square(residual)
        self.change += _square(W - W0)
        self.base += _square(W0)
        self.noise += _square(allowed) / 3  # variance of a uniform error within the bound
        if block.delta is not None and block.magnitude is not None:
            self.delta += _square(block.delta)
            self.dot += float(((W - W0) * block.delta).sum())
            self.due += float(((rounded - W0) * block.delta).sum())
            self.magnitude += _square(block.magnitude)
            self.u = _unit_roundoff(stored)

    def verdict(self, name: str, touched: bool) -> Verdict:
        """The sums in words."""
        scale = self.delta or self.base
        relative = sqrt(self.residual / scale) if scale else (0.0 if self.residual == 0 else inf)
        c = self.dot / self.delta if self.delta else None
        if self.exact == self.entries:
            lost = self.delta and self.lost == self.entries
            detail = "the update is below the storage precision, no entry changes" if lost else ""
            return Verdict(name, "equal", detail, touched, relative, c)
        right = c is None or abs(c - self.due / self.delta) <= self._tolerance()
        # However coarse the rounding, it does not undo every change that a correct merge makes.
        right = right and not (self.delta and self.unchanged == self.entries and self.lost < 0.999 * self.entries)
        if not self.outside and right:
            return Verdict(name, "rounding", "", touched, relative, c)
        return Verdict(name, "differs", self._why(relative, c), touched, relative, c)

    def _tolerance(self) -> float:
        """Of c: dense methods round whole rows of W0 together, which a small update does not average out."""
        if self.work.thin:
            return MULTIPLE_TOLERANCE
        return MULTIPLE_TOLERANCE + 8 * self.u * sqrt(self.magnitude / self.delta / max(1, self.rows))

    def _why(self, relative: float, c: float | None) -> str:
        if isnan(self.residual):
            return "it has entries that are not finite"
        if c is None:
            changed = self.entries - self.exact
            what = f"{changed:,} of {self.entries:,} entries are not the base's"
            return f"{what}, and the adapter does not touch it ({relative:.2g} of ‖W0‖)"
        if self.unchanged == self.entries:
            return "identical to the base: the update is not in it"
        rest = max(0.0, self.change - c * c * self.delta)
        if rest <= max(4 * self.noise, 0.01 * c * c * self.delta) and abs(c - 1) > MULTIPLE_TOLERANCE:
            return f"it holds {c:.3g} times the update{_guess(c, self.work)}"
        outside = f"{self.outside:,} of {self.entries:,} entries are off by more than rounding"
        return f"{outside} (residual {relative:.2g} of ‖ΔW‖)"


def _guess(c: float, work: Work) -> str:
    """The usual mistakes, by the multiple of the update that they leave."""
    s, r = work.scaling, work.terms
    causes = {"merged twice": 2.0, "subtracted instead of added": -1.0}
    if s:
        causes |= {f"the scaling of {s:g} is forgotten": 1 / s, f"the scaling of {s:g} is applied twice": s}
    if r > 1:
        causes |= {"rsLoRA's scaling is taken for LoRA's": 1 / sqrt(r), "LoRA's scaling is taken for rsLoRA's": sqrt(r)}
    likely = [cause for cause, multiple in causes.items() if abs(c - multiple) <= 0.03 * max(1.0, abs(multiple))]
    return f": {' or '.join(likely)}" if likely else ""


def _square(x: Tensor) -> float:
    return float((x * x).sum())


def _unit_roundoff(stored: Tensor) -> float:
    return float(torch.finfo(stored.dtype).eps) / 2


def _half_ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Half an ulp of |x| in `dtype`, float64; entries below the smallest normal number share its ulp."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(min=info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(x, info.eps / 2), exponent)


def _allowed(block: Expected, X: Tensor, stored: Tensor, base: torch.dtype, work: Work) -> Tensor:
    """The most that rounding can move each entry, as the module's docstring says."""
    W = stored.double()
    own, of_base = torch.finfo(stored.dtype).eps, torch.finfo(base).eps
    # A merge that ran in the base's narrow dtype and was widened afterwards carries the narrow rounding.
    widened = of_base > own and bool((W.to(base).double() == W).all())
    allowed = _half_ulp(X.abs().maximum(W.abs()), base if widened else stored.dtype)
    if of_base < own:
        allowed += _half_ulp(block.base, stored.dtype)
    if block.magnitude is not None:
        u = max(own, of_base) / 2
        arithmetic = 4 * u + 4 * sqrt(work.terms) * FLOAT32 if work.thin else 8 * u + DENSE_SLACK
        allowed += arithmetic * block.magnitude + FLOAT32_SLACK * (block.base.abs() + block.magnitude)
    return allowed
