"""What an analysis says of quantised storage: the formats of both sides, what they add to ΔW, and its shape."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deltaw.results.rows import UNKNOWN, Spread, is_matrix, number, rounding_share, text
from deltaw.types import Row

FLOATS = re.compile(r"^(float|bfloat|complex|int\d+$|uint|bool)")
SCALE = 16  # bits of a group's scale, where its format leaves the dtype open
# Bits of one weight with all that belongs to it, by the layout of its blocks (ggml) or groups.
BITS = {
    "nf4": 4.5,
    "fp4": 4.5,
    "bnb_int8": 8.0,
    "mxfp4": 4.25,
    "mxfp8": 8.25,
    "nvfp4": 4.5,
    "q4_0": 4.5,
    "q4_1": 5.0,
    "q5_0": 5.5,
    "q5_1": 6.0,
    "q8_0": 8.5,
    "q2_k": 2.625,
    "q3_k": 3.4375,
    "q4_k": 4.5,
    "q5_k": 5.5,
    "q6_k": 6.5625,
    "iq4_nl": 4.5,
    "iq4_xs": 4.25,
    "iq3_s": 3.4375,
    "iq3_xxs": 3.0625,
    "iq2_s": 2.5625,
    "iq2_xs": 2.3125,
    "iq2_xxs": 2.0625,
    "iq1_m": 1.75,
    "iq1_s": 1.5625,
    "tq1_0": 1.6875,
    "tq2_0": 2.0625,
}


@dataclass(frozen=True)
class QuantisedMatrices:
    """The matrices of one side that are stored in one quantised format.

    Attributes:
        side: Of which side.
        format: As the dtype columns say it.
        matrices: How many.
        bits: Per weight, with scales and zero points, as the format's blocks have them; NaN where that is open.
        noise: rounding_noise/‖W0‖F; of the fine-tuned side.
        explained: The share of ‖ΔW‖F² that the rounding of both sides explains.
        clipped: Shares of entries that were clipped.
        change: ‖ΔW‖F/‖W0‖F.
        energy_at_16, rank_90_ratio: Of ΔW as it is, rounding and all: the shape of the error where ΔW is rounding.
        noisiest, quietest: The layers with the largest and smallest median noise, None where there are no two.
    """

    side: Literal["base", "fine-tuned"]
    format: str
    matrices: int
    bits: float
    noise: Spread = UNKNOWN
    explained: Spread = UNKNOWN
    clipped: Spread = UNKNOWN
    change: Spread = UNKNOWN
    energy_at_16: Spread = UNKNOWN
    rank_90_ratio: Spread = UNKNOWN
    noisiest: tuple[int, float] | None = None
    quietest: tuple[int, float] | None = None


def quantised(rows: Sequence[Row]) -> tuple[QuantisedMatrices, ...]:
    """The quantised formats of both sides, the base's first, each with the matrices that it stores."""
    sides: tuple[tuple[Literal["base", "fine-tuned"], str], ...] = (("base", "base_dtype"), ("fine-tuned", "ft_dtype"))
    out: list[QuantisedMatrices] = []
    for side, column in sides:
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            form = text(row, column)
            if form and is_matrix(row) and not FLOATS.match(form):
                groups[form].append(row)
        out.extend(_of(side, form, group) for form, group in groups.items())
    return tuple(out)


def bits_per_weight(form: str) -> float:
    """Bits of one weight in a format, its scales included; NaN for one whose layout leaves it open."""
    if form in BITS:
        return BITS[form]
    if found := re.fullmatch(r"(gptq_|awq_|mlx_)?int(\d)_(?:g(\d+)|row|tensor|block)", form):
        bits, group = int(found[2]), int(found[3] or 0)
        zero = {"gptq_": bits, "awq_": bits, "mlx_": SCALE}.get(found[1] or "", 0)
        return bits + ((SCALE + zero) / group if group else 0)
    return 8.0 if form.startswith("fp8") else math.nan


def _of(side: Literal["base", "fine-tuned"], form: str, rows: Sequence[Row]) -> QuantisedMatrices:
    found = QuantisedMatrices(side, form, len(rows), bits_per_weight(form))
    if side == "base":
        return found
    noise = [_over_base(row, "rounding_noise") for row in rows]
    layers: dict[int, list[float]] = defaultdict(list)
    for row, value in zip(rows, noise, strict=True):
        layer = number(row, "layer")
        if math.isfinite(layer) and math.isfinite(value):
            layers[int(layer)].append(value)
    medians = sorted((Spread.of(values).median, layer) for layer, values in layers.items())
    ends = [(layer, value) for value, layer in medians]
    return QuantisedMatrices(
        side,
        form,
        len(rows),
        found.bits,
        noise=Spread.of(noise),
        explained=Spread.of(rounding_share(row) for row in rows if number(row, "fro_norm") > 0),
        clipped=Spread.of(number(row, "clipped_fraction") for row in rows),
        change=Spread.of(number(row, "relative_change") for row in rows),
        energy_at_16=Spread.of(number(row, "energy_at_16") for row in rows),
        rank_90_ratio=Spread.of(number(row, "rank_90_ratio") for row in rows),
        noisiest=ends[-1] if len(ends) > 1 else None,
        quietest=ends[0] if len(ends) > 1 else None,
    )


def _over_base(row: Row, column: str) -> float:
    base = number(row, "base_fro_norm")
    return number(row, column) / base if base > 0 else math.nan
