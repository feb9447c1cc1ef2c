"""Where a PEFT LoRA keeps each tensor that changed: as a pair, whole, or not at all, each with its reason.

A matrix becomes a pair on its module: a linear layer, a `Conv1D`, an embedding or a convolution; a stack of experts and
any other bare parameter by `target_parameters`. What no pair can hold is stored as it is: a changed bias as PEFT's
`bias="all"` stores it, everything else (norms, resized vocabularies, heads that are tied, new modules) by
`modules_to_save`, which takes a module as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from deltaw.adapters.trained import same
from deltaw.edits.architecture import Architecture, Kind
from deltaw.pairs.views import is_floating
from deltaw.tensors.names import kind as kind_of
from deltaw.types import Handle, Pair, Reason, Skipped, is_handle

Form = Literal["linear", "embedding", "conv", "parameter"]
NOT_ASKED = "stored whole it could be, which --save-modules none rules out"


@dataclass(frozen=True)
class PairTarget:
    """A module (or parameter) that gets a pair.

    Attributes:
        name: The tensor.
        module: The module's path, by the name that PEFT sees.
        form: How PEFT lays out the factors.
        pairs: One, or one per expert, in order.
        kernel: Of a convolution.
        flipped: Whether PEFT's product is the transpose of the matrix that is analysed.
        depth: How many wrappings of PEFT lie around this one on the same module.
    """

    name: str
    module: str
    form: Form
    pairs: tuple[Pair, ...]
    kernel: tuple[int, ...] = ()
    flipped: bool = False
    depth: int = 0

    @property
    def key(self) -> str:
        """What PEFT matches rank_pattern with."""
        return self.name if self.form == "parameter" else self.module

    @property
    def cost(self) -> int:
        """Numbers that one rank takes."""
        return sum(sum(p.shape) for p in self.pairs)


@dataclass(frozen=True)
class Whole:
    """A module (or bias) that is stored as it is.

    Attributes:
        name: The module's path; of a bias the tensor's name.
        tensors: What is stored, by the tensor's name.
        why: Why no pair holds it.
        is_bias: Whether it is a bias alone.
    """

    name: str
    tensors: Mapping[str, Handle]
    why: str
    is_bias: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers."""
        return sum(prod(h.shape) for h in self.tensors.values())


@dataclass(frozen=True)
class Placement:
    """Everything that changed, in its place."""

    targets: tuple[PairTarget, ...]
    whole: tuple[Whole, ...]
    left_out: tuple[Skipped, ...]

    @property
    def pairs(self) -> list[Pair]:
        """The matrices of all targets."""
        return [pair for target in self.targets for pair in target.pairs]


def place(
    pairs: Sequence[Pair],
    skipped: Iterable[Skipped],
    values: Mapping[str, Handle],
    model: Architecture | None,
    *,
    save_modules: bool,
) -> Placement:
    """Where each tensor goes.

    Args:
        pairs: The compared matrices and vectors.
        skipped: What is not compared.
        values: The fine-tuned model's tensors, by the names of the pairs.
        model: What the modules are, where that is known.
        save_modules: Whether anything may be stored whole.
    """
    by_name: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_name.setdefault(pair.name, []).append(pair)
    skipped = list(skipped)
    ties = _ties(skipped, model, values)
    targets: list[PairTarget] = []
    whole: dict[str, str] = {}  # a module, or a bias: why
    left: list[Skipped] = []
    for name, own in by_name.items():
        found = _place(own, ties, model)
        if isinstance(found, PairTarget):
            targets.append(found)
        elif isinstance(found, Skipped):
            left.append(found)
        elif found:
            whole[name] = found
    for s in skipped:
        handle = values.get(s.name)
        if handle is not None and s.because in {Reason.ONLY_IN_FT, Reason.SHAPE_MISMATCH} and is_floating(handle):
            whole[s.name] = "the base does not have it" if s.because is Reason.ONLY_IN_FT else f"resized: {s.detail}"
        elif _is_told(s, values):
            left.append(s)
    if not save_modules:
        left += [Skipped(n, Reason.NO_DELTA, f"{why}; {NOT_ASKED}") for n, why in whole.items()]
        return Placement(tuple(_nested(targets, model)), (), tuple(left))
    stored, targets, more = _stored(whole, targets, values, ties, model)
    return Placement(tuple(_nested(targets, model)), stored, (*left, *more))


