"""The loop: pairs in, rows out.

A map over independent matrices. Each unit reads its own tensors, and only what a row and a spectrum need outlives
it, so that peak memory follows the largest tensors and not the model.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltaw.adapters import Adapter, is_adapter, missing_base, open_adapter, open_base, open_whole
from deltaw.adapters.plan import plan_adapter
from deltaw.checkpoints import Checkpoint, locate, open_checkpoint
from deltaw.errors import AdapterError, CheckpointError, OptionError
from deltaw.files import parse_size
from deltaw.measurement.command import command
from deltaw.measurement.directory import claim
from deltaw.measurement.engines.threads import Budget, map_unordered
from deltaw.measurement.journal import Journal
from deltaw.measurement.measured import Measured
from deltaw.measurement.options import Options, resolve_devices
from deltaw.pairs.plan import Plan, plan
from deltaw.pairs.views import describe, matrix_shape
from deltaw.results import storage
from deltaw.results.analysis import Analysis
from deltaw.results.plain import plain
from deltaw.tensors.names import natural
from deltaw.types import IntruderCount, Pair, Row, Skipped, Spectrum

if TYPE_CHECKING:
    import torch

log = logging.getLogger("deltaw")

Names = str | Iterable[str] | Mapping[str, str]

FREE_SHARE = 0.6  # of the free memory: the rest is for the report, the page cache and whoever else is there
MAX_JOBS = 16  # matrices at a time on a CPU; more mostly cost memory
JOBS_PER_GPU = 2  # one reads while the other computes
BATCH = 64  # small matrices at a time: what an interruption may lose


class Progress(NamedTuple):
    """How far a run is; work is in expected floating-point operations."""

    done: int
    total: int
    work_done: float
    work_total: float
    name: str


@dataclass(frozen=True, repr=False)
class Inspection:
    """What would be compared."""

    base: dict[str, Any]
    ft: dict[str, Any]
    plan: Plan

    def __repr__(self) -> str:
        """One line."""
        from deltaw.reports.notebook import inspection_line

        return inspection_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: what would be compared, by module, and what would not."""
        from deltaw.reports.notebook import inspection_html

        return inspection_html(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: `base`, `ft`, `pairs`, `skipped`, `coverage`, `notes`."""
        pairs = [
            describe(p) | {"base_name": p.base.name if p.base else None, "route": route(p)} for p in self.plan.pairs
        ]
        return {
            "base": self.base,
            "ft": self.ft,
            "pairs": pairs,
            "skipped": [s.to_dict() for s in self.plan.skipped],
            "coverage": plain(asdict(self.plan.coverage())),
            "notes": list(self.plan.notes),
        }


def route(pair: Pair) -> str:
    """The route that a pair will take unless both sides turn out to be the same bytes."""
    shape = pair.base.shape if pair.base is not None else pair.ft.shape
    if len(shape) < 2 or not prod(shape):
        return "vector"
    return "factored" if getattr(pair.ft, "factored", False) else "dense"


def inspect(
    base: Any,
    ft: Any,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    rename: Names = (),
    split_fused: bool = False,
) -> Inspection:
    """What `analyze` would compare; nothing but headers is read.

    Args:
        base: The base checkpoint, or None for an adapter alone.
        ft: The fine-tuned checkpoint or adapter.
        include, exclude, rename, split_fused: See `analyze`.

    Raises:
        DeltaWError: The inputs cannot be used.
    """
    opened = _open(base, ft)
    planned = _plan(
        *opened,
        include=_patterns(include),
        exclude=_patterns(exclude),
        rename=_renames(rename),
        split_fused=split_fused,
    )
    return Inspection(*_described(*opened), planned)


def analyze(
    base: Any,
    ft: Any,
    *,
    mode: str = "exact",
    device: str = "auto",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    rename: Names = (),
    split_fused: bool = False,
    alignment: bool = False,
    top_k: int = 10,
    epsilon: float = 0.5,
    tolerance: float = 0.03,
    cache: bool = True,
    jobs: int | None = None,
    memory: int | str | None = None,
    out: str | Path | None = None,
    formats: Sequence[str] = ("csv", "parquet"),
    resume: bool = True,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Measure every weight update between a base and a fine-tuned checkpoint.

    Args:
        base: Path, Hub id, `nn.Module` or state dict; None for an adapter alone.
        ft: The same, or an adapter directory or file.
        mode: `exact` for full spectra, `fast` for estimates with 95 % intervals.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`: where the linear algebra runs.
        include, exclude: Regular expressions on tensor names; one, or several.
        rename: `REGEX=TEXT`, one or several, or a mapping of them: applied to the fine-tuned side's names before
            they are matched.
        split_fused: One row per part of a fused tensor.
        alignment: Also measure against the base's singular vectors.
        top_k, epsilon: The intruder definition.
        tolerance: Fast mode: relative width of an interval to aim for.
        cache: Keep the base's singular vectors on disk between runs.
        jobs: Matrices at a time; by default as many as cores, within `memory`.
        memory: Bytes that the matrices in work may take together, or a size such as `8GB`; by default most of what
            is free.
        out: A directory to write results to. What an interrupted run finished is kept there.
        formats: Tables to write to `out`: `csv`, `parquet`, `json`.
        resume: Go on from what an interrupted run of the same inputs left in `out`.
        force: Overwrite results of other inputs in `out`.
        progress: Called after each matrix.

    Returns:
        The analysis. Tensors that could not be measured are in `.failed`.

    Raises:
        DeltaWError: The inputs cannot be used, or the results cannot be written.
        OptionError: An option has a bad value.
    """
    started = time.perf_counter()
    options = Options(
        mode=mode,
        device=device,
        include=_patterns(include),
        exclude=_patterns(exclude),
        rename=_renames(rename),
        split_fused=split_fused,
        alignment=alignment,
        top_k=top_k,
        epsilon=epsilon,
        tolerance=tolerance,
        cache=cache,
    )
    if jobs is not None and jobs < 1:
        raise OptionError(f"jobs is {jobs}; expected at least 1")
    if isinstance(memory, str):
        memory = parse_size(memory)
    if memory is not None and memory < 1:
        raise OptionError(f"memory is {memory}; expected a number of bytes, or a size such as 8GB")
    devices = resolve_devices(device)
    opened = _open(base, ft)
    planned = _plan(
        *opened,
        include=options.include,
        exclude=options.exclude,
        rename=options.rename,
        split_fused=options.split_fused,
    )
    about = _described(*opened)
    journal = None
    if out is not None:
        # A model in memory has no identity to resume by, and its config need not be JSON.
        configs = [side.config.values for side in opened if side is not None and side.identity]
        journal = claim(Path(out), about, configs, options, resume=resume, force=force)
    try:
        measured = _run(planned.pairs, options, devices, jobs, memory, journal, progress)
        analysis = _assemble(planned, measured, about, options, devices, time.perf_counter() - started)
        if out is not None and journal is not None:
            analysis.save(out, formats)
            journal.close(finished=True)
    finally:
        if journal is not None:
            journal.close()
    return analysis


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _renames(given: Names) -> tuple[str, ...]:
    if isinstance(given, Mapping):
        return tuple(f"{regex}={text}" for regex, text in given.items())
    return _patterns(given)


def _open(base: Any, ft: Any) -> tuple[Checkpoint | None, Checkpoint | Adapter]:
    try:
        opened = None if base is None else open_base(base)
    except AdapterError:
        raise  # the base is one itself
    except CheckpointError as e:
        # Only what lies here: nothing is downloaded for a message.
        here = Path(ft).expanduser() if isinstance(ft, (str, Path)) else None
        if here is None or not here.exists() or not is_adapter(here):
            raise
        raise CheckpointError(missing_base(e, open_adapter(here))) from e
    if isinstance(ft, (str, Path)):
        path, revision = locate(ft)
        if is_adapter(path):
            return opened, replace(open_adapter(path), source=str(ft), revision=revision)
    if opened is None:
        raise OptionError("without a base only an adapter can be measured; give BASE and FT")
    return opened, open_whole(ft, open_checkpoint(ft))


def _described(base: Checkpoint | None, ft: Checkpoint | Adapter) -> tuple[dict[str, Any], dict[str, Any]]:
    return ({} if base is None else base.describe()), ft.describe()


def _plan(base: Checkpoint | None, ft: Checkpoint | Adapter, **matching: Any) -> Plan:
    if isinstance(ft, Adapter):
        return plan_adapter(base, ft, **matching)
    assert base is not None
    return plan(base, ft, **matching)


def _run(
    pairs: Sequence[Pair],
    options: Options,
    devices: Sequence[torch.device],
    jobs: int | None,
    memory: int | None,
    journal: Journal | None,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Measured]:
    """Measure what the journal does not have yet, the costliest first so that no thread is left with it at the end."""
    import psutil
    import torch
    from threadpoolctl import threadpool_limits

    from deltaw.measurement.measure import measure
    from deltaw.spectra.route import BATCHED_UP_TO

    measured = {p.key: journal.done[p.key] for p in pairs if p.key in journal.done} if journal else {}
    batches = _batches(pairs, BATCHED_UP_TO.get(devices[0].type, 0))
    # A batch is measured whole or not at all: in other company, a matrix would differ in its last digits.
    todo = sorted((b for b in batches if not all(p.key in measured for p in b)), key=_work, reverse=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or (min(cores, MAX_JOBS) if devices[0].type != "cuda" else JOBS_PER_GPU * len(devices))
    jobs = min(jobs, max(1, len(batches)))  # of all, not of what is left: threads decide the last digits too
    budget = Budget(memory or int(psutil.virtual_memory().available * FREE_SHARE))
    total, work_total = len(pairs), _work(pairs)
    work_done = work_total - sum(map(_work, todo))
    allowed = torch.get_num_threads()  # the caller's: a training that is measured has set its own
    if measured:
        log.info("%d of %d matrices were finished by an earlier run", len(measured), total)

    if devices[0].type == "cuda":
        for device in devices:
            # torch loads its linear algebra at the first call, and fails where two threads make that call together
            with suppress(torch.OutOfMemoryError):  # what does not fit is measured on the CPU
                torch.linalg.eigvalsh(torch.eye(2, device=device))

    def prepare(number: int) -> torch.device:
        device = devices[number % len(devices)]
        if device.type == "cuda":  # its own stream: copies of one thread overlap the arithmetic of another
            torch.cuda.set_device(device)
            torch.cuda.set_stream(_stream(device, number))
        return device

    def several(batch: Sequence[Pair], device: torch.device) -> list[Measured]:
        # LAPACK gains little from threads on most matrices, so each gets its share of the cores; one that is more
        # work than a fair share of everything would be waited for, and gets more.
        share = max(1.0, _work(batch) * jobs / max(work_total, 1.0))
        torch.set_num_threads(max(1, min(allowed, int(share * cores / jobs))))
        results = measure(batch, options, device)
        if journal is not None:
            for pair, result in zip(batch, results, strict=True):
                journal.add(pair.key, result)
        return results

    blas = threadpool_limits(1, user_api="blas")  # NumPy's threads, which torch's number does not reach
    try:
        for batch, results in map_unordered(several, todo, jobs=jobs, budget=budget, need=_need, prepare=prepare):
            for pair, result in zip(batch, results, strict=True):
                measured[pair.key] = result
                work_done += work(pair)
                if result.skipped:
                    log.info("%s: %s", result.skipped.name, result.skipped.reason)
                if progress is not None:
                    progress(Progress(len(measured), total, work_done, work_total, pair.key))
    finally:
        blas.restore_original_limits()
        torch.set_num_threads(allowed)  # MKL's number is the process's, not the thread's
    return measured


@lru_cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The stream of one thread. The same in the next run, as cuBLAS keeps a workspace for every stream that it saw."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _batches(pairs: Sequence[Pair], largest: int) -> list[Sequence[Pair]]:
    """Dense pairs of one shape up to `largest` together, as experts and heads are; every other pair by itself."""
    together: dict[Hashable, list[Pair]] = {}
    for p in pairs:
        m, n = matrix_shape(p)
        small = route(p) == "dense" and min(m, n) <= largest
        shape = (m, n, p.base and p.base.dtype, getattr(p.ft, "dtype", None))
        together.setdefault(shape if small else p.key, []).append(p)
    return [batch[i : i + BATCH] for batch in together.values() for i in range(0, len(batch), BATCH)]


def _work(pairs: Iterable[Pair]) -> float:
    return sum(map(work, pairs))


def _need(pairs: Iterable[Pair]) -> int:
    return sum(map(bytes_needed, pairs))


def work(pair: Pair) -> float:
    """Expected floating-point operations of a pair: its entries, and the SVD of a dense matrix."""
    m, n = matrix_shape(pair)
    return 50.0 * m * n + (4.0 * m * n * min(m, n) if route(pair) == "dense" else 0.0)


def bytes_needed(pair: Pair) -> int:
    """Expected peak memory of a pair: both sides as stored, ΔW, and the solver's workspace."""
    m, n = matrix_shape(pair)
    if route(pair) == "factored":
        return 64 * (m + n) * (getattr(pair.ft, "rank", None) or 64)
    stored = sum(_itemsize(h) for h in (pair.base, pair.ft) if h is not None)
    return m * n * (stored + 8) + (24 * min(m, n) ** 2 if route(pair) == "dense" else 0)


def _itemsize(side: Any) -> int:
    dtype = getattr(side, "dtype", "float64")  # an update is computed in float64
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def _assemble(
    planned: Plan,
    measured: dict[str, Measured],
    about: tuple[dict[str, Any], dict[str, Any]],
    options: Options,
    devices: Sequence[torch.device],
    seconds: float,
) -> Analysis:
    rows: list[Row] = []
    spectra: dict[str, Spectrum] = {}
    skipped: list[Skipped] = list(planned.skipped)
    intruders: list[IntruderCount] = []
    for pair in planned.pairs:
        found = measured[pair.key]
        if found.skipped is not None:
            skipped.append(found.skipped)
        if found.row is not None:
            rows.append(found.row)
        if found.spectrum is not None:
            spectra[pair.key] = found.spectrum
        intruders.extend(found.intruders)
    skipped.sort(key=lambda s: natural(s.name))
    return Analysis(
        rows,
        spectra,
        skipped,
        *about,
        options.to_dict(),
        ", ".join(map(str, devices)),
        seconds,
        versions(),
        (*planned.notes, *storage.notes(rows)),
        tuple(intruders),
        planned.coverage(failed=[key for key, found in measured.items() if found.row is None]),
        command(*about, options),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def versions() -> dict[str, str]:
    """The versions that decide the numbers."""
    out = {"python": platform.python_version()}
    for package in ("deltaw", "torch", "numpy", "scipy", "pandas", "safetensors", "peft", "transformers"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out
