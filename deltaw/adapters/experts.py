"""LoRA on bare parameters (`target_parameters`): fused experts, one update per expert.

PEFT wraps the module once per parameter, so the file says `experts.lora_A` and `experts.base_layer.lora_A` but not
which parameter is which: that follows the order in which the model registers them, which no checkpoint stores. The
shapes tell. A is (experts·r, in), B is (out, r·experts); a parameter (E, d1, d2) takes them as in = d2, out = d1, or
the other way round where the model stores inputs first (`is_transposed`) or an earlier PEFT saved it.

A base may store the experts apart (`experts.0.gate_proj.weight`), as most do on the Hub: then each of its tensors gets
the rows of the product that are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltaw.adapters.base import Base
from deltaw.adapters.factored import ExpertPart, LowRank, SomeRows, StackedFactor, Term
from deltaw.adapters.keys import LoraModule
from deltaw.adapters.lora import Context
from deltaw.adapters.scaling import rank, scale
from deltaw.documents import Document
from deltaw.errors import AdapterError
from deltaw.pairs.experts import FUSED
from deltaw.types import Pair, Reason, Skipped, View, times


@dataclass(frozen=True)
class ExpertParameter:
    """A parameter as the adapter saw it, and where the base stores it.

    Attributes:
        name: By the adapter's name.
        shape: Experts × rows × columns, or a plain matrix.
        stored: The base's tensor, or its tensors for each expert where they are apart: one, or gate and up.
        inputs_first: Whether the base's model stores it inputs × outputs.
        apart: Whether each expert has tensors of its own.
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[tuple[str, ...], ...]
    inputs_first: bool
    apart: bool = False

    @property
    def experts(self) -> int:
        """How many there are; 1 for a plain matrix."""
        return self.shape[0] if len(self.shape) == 3 else 1


@dataclass(frozen=True)
class Fit:
    """One way to lay the LoRA tensors of a module on a parameter; `inputs_first` says how the product is stored."""

    target: ExpertParameter
    r: int
    inputs_first: bool


def targets(config: Document, module: LoraModule) -> list[str]:
    """The parameters of a module that the config targets, by full name; empty where LoRA is on the module itself.

    A target without its module (`down_proj`) is that of every module, of which only those with stacked factors, of
    more rows than the rank, have such a parameter.
    """
    found = []
    A = module.parts.get("lora_A")
    stacked = A is not None and A.shape[:1] != (rank(config, module.path),)
    for target in sorted(set(config.texts("target_parameters"))):
        at, _, leaf = target.rpartition(".")
        full = f"{module.path}.{leaf}"
        if full == target or (full.endswith(f".{target}") and (at or stacked)):
            found.append(full)
    return found


def expert_pairs(context: Context, path: str, wrappings: Sequence[LoraModule]) -> list[Pair | Skipped]:
    """The pairs of all targeted parameters of one module.

    Raises:
        AdapterError: A factor is missing, or the tensors fit no parameter of the base, or more than one.
    """
    names = targets(context.config, wrappings[0])
    if context.base is None:
        why = "which parameter of a module LoRA changes is known from the base's shapes only"
        return [Skipped(name, Reason.NEEDS_BASE, why) for name in names]
    out: list[Pair | Skipped] = []
    taken: set[str] = set()
    for module in sorted(wrappings, key=lambda m: -m.depth):
        if not {"lora_A", "lora_B"} <= module.parts.keys():
            raise AdapterError(
                f"{context.source}: {path} has {', '.join(module.parts)}; both lora_A and lora_B are needed"
            )
        fit = _fit(context, context.base, module, [n for n in names if n not in taken])
        taken.add(fit.target.name)
        out.extend(_pairs(context, context.base, module, fit))
    return out


def leaves(parameter: str, expert: int) -> list[str]:
    """What the tensors of one expert are called where experts lie apart: gate and up of `experts.gate_up_proj`."""
    at, _, leaf = parameter.rpartition(".")
    return [f"{at}.{expert}.{name}.weight" for name in FUSED.get(leaf, (leaf,))]