def _is_told(s: Skipped, values: Mapping[str, Handle]) -> bool:
    """Whether a reader should hear of it: not of a tied copy, a buffer, or what an adapter leaves alone."""
    if s.because in {Reason.TIED_TO, Reason.NOT_FLOATING, Reason.EMPTY}:
        return False
    return s.because is not Reason.ONLY_IN_BASE or s.name in values or s.detail != "the adapter does not change it"


def _ties(skipped: Iterable[Skipped], model: Architecture | None, values: Mapping[str, Handle]) -> dict[str, set[str]]:
    """The other names of each tensor that has some."""
    ties: dict[str, set[str]] = {}
    for name, owner in (model.tied if model is not None else {}).items():
        ties.setdefault(owner, set()).add(name)
    for s in skipped:
        if s.because is Reason.TIED_TO and s.subject in values and s.name != s.subject:
            ties.setdefault(s.subject, set()).add(s.name)
    return ties


def _place(own: Sequence[Pair], ties: Mapping[str, set[str]], model: Architecture | None) -> PairTarget | Skipped | str:
    """The target of one tensor; or why it is stored whole, empty where it did not change; or why it is left out."""
    first = own[0]
    name = first.name
    module, _, leaf = name.rpartition(".")
    if first.view.crop is not None:
        return f"its vocabulary was resized to {first.ft.shape[0]:,} rows"
    if first.route == "vector":
        return "" if _unchanged(first) else f"{'a bias' if leaf == 'bias' else 'a vector'}"
    if name in ties:
        return "" if _unchanged(first) else f"tied to {', '.join(sorted(ties[name]))}: PEFT merges a pair on it twice"
    if not module:
        return Skipped(name, Reason.NO_DELTA, "a parameter of the model itself, in no module that PEFT could wrap")
    if any(p.view.part and (p.view.expert is None or p.view.part != f"expert {p.view.expert}") for p in own):
        return Skipped(name, Reason.NO_DELTA, "the adapter changes pieces of a stack of experts; use deltaw resize")
    return _target(own, module, leaf, _kind(first, leaf, module, model), model)


def _unchanged(pair: Pair) -> bool:
    """Whether both sides hold the same numbers."""
    return (
        pair.base is not None and is_handle(pair.ft) and pair.base.shape == pair.ft.shape and same(pair.base, pair.ft)
    )


def _kind(pair: Pair, leaf: str, module: str, model: Architecture | None) -> Kind:
    """What the module is: as the model says, else by the tensor's name and shape."""
    if leaf != "weight" or pair.view.expert is not None:
        return "other"
    if model is not None and module in model.kinds:
        return model.kinds[module]
    if pair.ndim > 2:
        # one input channel: depthwise, or it has no other; only the model itself could tell
        return "grouped" if pair.base is not None and pair.base.shape[1] == 1 else "conv"
    if kind_of(pair.name, 2) == "embedding":
        return "embedding"
    return "conv1d" if pair.view.transposed else "linear"


def _target(
    own: Sequence[Pair], module: str, leaf: str, kind: Kind, model: Architecture | None
) -> PairTarget | Skipped | str:
    first = own[0]
    name, turned = first.name, first.view.transposed
    if kind == "grouped":
        return "a convolution in groups (or with one input channel, which may be one)"
    if kind == "conv" and first.ndim > 2:
        assert first.base is not None
        return PairTarget(name, module, "conv", tuple(own), kernel=first.base.shape[2:])
    if kind == "embedding" and first.ndim == 2:
        return PairTarget(name, module, "embedding", tuple(own))
    if kind in {"linear", "conv1d"} and first.ndim == 2:
        return PairTarget(name, module, "linear", tuple(own), flipped=turned != (kind == "conv1d"))
    if first.ndim == 2 or (first.ndim == 3 and first.view.expert is not None):
        theirs = first.ndim == 3 and (turned if model is None else module in model.transposed)
        if first.ndim == 3 and theirs and len(own) == 1:
            return "a single expert that is stored inputs × outputs"
        return PairTarget(name, module, "parameter", tuple(own), flipped=turned != theirs)
    return f"a parameter of {first.ndim} dimensions"


