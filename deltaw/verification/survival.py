"""Would an update survive quantisation? c = ⟨Q(W0 + Δ) − Q(W0), Δ⟩/‖Δ‖², before anyone merges.

1: the whole update is in the quantised merge, under noise; 0: nothing of it. A base that lies on the format's grid
already loses small updates: no entry moves far enough to reach another code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters import Adapter
from deltaw.adapters.merging import expected_blocks
from deltaw.checkpoints import why_unread
from deltaw.errors import AdapterError, OptionError, near
from deltaw.tensors.quantisers import QUANTISERS, Quantiser
from deltaw.tensors.slices import Slice
from deltaw.types import JsonValue, Pair, Reason, Skipped, is_update
from deltaw.verification.opening import Progress, opened_updates

MULTIPLE = 64  # rows that are quantised together: blocks of a flat index end with them


@dataclass(frozen=True)
class Survival:
    """What quantising leaves of the update of one tensor.

    Attributes:
        name: The base's tensor.
        survival: c = ⟨Q(W0 + Δ) − Q(W0), Δ⟩/‖Δ‖²; None where Δ is zero.
        noise: ‖Q(W0 + Δ) − Q(W0) − c·Δ‖/‖Δ‖: what else the quantised merge holds, relative to the update.
        update_norm: ‖Δ‖F.
        base_norm: ‖W0‖F.
    """

    name: str
    survival: float | None
    noise: float | None
    update_norm: float
    base_norm: float


@dataclass(frozen=True)
class Prediction:
    """What quantising a merge to a format would leave of an adapter's update.

    Attributes:
        format: Which of `QUANTISERS`.
        survival: c over all tensors together; None where the update is zero.
        noise: As in `Survival`, over all tensors.
        tensors: One per weight that the adapter changes.
        skipped: Weights that it changes and this says nothing of, with the reason.
    """

    base: str
    adapter: str
    format: str
    survival: float | None
    noise: float | None
    tensors: tuple[Survival, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, JsonValue]:
        """One JSON object."""
        return {
            "base": self.base,
            "adapter": self.adapter,
            "format": self.format,
            "survival": self.survival,
            "noise": self.noise,
            "tensors": [asdict(t) for t in self.tensors],
            "skipped": [s.to_dict() for s in self.skipped],
        }

    def lines(self) -> list[str]:
        """One line per tensor, the least first, then the summary."""
        out = [f"{s.name}: not predicted ({s.detail})" for s in self.skipped]
        known = sorted(self.tensors, key=lambda t: (t.survival is not None, t.survival))
        out += [f"{t.name}: {_share(t.survival)} of its update survives{_noise(t.noise)}" for t in known]
        where = f"of {len(self.tensors):,} tensors" if len(self.tensors) > 1 else "of one tensor"
        what = QUANTISERS[self.format].what
        out.append(
            f"{_share(self.survival)} of the update {where} survives {what}{_noise(self.noise)}: {self.base} plus "
            f"{self.adapter}"
        )
        return out


def _share(c: float | None) -> str:
    return "nothing (there is no update)" if c is None else f"{100 * c:.3g} %"


def _noise(noise: float | None) -> str:
    return "" if noise is None else f", under noise of {noise:.2g} of its size"


def predict(base: Any, adapter: str | Path | Adapter, form: str, *, progress: Progress | None = None) -> Prediction:
    """Quantise W0 and W0 + ΔW, block by block, and compare.

    Args:
        base: Path, Hub id, `nn.Module`, state dict or opened checkpoint.
        adapter: Path, Hub id or opened adapter.
        form: `int4-g32`, `int4-g128`, `nf4`, `fp8`, `mxfp4`, `q4_0` or `q8_0`.
        progress: Called with (done, total, name) before each tensor.

    Raises:
        CheckpointError: One of the two cannot be opened or read.
        AdapterError: The adapter does not fit the base, or part of its ΔW cannot be known.
        OptionError: There is no such format.
    """
    if form not in QUANTISERS:
        raise OptionError(f"--predict {form[:40]}: expected one of {', '.join(QUANTISERS)}{near(form, QUANTISERS)}")
    found = opened_updates(base, adapter)
    tensors: list[Survival] = []
    skipped: list[Skipped] = []
    sums: list[SurvivalSums] = []
    for i, (name, pairs) in enumerate(found.by_name.items()):
        if progress is not None:
            progress(i, len(found.by_name), name)
        why = _why_not(name, pairs, QUANTISERS[form])
        if why is not None:
            skipped.append(why)
            continue
        own = SurvivalSums()
        for before, delta in _blocks(pairs):
            own.add(before, delta, QUANTISERS[form])
        sums.append(own)
        tensors.append(own.result(name))
    if not tensors:
        raise AdapterError(f"{found.adapter.source}: it changes no matrix, so there is nothing to quantise")
    overall = sum(sums, SurvivalSums()).result("")
    return Prediction(
        found.base.source, found.adapter.source, form, overall.survival, overall.noise, tuple(tensors), tuple(skipped)
    )


def _why_not(name: str, pairs: Sequence[Pair], quantiser: Quantiser) -> Skipped | None:
    """Why nothing is said of a tensor, or None."""
    base = pairs[0].base
    assert base is not None
    if (why := why_unread(base)) is not None:
        return why
    if len(base.shape) < 2:
        return Skipped(name, Reason.NOT_A_WEIGHT, "a vector, which stays as it is")
    if not all(is_update(p.ft) for p in pairs):
        return Skipped(name, Reason.NOT_A_WEIGHT, "stored whole by the adapter, not as an update")
    columns = pairs[0].shape[1]
    if not quantiser.fits(columns):
        detail = f"rows of {columns:,} weights are no whole blocks of {quantiser.block}"
        return Skipped(name, Reason.UNSUPPORTED, detail, quantiser.what)
    return None


def _blocks(pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, Tensor]]:
    """W0 and ΔW of one tensor as outputs × inputs, float64, in blocks of whole rows."""
    first = pairs[0]
    assert first.base is not None
    turned = first.view.transposed or (isinstance(first.base, Slice) and first.base.transposed)
    whole = first.base.handle if isinstance(first.base, Slice) else first.base
    for block in expected_blocks(whole, pairs, multiple=0 if turned else MULTIPLE):
        delta = torch.zeros_like(block.base) if block.delta is None else block.delta
        rows = (len(block.base), -1)
        before, change = block.base.reshape(rows), delta.reshape(rows)
        yield (before.T, change.T) if turned else (before, change)


@dataclass
class SurvivalSums:
    """What the blocks of one tensor, or of all, add up to: ⟨d, Δ⟩, ‖d‖², ‖Δ‖², ‖W0‖², d = Q(W0 + Δ) − Q(W0)."""

    dot: float = 0.0
    moved: float = 0.0
    update: float = 0.0
    base: float = 0.0

    def add(self, before: Tensor, delta: Tensor, quantiser: Quantiser) -> None:
        """One block of rows."""
        moved = quantiser(before + delta).double() - quantiser(before).double()
        self.dot += float((moved * delta).sum())
        self.moved += float(moved.square().sum())
        self.update += float(delta.square().sum())
        self.base += float(before.square().sum())

    def __add__(self, other: SurvivalSums) -> SurvivalSums:
        """Both together."""
        return SurvivalSums(
            self.dot + other.dot, self.moved + other.moved, self.update + other.update, self.base + other.base
        )

    def result(self, name: str) -> Survival:
        """The sums as what survives."""
        sizes = math.sqrt(self.update), math.sqrt(self.base)
        if not self.update:
            return Survival(name, None, None, *sizes)
        c = self.dot / self.update
        rest = max(0.0, self.moved - c * c * self.update)
        return Survival(name, c, math.sqrt(rest / self.update), *sizes)
