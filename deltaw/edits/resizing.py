"""`deltaw.resize`: a LoRA at other ranks, or a weighted sum of several as one, exactly, from the factors alone.

Σ_k w_k·s_k·B_k·A_k is the product of the factors side by side; its SVD comes from two QR factorisations, so that no
base is read and no m×n matrix is formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.activations import Activations
from deltaw.adapters import Adapter, open_adapter, variants
from deltaw.adapters.experts import targets as parameters_of
from deltaw.adapters.keys import Contents, LoraModule, sort_tensors
from deltaw.adapters.lora import Context, module_pairs
from deltaw.adapters.scaling import rank as rank_of
from deltaw.adapters.scaling import scale as scale_of
from deltaw.checkpoints import as_named, locate
from deltaw.edits.config import adapter_config
from deltaw.edits.extracted import Extraction
from deltaw.edits.for_data import DataSet
from deltaw.edits.making import Maker
from deltaw.edits.parts import EditFolder, refuse_existing, refuse_inputs
from deltaw.edits.placement import Form, PairTarget, Placement, Whole
from deltaw.edits.policies import Policy, check_storage
from deltaw.edits.units import Show
from deltaw.edits.writing import CARD, Told, command, write_adapter
from deltaw.errors import EditError, OptionError
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.journal import digest
from deltaw.measurement.options import resolve_devices
from deltaw.pairs.selection import Selection
from deltaw.types import Factors, Handle, Pair, Reason, Skipped, Update, View, is_update

if TYPE_CHECKING:
    from torch import Tensor

LORA = frozenset({"LORA", "ADALORA"})


@dataclass(frozen=True)
class Experts:
    """The factors of one expert in a stack, as PEFT stores them: rows of A, every E-th column of B."""

    A: Handle
    B: Handle
    expert: int
    experts: int
    scaling: float

    def delta(self) -> Factors:
        """B (m, r), scaled, and A (r, n)."""
        A, B = self.A.read().double(), self.B.read().double()
        r = A.shape[0] // self.experts
        return Factors(self.scaling * B[:, self.expert :: self.experts], A[self.expert * r : (self.expert + 1) * r])


@dataclass(frozen=True)
class Blend:
    """A weighted sum of updates of one matrix; an `Update` itself."""

    name: str
    shape: tuple[int, int]
    terms: tuple[tuple[float, Update | Experts], ...]
    expert: int | None = None
    transposed: bool = False
    factored: bool = True
    needs_base: bool = False
    adapter_type: str = "lora"
    rank: int | None = None
    scaling: float | None = None

    def delta(self, base: Tensor | None) -> Factors:
        """The factors side by side."""
        import torch

        found: list[Factors] = []
        for weight, term in self.terms:
            value = term.delta() if isinstance(term, Experts) else term.delta(None)
            assert isinstance(value, Factors)
            found.append(Factors(weight * value.B, value.A))
        return Factors(torch.cat([f.B for f in found], dim=1), torch.cat([f.A for f in found]))


@dataclass(frozen=True)
class Unit:
    """One module (or parameter) of one adapter: how it is laid out, and the updates of its matrices."""

    name: str
    module: str
    form: Form
    depth: int
    kernel: tuple[int, ...]
    updates: tuple[Update | Experts, ...]
    shape: tuple[int, int]


def resize(
    adapters: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weights: Iterable[float] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    above_noise: bool = False,
    parameters: int | None = None,
    max_rank: int | None = None,
    ranks: Iterable[int] = (),
    activations: str | Path | Activations | None = None,
    dtype: str = "float32",
    save_modules: str = "auto",
    picture: bool = False,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    device: str = "auto",
    jobs: int | None = None,
    memory: int | str | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Show | None = None,
) -> Extraction:
    """Write a LoRA at other ranks, or a weighted sum of several as one.

    Args:
        adapters: Path or Hub id of one, or of several.
        out: The directory to write to.
        weights: One per adapter; 1 each by default.
        rank, energy, above_noise, parameters, max_rank, ranks, activations, dtype: As for `extract`; factors hold no
            rounding, so that all directions that float32 can tell from none stand above the noise.
        save_modules: `auto` keeps what one adapter stores whole, `none` leaves it out.
        picture: Also write `energy.svg`, see `Extraction.plot`.
        include, exclude: Regular expressions on the names of the adapted weights.
        device, jobs, memory, resume, force, progress: As for `extract`.

    Returns:
        The certificate.

    Raises:
        DeltaWError: An adapter cannot be used or is not LoRA-like, or the result cannot be written.
        OptionError: An option has a bad value.
    """
    policy = Policy(rank, energy, above_noise, parameters, max_rank, tuple(ranks))
    check_storage(dtype, save_modules)
    given = [adapters] if isinstance(adapters, (str, Path)) else list(adapters)
    share = _weights(weights, len(given))
    workers = Workers(resolve_devices(device), jobs, memory)
    selection = Selection.of(include=include, exclude=exclude)
    folder = refuse_existing(Path(out), "adapter", CARD, force=force)
    opened = [_open(a) for a in given]
    sources = tuple(a.as_source() for a in opened)
    refuse_inputs(folder, sources)
    placed = _placed(opened, share, selection, save_modules=save_modules == "auto")
    files = [[str(f) for f in s.files] for s in sources]
    data = DataSet.of(activations, placed.pairs, (), one_budget=parameters is not None)
    options = [share, selection.include, selection.exclude, save_modules, dtype, policy.to_dict(), data.hash]
    parts = EditFolder(folder, digest(version("deltaw"), "resize", files, options), resume=resume)
    try:
        made = Maker(parts, policy, dtype, workers, progress, data.inputs).make(placed)
        flags = [*([] if weights is None else ["--weights", ",".join(f"{w:g}" for w in share)]), *data.flags]
        line = command("resize", sources, policy, dtype, folder, flags)
        told = Told(None, sources, policy, dtype, data.notes, line, data, picture)
        about = adapter_config(
            made.placed.targets,
            made.ranks,
            made.placed.whole,
            base=(opened[0].base_name or "", None),
            config=opened[0].config,
            model=None,
            modules=(),
        )
        about |= {
            "task_type": opened[0].config.text("task_type", "") or None,
            "fan_in_fan_out": opened[0].config.says("fan_in_fan_out"),
        }
        found = write_adapter(folder, made, about, told, partial(_read_back, folder))
        parts.close(finished=True)
    finally:
        parts.close()
    return found


def _weights(weights: Iterable[float] | None, count: int) -> list[float]:
    """One weight per adapter.

    Raises:
        OptionError: There are more or fewer, or one is not finite.
    """
    if not count:
        raise OptionError("no adapter was given; expected one or more")
    found = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(found) != count:
        raise OptionError(f"{len(found)} weights for {count} adapters; expected one for each")
    if not all(math.isfinite(w) for w in found):
        raise OptionError(f"weights are {', '.join(map(str, found))}; expected finite numbers")
    return found


def _open(source: str | Path) -> Adapter:
    """An adapter whose ΔW is the product of its factors.

    Raises:
        EditError: It is not.
    """
    path, revision = locate(source)
    found = replace(open_adapter(path), source=as_named(source), revision=revision)
    kind = found.config.text("peft_type")
    extract = f"use: deltaw extract BASE {source} --out DIR"
    if kind not in LORA:
        raise EditError(
            f"{source}: {found.format} is not LoRA as PEFT lays it out, and has no factors to resize; {extract}"
        )
    for option in ("use_mora", "use_dora", "kasa_config", "lora_bias", "use_bdlora"):
        if found.config.says(option):
            raise EditError(f"{source}: with {option} its update is more than the product of its factors; {extract}")
    init = variants.changed_init(found.config, found.source)
    if init is not None and (found.initial is None or init == "loftq"):
        raise EditError(f"{source}: {init} changed the base when training began, so B·A alone is not the update")
    return found


def _placed(
    opened: Sequence[Adapter], weights: Sequence[float], selection: Selection, *, save_modules: bool
) -> Placement:
    """The sum's targets, what one adapter stores whole, and what is left out.

    Raises:
        EditError: Two adapters disagree about a module, or weights would have to be summed without a base.
    """
    wanted = selection.wanted()
    together: dict[str, list[tuple[float, Unit]]] = {}
    left: list[Skipped] = []
    whole: tuple[Whole, ...] = ()
    for adapter, weight in zip(opened, weights, strict=True):
        contents = sort_tensors(adapter.tensors, adapter.source)
        for unit in _units(adapter, contents):
            if wanted(unit.name):
                together.setdefault(unit.name, []).append((weight, unit))
            else:
                left.append(Skipped(unit.name, Reason.EXCLUDED, "by --include or --exclude"))
        stored = [*contents.saved, *contents.tokens]
        if stored and save_modules and (len(opened) > 1 or weight != 1 or contents.tokens):
            what = "trained token rows" if contents.tokens else "weights that it stores whole"
            raise EditError(
                f"{adapter.source}: {what} ({stored[0]}) are not differences, so they cannot be summed or scaled "
                "without the base; --save-modules none leaves them out"
            )
        if save_modules:
            whole = _whole(contents, {u.module for units in together.values() for _, u in units})
        else:
            left += [Skipped(n, Reason.NO_DELTA, "stored whole by the adapter; --save-modules none") for n in stored]
    return Placement(tuple(_target(name, units) for name, units in together.items()), whole, tuple(left))


def _target(name: str, units: Sequence[tuple[float, Unit]]) -> PairTarget:
    first = units[0][1]
    for _, unit in units:
        if (unit.shape, unit.form, unit.kernel, unit.depth, len(unit.updates)) != (
            first.shape,
            first.form,
            first.kernel,
            first.depth,
            len(first.updates),
        ):
            raise EditError(
                f"{name}: the adapters are of different models (its shape or layout differs); give one base's"
            )
    count = len(first.updates)
    pairs = []
    for e in range(count):
        terms = tuple((weight, unit.updates[e]) for weight, unit in units)
        stacked = first.form == "parameter" and count > 1
        view = View(part=f"expert {e}" if stacked else "")
        pairs.append(Pair(name, None, Blend(name, first.shape, terms, expert=e if stacked else None), view))
    return PairTarget(name, first.module, first.form, tuple(pairs), kernel=first.kernel, depth=first.depth)


def _whole(contents: Contents, adapted: set[str]) -> tuple[Whole, ...]:
    """What an adapter stores whole, by module."""
    modules: dict[str, dict[str, Handle]] = {}
    out = []
    for name, handle in contents.saved.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "bias" or module in adapted:  # beside or below the factors, as the adapter has it
            out.append(Whole(name, {name: handle}, "stored whole by the adapter", is_bias=True))
        else:
            modules.setdefault(module, {})[name] = handle
    return (*(Whole(m, tensors, "stored whole by the adapter") for m, tensors in modules.items()), *out)


def _units(adapter: Adapter, contents: Contents) -> list[Unit]:
    """The modules and parameters of one adapter.

    Raises:
        EditError: Something of it is no product of factors.
    """
    context = Context(adapter.source, adapter.config, None, adapter.initial)
    out: list[Unit] = []
    stacks: dict[str, list[LoraModule]] = {}
    for module in contents.modules:
        if parameters_of(adapter.config, module):
            stacks.setdefault(module.path, []).append(module)
            continue
        found = module_pairs(context, module)
        update = next((p.ft for p in found if isinstance(p, Pair)), None)
        if len(found) != 1 or update is None or not is_update(update) or not update.factored:
            raise EditError(
                f"{adapter.source}: {module.path} is more than the product of its factors; use deltaw extract"
            )
        A = module.parts.get("lora_A")
        kernel = A.shape[2:] if A is not None and len(A.shape) > 2 else ()
        form: Form = "embedding" if "lora_embedding_A" in module.parts else "conv" if kernel else "linear"
        out.append(Unit(f"{module.path}.weight", module.path, form, 0, kernel, (update,), update.shape))
    for path, modules in stacks.items():
        names = sorted(parameters_of(adapter.config, modules[0]), key=lambda n: (not n.endswith("gate_up_proj"), n))
        if len(names) != len(modules):
            raise EditError(f"{adapter.source}: {len(modules)} pairs for {len(names)} parameters of {path}")
        # PEFT wraps a module once per parameter, the first one innermost
        for name, module in zip(names, sorted(modules, key=lambda m: -m.depth), strict=True):
            out.append(_stack(adapter, name, path, module))
    return out


def _stack(adapter: Adapter, name: str, path: str, module: LoraModule) -> Unit:
    A, B = module.parts.get("lora_A"), module.parts.get("lora_B")
    r = rank_of(adapter.config, name)
    if A is None or B is None or A.shape[0] % r or A.shape[0] != B.shape[1]:
        raise EditError(f"{adapter.source}: the factors of {name} do not have the rank {r} that its config gives")
    count = A.shape[0] // r
    s = scale_of(adapter.config, name)
    updates = tuple(Experts(A, B, e, count, s) for e in range(count))
    return Unit(name, path, "parameter", module.depth, (), updates, (B.shape[0], prod(A.shape[1:])))


def _read_back(out: Path) -> Mapping[str, Pair]:
    """The pairs of the adapter that was written."""
    found = open_adapter(out)
    units = _units(found, sort_tensors(found.tensors, found.source))
    return {p.key: p for u in units for p in _target(u.name, [(1.0, u)]).pairs}
