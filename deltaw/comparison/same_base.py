"""Whether all runs are of one base: by content, since a path or a name says little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.comparison.runs import Run
from deltaw.errors import DeltaWError, ManifestError
from deltaw.pairs.matching import join
from deltaw.pairs.views import is_floating

if TYPE_CHECKING:
    from deltaw.checkpoints import Checkpoint
    from deltaw.types import Handle

TOLERANCE = 1e-6  # of a norm: the order of the sums differs by device
READ_BYTES = 1 << 30  # of the manifest's base, for each run: beyond it a part of the tensors is read
VOCABULARY = ("embedding", "head")  # may be resized: the common rows were analysed


def check_analysed(runs: Sequence[Run], base: str | None) -> list[str]:
    """That runs which have results are of one base, and of the manifest's where it names one.

    Args:
        runs: With aligned keys.
        base: The manifest's.

    Returns:
        Warnings: what could not be checked.

    Raises:
        ManifestError: Some run has another base; one line per run.
    """
    runs = [r for r in runs if r.layers is not None]
    problems, warnings = _differences(runs)
    confirmed: set[str] = set()
    if base is not None and runs and not problems:
        try:
            confirmed, problems = _against(runs, base)
        except DeltaWError as e:
            warnings.append(f"The base {base} cannot be read ({e}): nobody can check that the results are of it.")
    problems = problems or _apart(runs, confirmed)
    if problems:
        raise ManifestError("\n".join(problems))
    return warnings


def check_bases(runs: Sequence[Run]) -> list[str]:
    """That all runs are of one base, by content: a layer of the same name has the same shape and ‖W0‖F.

    Returns:
        Warnings: a run whose results do not know the base.

    Raises:
        ManifestError: Some run has another base than those before it; one line per run.
    """
    problems, warnings = _differences([r for r in runs if r.layers is not None])
    if problems:
        raise ManifestError("\n".join(problems))
    return warnings


def _differences(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """(problems, warnings) of layers that several runs have."""
    problems, warnings = [], []
    seen: dict[str, tuple[float, float, float, Run]] = {}
    for run in runs:
        known, found = False, None
        for key, kind, rows, cols, norm in _layers(run):
            known |= math.isfinite(norm)
            first = seen.setdefault(key, (rows, cols, norm, run))
            if (rows, cols) != first[:2]:
                if kind not in VOCABULARY:
                    found = found or (first[3], f"{key} is {rows} × {cols}, there {first[0]} × {first[1]}")
                continue
            if _other(norm, first[2]):
                found = found or (first[3], f"{key} has a base norm of {norm:.6g}, there {first[2]:.6g}")
            if math.isfinite(norm) and not math.isfinite(first[2]):
                seen[key] = (rows, cols, norm, run)
        if found is not None:
            problems.append(_line(run, f"run {found[0].spec.name!r} ({_path(found[0])}): {found[1]}"))
        if not known:
            warnings.append(
                f"Run {run.spec.name!r} was analysed without its base: nobody can check that it is the same."
            )
    return problems, warnings


def _layers(run: Run) -> Iterator[tuple[str, str, int, int, float]]:
    """(key, kind, rows, cols, ‖W0‖F) of each layer; NaN where the base was not there."""
    f = run.layers
    assert f is not None
    norms = f["base_fro_norm"] if "base_fro_norm" in f.columns else [math.nan] * len(f)
    for key, kind, rows, cols, norm in zip(f.index, f["kind"], f["rows"], f["cols"], norms, strict=True):
        yield str(key), str(kind), int(rows), int(cols), float(norm)


def _other(norm: float, expected: float) -> bool:
    """Whether two norms differ beyond rounding; False where one is not known."""
    return abs(norm - expected) > TOLERANCE * max(norm, expected)


def _line(run: Run, than: str) -> str:
    return (
        f"{run.spec.where}: run {run.spec.name!r} has another base ({_path(run)}) than {than}; "
        "compare runs of one base only"
    )


def _path(run: Run) -> str:
    return (run.analysed.base and run.analysed.base.path) or "unknown"


def _against(runs: Sequence[Run], base: str) -> tuple[set[str], list[str]]:
    """The names of the runs that are of the manifest's base, and a problem for each that is not.

    Raises:
        DeltaWError: The base cannot be opened or read.
    """
    from deltaw.checkpoints import open_checkpoint

    local = Path(base).exists()
    asked = [r for r in runs if local or _path(r) != base]  # a Hub id names its content: nothing is fetched to check it
    confirmed, problems = {r.spec.name for r in runs}, []
    norms: dict[str, float] = {}
    opened = open_checkpoint(base) if asked else None
    for run in asked:
        assert opened is not None
        found = _differs(run, opened, norms)
        if found is not None:
            confirmed.discard(run.spec.name)
            problems.append(_line(run, f"the manifest's ({base}): {found}"))
    return confirmed, problems


def _differs(run: Run, base: Checkpoint, norms: dict[str, float]) -> str | None:
    """Where a run's results contradict a base; `norms` keeps what was read of it.

    Raises:
        DeltaWError: A tensor cannot be read.
    """
    f = run.layers
    assert f is not None
    names = list(map(str, f["name"]))
    stored = join(dict.fromkeys(base.tensors), dict.fromkeys(names)).pairs
    if names and not stored:
        return f"it has no tensor in common with it ({names[0]!r}, there {next(iter(base.tensors), 'none')!r})"
    # The parts of one tensor (experts; q, k, v) are added up: stored is the whole.
    sizes: dict[str, int] = {}
    squares: dict[str, float] = {}
    whole: dict[str, bool] = {}
    for name, (key, kind, rows, cols, norm) in zip(names, _layers(run), strict=True):
        sizes[name] = sizes.get(name, 0) + rows * cols
        squares[name] = squares.get(name, 0.0) + norm**2
        whole[name] = not key.endswith("]") and kind not in VOCABULARY
    same: list[str] = []
    for name, stored_name in stored.items():
        handle = base.tensors[stored_name]
        if not is_floating(handle):
            continue
        if sizes[name] == math.prod(handle.shape):
            same.append(name)
        elif whole[name]:
            return f"{name} has {sizes[name]:,} entries, there {math.prod(handle.shape):,}"
    for name in _few([n for n in same if math.isfinite(squares[n])], {n: base.tensors[stored[n]] for n in same}):
        handle = base.tensors[stored[name]]
        if handle.name not in norms:
            norms[handle.name] = _norm(handle)
        norm = math.sqrt(squares[name])
        if _other(norm, norms[handle.name]):
            return f"{name} has a base norm of {norm:.6g}, there {norms[handle.name]:.6g}"
    return None


def _few(names: Sequence[str], handles: dict[str, Handle]) -> Sequence[str]:
    """All tensors of a small model, of a large one some from every part of it."""
    names = [n for n in names if handles[n].nbytes <= READ_BYTES]
    return names[:: max(1, math.ceil(sum(handles[n].nbytes for n in names) / READ_BYTES))]


def _norm(handle: Handle) -> float:
    """‖W0‖F, in float64.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    import torch

    blocks = torch.split(handle.read().flatten(), 1 << 22)  # never all of it in float64
    return math.sqrt(sum(float(b.double().square().sum()) for b in blocks))


def _apart(runs: Sequence[Run], confirmed: Set[str]) -> list[str]:
    """A problem for each run that nothing ties to the first: no tensor in common, and no base known to be the same.

    Adapters on different modules share no tensor, and are of one base all the same.
    """
    parts: list[tuple[int, set[object]]] = []  # (its first run, everything that ties a run to it)
    for i, run in enumerate(runs):
        assert run.layers is not None
        ties: set[object] = {("layer", str(k)) for k in run.layers.index}
        ties |= {("base", run.analysed.base)} if run.analysed.base is not None else set()
        ties |= {("manifest",)} if run.spec.name in confirmed else set()
        mine = [p for p in parts if p[1] & ties]
        parts = [p for p in parts if p not in mine]
        parts.append((min([i, *(p[0] for p in mine)]), ties.union(*(p[1] for p in mine))))
    firsts = [runs[i] for i in sorted(i for i, _ in parts)]
    return [
        f"{run.spec.where}: run {run.spec.name!r} has no tensor in common with run {firsts[0].spec.name!r}, and "
        f"nothing shows that its base ({_path(run)}) is the same ({_path(firsts[0])}); compare runs of one base only, "
        'or name the base of both in a manifest (base = "…")'
        for run in firsts[1:]
    ]
