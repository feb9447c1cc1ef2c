"""`spectra.safetensors`: the singular values of every matrix, by its key, and how each were obtained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deltaw.errors import ResultsError
from deltaw.types import Interval, Spectrum


def write_spectra(spectra: Mapping[str, Spectrum], path: Path) -> None:
    """Write spectra by the keys of their matrices."""
    from safetensors.numpy import save

    about = {
        key: {
            "rows": s.rows,
            "cols": s.cols,
            "method": s.method,
            "energy": s.energy,
            "estimates": {k: list(v) for k, v in s.estimates.items()},
            "note": s.note,
        }
        for key, s in spectra.items()
    }
    values = {key: np.ascontiguousarray(s.values, dtype=np.float64) for key, s in spectra.items()}
    path.write_bytes(save(values, metadata={"spectra": json.dumps(about)}))


def read_spectra(path: Path) -> dict[str, Spectrum]:
    """The spectra that `Analysis.save` wrote.

    Raises:
        ResultsError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    out: dict[str, Spectrum] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("spectra", "{}"))
            for key in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                a = about[key]
                estimates = {k: Interval(*v) for k, v in a["estimates"].items()}
                out[key] = Spectrum(
                    file.get_tensor(key), a["rows"], a["cols"], a["method"], a["energy"], estimates, a["note"]
                )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise ResultsError(f"{path}: spectra cannot be read ({e}); run analyze again") from e
    return out
