"""A callback for anyone's training with transformers' Trainer: the columns of `layers`, over the steps.

    from deltaw.study import SpectrumCallback

    spectra = SpectrumCallback(every=100)
    Trainer(model, arguments, train_dataset=data, callbacks=[spectra]).train()
    spectra.to_pandas()          # the columns of `layers`, and `step`

The numbers are those of `deltaw.analyze` on checkpoints saved at those steps: the weights in memory go through the same
code. An adapter is written to a temporary directory in its own format (that is small) and measured from its factors;
its ΔW is never formed. One process must hold the whole weights: sharded training (FSDP, ZeRO-3) is refused.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import deltaw
from deltaw.errors import OptionError
from deltaw.study.extra import require

require("transformers")

from transformers import TrainerCallback  # noqa: E402  (after the check that says what to install)

if TYPE_CHECKING:
    import pandas as pd

Save = Callable[[Any, Path], None]


class SpectrumCallback(TrainerCallback):  # type: ignore[misc]
    """Measures every weight update at some steps of a training.

    Args:
        base: What updates are measured from: anything that `deltaw.analyze` takes. By default the weights when the
            training begins: a copy of them for full fine-tuning, the frozen weights themselves for an adapter.
        every: Steps between records.
        at: More steps to record.
        out: A directory; each record is saved there as `step-00000100`, as `deltaw analyze --out` does.
        save: How the model is written as an adapter, for adapters that peft does not know; called with the model and
            an empty directory. Needs `base`.
        options: Of `deltaw.analyze`: `mode="fast"` and `include=[...]` make a record of a large model cheap.

    Attributes:
        analyses: What was measured, by step.
        seconds: What each record took.

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
        **options: Any,
    ) -> None:
        if every is not None and every < 1:
            raise OptionError(f"every = {every}: expected 1 or more steps, or None")
        if save is not None and base is None:
            raise OptionError("a callback with its own `save` needs `base`: the checkpoint that the adapter is for")
        self.base, self.every, self.at = base, every, frozenset(at)
        self.out = None if out is None else Path(out)
        self.save, self.options = save, options
        self.analyses: dict[int, deltaw.Analysis] = {}
        self.seconds: dict[int, float] = {}
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take the weights to measure from, unless they were given.

        Raises:
            OptionError: The training is sharded.
        """
        if args.fsdp or args.deepspeed:
            raise OptionError("SpectrumCallback needs whole weights in one process; it cannot see FSDP or ZeRO shards")
        self._began = time.perf_counter()
        if self.base is None:
            # deepcopy keeps tied tensors tied, which a clone of each would not.
            self.base = frozen_weights(model) if is_peft(model) else copy.deepcopy(model.state_dict())

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Record if it is time."""
        step = state.global_step
        if state.is_world_process_zero and (step in self.at or (self.every and step % self.every == 0)):
            self.record(model, step)

    def record(self, model: Any, step: int) -> deltaw.Analysis:
        """Measure a model now.

        Raises:
            DeltaWError: As `deltaw.analyze`.
        """
        started = time.perf_counter()
        save = self.save or (_save_peft if is_peft(model) else None)
        if save is None:
            found = deltaw.analyze(self.base, model.state_dict(), **self.options)
        else:
            with tempfile.TemporaryDirectory() as folder:
                save(model, Path(folder))
                found = deltaw.analyze(self.base, folder, **self.options)
        self.analyses[step] = found
        if self.out is not None:
            found.save(self.out / f"step-{step:08d}")
        self.seconds[step] = time.perf_counter() - started
        return found

    @property
    def overhead(self) -> float:
        """The records' share of the time since the training began."""
        return sum(self.seconds.values()) / max(time.perf_counter() - self._began, 1e-9)

    def to_pandas(self) -> pd.DataFrame:
        """All records in one table: `step`, then the columns of `layers`."""
        import pandas as pd

        frames = [a.to_pandas().assign(step=step) for step, a in self.analyses.items()]
        if not frames:
            return pd.DataFrame({"step": []})
        table = pd.concat(frames, ignore_index=True)
        return table[["step", *(c for c in table.columns if c != "step")]]


def is_peft(model: Any) -> bool:
    """Whether this is a model that peft wrapped."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def frozen_weights(model: Any) -> Mapping[str, torch.Tensor]:
    """The base's weights inside a peft model, by the base's own names; shared, not copied.

    The layers that peft puts in say which of their attributes are an adapter's; what they wrap is `base_layer`, and
    beside a module that is trained as a whole stands its `original_module`.
    """
    kinds = ("adapter_layer_names", "other_param_names")
    adapters = {name for module in model.modules() for kind in kinds for name in getattr(module, kind, ())}
    found = {}
    for name, tensor in model.get_base_model().state_dict().items():
        parts = name.split(".")
        if not adapters & set(parts):
            found[".".join(p for p in parts if p not in {"base_layer", "original_module"})] = tensor
    return found


def _save_peft(model: Any, out: Path) -> None:
    model.save_pretrained(out)
