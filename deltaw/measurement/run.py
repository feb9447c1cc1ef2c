"""The main job: two sides in, an analysis out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deltaw.measurement.command import command
from deltaw.measurement.directory import claim
from deltaw.measurement.distributed import on_cluster
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.loop import Progress, measure_all
from deltaw.measurement.measured import Measured
from deltaw.measurement.options import ActivationFiles, Options, check_executor, open_data, resolve_devices
from deltaw.measurement.sides import Sides, open_sides
from deltaw.measurement.versions import versions
from deltaw.pairs.plan import Plan
from deltaw.pairs.selection import Names, Selection
from deltaw.results import storage
from deltaw.results.analysis import Analysis
from deltaw.results.shares import Share
from deltaw.results.sources import Source, writable
from deltaw.tensors.names import natural
from deltaw.types import IntruderCount, Row, Skipped, Spectrum


def analyze(
    base: Any,
    ft: Any = None,
    *,
    mode: str = "exact",
    device: str = "auto",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    rename: Names = (),
    split_fused: bool = False,
    alignment: bool = False,
    activations: ActivationFiles = (),
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
    part: str | None = None,
    executor: str = "threads",
    ray_address: str | None = None,
    download: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Measure every weight update between a base and a fine-tuned checkpoint.

    Args:
        base: Path, Hub id, `nn.Module` or state dict; None for an adapter alone.
        ft: The same, or an adapter directory or file. Where it is not given, the one argument is the fine-tune, and
            its base is found: what its adapter_config.json, model card, the Hub or config.json names.
        mode: `exact` for full spectra, `fast` for estimates with 95 % intervals.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`: where the linear algebra runs.
        include, exclude: Regular expressions on tensor names; one, or several.
        rename: `REGEX=TEXT`, one or several, or a mapping of them: applied to the fine-tuned side's names before
            they are matched.
        split_fused: One row per part of a fused tensor.
        alignment: Also measure against the base's singular vectors.
        activations: Also measure on the inputs of a data set: what `collect_activations` wrote of the base; of two
            files the first is of what was to be learned, the second of what was to be kept.
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
        part: `I/N`: only the I-th of N shares of equal work; `deltaw.gather` joins what they wrote.
        executor: Where matrices are measured: `threads` of this process, or `ray`, whose workers open both sides by
            themselves.
        ray_address: Of the cluster; default that of RAY_ADDRESS, or one of this machine alone.
        download: Fetch what does not lie here (a Hub id, an address) whole, instead of reading what is needed.
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
        selection=Selection.of(include=include, exclude=exclude, rename=rename, split_fused=split_fused),
        alignment=alignment,
        top_k=top_k,
        epsilon=epsilon,
        tolerance=tolerance,
        cache=cache,
        data=open_data(activations),
    )
    share = None if part is None else Share.parse(part)
    check_executor(executor)
    threads = Workers(resolve_devices(device), jobs, memory) if executor == "threads" else None
    sides = open_sides(base, ft, download=download)
    planned = sides.plan(options.selection)
    options, planned = _matched(options, planned, sides)
    journal = None
    if out is not None:
        journal = claim(Path(out), sides.sources, sides.configs, options, resume=resume, force=force, share=share)
    try:
        with nullcontext(threads) if threads else on_cluster(sides, options, jobs, ray_address) as workers:
            ahead = int(any(side is not None and side.elsewhere for side in sides.sources))
            measured = measure_all(planned.pairs, options, workers, journal, progress, share, ahead)
        seconds = time.perf_counter() - started
        analysis = _assemble(planned, measured, sides.sources, options, str(workers), seconds, share)
        if out is not None and journal is not None:
            analysis.save(out, formats)
            journal.close(finished=True)
    finally:
        if journal is not None:
            journal.close()
    return analysis


def _matched(options: Options, planned: Plan, sides: Sides) -> tuple[Options, Plan]:
    """The options with the inputs of each pair's matrix, and the plan with what is to be said of them."""
    if not options.data:
        return options, planned
    from deltaw.activations.matching import match

    found = [match(inputs.activations, planned.pairs, sides.configs) for inputs in options.data]
    notes = [note for _, note in found if note]
    data = tuple(inputs for inputs, _ in found)
    return replace(options, data=data), replace(planned, notes=(*planned.notes, *notes))


def _assemble(
    planned: Plan,
    measured: dict[str, Measured],
    sources: tuple[Source | None, Source],
    options: Options,
    devices: str,
    seconds: float,
    share: Share | None,
) -> Analysis:
    rows: list[Row] = []
    spectra: dict[str, Spectrum] = {}
    skipped: list[Skipped] = list(planned.skipped)
    intruders: list[IntruderCount] = []
    positions: list[int] = []
    for position, pair in enumerate(planned.pairs):
        found = measured.get(pair.key)
        if found is None:  # of another share
            continue
        if found.skipped is not None:
            skipped.append(found.skipped)
        if found.row is not None:
            rows.append(found.row)
            positions.append(position)
        if found.spectrum is not None:
            spectra[pair.key] = found.spectrum
        intruders.extend(found.intruders)
    skipped.sort(key=lambda s: natural(s.name))
    base, ft = sources
    failed = [key for key, found in measured.items() if found.row is None]
    others = [pair.key for pair in planned.pairs if pair.key not in measured]
    if share is not None:
        share = replace(
            share,
            pairs=len(planned.pairs),
            positions=tuple(positions),
            planned=planned.coverage(),
            reached=planned.coverage(failed),
        )
    return Analysis(
        rows=rows,
        spectra=spectra,
        skipped=skipped,
        base=base and base.hashed(),
        ft=ft.hashed(),
        options=options.to_dict(),
        device=devices,
        seconds=seconds,
        versions=versions(),
        notes=tuple(map(writable, (*planned.notes, *storage.notes(rows), *_said(base, share)))),
        intruders=tuple(intruders),
        coverage=planned.coverage([*failed, *others]),
        command=command(base, ft, options, share),
        share=share,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _said(base: Source | None, share: Share | None) -> Iterator[str]:
    """What a reader should know of how the analysis was asked for."""
    if base is not None and base.found_by:
        yield f"the base {base.path} was not given, but found: {base.found_by}"
    if share is not None:
        yield share.note
