"""Many alike tensors as one line: `model.layers.{0..31}.self_attn.q_proj.weight ×32`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltaw.reports.text import visible
from deltaw.types import Row

NUMBER = re.compile(r"(?<![^.\[ ])\d+(?![^.\] ])")  # a whole part of a dotted name, or of a part's name
LISTED = 4  # numbers with gaps that are listed


@dataclass(frozen=True)
class Group:
    """Tensors that differ by numbers in their names only.

    Attributes:
        name: With each number that varies as `{0..31}`.
        count: How many they are.
        shape: `4,096 × 11,008`, or one number for a vector.
        base_dtype, ft_dtype, kind, route: What they share.
    """

    name: str
    count: int
    shape: str
    base_dtype: str
    ft_dtype: str
    kind: str
    route: str

    @property
    def title(self) -> str:
        """The name, with the count where there are several."""
        return f"{self.name} ×{self.count:,}" if self.count > 1 else self.name

    @property
    def dtypes(self) -> str:
        """`bfloat16`, or `float32 → bfloat16`."""
        if self.base_dtype in {self.ft_dtype, ""}:
            return self.ft_dtype
        return f"{self.base_dtype} → {self.ft_dtype}"


def grouped(pairs: Iterable[Row]) -> list[Group]:
    """The pairs of an inspection, those together that are alike but for their numbers, in the order of the first."""
    members: dict[tuple[str, ...], list[list[str]]] = {}
    for pair in pairs:
        name = visible(f"{pair['name']} [{pair['part']}]" if pair["part"] else str(pair["name"]))
        vector = pair["route"] == "vector"
        shape = f"{pair['rows']:,}" if vector else f"{pair['rows']:,} × {pair['cols']:,}"
        about = (shape, *(str(pair[c] or "") for c in ("base_dtype", "ft_dtype", "kind", "route")))
        members.setdefault((NUMBER.sub("{}", name.replace("{", "{{").replace("}", "}}")), *about), []).append(
            NUMBER.findall(name)
        )
    return [Group(_filled(key[0], numbers), len(numbers), *key[1:]) for key, numbers in members.items()]


def _filled(pattern: str, numbers: Sequence[Sequence[str]]) -> str:
    return pattern.format(*(_range(column) for column in zip(*numbers, strict=True)))


def _range(column: Sequence[str]) -> str:
    """The numbers that one place takes: `3`, `{0..31}`, `{0, 2, 5}` or `{0..31, with gaps}`."""
    found = sorted({int(n) for n in column})
    if len(found) == 1:
        return column[0]
    if found == list(range(found[0], found[-1] + 1)):
        return f"{{{found[0]}..{found[-1]}}}"
    if len(found) <= LISTED:
        return f"{{{', '.join(map(str, found))}}}"
    return f"{{{found[0]}..{found[-1]}, {len(found)} of them}}"