def _stored(
    whole: Mapping[str, str],
    targets: list[PairTarget],
    values: Mapping[str, Handle],
    ties: Mapping[str, set[str]],
    model: Architecture | None,
) -> tuple[tuple[Whole, ...], list[PairTarget], list[Skipped]]:
    """What is stored whole, and which targets and tensors are left beside it.

    PEFT takes a name of `modules_to_save` for every module whose path ends with it, and keeps LoRA away from all that
    is inside: those modules are stored, too.
    """
    left: list[Skipped] = []
    modules: dict[str, str] = {}
    biases: dict[str, str] = {}
    wrapped = {t.module for t in targets}
    if any(t.form == "linear" and _is_conv1d(t, model) for t in targets):  # PEFT's option for it rules parameters out
        for t in [t for t in targets if t.form == "parameter"]:
            targets.remove(t)
            whole = {**whole, t.name: "a bare parameter beside Conv1D layers, which PEFT does not adapt together"}
    for name, why in whole.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "bias" and why == "a bias":
            biases[name] = why
        elif not module:
            left.append(Skipped(name, Reason.NO_DELTA, f"{why}; it is in no module that PEFT could store"))
        elif module in wrapped:
            left.append(Skipped(name, Reason.NO_DELTA, f"{why}; PEFT cannot store {module} beside its pairs"))
        else:
            modules[module] = why
            for other in ties.get(name, ()):
                modules.setdefault(other.rpartition(".")[0], why)
    known = set(model.kinds) if model is not None else _paths(values)
    while True:
        more = {m: f"PEFT takes its name for {s}" for s in modules for m in known - set(modules) if m.endswith(s)}
        inside = [t for t in targets if any(re.match(rf"(^|.*\.){re.escape(m)}($|\..*)", t.module) for m in modules)]
        if not more and not inside:
            break
        modules |= more
        targets = [t for t in targets if t not in inside]
    stored = [Whole(m, _under(m, values, ties), why) for m, why in modules.items() if not _inside(m, modules)]
    stored += [
        Whole(n, {n: values[n]}, why, is_bias=True)
        for n, why in biases.items()
        if not any(n.startswith(f"{m}.") for m in modules)
    ]
    return tuple(stored), targets, left


def _inside(module: str, modules: Mapping[str, str]) -> bool:
    """Whether a module is stored with one around it."""
    return any(module.startswith(f"{m}.") for m in modules)


def _is_conv1d(target: PairTarget, model: Architecture | None) -> bool:
    if model is not None and target.module in model.kinds:
        return model.kinds[target.module] == "conv1d"
    return target.pairs[0].view.transposed


def _paths(values: Mapping[str, Handle]) -> set[str]:
    """The paths of all modules that tensors are in."""
    out: set[str] = set()
    for name in values:
        parts = name.split(".")[:-1]
        out.update(".".join(parts[:i]) for i in range(1, len(parts) + 1))
    return out


def _under(module: str, values: Mapping[str, Handle], ties: Mapping[str, set[str]]) -> dict[str, Handle]:
    """The tensors of a module; of a tied one those that it shares."""
    found = {n: h for n, h in values.items() if n.startswith(f"{module}.")}
    shared = {other: values[owner] for owner, others in ties.items() for other in others if owner in values}
    return found | {n: h for n, h in shared.items() if n.startswith(f"{module}.") and n not in found}


def _nested(targets: Sequence[PairTarget], model: Architecture | None) -> list[PairTarget]:
    """The targets with the depth of each parameter: PEFT wraps a module once per parameter, in their order."""
    order = {name: i for i, name in enumerate(model.parameters)} if model is not None else {}
    together: dict[str, list[PairTarget]] = {}
    for t in targets:
        if t.form == "parameter":
            together.setdefault(t.module, []).append(t)
    depth: dict[str, int] = {}
    for own in together.values():
        # without the model: gate_up_proj before down_proj, as every model of transformers has them
        own.sort(key=lambda t: (order.get(t.name, 0), not t.name.endswith("gate_up_proj"), t.name))
        depth |= {t.name: len(own) - 1 - i for i, t in enumerate(own)}
    return [replace(t, depth=depth.get(t.name, 0)) for t in targets]
