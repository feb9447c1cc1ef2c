"""`spectra.safetensors`: the singular values of every matrix, by its key, and how each were obtained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from deltaw.documents import Document, parse_object, shown
from deltaw.errors import ResultsError
from deltaw.types import Interval, JsonValue, Method, Spectrum


def write_spectra(spectra: Mapping[str, Spectrum], path: Path) -> None:
    """Write spectra by the keys of their matrices."""
    from safetensors.numpy import save

    about = {key: described(s) for key, s in spectra.items()}
    values = {key: np.ascontiguousarray(s.values, dtype=np.float64) for key, s in spectra.items()}
    path.write_bytes(save(values, metadata={"spectra": json.dumps(about)}))


def described(s: Spectrum) -> dict[str, JsonValue]:
    """What is known of a spectrum beside its values, as JSON values."""
    return {
        "rows": s.rows,
        "cols": s.cols,
        "method": s.method,
        "energy": s.energy,
        "estimates": {k: list(map(float, v)) for k, v in s.estimates.items()},  # as they are read again
        "note": s.note,
    }


def read_spectra(path: Path) -> dict[str, Spectrum]:
    """The spectra that `Analysis.save` wrote.

    Raises:
        ResultsError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ResultsError(f"{path}: no such file; run analyze again")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("spectra", "{}")
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, ValueError, TypeError) as e:
        raise ResultsError(f"{path}: spectra cannot be read ({e}); run analyze again") from e
    about = parse_object(text, str(path), error=ResultsError)
    return {key: spectrum(values[key], about.inner(key)) for key in values}


def spectrum(values: NDArray[np.generic], about: Document) -> Spectrum:
    """A spectrum of which `described` was written.

    Args:
        values: (≤ min(rows, cols),), float64.
        about: What `described` gave.

    Raises:
        ResultsError: The two do not belong together, or something is of another type.
    """
    method = cast("Method", about.text("method", None))
    rows, cols = about.whole("rows"), about.whole("cols")
    if (
        method not in get_args(Method)
        or values.ndim != 1
        or values.dtype != np.float64
        or not 0 <= len(values) <= min(rows, cols)
    ):
        raise ResultsError(f"{about.where}: is not a spectrum of a {rows}×{cols} matrix; run analyze again")
    estimates = {name: _interval(about.inner("estimates"), name) for name in about.inner("estimates")}
    energy = about.number("energy") if "energy" in about else None
    return Spectrum(values.astype(np.float64), rows, cols, method, energy, estimates, about.text("note"))


def _interval(about: Document, name: str) -> Interval:
    found = about.values[name]
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(v, (int, float)) for v in found):
        raise ResultsError(f"{about.where}: {name!r} is {shown(found)}; expected a value, a low and a high")
    return Interval(*map(float, found))
