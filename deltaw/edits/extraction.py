"""`deltaw.extract`: a fine-tune as a PEFT LoRA, with a certificate of what it keeps.

ΔW ≈ Σ_{i≤r} σ_i u_i v_iᵀ, B = U√σ and A = √σVᵀ (Eckart & Young 1936): no other B·A of rank r is nearer. Each matrix is
read, solved and put away before the next, and what is finished survives a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deltaw.activations import Activations
from deltaw.adapters import open_adapter
from deltaw.edits.config import adapter_config
from deltaw.edits.extracted import Extraction
from deltaw.edits.for_data import DataSet
from deltaw.edits.making import Made, Maker
from deltaw.edits.opened import OpenedSides, open_model
from deltaw.edits.parts import EditFolder, refuse_existing, refuse_inputs
from deltaw.edits.placement import place
from deltaw.edits.policies import Policy, check_storage
from deltaw.edits.units import Show
from deltaw.edits.writing import CARD, Told, command, write_adapter
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.journal import digest
from deltaw.measurement.options import resolve_devices
from deltaw.pairs.selection import Names, Selection
from deltaw.types import Pair, is_update


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
    activations: str | Path | Activations | None = None,
    dtype: str = "float32",
    save_modules: str = "auto",
    picture: bool = False,
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
        activations: Keep what does most to the inputs of a data set: what `collect_activations` wrote of the base.
        dtype: Of the factors: `bfloat16`, `float16` or `float32`.
        save_modules: `auto` stores whole what no pair can hold, `none` leaves it out.
        picture: Also write `energy.svg`, see `Extraction.plot`.
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
    check_storage(dtype, save_modules)
    workers = Workers(resolve_devices(device), jobs, memory)
    selection = Selection.of(include=include, exclude=exclude, rename=rename)
    folder = refuse_existing(Path(out), "adapter", CARD, force=force)
    opened = open_model(base, ft, selection)
    refuse_inputs(folder, (s for s in opened.sides.sources if s is not None))
    placed = place(
        opened.plan.pairs,
        (*opened.plan.skipped, *opened.left),
        opened.values,
        opened.model,
        save_modules=save_modules == "auto",
    )
    data = DataSet.of(activations, placed.pairs, opened.sides.configs, one_budget=parameters is not None)
    parts = EditFolder(folder, _identity(opened, policy, dtype, selection, data), resume=resume)
    try:
        made = Maker(parts, policy, dtype, workers, progress, data.inputs).make(placed)
        found = _written(
            opened, made, folder, policy, dtype, [*_options(selection, save_modules), *data.flags], data, picture
        )
        parts.close(finished=True)
    finally:
        parts.close()
    return found


def _identity(opened: OpenedSides, policy: Policy, dtype: str, selection: Selection, data: DataSet) -> str:
    """What decides the factors; empty for tensors in memory, which nothing says are still what they were."""
    sources = [s for s in opened.sides.sources if s is not None]
    if not all(s.files for s in sources):
        return ""
    files = [[str(f) for f in s.files] for s in sources]
    configs = [c.values for c in opened.sides.configs]
    options = [selection.include, selection.exclude, selection.rename, dtype, policy.to_dict(), data.hash]
    return digest(version("deltaw"), files, configs, options, opened.model is not None)


def _options(selection: Selection, save_modules: str) -> list[str]:
    """What else decides the adapter, as the command line has it."""
    named = {"--include": selection.include, "--exclude": selection.exclude, "--rename": selection.rename}
    flags = [text for flag, values in named.items() for value in values for text in (flag, value)]
    return flags if save_modules == "auto" else [*flags, "--save-modules", save_modules]


def _written(
    opened: OpenedSides,
    made: Made,
    out: Path,
    policy: Policy,
    dtype: str,
    options: Sequence[str],
    data: DataSet,
    picture: bool,
) -> Extraction:
    """Write the adapter, read it back, and sum up."""
    base, ft = opened.sides.sources
    assert base is not None
    paths = {".".join(p[:i]) for n in opened.values for p in [n.split(".")[:-1]] for i in range(1, len(p) + 1)}
    about = adapter_config(
        made.placed.targets,
        made.ranks,
        made.placed.whole,
        base=("" if not base.files else base.path.partition("@")[0] if base.revision else base.path, base.revision),
        config=opened.config,
        model=opened.model,
        modules=paths if opened.model is None else {*opened.model.kinds},
    )
    told = Told(
        base=base,
        ft=(ft,),
        policy=policy,
        dtype=dtype,
        notes=(*opened.plan.notes, *data.notes),
        data=data,
        picture=picture,
        command=command("extract", (base, ft), policy, dtype, out, options),
    )
    return write_adapter(out, made, about, told, partial(_read_back, opened, out))


def _read_back(opened: OpenedSides, out: Path) -> dict[str, Pair]:
    """The pairs of the adapter that was written, as `deltaw verify` lays it on the base."""
    names = {(p.name, p.view.expert): p.key for p in opened.plan.pairs}
    found = open_adapter(out).updates(opened.base)
    return {key: p for p in found.pairs if is_update(p.ft) and (key := names.get((p.name, p.view.expert)))}
