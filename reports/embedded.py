"""What the scripts of an analysis' report need: the table, the spectra, and the noise to compare them with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deltaw.metrics.registry import SECTIONS
from deltaw.reports.curves import POINTS, curve, log_spaced, noise_curve
from deltaw.reports.layers import HELPERS, Layers
from deltaw.reports.text import visible
from deltaw.results.columns import column, is_hidden_by_noise, is_share, is_text, is_whole
from deltaw.types import JsonValue, matrix_label

if TYPE_CHECKING:
    import pandas as pd

MOST = 2000  # rows of the page; the files have all
MANY = 500  # matrices; beyond, each curve gets fewer points


def shown(layers: Layers, needed: Iterable[int] = ()) -> pd.DataFrame:
    """The rows that the page holds: all, or those that its figures lead to and the most changed, `MOST` together."""
    frame = layers.frame
    if len(frame) <= MOST:
        return frame
    needed = sorted(set(needed))[:MOST]
    size = frame["relative_change"].fillna(0).drop(needed)
    return frame.loc[sorted([*needed, *size.nlargest(MOST - len(needed)).index])]


def embedded(layers: Layers, frame: pd.DataFrame) -> dict[str, JsonValue]:
    """The data of the page, as plain values, of the rows that it holds."""
    columns = [str(c) for c in frame.columns if c not in HELPERS]
    names = [matrix_label(str(n), str(p)) for n, p in zip(frame["name"], frame["part"], strict=True)]
    return {
        "columns": columns,
        "text_columns": sorted(filter(is_text, columns)),
        "sections": sections(columns),
        "rows": _rows(frame, columns),
        "numbers": frame.index.tolist(),
        "total": len(layers.frame),
        "shares": [c for c in columns if is_share(c)],
        "hidden_by_noise": [c for c in columns if is_hidden_by_noise(c)],
        "labels": {str(i): text for i, name in zip(frame.index, names, strict=True) if (text := visible(name)) != name},
        "slots": dict(zip(map(str, frame.index), frame["slot"], strict=True)),
        **_curves(layers, frame),
    }


def sections(columns: list[str]) -> dict[str, list[str]]:
    """Columns by heading, with intervals behind what they belong to; an analysis' own extra columns come last."""
    out: dict[str, list[str]] = {section: [] for section in ("identity", *SECTIONS, "other")}
    for name in columns:
        known = column(name)
        out[known.section if known else "other"].append(name)
    return {section: members for section, members in out.items() if members}


def _rows(frame: pd.DataFrame, columns: list[str]) -> list[list[Any]]:
    """Row by row, floats to six digits: more than is shown, and half of the bytes."""
    lists = [[_compact(v, is_whole(c)) for v in frame[c].tolist()] for c in columns]
    return [list(row) for row in zip(*lists, strict=True)]


def _compact(value: Any, whole: bool = False, digits: int = 6) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if whole and value.is_integer() else float(f"{value:.{digits}g}")
    return value


def _curves(layers: Layers, frame: pd.DataFrame) -> dict[str, JsonValue]:
    """σ and cumulative energy by row number; the indices are shared by all spectra with as many values."""
    changed = frame[frame["matrix"] & frame["changed"]]
    points = POINTS if len(changed) <= MANY else POINTS // 2
    spectra: dict[str, JsonValue] = {}
    indices: dict[str, list[int]] = {}
    noise: dict[str, JsonValue] = {}
    for at, key, rows, cols in zip(changed.index, changed["key"], changed["rows"], changed["cols"], strict=True):
        spectrum = layers.analysis.spectra.get(str(key))
        if spectrum is None or not len(spectrum.values):
            continue
        k = len(spectrum.values)
        drawn = curve(spectrum, points)
        indices.setdefault(str(k), log_spaced(k, points).tolist())
        spectra[str(at)] = {"k": k, "s": _short(drawn.sigma), "e": _short(drawn.energy)}
        if (shape := f"{rows}x{cols}") not in noise:
            null = noise_curve(int(rows), int(cols), points)
            noise[shape] = {"i": null.at.tolist(), "s": _short(null.sigma), "e": _short(null.energy)}
    return {"spectra": spectra, "indices": indices, "noise": noise}


def _short(values: Any) -> list[Any]:
    return [_compact(float(v), digits=4) for v in values]
