"""What an edit reads: a base and a fine-tune of it by the names that PEFT sees, and what of them is compared."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.adapters import Adapter
from deltaw.checkpoints import Checkpoint
from deltaw.documents import Document
from deltaw.edits.architecture import Architecture, architecture, as_model
from deltaw.measurement.sides import Sides, open_sides
from deltaw.pairs.plan import Plan
from deltaw.pairs.selection import Selection
from deltaw.tensors.matrix import matrix
from deltaw.types import Factors, Handle, Pair, Skipped, Update, is_handle, is_update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OpenedSides:
    """Both sides of an edit.

    Attributes:
        sides: As they were opened, by their own names.
        base: The base by the model's names.
        plan: What is compared.
        values: The fine-tuned model's tensors, by the names of the plan.
        model: What the modules are, where that is known.
        left: What the model has no place for.
        config: The config.json of the fine-tuned model, or the base's.
    """

    sides: Sides
    base: Checkpoint
    plan: Plan
    values: Mapping[str, Handle]
    model: Architecture | None
    left: tuple[Skipped, ...]
    config: Document


def open_model(base: Any, ft: Any, selection: Selection) -> OpenedSides:
    """Open both sides, and name their tensors as the model does that the adapter will be loaded into.

    Raises:
        DeltaWError: One of them cannot be opened, or nothing can be compared.
    """
    sides = open_sides(base, ft)
    assert sides.base is not None
    whole = sides.ft if isinstance(sides.ft, Checkpoint) else sides.base
    source, config = (ft, whole.config or sides.base.config) if whole is sides.ft else (base, whole.config)
    model = architecture(source, config, whole.tensors)
    own = sides.base
    left: tuple[Skipped, ...] = ()
    theirs: Checkpoint | Adapter = sides.ft
    if model is not None:
        own, _ = as_model(sides.base, model)
        if isinstance(sides.ft, Checkpoint):
            theirs, left = as_model(sides.ft, model)
    plan = Sides(own, theirs).plan(selection)
    values = theirs.tensors if isinstance(theirs, Checkpoint) else _adapted(own, plan)
    return OpenedSides(sides, own, plan, values, model, left, config)


def _adapted(base: Checkpoint, plan: Plan) -> dict[str, Handle]:
    """The tensors of a base with an adapter on it."""
    by_name: dict[str, list[Pair]] = {}
    for pair in plan.pairs:
        by_name.setdefault(pair.name, []).append(pair)
    out: dict[str, Handle] = {}
    for name, handle in base.tensors.items():
        pairs = by_name.get(name, [])
        stored = [p.ft for p in pairs if is_handle(p.ft)]
        updates = tuple(p for p in pairs if is_update(p.ft))
        own = stored[-1] if stored else handle
        out[name] = Merged(name, own, updates) if updates else own
    return out


@dataclass(frozen=True)
class Merged:
    """A tensor of the base with the updates of an adapter on it; a `Handle` itself.

    Attributes:
        name: The tensor.
        base: As the base stores it.
        pairs: Its updates.
    """

    name: str
    base: Handle
    pairs: tuple[Pair, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The base's dtype."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """The base's size."""
        return self.base.nbytes

    @property
    def storage(self) -> Hashable:
        """Its own."""
        return ("merged", self.name, self.base.storage)

    def read(self, rows: slice | None = None) -> Tensor:
        """The sum, rounded once to the base's dtype.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        stored = self.base.read()
        total = stored.double()
        for pair in self.pairs:
            update = pair.ft
            assert is_update(update)
            place = total if pair.view.expert is None else total[pair.view.expert]
            place += _delta(pair, update).reshape(place.shape)
        total = total.to(stored.dtype)
        return total if rows is None else total[rows]


def _delta(pair: Pair, update: Update) -> Tensor:
    """ΔW as the base stores it."""
    needed = update.needs_base and pair.base is not None
    value = update.delta(matrix(pair.base, pair.view) if needed and pair.base is not None else None)
    dense = value.B @ value.A if isinstance(value, Factors) else value
    return dense.T if pair.view.transposed and dense.ndim == 2 else dense
