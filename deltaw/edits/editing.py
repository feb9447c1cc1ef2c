"""`deltaw.edit`: the fine-tune with a part of its update taken out or scaled, as a checkpoint in its own layout.

Only what an operation changes is computed and rounded again; every other tensor keeps its bits. Each edited tensor is
put away before the next, so that an interrupted run goes on, and the shards are written tensor by tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaw.checkpoints import Checkpoint, QuantisedHandle, StoredHandle, why_unread
from deltaw.delta.difference import difference
from deltaw.documents import compile_pattern
from deltaw.edits.edited import Edited, write_rows
from deltaw.edits.operations import EditedRow, Operations, changes, told
from deltaw.edits.parts import EditFolder, refuse_existing, refuse_inputs
from deltaw.edits.shards import layout_of, write_shards
from deltaw.edits.units import Show, each
from deltaw.errors import EditError, OptionError, ResultsError, TensorError
from deltaw.files import replacing
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.journal import digest
from deltaw.measurement.options import resolve_devices
from deltaw.measurement.run import analyze
from deltaw.measurement.sides import Sides, open_sides
from deltaw.metrics import noise_edge
from deltaw.pairs.selection import Selection
from deltaw.results.decay import sharing
from deltaw.tensors.matrix import matrix
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, Pair, Reason, Skipped, is_handle

WORDS = ("--drop", "--without-decay", "--denoise", "--keep-rank", "--without-intruders", "--scale")
TABLE = "edit.csv"
BESIDE = (".json", ".txt", ".model", ".jinja", ".vocab", ".merges", ".tiktoken")  # configs and tokenizers


def edit(
    base: Any,
    ft: Any,
    out: str | Path,
    *,
    drop: str | Iterable[str] = (),
    without_decay: bool = False,
    denoise: bool = False,
    keep_rank: int | None = None,
    rescale: bool = False,
    without_intruders: bool = False,
    strength: float = 0.0,
    top_k: int = 10,
    epsilon: float = 0.5,
    scale: float | None = None,
    device: str = "auto",
    jobs: int | None = None,
    memory: int | str | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Show | None = None,
) -> Edited:
    """Write the fine-tune with a part of its update taken out or scaled; the operations apply in the arguments' order.

    Args:
        base: Path, Hub id, `nn.Module` or state dict.
        ft: The same: a full checkpoint.
        out: The directory to write to.
        drop: Regular expressions: the tensors that are to be as in the base.
        without_decay: Take out the common weight decay, where one is visible.
        denoise: Keep only directions above the noise edge.
        keep_rank: Keep only so many directions of each matrix; with `rescale` at ΔW's norm.
        rescale: See `keep_rank`.
        without_intruders: Take out the intruder dimensions; `strength` is what is kept of them.
        strength: See `without_intruders`.
        top_k, epsilon: What an intruder is.
        scale: The factor of what is left of the update.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        jobs, memory: As for `analyze`.
        resume: Go on from what an interrupted run of the same inputs left in `out`.
        force: Overwrite what is in `out`.
        progress: Called after each tensor.

    Returns:
        What was done.

    Raises:
        DeltaWError: The inputs cannot be used, or the checkpoint cannot be written.
        OptionError: An option has a bad value.
    """
    asked = Operations(without_decay, denoise, keep_rank, rescale, without_intruders, strength, top_k, epsilon, scale)
    patterns = (drop,) if isinstance(drop, str) else tuple(drop)
    if not patterns and scale is None and not (without_decay or denoise or keep_rank or without_intruders):
        raise OptionError(f"nothing to be done; expected at least one of {', '.join(WORDS)}")
    dropped = [compile_pattern(p, "--drop", error=OptionError) for p in patterns]
    workers = Workers(resolve_devices(device), jobs, memory)
    folder = refuse_existing(Path(out), "checkpoint", TABLE, force=force)
    sides = open_sides(base, ft)
    sources = [s for s in sides.sources if s is not None]
    refuse_inputs(folder, sources)
    whole = _editable(sides)
    assert sides.base is not None
    plan = sides.plan(Selection())
    groups: dict[str, list[Pair]] = {}
    for pair in plan.pairs:
        groups.setdefault(pair.name, []).append(pair)
    decay, shared = _decay(sides, device, jobs, memory) if without_decay else (None, frozenset())
    files = [[str(f) for f in s.files] for s in sources]
    identity = digest(version("deltaw"), "edit", files, patterns, asked.to_dict(), decay) if all(files) else ""
    parts = EditFolder(folder, identity, resume=resume)

    def one(first: Pair, device: torch.device) -> tuple[EditedRow, ...]:
        done = _finished(parts, first.name)
        if done is not None:
            return done
        gone = any(p.search(first.name) for p in dropped)
        c = decay if first.name in shared else None
        rows, tensor = _edited(whole.tensors[first.name], groups[first.name], asked, device, gone=gone, decay=c)
        _keep(parts, first.name, rows, tensor)
        return tuple(rows)

    try:
        found = each([pairs[0] for pairs in groups.values()], one, workers, progress)
        failed = {n: why for n, pairs in groups.items() if isinstance(why := found[pairs[0].key], str)}
        rows = [r for pairs in groups.values() for r in found[pairs[0].key] if isinstance(r, EditedRow)]
        changed = {n: parts.path(n) for n in groups if n not in failed and _has_tensor(parts.path(n))}
        _write(whole, folder, changed)
        write_rows(rows, folder / TABLE)
        parts.close(finished=True)
    finally:
        parts.close()
    lost = [Skipped(n, Reason.FAILED, "kept as fine-tuned", why) for n, why in failed.items()]
    missed = [s for s in plan.skipped if s.because is Reason.ONLY_IN_FT and any(p.search(s.name) for p in dropped)]
    operations = asked.to_dict() | ({"drop": list(patterns)} if patterns else {})
    return Edited(str(folder), sources[0], sources[1], operations, tuple(rows), (*lost, *missed), decay)


def _editable(sides: Sides) -> Checkpoint:
    """The fine-tuned side, if it can be written again.

    Raises:
        EditError: It is an adapter, quantised, or of a format that is not written.
    """
    ft = sides.ft
    if not isinstance(ft, Checkpoint):
        raise EditError(
            f"{ft.source}: an adapter, where a full checkpoint is expected; merge it first (peft: "
            "model.merge_and_unload()), or change its rank with deltaw resize"
        )
    codes = next(
        (n for n, h in ft.tensors.items() if isinstance(h, QuantisedHandle) or why_unread(h) is not None), None
    )
    if codes is not None or ft.companions:
        name, form = (codes, ft.tensors[codes].dtype) if codes else (next(iter(ft.companions)), "codes")
        raise EditError(
            f"{ft.source}: {name} is stored as {form}, which is not written again; load it with its own library, save "
            "it as bfloat16 (transformers: model.dequantize()), and edit that"
        )
    layout_of(ft)
    return ft


def _decay(sides: Sides, device: str, jobs: int | None, memory: int | str | None) -> tuple[float, frozenset[str]]:
    """The common decay, and the tensors that share it.

    Raises:
        EditError: None is visible.
    """
    found = analyze(sides.base, sides.ft, device=device, jobs=jobs, memory=memory)
    decay = found.summary.decay
    if not decay.visible:
        why = f"; most matrices show {decay.instead}" if decay.instead else ""
        raise EditError(f"no common weight decay is visible in this update, so there is none to take out{why}")
    return decay.value, sharing(found.rows, decay)


def _edited(
    stored: Handle, pairs: Sequence[Pair], asked: Operations, device: torch.device, *, gone: bool, decay: float | None
) -> tuple[list[EditedRow], Tensor | None]:
    """The rows of one tensor, and the tensor as it is to be stored; None where it keeps its bits.

    Raises:
        TensorError: An entry is not finite.
    """
    rows: list[EditedRow] = []
    tensor: Tensor | None = None
    for pair in pairs:
        assert pair.base is not None
        assert is_handle(pair.ft)
        old, new = matrix(pair.base, pair.view), matrix(pair.ft, pair.view)
        W0, delta = old.double().to(device), new.to(device).double() - old.to(device).double()
        if not delta.any() and not gone:
            continue
        if not gone and not bool(delta.isfinite().all()):
            raise TensorError("it has entries that are not finite; expected finite weights, or --drop it")
        if gone:
            size = float(torch.linalg.vector_norm(delta))
            rows += [EditedRow(pair.name, pair.view.part, "drop", None, 1.0, size, 0.0)] if size else []
            value = old
        else:
            edge = _edge(pair, device) if asked.denoise else 0.0
            found = changes(pair.key, W0, delta, asked, decay=decay, edge=edge)
            if not found:
                continue
            rows += told(pair.name, pair.view.part, delta, found)
            value = (W0 + found[-1].delta).cpu()
        if tensor is None:
            tensor = stored.read().clone()
        place = _place(tensor, pair)
        place.copy_(value.reshape(place.shape).to(tensor.dtype))
    return rows, tensor


def _edge(pair: Pair, device: torch.device) -> float:
    q = difference(pair, device).sums.quantities()
    if q.noise_row is None or q.noise_col is None:
        return 0.0
    return noise_edge(q.noise_row, q.noise_col, q.noise_inflation or 1.0)


def _place(tensor: Tensor, pair: Pair) -> Tensor:
    """Where the matrix of a pair lies in its stored tensor: a view, in the matrix's orientation."""
    x, ft, view = tensor, pair.ft, pair.view
    if isinstance(ft, Slice):
        x = x if ft.index is None else x[ft.index]
        x = x.T if ft.transposed else x
        x = x if ft.rows is None else x[ft.rows.start : ft.rows.stop : ft.rows.step]
    if view.expert is not None:
        x = x[view.expert]
    elif view.crop is not None:
        x = x[: view.crop]
    if x.ndim < 2 or not x.numel():
        return x.view(-1)
    x = x if x.ndim == 2 else x.view(x.shape[0], -1)
    return x.T if view.transposed else x


