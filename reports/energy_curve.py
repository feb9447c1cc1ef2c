"""Energy kept against numbers in the pairs: what this adapter keeps, and what others of the same update would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltaw.errors import OptionError
from deltaw.reports import style

if TYPE_CHECKING:
    from deltaw.edits.extracted import Extraction

OWN, OTHERS, BEST = "#cf222e", "#57606a", "#0969da"


def draw(found: Extraction) -> Any:
    """The curve as matplotlib axes.

    Raises:
        OptionError: There is no curve: the adapter was made for a data set, or it was not written by this process.
    """
    from matplotlib.ticker import PercentFormatter

    curve = found.curve
    if curve is None:
        raise OptionError("no curve of the energy is known of this adapter; extract it again, without --activations")
    with style.settings():
        fig, axes = style.figure(2.7, 1)
        ax = axes[0][0]
        ax.plot(curve.parameters, curve.energy_kept, color=BEST, label="most that so many numbers keep")
        ranks = [e.rank for e in curve.equal]
        ax.plot(
            [e.parameters for e in curve.equal],
            [e.energy_kept for e in curve.equal],
            color=OTHERS,
            linestyle="none",
            marker="o",
            markersize=3,
            label=f"one rank everywhere ({', '.join(map(str, ranks))})" if ranks else None,
        )
        pairs = sum(row.parameters for row in found.layers)
        ax.plot(
            [pairs], [found.energy_kept], color=OWN, linestyle="none", marker="D", markersize=5, label="this adapter"
        )
        style.log_scale(ax.xaxis)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        ax.set(xlabel="numbers in the pairs", ylabel="energy kept", ylim=(0, 1.03))
        fig.legend(loc="outside lower center", ncols=1, frameon=False)
    return ax
