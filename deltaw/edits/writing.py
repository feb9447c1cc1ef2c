"""The files of an adapter: its tensors, its config, its certificate and its card, read back before they count."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deltaw.edits.card import card
from deltaw.edits.extracted import ExtractedRow, Extraction, SavedModule, write_table
from deltaw.edits.for_data import DataSet
from deltaw.edits.layout import factor_entries, whole_entries
from deltaw.edits.making import Made
from deltaw.edits.parts import MatrixKept
from deltaw.edits.policies import Policy
from deltaw.errors import EditError, ResultsError
from deltaw.files import replacing
from deltaw.results.sources import Source
from deltaw.tensors.tensorfile import write_tensors
from deltaw.types import Factors, JsonValue, Pair, is_update

CONFIG, WEIGHTS, TABLE, CARD = "adapter_config.json", "adapter_model.safetensors", "extraction.csv", "README.md"
ReadBack = Callable[[], Mapping[str, Pair]]


@dataclass(frozen=True)
class Told:
    """What a certificate says besides its numbers; see `Extraction`."""

    base: Source | None
    ft: tuple[Source, ...]
    policy: Policy
    dtype: str
    notes: tuple[str, ...]
    command: str
    data: DataSet
    picture: bool


def write_adapter(out: Path, made: Made, about: Mapping[str, JsonValue], told: Told, read: ReadBack) -> Extraction:
    """Write an adapter, read it back, and sum up.

    Args:
        out: The directory.
        made: The factors.
        about: Its adapter_config.json.
        told: What the certificate says besides.
        read: Opens what was written: its pairs by the keys of those that were made.

    Raises:
        ResultsError: It cannot be written.
        EditError: It reads back as something else.
    """
    targets, whole = made.placed.targets, made.placed.whole
    entries = [e for t in targets for e in factor_entries(t, made.ranks[t.name], told.dtype, made.read)]
    base = told.base.path if told.base is not None and told.base.files else str(about["base_model_name_or_path"] or "")
    try:
        for last in (CONFIG, CARD):  # an adapter that is half an older one must not look whole
            (out / last).unlink(missing_ok=True)
        write_tensors(out / WEIGHTS, [*entries, *whole_entries(whole, targets)])
        with replacing(out / CONFIG) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _proofread(made, out, read())
        found = _certificate(made, out, told)
        write_table(found.layers, out / TABLE)
        if told.picture:
            found.write_picture()
        grown = [w.name for w in whole if "vocabulary" in w.why]
        with replacing(out / CARD) as temporary:
            temporary.write_text(card(found, base, grown), encoding="utf-8")
    except OSError as e:
        raise ResultsError(f"{out}: cannot be written ({e.strerror or e}); free some space and run again") from e
    return found


def _proofread(made: Made, out: Path, read: Mapping[str, Pair]) -> None:
    """What was written must be these factors, on these tensors.

    Raises:
        EditError: It is not.
    """
    for target in made.placed.targets:
        for pair in target.pairs:
            again = read.get(pair.key)
            value = again.ft.delta(None) if again is not None and is_update(again.ft) else None
            B, A = (f.double() for f in made.read(pair.key))
            same = isinstance(value, Factors) and torch.equal(value.B, B) and torch.equal(value.A, A)
            if not same:
                raise EditError(
                    f"{out}: {pair.label} reads back as a different update from what was written (a defect of deltaw)"
                )


def _certificate(made: Made, out: Path, told: Told) -> Extraction:
    rows = []
    for target in made.placed.targets:
        for pair in target.pairs:
            kept = made.found[pair.key].kept
            assert kept is not None
            m, n = pair.shape
            share = kept.kept / kept.energy if kept.energy else math.nan
            error = kept.error / math.sqrt(kept.energy) if kept.energy else math.nan
            rank = made.ranks[target.name]
            on_data = _ratio(kept.error_on_data, kept.size_on_data)
            rows.append(ExtractedRow(pair.label, m, n, rank, rank * (m + n), share, error, kept.signal, on_data))
    energy = sum(part.spread.energy for part in made.found.values())
    held = [part.kept for part in made.found.values() if part.kept is not None and part.kept.rank]
    lost = energy - sum(k.energy for k in held) + sum(k.error**2 for k in held)
    return Extraction(
        out=str(out),
        base=None if told.base is None else told.base.hashed(),
        ft=tuple(side.hashed() for side in told.ft),
        policy=told.policy.to_dict(),
        dtype=told.dtype,
        layers=tuple(rows),
        saved=tuple(SavedModule(w.name, w.parameters, w.why) for w in made.placed.whole),
        skipped=made.skipped,
        energy_kept=sum(k.kept for k in held) / energy,
        relative_error=math.sqrt(max(0.0, lost) / energy),
        gap=made.gap,
        notes=told.notes,
        command=told.command,
        activations=told.data.path,
        sketched=told.data.sketched,
        curve=made.curve,
        relative_error_on_data=_on_data([p.kept for p in made.found.values() if p.kept is not None]),
    )


def _on_data(kept: Sequence[MatrixKept]) -> float | None:
    """√(Σ‖(ΔW − BA)·C^½‖²/Σ‖ΔW·C^½‖²) over the matrices whose inputs are known; None without any."""
    known = [(k.error_on_data, k.size_on_data) for k in kept if k.error_on_data is not None and k.size_on_data]
    return _ratio(math.hypot(*(e for e, _ in known)), math.hypot(*(s for _, s in known))) if known else None


def _ratio(error: float | None, size: float | None) -> float | None:
    """How large an error is beside what it is of; 0 where that is nothing."""
    if error is None or size is None:
        return None
    return error / size if size else 0.0


def command(name: str, sources: Sequence[Source], policy: Policy, dtype: str, out: Path, options: Sequence[str]) -> str:
    """The command that makes an adapter again; empty where a side was given in memory."""
    if not all(s.files for s in sources):
        return ""
    flags: list[str] = []
    for option, value in policy.to_dict().items():
        flag = f"--{option.replace('_', '-')}"
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        flags += [flag] if value is True else [flag, text]
    sides = [s.argument for s in sources]
    return shlex.join(["deltaw", name, *sides, *flags, *options, "--dtype", dtype, "--out", str(out)])