def _keep(parts: EditFolder, name: str, rows: Sequence[EditedRow], tensor: Tensor | None) -> None:
    from safetensors.torch import save_file

    about = {"deltaw": json.dumps([asdict(r) for r in rows])}
    tensors = {"none": torch.zeros(1)} if tensor is None else {"tensor": tensor.contiguous()}
    try:
        with replacing(parts.path(name), one_of_many=True) as temporary:
            save_file(tensors, temporary, about)
    except OSError as e:
        raise ResultsError(f"{parts.out}: cannot be written ({e.strerror or e}); free some space and run again") from e


def _finished(parts: EditFolder, name: str) -> tuple[EditedRow, ...] | None:
    """The rows of a tensor that an earlier run finished; None where it did not, or its file is damaged."""
    from safetensors import SafetensorError, safe_open

    path = parts.path(name)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return tuple(EditedRow(**row) for row in json.loads(file.metadata()["deltaw"]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return None


def _has_tensor(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return "tensor" in set(file.keys())


def _write(ft: Checkpoint, out: Path, changed: Mapping[str, Path]) -> None:
    """The shards, and what lies beside them.

    Raises:
        ResultsError: A file cannot be written.
    """
    try:
        (out / TABLE).unlink(missing_ok=True)  # a checkpoint that is half an older one must not look whole
        write_shards(ft, out, changed)
        stored = [h.path for h in ft.tensors.values() if isinstance(h, StoredHandle)]
        roots = {path.parent for path in stored if isinstance(path, Path)}
        source = Path(ft.source)
        for folder in roots if not source.is_dir() else {source, *roots}:
            inner = folder.relative_to(source) if source.is_dir() and folder.is_relative_to(source) else Path()
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.suffix in BESIDE and not path.name.startswith("."):
                    (out / inner).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, out / inner / path.name)
    except OSError as e:
        raise ResultsError(f"{out}: cannot be written ({e.strerror or e}); free some space and run again") from e
