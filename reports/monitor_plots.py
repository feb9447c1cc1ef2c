"""The figures of a running training, as matplotlib axes: `plot.scalars()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltaw.errors import OptionError
from deltaw.reports import style

if TYPE_CHECKING:
    from deltaw.monitoring.monitor import Monitor

TITLES = {
    "relative_change": "relative change",
    "effective_rank": "effective rank",
    "rank_90_ratio": "rank for 90 % over null",
    "shrinkage": "shrinkage",
}


class MonitorPlots:
    """Draws what a monitor recorded."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def scalars(self, columns: int = 2) -> Any:
        """Each metric over the steps, one line per kind of matrix; a dotted line where an alert began to hold.

        Raises:
            OptionError: There are no two records to join.
        """
        from matplotlib.ticker import MaxNLocator

        frame = self._monitor.to_pandas()
        if len(frame) < 2:
            raise OptionError(f"{len(frame)} records: a line needs two; train on")
        keys = [tuple(c.split("/")[1:]) for c in frame.columns if c.startswith("deltaw/")]
        shown = [m for m in TITLES if any(metric == m for _, metric in keys)]
        with style.settings():
            fig, axes = style.figure(2.4, columns, 1, len(shown))
            for ax, metric in zip(axes[0], shown, strict=True):
                for kind in [k for k, m in keys if m == metric]:
                    values = frame[f"deltaw/{kind}/{metric}"]
                    colour = "#1c2128" if kind == "all" else style.kind_colour(kind)
                    ax.plot(frame["step"], values, color=colour, marker="o", markersize=2.2, label=kind)
                for step in (began := self._began()):
                    label = "a warning" if step == began[0] else None  # once in the legend
                    ax.axvline(step, color="#8b949e", linestyle=":", linewidth=0.8, label=label)
                ax.set(title=TITLES[metric], xlabel="step")
                ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                style.ticks(ax.yaxis, metric == "relative_change")
            handles, names = axes[0][0].get_legend_handles_labels()
            fig.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        return axes[0]

    def _began(self) -> list[int]:
        """The steps at which an alert began to hold."""
        steps, before = [], set[str]()
        for record in self._monitor.records:
            rules = {a.rule for a in record.alerts}
            if rules - before:
                steps.append(record.step)
            before = rules
        return steps
