"""What would be compared, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from deltaw.measurement.cost import bytes_needed
from deltaw.measurement.engines.sharing import cores_at_a_time, free_memory
from deltaw.measurement.options import Options
from deltaw.measurement.sides import open_sides
from deltaw.measurement.unit_costs import unit_costs
from deltaw.pairs.plan import Plan
from deltaw.pairs.selection import Names, Selection
from deltaw.pairs.views import identity
from deltaw.results.plain import plain
from deltaw.results.sources import Source
from deltaw.types import Cell, JsonValue, is_handle, is_update


@dataclass(frozen=True)
class Expected:
    """What measuring is expected to take on this machine; an estimate.

    Attributes:
        mode: `exact` or `fast`.
        device: `cpu`, `cuda` or `mps`.
        at_a_time: Matrices that are measured at the same time.
        bytes: To be read, of both sides.
        memory: Bytes that the matrices in work take together at most, beside the libraries.
        seconds: Of computing, as if every weight had changed and no ΔW were low-rank: what did not change, and a merged
            adapter, take a part of it. Reading comes on top where it is slower than computing.
        timed: The k of the k×k matrices that were timed on this machine.
    """

    mode: str
    device: str
    at_a_time: int
    bytes: int
    memory: int
    seconds: float
    timed: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What would be compared."""

    base: Source | None
    ft: Source
    plan: Plan

    @classmethod
    def of(cls, base: Any, ft: Any, selection: Selection) -> Inspection:
        """Open both sides, reading headers only.

        Raises:
            DeltaWError: The inputs cannot be used.
        """
        sides = open_sides(base, ft)
        return cls(*sides.sources, sides.plan(selection))

    def __repr__(self) -> str:
        """One line."""
        from deltaw.reports.notebook import inspection_line

        return inspection_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: what would be compared, by module, and what would not."""
        from deltaw.reports.notebook import inspection_html

        return inspection_html(self)

    @property
    def rows(self) -> list[dict[str, Cell]]:
        """The identity of each pair, with the name of its base tensor and the route that it will take."""
        return [
            {**identity(p), "base_name": p.base.name if p.base else None, "route": p.route} for p in self.plan.pairs
        ]

    def expected(self, mode: str = "exact", device: str = "auto") -> Expected:
        """What `analyze` is expected to read, hold and take here.

        A machine is timed once for each mode, which takes a second or two, and what was found is kept in the cache.

        Args:
            mode, device: As `analyze` takes them.

        Raises:
            OptionError: A value cannot be used.
        """
        mode = Options(mode=mode, device=device).mode
        pairs = self.plan.pairs
        costs = unit_costs(pairs, mode, device)
        alike = Counter((p.shape, p.route, p.ft.rank if is_update(p.ft) else None) for p in pairs)
        first = {(p.shape, p.route, p.ft.rank if is_update(p.ft) else None): p for p in pairs}
        each = {key: costs.seconds(pair) for key, pair in first.items()}
        at_a_time = max(1, min(len(pairs), cores_at_a_time() if costs.device == "cpu" else costs.devices))
        stored = {h.storage: h.nbytes for p in pairs for h in (p.base, p.ft) if h is not None and is_handle(h)}
        adapter = self.ft.nbytes if any(is_update(p.ft) for p in pairs) else 0
        largest = sorted((bytes_needed([p]) for p in pairs), reverse=True)[:at_a_time]
        seconds = sum(each[key] * count for key, count in alike.items())
        return Expected(
            mode=mode,
            device=costs.device,
            at_a_time=at_a_time,
            bytes=sum(stored.values()) + adapter,
            memory=min(sum(largest), max(free_memory(), largest[0] if largest else 0)),
            seconds=max([seconds / at_a_time, *each.values()]),
            timed=tuple(sorted(costs.squares)),
        )

    def to_dict(self) -> dict[str, JsonValue]:
        """As JSON values: `base`, `ft`, `pairs`, `skipped`, `coverage`, `notes`."""
        return {
            "base": {} if self.base is None else self.base.to_dict(),
            "ft": self.ft.to_dict(),
            "pairs": self.rows,
            "skipped": [s.to_dict() for s in self.plan.skipped],
            "coverage": plain(asdict(self.plan.coverage())),
            "notes": list(self.plan.notes),
        }


def inspect(
    base: Any,
    ft: Any = None,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    rename: Names = (),
    split_fused: bool = False,
) -> Inspection:
    """What `analyze` would compare; nothing but headers is read.

    Args:
        base: The base checkpoint, or None for an adapter alone.
        ft: The fine-tuned checkpoint or adapter; where it is not given, the one argument is it, and its base is found.
        include, exclude, rename, split_fused: See `analyze`.

    Raises:
        DeltaWError: The inputs cannot be used.
    """
    selection = Selection.of(include=include, exclude=exclude, rename=rename, split_fused=split_fused)
    return Inspection.of(base, ft, selection)
