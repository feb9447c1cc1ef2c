"""What one tensor of a merged checkpoint adds up to, and the verdict on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, sqrt
from typing import Literal

import torch
from torch import Tensor

from deltaw.adapters.merging import Expected
from deltaw.types import Update

Status = Literal["equal", "rounding", "differs", "missing"]
ON_GRID = 0.3  # share of entries that are the grid's own: chance makes it 6 %
MULTIPLE_TOLERANCE = 0.05  # of c; bfloat16 merges of sensible updates stay within 0.01
FLOAT32 = 2.0**-24
FLOAT32_SLACK = 2.0**-22  # a merge in float32 that is then cast
UNEVEN = re.compile(r"^(fp8|mxfp|nvfp|nf4|fp4|iq4)")  # formats whose codes are not a step apart everywhere
# By how much a scale was rounded after the codes were chosen (bitsandbytes quantises its scales in turn), or clips the
# largest: a power of two clips up to a quarter, which the entry misses by a third of itself.
SCALE = 2.0**-10
SCALE_ROUNDING = {"nf4": 0.06, "fp4": 0.06, "mxfp4": 1 / 3, "nvfp4": 0.07}
DENSE_SLACK = 2.0**-14  # methods that decompose, invert or rotate W0 in float32


@dataclass(frozen=True)
class TensorVerdict:
    """One tensor of the merged checkpoint.

    Attributes:
        name: The base's name (the merged checkpoint's for a tensor that only it has).
        status: `equal`: the correctly rounded sum, bit for bit. `rounding`: within the rounding of a merge. `differs`,
            `missing`.
        detail: What is different, in words.
        touched: Whether the adapter changes it.
        residual: ‖W − (W0 + ΔW)‖ relative to ‖ΔW‖ where there is an update, else to ‖W0‖.
        multiple: c, how many times the update is in it; None where there is none.
        survival: The same where the merged tensor is quantised: c = ⟨W − Q(W0), ΔW⟩/‖ΔW‖². Q(W0) is W0 where the base
            is stored in the same format, and the nearest point of W's grid where that is even; elsewhere W0 stands for
            it, which adds noise to c.
        noise: ‖W − Q(W0) − c·ΔW‖/‖ΔW‖ there: what else the quantised tensor holds.
        update_norm: ‖ΔW‖F; 0 where there is none.
    """

    name: str
    status: Status
    detail: str = ""
    touched: bool = False
    residual: float = 0.0
    multiple: float | None = None
    survival: float | None = None
    noise: float | None = None
    update_norm: float = 0.0


@dataclass(frozen=True)
class CodeGrid:
    """The codes of a quantised tensor, as far as its entries and their variances show them.

    Attributes:
        dtype: The format.
        of_base: Whether the base is stored in the same: Q(W0) is W0.
    """

    dtype: str
    of_base: bool = False

    @property
    def even(self) -> bool:
        """Whether its points are a step apart everywhere."""
        return not UNEVEN.match(self.dtype)

    def reach(self, W: Tensor, variance: Tensor) -> Tensor:
        """How far rounding may have moved each entry.

        Half a step of an even grid, whose variance is step²/12. The cell of a codebook's code goes half way to both
        neighbours, up and down: its variance is (u² − ud + d²)/12, and half of the wider is at most √(4/3) of what
        that says of an even one. Beside it what the scale itself was rounded by, as a share of the entry.
        """
        return (variance * (3 if self.even else 4)).sqrt() * (1 + SCALE) + W.abs() * SCALE_ROUNDING.get(
            self.dtype, SCALE
        )

    def nearest(self, W0: Tensor, W: Tensor, variance: Tensor) -> Tensor:
        """What W0 becomes: itself in the base's own format; on W's grid where that is even; else not known, W0."""
        if self.of_base or not self.even:
            return W0
        step = (12 * variance).sqrt()
        away = (W0 - W) / step
        # Codes that may have been clipped have cells of two steps: half of one is the next code there.
        stays = (away.frac().abs() - 0.5).abs() < 0.01
        return torch.where((step > 0) & ~stays, W + step * away.round(), W0)


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


class TensorSums:
    """What one tensor's blocks add up to."""

    def __init__(self, dtype: torch.dtype, work: Work) -> None:
        self.dtype, self.work = dtype, work
        self.entries = self.exact = self.outside = self.unchanged = self.lost = 0
        self.residual = self.change = self.delta = self.base = 0.0  # sums of squares
        self.dot = self.due = self.noise = self.magnitude = 0.0
        self.kept = self.moved = 0.0  # ⟨W − Q(W0), ΔW⟩ and ‖W − Q(W0)‖² of a quantised W
        self.grid: CodeGrid | None = None
        self.on_grid = 0  # entries of W0 that are W's, or a tenth of the rounding beside it
        self.u = 0.0
        self.rows = 0

    def add(
        self, block: Expected, stored: Tensor, grid: CodeGrid | None = None, variance: Tensor | None = None
    ) -> None:
        """One block: the merged rows as stored against W0 + ΔW; of codes, with the variances of their rounding."""
        W, W0 = stored.double(), block.base
        X = W0 if block.delta is None else W0 + block.delta
        rounded = X.to(stored.dtype).double()
        allowed = _allowed(block, X, stored, self.dtype, self.work)
        if grid is not None and variance is not None:
            allowed += grid.reach(W, variance)
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
            if grid is not None and variance is not None:
                self.grid = grid
                self.on_grid += int(((W - W0).abs() <= 0.1 * variance.sqrt()).sum())
                moved = W - grid.nearest(W0, W, variance)
                self.kept += float((moved * block.delta).sum())
                self.moved += _square(moved)

    def verdict(self, name: str, touched: bool) -> TensorVerdict:
        """The sums in words."""
        scale = self.delta or self.base
        relative = sqrt(self.residual / scale) if scale else (0.0 if self.residual == 0 else inf)
        c = self.dot / self.delta if self.delta else None
        kept = noise = None
        if self.grid is not None and self.delta:
            kept = self.kept / self.delta
            noise = sqrt(max(0.0, self.moved / self.delta - kept * kept))
        found = TensorVerdict(name, "equal", "", touched, relative, c, kept, noise, sqrt(self.delta))
        if self.exact == self.entries:
            lost = self.delta and self.lost == self.entries
            detail = "the update is below the storage precision, no entry changes" if lost else ""
            return replace(found, detail=detail)
        if not self.outside and (self._right(c) if self.grid is None else self._in_codes(kept, noise)):
            detail = (
                "" if kept is None or self.grid is None else f"{100 * kept:.3g} % of the update in {self.grid.dtype}"
            )
            return replace(found, status="rounding", detail=detail)
        return replace(found, status="differs", detail=self._why(relative, c))

    def _right(self, c: float | None) -> bool:
        """Whether the right multiple of the update is in it."""
        if c is None:
            return True
        # However coarse the rounding, it does not undo every change that a correct merge makes.
        undone = self.unchanged == self.entries and self.lost < 0.999 * self.entries
        return abs(c - self.due / self.delta) <= self._tolerance() and not undone

    def _in_codes(self, kept: float | None, noise: float | None) -> bool:
        """Whether a quantised tensor holds the update: the cells of an even grid tell; wider bounds leave that to c.

        A base on the grid itself is not asked for c: there nothing of a small update need be left.
        """
        if kept is None or noise is None or self.grid is None or self.grid.even:
            return True
        if self.on_grid > ON_GRID * self.entries:
            return True
        return abs(kept - 1) <= 2 * MULTIPLE_TOLERANCE + 5 * noise / sqrt(self.entries)

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