def find_target(base: Base, name: str) -> ExpertParameter | None:
    """The parameter in the base: one tensor, or the tensors of each expert; None where it is not there."""
    stored = base.find(name)
    if stored is not None:
        shape = base[stored].shape
        return ExpertParameter(name, shape, ((stored,),), base.inputs_first(stored)) if len(shape) in {2, 3} else None
    found: list[tuple[str, ...]] = []
    while all(here := [base.find(leaf) for leaf in leaves(name, len(found))]):
        found.append(tuple(h for h in here if h is not None))
    shapes = {base[n].shape for names in found for n in names}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2:
        return None
    return ExpertParameter(
        name, (len(found), len(found[0]) * shape[0], shape[1]), tuple(found), inputs_first=False, apart=True
    )


def _fit(context: Context, base: Base, module: LoraModule, names: Sequence[str]) -> Fit:
    A, B = module.parts["lora_A"], module.parts["lora_B"]
    known = {name: find_target(base, name) for name in names}
    fits = [fit for target in known.values() if target for fit in _candidates(context, target, A.shape, B.shape)]
    if len({f.target.name for f in fits}) == 1:
        return fits[0]
    sizes = f"lora_A {_size(A.shape)} and lora_B {_size(B.shape)}"
    if not fits:
        have = ", ".join(f"{n} is {_size(t.shape)}" if t else f"{n} is not there" for n, t in known.items())
        raise AdapterError(
            f"{context.source}: {sizes} of {module.path} fit no target parameter of {base.source} ({have})"
        )
    several = " and ".join(sorted({f.target.name for f in fits}))
    raise AdapterError(
        f"{context.source}: {sizes} of {module.path} fit both {several} of {base.source}; they cannot be told apart"
    )


def _candidates(context: Context, target: ExpertParameter, a: tuple[int, ...], b: tuple[int, ...]) -> list[Fit]:
    d1, d2 = target.shape[-2:]
    r = rank(context.config, target.name)
    if a[0] != r * target.experts or b[1] != r * target.experts:
        return []
    ways = [first for first, (out, inputs) in ((False, (d1, d2)), (True, (d2, d1))) if (b[0], a[1]) == (out, inputs)]
    if len(ways) == 2:  # square: only the model's own layout tells
        ways = [target.inputs_first]
    return [Fit(target, r, first) for first in ways]


def _pairs(context: Context, base: Base, module: LoraModule, fit: Fit) -> list[Pair | Skipped]:
    """One pair per expert (and its tensors), oriented as the model's layout says, whichever way it is stored."""
    target = fit.target
    s = scale(context.config, target.name)
    A, B = StackedFactor(module.parts["lora_A"]), StackedFactor(module.parts["lora_B"])
    flip = fit.inputs_first != target.inputs_first  # (BA)ᵀ = AᵀBᵀ
    d1, d2 = target.shape[-2:]
    out: list[Pair | Skipped] = []
    for e in range(target.experts):
        down = ExpertPart(A, e, target.experts, columns=False, transposed=flip)
        up = ExpertPart(B, e, target.experts, columns=True, transposed=flip)
        left, right = (down, up) if flip else (up, down)
        here = target.stored[e if target.apart else 0]
        for i, name in enumerate(here):
            rows = d1 // len(here)
            own = left if len(here) == 1 else SomeRows(left, i * rows, (i + 1) * rows)
            expert = e if len(target.shape) == 3 and not target.apart else None
            update = LowRank(
                name=name,
                shape=(d2, d1) if target.inputs_first else (rows, d2),
                terms=(Term(s, own, right),),
                adapter_type="lora",
                rank=fit.r,
                scaling=s,
                expert=expert,
                transposed=target.inputs_first,
            )
            part = f"expert {e}" if expert is not None and target.experts > 1 else ""
            out.append(Pair(name, base[name], update, View(expert=expert, transposed=target.inputs_first, part=part)))
    return out


def _size(shape: tuple[int, ...]) -> str:
    return times(shape)
