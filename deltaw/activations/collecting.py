"""Collecting: a model reads a data set, and hooks sum what each of its matrices is multiplied with.

q, k and v meet the same tensor: its products are summed once, and the three share them. Which matrices do is seen and
not assumed, call by call, so that nothing has to be known of the architecture.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from deltaw.activations.file import KEY, Activations, write_activations
from deltaw.activations.inputs import WRAPPED, dimension, fits, given, is_observed, rows, stores_inputs_first
from deltaw.activations.moments import Moments
from deltaw.activations.sketch import FrequentDirections
from deltaw.checkpoints.safetensors import read_metadata
from deltaw.errors import ActivationsError, CheckpointError, OptionError
from deltaw.files import expanded
from deltaw.pairs.selection import Selection
from deltaw.spectra.lapack import add_gram, mirror
from deltaw.tensors.memory import empty
from deltaw.tensors.names import unwrap

SKETCH_ABOVE = 8192  # entries of an input: 512 MiB of float64 sums
SKETCH_ROWS = 512
# What a model is called with: its own business.
Batch = Mapping[str, object] | tuple[object, ...] | list[object] | Tensor


def collect_activations(
    model: nn.Module,
    batches: Iterable[Batch],
    out: str | Path,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    sketch_above: int = SKETCH_ABOVE,
    sketch_rows: int = SKETCH_ROWS,
    inputs: str = "",
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Run a model over a data set and write the second moments of every matrix's inputs.

    Seen are `nn.Linear`, transformers' `Conv1D`, convolutions (without groups) and embeddings, wherever a module is
    called; experts by the tokens that are routed to them. Matrices of which nothing is seen are in `.unseen`.

    Args:
        model: Evaluated as it is, on its device, without gradients and without dropout.
        batches: What the model is called with: a mapping for `model(**batch)`, a tuple or list for `model(*batch)`, or
            one tensor. Tokens that a batch's `attention_mask` (batch, length) leaves out do not count. Tensors are
            moved to the model's device.
        out: The file to write; one that holds activations is overwritten.
        include, exclude: Regular expressions on parameter names; one, or several.
        sketch_above: Entries of an input above which a sketch with a proven error is kept instead of Σxxᵀ.
        sketch_rows: How many directions a sketch keeps at least.
        inputs: What the data is, in words, for who reads the file.
        progress: Called with the number of batches after each.

    Returns:
        The file, opened.

    Raises:
        ActivationsError: `out` cannot be written or holds something else, an input is not finite, or there is no batch
            or no matrix.
        OptionError: An option has a bad value.
    """
    if sketch_above < 0 or sketch_rows < 1:
        raise OptionError(f"sketch_above is {sketch_above} and sketch_rows {sketch_rows}; expected at least 0 and 1")
    path = expanded(out)
    _refuse(path)
    observed = _observed(model, Selection.of(include=include, exclude=exclude).wanted())
    if not observed:
        raise ActivationsError(
            f"a {type(model).__name__} has no linear layer, convolution or embedding that is asked for; expected one"
        )
    seen = _Collector(sketch_above, sketch_rows)
    count = 0
    with _watching(model, observed, seen):
        for count, batch in enumerate(batches, 1):
            _call(model, batch, seen)
            if progress is not None:
                progress(count)
    moments = seen.moments()
    if not moments:
        what = "the model called none of its matrices" if count else "there was no batch"
        raise ActivationsError(f"{what}: no inputs were seen; give batches that the model takes as its input")
    unseen = sorted({name for name, _ in observed.values()} - set(moments))
    return write_activations(path, moments, unseen=unseen + _others(model, observed), inputs=inputs)


def parameter_name(module_name: str) -> str:
    """What a checkpoint calls a module's weight: without what wrappers and peft put into the name."""
    return unwrap(f"{module_name}.weight" if module_name else "weight").replace(WRAPPED, "")


def _refuse(path: Path) -> None:
    """End before the work where the file could not be written, or is something else.

    Raises:
        ActivationsError: It is.
    """
    if path.is_dir():
        raise ActivationsError(f"{path}: is a folder; expected a file to write, such as activations.safetensors")
    if not path.exists():
        return
    try:
        ours = KEY in read_metadata(path)
    except (OSError, CheckpointError):
        ours = False
    if not ours:
        raise ActivationsError(f"{path}: exists, and holds no activations; choose another file")


def _observed(model: nn.Module, wanted: Callable[[str], bool]) -> dict[nn.Module, tuple[str, int]]:
    """The modules whose inputs are collected: the name of each one's weight, and the size of an input."""
    named = {m: parameter_name(name) for name, m in model.named_modules() if is_observed(m)}
    return {m: (name, dimension(m)) for m, name in named.items() if wanted(name)}


def _others(model: nn.Module, observed: Mapping[nn.Module, object]) -> list[str]:
    """The matrices that belong to no module whose inputs are known: experts in one tensor, grouped convolutions."""
    known = {id(p) for m in model.modules() if m in observed or is_observed(m) for p in m.parameters(recurse=False)}
    return sorted(
        unwrap(name).replace(WRAPPED, "") for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in known
    )


@contextmanager
def _watching(model: nn.Module, observed: Mapping[nn.Module, tuple[str, int]], seen: _Collector) -> Iterator[None]:
    """The model in evaluation, without gradients, with its hooks; all as it was afterwards."""
    training = {m: m.training for m in model.modules()}

    def restore() -> None:
        for module, was in training.items():
            module.training = was

    with ExitStack() as stack:
        for module, (name, size) in observed.items():
            hook = module.register_forward_pre_hook(partial(seen.called, name, size), with_kwargs=True)
            stack.callback(hook.remove)
        stack.callback(restore)
        model.eval()
        stack.enter_context(torch.no_grad())
        yield


