"""The section on quantised storage: its formats, what their rounding adds, and what may be concluded."""

from __future__ import annotations

from deltaw.metrics.precision import NOISY, RESOLVED
from deltaw.reports.findings import Finding
from deltaw.reports.page import TableColumn
from deltaw.reports.readings import ALIKE
from deltaw.reports.text import EMPTY, code, missing, number, percent, plural
from deltaw.results.quantised import QuantisedMatrices
from deltaw.results.rows import Spread
from deltaw.results.summary import Summary

LIKE_NOISE = 0.9  # rank_90 over that of noise
WORTH = 0.25  # of the error's energy in 16 directions


def table(s: Summary) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """One line per format and side."""
    columns = [
        TableColumn("format", "format", numeric=False),
        TableColumn("side", "side", numeric=False),
        TableColumn("matrices", "matrices"),
        TableColumn("bits", "bits per weight"),
        TableColumn("noise", "rounding over ‖W0‖"),
        TableColumn("explained", "share of the change"),
        TableColumn("clipped", "clipped entries"),
    ]
    rows = [
        {
            "format": q.format,
            "side": q.side,
            "matrices": f"{q.matrices:,}",
            "bits": EMPTY if missing(q.bits) else number(q.bits),
            "noise": _spread(q.noise),
            "explained": _spread(q.explained),
            "clipped": _spread(q.clipped),
        }
        for q in s.quantised
    ]
    return columns, rows


def _spread(values: Spread) -> str:
    if not values.n:
        return EMPTY
    low, median, high = (percent(v, 2) for v in (values.low, values.median, values.high))
    return median if low == high else f"{median} ({low} to {high})"


def findings(s: Summary) -> list[Finding]:
    """What may be concluded, format by format."""
    out = [f for q in s.quantised if q.side == "fine-tuned" for f in _of(q)]
    tuned = {q.format for q in s.quantised if q.side == "fine-tuned"}
    if not tuned and s.quantised:
        formats = ", ".join(code(q.format) for q in s.quantised)
        out.append(
            Finding(
                f"The base is stored as {formats} and taken for what its codes stand for; its rounding is in no number "
                "here, for the update was trained on it.",
                "Only the base is quantised.",
            )
        )
    return out


def _of(q: QuantisedMatrices) -> list[Finding]:
    if not q.explained.n:
        return []
    share, what = q.explained.median, plural(q.matrices, "matrix", "matrices")
    rule = "rounding_noise² over ‖ΔW‖², in the typical matrix."
    said = f"In the {what} in {code(q.format)} the format's rounding explains {percent(share, 2)} of the change"
    if share > NOISY:
        out = [
            Finding(f"{said}: no update can be told from it, and what is measured is the quantisation.", rule, "warn")
        ]
        out.extend(_correction(q))
    elif share > RESOLVED:
        out = [Finding(f"{said}; what stands above its edge was not made by it ({code('signal_rank')}).", rule, "note")]
    else:
        out = [Finding(f"{said}: it does not matter here.", rule)]
    if q.noisiest is not None and q.quietest is not None:
        (most, high), (least, low) = q.noisiest, q.quietest
        where = f"largest in layer {most} ({percent(high, 2)} of ‖W0‖) and least in layer {least} ({percent(low, 2)})"
        if high <= ALIKE * low:
            where = f"about {percent(q.noise.median, 2)} of ‖W0‖ in every layer"
        text = f"The rounding is {where}."
        out.append(Finding(text, "Medians of rounding_noise over ‖W0‖ by layer."))
    return out


def _correction(q: QuantisedMatrices) -> list[Finding]:
    """Whether the error of a quantisation has few directions."""
    if not q.energy_at_16.n:
        return []
    share = q.energy_at_16.median
    rule = f"energy_at_16 ≥ {WORTH:g}, and rank_90 below {LIKE_NOISE:g} of noise's."
    if share >= WORTH and q.rank_90_ratio.median < LIKE_NOISE:
        text = (
            f"Its error has few directions: a correction of rank 16 would take out {percent(share, 2)} of its energy."
        )
    else:
        text = (
            f"A low-rank correction is not worth it: one of rank 16 would take out {percent(share, 2)} of the error's "
            f"energy, and the error's rank_90 is {number(q.rank_90_ratio.median)} of noise's."
        )
    return [Finding(text, rule)]
