"""What would be compared, from headers alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from deltaw.measurement.sides import open_sides
from deltaw.pairs.plan import Plan
from deltaw.pairs.selection import Names, Selection
from deltaw.pairs.views import identity
from deltaw.results.plain import plain
from deltaw.results.sources import Source
from deltaw.types import Cell, JsonValue


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
