"""ΔW against the weights that a training began with, every so many steps, in any loop.

    monitor = deltaw.Monitor(model, every=100, log=wandb.log)
    for step, batch in enumerate(loader, 1):
        ...
        monitor.step(step)

The numbers are those of `deltaw.analyze` on a checkpoint saved at that step: the weights in memory go through the same
code. An adapter is measured from its factors; its ΔW is never formed.
"""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from deltaw.documents import Document
from deltaw.errors import OptionError
from deltaw.measurement.options import AnalyzeOptions
from deltaw.measurement.run import analyze
from deltaw.monitoring import live
from deltaw.monitoring.adapter import as_adapter, frozen_weights, is_peft, saved_tensors
from deltaw.monitoring.alerts import Alert, alerts
from deltaw.monitoring.scalars import ALL, scalars
from deltaw.results.analysis import Analysis

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.reports.monitor_plots import MonitorPlots

LARGE = 500_000_000  # numbers that are trained: beyond, a record estimates spectra unless `mode` says otherwise
Log = Callable[..., object]  # of (numbers by name, step=…)
LogTable = Callable[..., object]  # of (a DataFrame, step=…)
Save = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        step: When.
        scalars: What was logged.
        alerts: The rules that held.
        seconds: What it took.
    """

    step: int
    scalars: Mapping[str, float]
    alerts: tuple[Alert, ...]
    seconds: float


def record_folder(out: Path, step: int) -> Path:
    """Where a record is saved."""
    return out / f"step-{step:08d}"


class Monitor:
    """Measures every weight update at some steps of a training.

    Models in shards (FSDP2, DeepSpeed ZeRO-3) are gathered one matrix at a time, and measured and logged by process 0:
    every process has to call `step`. The model is not kept alive, nothing of it is changed, and of the records only the
    scalars and the last analysis are kept.

    Args:
        model: An `nn.Module`, wrapped by peft, DistributedDataParallel, DeepSpeed or `torch.compile` or not.
        every: Steps between records; None for those in `at` only.
        at: More steps to record.
        log: Called with the scalars (`deltaw/<kind>/<metric>` → number, at most 20) and `step=`: `wandb.log`, say.
        log_table: Called with the table of every layer (a DataFrame with the columns of `layers`) and `step=`, for logs
            that take tables or files.
        on_alert: Called with each `Alert` that begins to hold.
        base: What updates are measured from: anything that `deltaw.analyze` takes. By default the weights as they are
            now: a copy on the CPU for full fine-tuning, the frozen weights themselves for an adapter.
        out: A directory; each record is saved there as `step-00000100`, as `deltaw analyze --out` does.
        save: How the model is written as an adapter, for adapters that peft does not know; called with the model and an
            empty directory. Needs `base`.
        options: Of `deltaw.analyze`. `mode` is `fast` for more than half a billion trained numbers unless it is given;
            `include=[...]` makes a record cheaper still.

    Attributes:
        records: What was logged, in order.
        last: The last analysis; None before the first, and in processes that only serve.

    Raises:
        OptionError: The options do not fit together, or the model cannot be gathered.
    """

    def __init__(
        self,
        model: Any,
        *,
        every: int | None = 100,
        at: Collection[int] = (),
        log: Log | None = None,
        log_table: LogTable | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        base: Any = None,
        out: str | Path | None = None,
        save: Save | None = None,
        **options: Unpack[AnalyzeOptions],
    ) -> None:
        if every is not None and every < 1:
            raise OptionError(f"every = {every}: expected 1 or more steps, or None")
        if save is not None and base is None:
            raise OptionError("a monitor with its own `save` needs `base`: the checkpoint that the adapter is for")
        self.every, self.at = every, frozenset(at)
        self.log, self.log_table, self.on_alert = log, log_table, on_alert
        self.out = None if out is None else Path(out)
        self.records: list[Record] = []
        self.last: Analysis | None = None
        self._save, self._given = save, base
        self._at_last: int | None = None
        model = live.unwrapped(model)
        self._model = weakref.ref(model)
        tensors = live.state(model)
        self._sharded = live.in_shards(tensors)
        self._adapter = save is None and is_peft(model)
        if base is None and not self._adapter:
            self._given = live.copied(tensors)
        large = live.trained(tensors) > LARGE and not self._adapter
        self._options: AnalyzeOptions = {"mode": "fast" if large else "exact"}
        self._options |= options
        if self._sharded:
            self._options["jobs"] = 1  # one matrix at a time: all processes take part in reading it
        self._began = time.perf_counter()

    def step(self, i: int) -> Record | None:
        """Record if it is time; every process calls this where the model is in shards.

        Args:
            i: The step that was just finished, from 1. A loop that accumulates gradients may come with the same one
                again: it is recorded once.

        Raises:
            DeltaWError: As `deltaw.analyze`.
        """
        due = i in self.at or (self.every is not None and i % self.every == 0 and i > 0)
        return self.record(i) if due and i != self._at_last else None

    def record(self, i: int) -> Record | None:
        """Measure, log and warn now; None in processes that only serve.

        Raises:
            DeltaWError: As `deltaw.analyze`.
            OptionError: The model is gone.
        """
        started = time.perf_counter()
        self._at_last = i
        found = self._measure()
        if found is None:
            return None
        numbers = scalars(found)
        ranks = [r.scalars.get(f"deltaw/{ALL}/effective_rank", 0.0) for r in self.records]
        held = alerts(i, found, numbers, max(ranks, default=float("nan")))
        if self.out is not None:
            found.save(record_folder(self.out, i))
        before = {a.rule for a in self.records[-1].alerts} if self.records else set()
        self.last = found
        self.records.append(Record(i, numbers, tuple(held), time.perf_counter() - started))
        if self.log is not None:
            self.log(dict(numbers), step=i)
        if self.log_table is not None:
            self.log_table(found.to_pandas(), step=i)
        for alert in held:
            if self.on_alert is not None and alert.rule not in before:
                self.on_alert(alert)
        return self.records[-1]

    def _measure(self) -> Analysis | None:
        model = self._model()
        if model is None:
            raise OptionError("the model that was monitored is gone; make a Monitor of the one that trains now")
        if self._save is not None:
            if not live.first_process():
                return None
            with tempfile.TemporaryDirectory() as folder:
                self._save(model, Path(folder))
                return analyze(self._given, folder, **self._options)
        stored = saved_tensors(model) if self._adapter else live.state(model)
        frozen = frozen_weights(model) if self._adapter and self._given is None else {}
        if not self._sharded and not live.first_process():
            return None
        to_dict = getattr(getattr(model, "config", None), "to_dict", None)
        document = Document({} if to_dict is None else to_dict(), "<model>: config")
        with live.served({**{f"base {n}": t for n, t in frozen.items()}, **stored}, self._sharded) as read:
            if read is None:
                return None
            ft = as_adapter(model, stored, read) if self._adapter else live.checkpoint(stored, document, read)
            base = live.checkpoint(frozen, document, read) if frozen else self._given
            return analyze(base, ft, **self._options)

    @property
    def overhead(self) -> float:
        """The records' share of the time since the monitor was made."""
        return sum(r.seconds for r in self.records) / max(time.perf_counter() - self._began, 1e-9)

    @property
    def alerts(self) -> list[Alert]:
        """Every alert of every record."""
        return [a for r in self.records for a in r.alerts]

    @property
    def plot(self) -> MonitorPlots:
        """Figures as matplotlib axes: `plot.scalars()`; and of the last record those of an analysis: `last.plot`."""
        from deltaw.reports.monitor_plots import MonitorPlots

        return MonitorPlots(self)

    def to_pandas(self) -> pd.DataFrame:
        """What was logged: one row per record, `step` and the scalars by name."""
        import pandas as pd

        return pd.DataFrame([{"step": r.step, **r.scalars} for r in self.records])
