"""`deltaw.extract`: a fine-tune as a PEFT LoRA, with a certificate of what it keeps.

ΔW ≈ Σ_{i≤r} σ_i u_i v_iᵀ, B = U√σ and A = √σVᵀ (Eckart & Young 1936): no other B·A of rank r is nearer. Each matrix is
read, solved and put away before the next, and what is finished survives a kill.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.adapters import open_adapter
from deltaw.edits.card import card
from deltaw.edits.config import adapter_config
from deltaw.edits.extracted import ExtractedRow, Extraction, SavedModule, write_table
from deltaw.edits.layout import factor_entries, whole_entries
from deltaw.edits.making import Made, Maker
from deltaw.edits.opened import Opened, open_model
from deltaw.edits.parts import Parts
from deltaw.edits.placement import place
from deltaw.edits.policies import Policy
from deltaw.edits.tensorfile import write_tensors
from deltaw.edits.units import Show, Workers
from deltaw.errors import EditError, OptionError, ResultsError
from deltaw.files import replacing
from deltaw.measurement.journal import digest
from deltaw.measurement.options import resolve_devices
from deltaw.pairs.selection import Names, Selection
from deltaw.results.sources import Source
from deltaw.types import Factors, is_update

if TYPE_CHECKING:
    pass

DTYPES = ("bfloat16", "float16", "float32")
SAVING = ("auto", "none")
CONFIG, WEIGHTS, TABLE, CARD = "adapter_config.json", "adapter_model.safetensors", "extraction.csv", "README.md"


def extract(
    base: Any,
    ft: Any,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    above_noise: bool = False,
    parameters: int | None = None,
    max_rank: int | None = None,
    ranks: Iterable[int] = (),
    dtype: str = "float32",
    save_modules: str = "auto",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    rename: Names = (),
    device: str = "auto",
    jobs: int | None = None,
    memory: int | str | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Show | None = None,
) -> Extraction:
    """Write what fine-tuning changed as a LoRA that `PeftModel.from_pretrained` loads.

    Args:
        base: Path, Hub id, `nn.Module` or state dict.
        ft: The same, or an adapter of any method that is read.
        out: The directory to write to.
        rank: Keep this many directions of every matrix.
        energy: Keep this share of each matrix's energy above its noise.
        above_noise: Keep every direction above the noise edge.
        parameters: Spend this many numbers, all that is stored whole included, where they keep most energy.
        max_rank: No more of any matrix.
        ranks: Only these ranks.
        dtype: Of the factors: `bfloat16`, `float16` or `float32`.
        save_modules: `auto` stores whole what no pair can hold, `none` leaves it out.
        include, exclude: Regular expressions on tensor names; one, or several.
        rename: `REGEX=TEXT`, applied to the fine-tuned side's names before they are matched.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        jobs: Matrices at a time.
        memory: Bytes that the matrices in work may take together, or a size such as `8GB`.
        resume: Go on from what an interrupted run of the same inputs left in `out`.
        force: Overwrite what is in `out`.
        progress: Called after each matrix.

    Returns:
        The certificate.

    Raises:
        DeltaWError: The inputs cannot be used, nothing can be kept, or the adapter cannot be written.
        OptionError: An option has a bad value.
    """
    policy = Policy(rank, energy, above_noise, parameters, max_rank, tuple(ranks))
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
    if save_modules not in SAVING:
        raise OptionError(f"save_modules {save_modules!r} is unknown; expected one of {', '.join(SAVING)}")
    workers = Workers(resolve_devices(device), jobs, memory, progress)
    selection = Selection.of(include=include, exclude=exclude, rename=rename)
    folder = refuse_existing(Path(out), force=force)
    opened = open_model(base, ft, selection)
    placed = place(
        opened.plan.pairs,
        (*opened.plan.skipped, *opened.left),
        opened.values,
        opened.model,
        save_modules=save_modules == "auto",
    )
    parts = Parts(folder, _identity(opened, policy, dtype, selection), resume=resume)
    try:
        made = Maker(parts, policy, dtype, workers).make(placed)
        found = _written(opened, made, folder, policy, dtype)
        parts.close(finished=True)
    finally:
        parts.close()
    return found


def refuse_existing(out: Path, *, force: bool) -> Path:
    """The directory to write to.

    Raises:
        ResultsError: Something is there that is no unfinished run's.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the adapter, choose another --out")
    there = sorted(p.name for p in out.iterdir() if not p.name.startswith(".deltaw-")) if out.is_dir() else []
    unfinished = out.is_dir() and any(out.glob(".deltaw-*/*/*"))
    if there and not force and (not unfinished or CONFIG in there):
        raise ResultsError(f"{out}: holds {there[0]} already; choose another --out, or --force to overwrite it")
    if force:
        (out / CONFIG).unlink(missing_ok=True)  # an adapter that is half the old one must not look whole
    return out


