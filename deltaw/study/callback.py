"""A callback for anyone's training with transformers' Trainer: a `deltaw.Monitor` that logs where the Trainer logs.

from deltaw.study import SpectrumCallback

spectra = SpectrumCallback(every=100)
trainer = Trainer(model, arguments, train_dataset=data, callbacks=[spectra])
spectra.set_trainer(trainer)  # what it finds goes to W&B, TensorBoard, … with the loss
trainer.train()
spectra.to_pandas()           # the columns of `layers`, and `step`
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from deltaw.errors import OptionError
from deltaw.measurement.options import AnalyzeOptions
from deltaw.monitoring import Alert, Monitor
from deltaw.monitoring.monitor import record_folder
from deltaw.results.analysis import load
from deltaw.study.extra import require

require("transformers")

from transformers import Trainer, TrainerCallback  # noqa: E402  (after the check that says what to install)

from deltaw.study import reporters  # noqa: E402

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.analysis import Analysis

Save = Callable[[Any, Path], None]


class SpectrumCallback(TrainerCallback):  # type: ignore[misc]
    """Measures every weight update at some steps of a training, see `deltaw.Monitor`.

    Args:
        base: What updates are measured from: anything that `deltaw.analyze` takes. By default the weights when the
            training begins: a copy of them for full fine-tuning, the frozen weights themselves for an adapter. Where
            full fine-tuning goes on from a checkpoint, that is where it begins: give the model that it is made from.
        every: Steps between records.
        at: More steps to record.
        out: A directory; each record is saved there as `step-00000100`, as `deltaw analyze --out` does.
        save: How the model is written as an adapter, for adapters that peft does not know; called with the model and
            an empty directory. Needs `base`.
        on_alert: Called with each `deltaw.Alert` that begins to hold.
        options: Of `deltaw.analyze`: `mode="fast"` and `include=[...]` make a record of a large model cheap.

    Attributes:
        seconds: What each record took.
        monitor: The monitor; None before the training.

    Raises:
        OptionError: The options do not fit together.
    """

    def __init__(
        self,
        base: Any = None,
        *,
        every: int | None = 100,
        at: Collection[int] = (),
        out: str | Path | None = None,
        save: Save | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        **options: Unpack[AnalyzeOptions],
    ) -> None:
        if every is not None and every < 1:
            raise OptionError(f"every = {every}: expected 1 or more steps, or None")
        if save is not None and base is None:
            raise OptionError("a callback with its own `save` needs `base`: the checkpoint that the adapter is for")
        self.monitor: Monitor | None = None
        self._out = None if out is None else Path(out)
        self._kept: dict[int, Analysis] = {}  # none where they are in files
        self.seconds: dict[int, float] = {}
        self._trainer: Any = None
        self._make: Callable[[Any], Monitor] = partial(
            Monitor,
            every=every,
            at=at,
            log=self._log,
            log_table=self._log_table,
            on_alert=on_alert,
            base=base,
            out=out,
            save=save,
            **options,
        )

    def set_trainer(self, trainer: Any) -> None:
        """Log through this Trainer: a callback alone comes after those that report.

        Numbers go to whatever it reports to, the table of every layer to W&B, trackio and MLflow.
        """
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take the weights to measure from, unless they were given.

        Raises:
            OptionError: They cannot be gathered.
        """
        self.monitor = self._make(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Record if it is time."""
        assert self.monitor is not None, "a training begins before its first step ends"
        self._keep(self.monitor.step(state.global_step))

    def record(self, model: Any, step: int) -> Analysis | None:
        """Measure a model now; None in a process that only serves its shards.

        Raises:
            DeltaWError: As `deltaw.analyze`.
        """
        if self.monitor is None:
            self.monitor = self._make(model)
        return self._keep(self.monitor.record(step))

    def _keep(self, found: Any) -> Analysis | None:
        if found is None or self.monitor is None or self.monitor.last is None:
            return None
        self.seconds[found.step] = found.seconds
        if self._out is None:
            self._kept[found.step] = self.monitor.last
        return self.monitor.last

    def _log(self, numbers: dict[str, float], step: int) -> None:
        if self._trainer is not None:
            # It knows the step. Its own `log` would do more: TRL's ends the running means of what it logs itself.
            Trainer.log(self._trainer, numbers)

    def _log_table(self, table: pd.DataFrame, step: int) -> None:
        if self._trainer is not None:
            reporters.log_table(self._trainer, table, step)

    @property
    def analyses(self) -> dict[int, Analysis]:
        """What was measured, by step: kept in memory, or with `out` read from there."""
        if self._out is None:
            return dict(self._kept)
        return {step: load(record_folder(self._out, step)) for step in self.seconds}

    @property
    def overhead(self) -> float:
        """The records' share of the time since the training began."""
        return 0.0 if self.monitor is None else self.monitor.overhead

    def to_pandas(self) -> pd.DataFrame:
        """All records in one table: `step`, then the columns of `layers`."""
        import pandas as pd

        frames = [a.to_pandas().assign(step=step) for step, a in self.analyses.items()]
        if not frames:
            return pd.DataFrame({"step": []})
        table = pd.concat(frames, ignore_index=True)
        return table[["step", *(c for c in table.columns if c != "step")]]
