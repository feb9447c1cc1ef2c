"""LoRA on bare parameters (`target_parameters`): fused experts, one update per expert.

PEFT wraps the module once per parameter, so the file says `experts.lora_A` and `experts.base_layer.lora_A` but not
which parameter is which: that follows the order in which the model registers them, which no checkpoint stores. The
shapes tell. A is (experts·r, in), B is (out, r·experts); a parameter (E, d1, d2) takes them as in = d2, out = d1, or
the other way round where the model stores inputs first (`is_transposed`) or an earlier PEFT saved it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltaw.adapters.base import Base
from deltaw.adapters.factored import ExpertPart, LowRank, Stack, Term
from deltaw.adapters.keys import Module
from deltaw.adapters.lora import Job
from deltaw.adapters.scaling import rank, scale
from deltaw.errors import AdapterError
from deltaw.types import Handle, Pair, Skipped, View


@dataclass(frozen=True)
class Fit:
    """One way to lay the LoRA tensors of a module on a parameter; `inputs_first` says how the product is stored."""

    name: str
    handle: Handle
    r: int
    experts: int
    inputs_first: bool


def targets(config: Mapping[str, Any], path: str) -> list[str]:
    """The parameters of a module that the config targets, by full name; empty where LoRA is on the module itself."""
    names = config.get("target_parameters") or ()
    found = []
    for target in sorted(set(names)):
        full = f"{path}.{str(target).rpartition('.')[2]}"
        if full == target or full.endswith(f".{target}"):
            found.append(full)
    return found


def expert_pairs(job: Job, path: str, wrappings: Sequence[Module]) -> list[Pair | Skipped]:
    """The pairs of all targeted parameters of one module.

    Raises:
        AdapterError: A factor is missing, or the tensors fit no parameter of the base, or more than one.
    """
    names = targets(job.config, path)
    if job.base is None:
        why = "which parameter of a module LoRA changes is known from the base's shapes only"
        return [Skipped(name, "needs_base", why) for name in names]
    out: list[Pair | Skipped] = []
    taken: set[str] = set()
    for module in sorted(wrappings, key=lambda m: -m.depth):
        if not {"lora_A", "lora_B"} <= module.parts.keys():
            raise AdapterError(f"{job.source}: {path} has {', '.join(module.parts)}; both lora_A and lora_B are needed")
        fit = _fit(job, job.base, module, [n for n in names if n not in taken])
        taken.add(fit.name)
        out.extend(_pairs(job, job.base, module, fit))
    return out


def _fit(job: Job, base: Base, module: Module, names: Sequence[str]) -> Fit:
    A, B = module.parts["lora_A"], module.parts["lora_B"]
    fits = [fit for name in names for fit in _candidates(job, base, name, A.shape, B.shape)]
    if len({f.name for f in fits}) == 1:
        return fits[0]
    sizes = f"lora_A {_size(A.shape)} and lora_B {_size(B.shape)}"
    if not fits:
        known = [(n, base.find(n)) for n in names]
        have = ", ".join(f"{n} is {_size(base[s].shape)}" if s else f"{n} is not there" for n, s in known)
        raise AdapterError(f"{job.source}: {sizes} of {module.path} fit no target parameter of {base.source} ({have})")
    several = " and ".join(sorted({f.name for f in fits}))
    raise AdapterError(
        f"{job.source}: {sizes} of {module.path} fit both {several} of {base.source}; they cannot be told apart"
    )


def _candidates(job: Job, base: Base, name: str, a: tuple[int, ...], b: tuple[int, ...]) -> list[Fit]:
    stored = base.find(name)
    if stored is None or len(base[stored].shape) not in {2, 3}:
        return []
    handle = base[stored]
    experts, d1, d2 = handle.shape if len(handle.shape) == 3 else (1, *handle.shape)
    r = rank(job.config, name)
    if a[0] != r * experts or b[1] != r * experts:
        return []
    ways = [first for first, (out, inputs) in ((False, (d1, d2)), (True, (d2, d1))) if (b[0], a[1]) == (out, inputs)]
    if len(ways) == 2:  # square: only the model's own layout tells
        ways = [base.inputs_first(stored)]
    return [Fit(name, handle, r, experts, first) for first in ways]


def _pairs(job: Job, base: Base, module: Module, fit: Fit) -> list[Pair | Skipped]:
    """One pair per expert, oriented as the model's layout says, whichever way the product is stored."""
    stored = base.find(fit.name)
    assert stored is not None
    transposed = base.inputs_first(stored)
    s = scale(job.config, fit.name)
    A, B = Stack(module.parts["lora_A"]), Stack(module.parts["lora_B"])
    flip = fit.inputs_first != transposed  # (BA)ᵀ = AᵀBᵀ
    d1, d2 = fit.handle.shape[-2:]
    out: list[Pair | Skipped] = []
    for e in range(fit.experts):
        down = ExpertPart(A, e, fit.experts, columns=False, transposed=flip)
        up = ExpertPart(B, e, fit.experts, columns=True, transposed=flip)
        term = Term(s, down, up) if flip else Term(s, up, down)
        expert = e if len(fit.handle.shape) == 3 else None
        update = LowRank(
            name=stored,
            shape=(d2, d1) if transposed else (d1, d2),
            terms=(term,),
            adapter_type="lora",
            rank=fit.r,
            scaling=s,
            expert=expert,
            transposed=transposed,
        )
        part = f"expert {e}" if fit.experts > 1 else ""
        out.append(Pair(stored, fit.handle, update, View(expert=expert, transposed=transposed, part=part)))
    return out


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
