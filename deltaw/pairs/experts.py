"""Experts that one side stores stacked and the other apart: the stack is cut into what the other side has.

transformers 5 holds the experts of a layer as `experts.gate_up_proj` (experts × 2·intermediate × hidden) and
`experts.down_proj`; on the Hub most models have `experts.0.gate_proj.weight` and so on. Cut, both have the same names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from deltaw.pairs.fused import cut_fused
from deltaw.pairs.piece import Piece
from deltaw.pairs.renames import known
from deltaw.tensors.layout import Layout, text_config
from deltaw.tensors.names import unwrap
from deltaw.tensors.slices import Slice
from deltaw.types import Handle

APART = re.compile(r"^(?P<at>.*experts)\.\d+\.(?P<leaf>[^.]+)\.(?P<kind>weight|bias)$")
STACKED = re.compile(r"^(?P<at>.*experts)\.(?P<leaf>[^.]+?)(?P<kind>_bias|\.weight|\.bias)?$")
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
PARTS = {"gate_proj": " gate", "up_proj": " up"}
INTERLEAVED = "gpt_oss"  # gate and up alternate

Sizes = Mapping[str, set[tuple[int, ...]]]  # of one expert's tensors, by leaf: `gate_proj.weight`


class ExpertStack:
    """A stack of experts: which leaves it holds, and how it is cut into them."""

    def __init__(self, name: str, handle: Handle, layout: Layout) -> None:
        found = STACKED.match(unwrap(name))
        assert found is not None
        self.name, self.handle, self.layout = name, handle, layout
        self.at: str = found["at"]
        self.kind = "weight" if len(handle.shape) == 3 else "bias"
        self.leaf = f"{found['leaf']}.{self.kind}"
        self.leaves = [f"{leaf}.{self.kind}" for leaf in FUSED.get(found["leaf"], (found["leaf"],))]

    @property
    def lies(self) -> tuple[str, tuple[int, ...], bool, bool]:
        """How it is stored; two stacks that are stored alike need not be cut."""
        turned = self.layout.inputs_first(self.name, self.handle.shape)
        return self.leaf, self.handle.shape[1:], turned, self._interleaved

    @property
    def _interleaved(self) -> bool:
        return len(self.leaves) > 1 and text_config(self.layout.config).text("model_type") == INTERLEAVED

    def sizes(self) -> dict[str, set[tuple[int, ...]]]:
        """What one expert's tensors may be, either way round."""
        return {leaf: {p[i].shape for p in self._ways()} for i, leaf in enumerate(self.leaves)}

    def cut(self, sizes: Sizes) -> dict[str, Piece]:
        """One piece per expert and leaf, by the name that it has where experts lie apart; none if no way fits."""
        for way in self._ways():
            if all(part.shape in sizes.get(leaf, ()) for leaf, part in zip(self.leaves, way, strict=True)):
                return {
                    f"{self.at}.{e}.{leaf}": self._piece(leaf, part, e)
                    for e in range(self.handle.shape[0])
                    for leaf, part in zip(self.leaves, way, strict=True)
                }
        return {}

    def _piece(self, leaf: str, part: Slice, expert: int) -> Piece:
        what = PARTS.get(leaf.split(".")[0], "") if len(self.leaves) > 1 else ""
        own = Slice(self.name, self.handle, expert, part.transposed, part.rows)
        return Piece(self.name, own, f"expert {expert}{what}")

    def _ways(self) -> list[list[Slice]]:
        """The leaves of the first expert, as the layout says and turned round: for a square one the first decides."""
        turned = self.layout.inputs_first(self.name, self.handle.shape)
        ways = [False] if self.kind == "bias" else [turned, not turned]
        return [[Slice(self.name, self.handle, 0, way, rows) for rows in r] for way in ways if (r := self._rows(way))]

    def _rows(self, turned: bool) -> list[range] | list[None]:
        outputs, parts = self.handle.shape[2 if turned else 1], len(self.leaves)
        if parts == 1:
            return [None]
        if outputs % parts:
            return []
        if self._interleaved:
            return [range(first, outputs, parts) for first in range(parts)]
        return [range(i * outputs // parts, (i + 1) * outputs // parts) for i in range(parts)]


def pieces(
    left: Mapping[str, Handle], right: Mapping[str, Handle], layouts: tuple[Layout, Layout]
) -> tuple[dict[str, Piece], dict[str, Piece]]:
    """Both sides' tensors by name, stacks of experts and fused layers cut where the other side has them apart."""
    sides = (left, right)
    stacks = [find_stacks(tensors, layout) for tensors, layout in zip(sides, layouts, strict=True)]
    whole = [{name: Piece(name, handle) for name, handle in tensors.items()} for tensors in sides]
    out = []
    for own, other in ((0, 1), (1, 0)):
        cuts = cut_fused(sides[own], layouts[own].config, {n: h.shape for n, h in sides[other].items()}) | _cut(
            stacks[own], stacks[other], sides[other]
        )
        if not cuts:
            out.append(whole[own])
            continue
        found: dict[str, Piece] = {}
        for name, piece in whole[own].items():
            found |= cuts.get(name) or {name: piece}
        out.append(found)
    return out[0], out[1]


def _cut(
    own: Mapping[str, ExpertStack], other: Mapping[str, ExpertStack], tensors: Mapping[str, Handle]
) -> dict[str, dict[str, Piece]]:
    """The pieces of each stack that the other side's tensors have in other pieces."""
    if not own:
        return {}
    there = {s.lies for s in other.values()}
    sizes = leaf_sizes({name: handle.shape for name, handle in tensors.items()})
    for stack in other.values():
        for leaf, shapes in stack.sizes().items():
            sizes.setdefault(leaf, set()).update(shapes)
    return {name: stack.cut(sizes) for name, stack in own.items() if stack.lies not in there}


def find_stacks(tensors: Mapping[str, Handle], layout: Layout) -> dict[str, ExpertStack]:
    """The stacks of experts by name, and the stacked biases beside them."""
    out = {name: ExpertStack(name, tensors[name], layout) for name in layout.stacks if STACKED.match(unwrap(name))}
    at = {stack.at for stack in out.values()}
    for name, handle in tensors.items() if out else ():
        found = STACKED.match(unwrap(name)) if len(handle.shape) == 2 else None
        if found is not None and found["at"] in at and found["kind"] in {"_bias", ".bias"}:
            out[name] = ExpertStack(name, handle, layout)
    return out


def leaf_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[tuple[int, ...]]]:
    """The shapes of experts that are stored apart, by leaf."""
    out: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name, shape in shapes.items():
        found = APART.match(known(unwrap(name))) if "experts." in name else None
        if found is not None:
            out[f"{found['leaf']}.{found['kind']}"].add(shape)
    return dict(out)