def _identity(opened: Opened, policy: Policy, dtype: str, selection: Selection) -> str:
    """What decides the factors; empty for tensors in memory, which nothing says are still what they were."""
    sources = [s for s in opened.sides.sources if s is not None]
    if not all(s.files for s in sources):
        return ""
    files = [[str(f) for f in s.files] for s in sources]
    configs = [c.values for c in opened.sides.configs]
    options = [selection.include, selection.exclude, selection.rename, dtype, policy.to_dict()]
    return digest(version("deltaw"), files, configs, options, opened.model is not None)


def _written(opened: Opened, made: Made, out: Path, policy: Policy, dtype: str) -> Extraction:
    """Write the adapter, read it back, and sum up.

    Raises:
        ResultsError: It cannot be written.
    """
    targets, whole = made.placed.targets, made.placed.whole
    entries = [e for t in targets for e in factor_entries(t, made.ranks[t.name], dtype, made.read)]
    base, ft = opened.sides.sources
    assert base is not None
    paths = {".".join(p[:i]) for n in opened.values for p in [n.split(".")[:-1]] for i in range(1, len(p) + 1)}
    about = adapter_config(
        targets,
        made.ranks,
        whole,
        base=("" if not base.files else base.path.partition("@")[0] if base.revision else base.path, base.revision),
        config=opened.config,
        model=opened.model,
        modules=paths if opened.model is None else {*opened.model.kinds},
    )
    try:
        write_tensors(out / WEIGHTS, [*entries, *whole_entries(whole, targets)])
        with replacing(out / CONFIG) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _proofread(opened, made, out)
        found = _certificate(opened, made, out, policy, dtype, (base, ft))
        write_table(found.layers, out / TABLE)
        grown = [w.name for w in whole if "vocabulary" in w.why]
        with replacing(out / CARD) as temporary:
            temporary.write_text(card(found, base.path if base.files else "", grown), encoding="utf-8")
    except OSError as e:
        raise ResultsError(f"{out}: cannot be written ({e.strerror or e}); free some space and run again") from e
    return found


def _proofread(opened: Opened, made: Made, out: Path) -> None:
    """Read what was written as `deltaw verify` would: it must be these factors, on these tensors.

    Raises:
        EditError: It is not.
    """
    import torch

    updates = open_adapter(out).updates(opened.base)
    read = {(p.name, p.view.expert): p for p in updates.pairs if is_update(p.ft)}
    for target in made.placed.targets:
        for pair in target.pairs:
            again = read.get((pair.name, pair.view.expert))
            value = again.ft.delta(None) if again is not None and is_update(again.ft) else None
            B, A = (f.double() for f in made.read(pair.key))
            same = isinstance(value, Factors) and torch.equal(value.B, B) and torch.equal(value.A, A)
            if isinstance(value, Factors) and not same and B.shape[0] == value.B.shape[0]:
                same = bool(torch.equal(value.B @ value.A, B @ A))
            if not same:
                raise EditError(
                    f"{out}: {pair.label} reads back as another update than was written (a defect of deltaw)"
                )


def _certificate(
    opened: Opened, made: Made, out: Path, policy: Policy, dtype: str, sources: tuple[Source, Source]
) -> Extraction:
    rows = []
    for target in made.placed.targets:
        for pair in target.pairs:
            kept = made.found[pair.key].kept
            assert kept is not None
            m, n = pair.shape
            share = kept.kept / kept.energy if kept.energy else math.nan
            error = kept.error / math.sqrt(kept.energy) if kept.energy else math.nan
            rank = made.ranks[target.name]
            rows.append(ExtractedRow(pair.label, m, n, rank, rank * (m + n), share, error, kept.signal))
    energy = sum(part.spread.energy for part in made.found.values())
    held = [part.kept for part in made.found.values() if part.kept is not None and part.kept.rank]
    lost = energy - sum(k.energy for k in held) + sum(k.error**2 for k in held)
    return Extraction(
        out=str(out),
        base=sources[0].hashed(),
        ft=(sources[1].hashed(),),
        policy=policy.to_dict(),
        dtype=dtype,
        layers=tuple(rows),
        saved=tuple(SavedModule(w.name, w.parameters, w.why) for w in made.placed.whole),
        skipped=made.skipped,
        energy_kept=sum(k.kept for k in held) / energy,
        relative_error=math.sqrt(max(0.0, lost) / energy),
        gap=made.gap,
        notes=opened.plan.notes,
        command=_command(sources, policy, dtype, out),
    )


def _command(sources: tuple[Source, Source], policy: Policy, dtype: str, out: Path) -> str:
    if not all(s.files for s in sources):
        return ""
    flags: list[str] = []
    for name, value in policy.to_dict().items():
        flag = f"--{name.replace('_', '-')}"
        flags += (
            [flag] if value is True else [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        )
    named = [f"{s.path.partition('@')[0]}@{s.revision}" if s.revision else s.path for s in sources]
    return shlex.join(["deltaw", "extract", *named, *flags, "--dtype", dtype, "--out", str(out)])