def _call(model: nn.Module, batch: Batch, seen: _Collector) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def moved(value: object) -> object:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        kept = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        with seen.batch(None if kept is None or bool(kept.all()) else kept):
            model(**{key: moved(value) for key, value in batch.items()})
    else:
        with seen.batch(None):
            model(*(moved(value) for value in (batch if isinstance(batch, (tuple, list)) else (batch,))))


@dataclass
class _Held:
    """The last input that a matrix met, a copy of its rows in float64, and which matrices met it."""

    x: Tensor
    version: int
    rows: Tensor
    energy: float
    names: list[str]


@dataclass
class _Sum:
    """What was summed for some matrices that met the same inputs; of Σxxᵀ the upper triangle."""

    total: Tensor | FrequentDirections
    count: int = 0
    energy: float = 0.0


class _Collector:
    """The sums of a pass over the data."""

    def __init__(self, sketch_above: int, sketch_rows: int) -> None:
        self._above, self._rows = sketch_above, sketch_rows
        self._held: _Held | None = None
        self._kept: Tensor | None = None
        self._sums: dict[tuple[str, ...], _Sum] = {}
        self._counts: dict[str, Tensor] = {}
        self._inputs_first: set[str] = set()

    @contextmanager
    def batch(self, kept: Tensor | None) -> Iterator[None]:
        """One call of the model, of whose tokens `kept` count."""
        self._kept = kept
        yield
        self._flush()

    def called(  # args, kwargs: of the module's call, whatever it is called with
        self, name: str, size: int, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """A module is about to be called: a forward pre-hook, once its name and the size of an input are given.

        Raises:
            ActivationsError: Its inputs are not finite.
        """
        x = given(args, kwargs)
        if x is None or not x.numel():  # an expert without tokens
            return
        if isinstance(module, nn.Embedding):
            self._count(name, size, x)
            return
        if stores_inputs_first(module):
            self._inputs_first.add(name)
        held, version = self._held, -1 if x.is_inference() else x._version  # an inference tensor keeps no version
        if held is not None and x is held.x and version == held.version >= 0 and name not in held.names:
            held.names.append(name)
            return
        self._flush()
        found = rows(module, x, self._kept)
        found = found.cpu() if found.device.type == "mps" else found  # Apple's GPUs have no float64
        if not len(found):
            return
        assert found.shape[1] == size, (name, found.shape, size)
        # A copy: the model may change its tensor in place before it is added.
        found = empty(found.shape, torch.float64, found.device).copy_(found)
        energy = float(found.view(-1) @ found.view(-1))
        if not math.isfinite(energy):
            raise ActivationsError(
                f"{name}: its inputs are not finite; expected numbers: run the model in float32 or bfloat16, and look "
                "at the data"
            )
        self._held = _Held(x, version, found, energy, [name])

    def moments(self) -> dict[str, Moments]:
        """What each matrix met, by the name of its parameter; matrices that always met the same share the sums."""
        parts: dict[str, list[_Sum]] = defaultdict(list)
        for names, total in self._sums.items():
            for name in names:
                parts[name].append(total)
        out = {name: Moments("counts", c, n, float(n)) for name, c in self._counts.items() if (n := int(c.sum()))}
        made: dict[tuple[int, ...], Moments] = {}
        for name, sums in parts.items():
            key = tuple(map(id, sums))
            if key not in made:
                made[key] = self._joined(sums)
            out[name] = made[key] if name not in self._inputs_first else replace(made[key], inputs_first=True)
        return out

    def _joined(self, sums: list[_Sum]) -> Moments:
        count, energy = sum(s.count for s in sums), sum(s.energy for s in sums)
        first = sums[0].total
        if isinstance(first, Tensor):
            whole = first.clone() if sums[1:] else first
            for s in sums[1:]:
                whole += s.total if isinstance(s.total, Tensor) else 0
            mirror(whole)
            return Moments("moments", whole, count, energy)
        sketches = [s.total for s in sums if isinstance(s.total, FrequentDirections)]
        joined = first
        if sums[1:]:  # a sketch of the sketches: their errors add up
            joined = FrequentDirections(first.rows.shape[1], self._rows, first.rows.device)
            for sketch in sketches:
                joined.add(sketch.rows)
                joined.error += sketch.error
        return Moments("sketch", joined.rows, count, energy, joined.error)

    def _count(self, name: str, size: int, tokens: Tensor) -> None:
        if self._kept is not None and fits(tokens.shape, self._kept):
            tokens = tokens.reshape(-1)[self._kept.reshape(-1).to(tokens.device)]
        found = torch.bincount(tokens.reshape(-1).cpu(), minlength=size).double()
        self._counts[name] = self._counts[name] + found if name in self._counts else found

    def _flush(self) -> None:
        """Add what is held to the sum of the matrices that met it."""
        held, self._held = self._held, None
        if held is None:
            return
        key = tuple(held.names)
        n = held.rows.shape[1]
        if key not in self._sums:
            device = held.rows.device
            sketched = n > self._above
            self._sums[key] = _Sum(
                FrequentDirections(n, self._rows, device) if sketched else empty((n, n), torch.float64, device).zero_()
            )
        found = self._sums[key]
        found.count += len(held.rows)
        found.energy += held.energy
        if isinstance(found.total, Tensor):
            add_gram(found.total, held.rows)
        else:
            found.total.add(held.rows)
