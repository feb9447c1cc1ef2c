"""One training with transformers' Trainer, stopped at set steps to look at the model.

AdamW, gradients clipped to norm 1, the plan's schedule; no checkpoints of the Trainer's own: a run of a study is short,
and is either finished or done again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from deltaw.study.extra import require
from deltaw.study.tokens import Blocks

LOG_EVERY = 10


def train(
    model: Any,
    blocks: Blocks,
    *,
    workdir: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    schedule: str,
    warmup: int,
    weight_decay: float = 0.0,
    seed: int = 0,
    precision: str = "float32",
    device: str = "cpu",
    points: Collection[int] = (),
    at_point: Callable[[Any, int], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> list[float]:
    """Train a model in place.

    Args:
        model: A transformers model, with or without an adapter; what requires gradients is trained.
        blocks: The training set; drawn without replacement, again when it is used up.
        workdir: For the Trainer, which wants a place.
        steps: Optimiser steps.
        batch: Sequences of a step.
        learning_rate: After the warm-up.
        schedule: The name transformers gives it.
        warmup: Steps of linear warm-up.
        weight_decay: AdamW's λ.
        seed: Of the order of the data, and of dropout.
        precision: `float32`, or `bfloat16` for autocast.
        device: Where to train.
        points: The steps after which `at_point` is called.
        at_point: Called with the model, in evaluation mode, and the step. It does not disturb the training's
            random numbers.
        callbacks: More of transformers' callbacks.

    Returns:
        The training loss, averaged over each ten steps.
    """
    require("transformers", "accelerate")
    import transformers
    from transformers.trainer_callback import PrinterCallback

    deterministic(device)
    transformers.set_seed(seed)
    arguments = transformers.TrainingArguments(
        output_dir=str(workdir),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=warmup,
        weight_decay=weight_decay,
        optim="adamw_torch",
        bf16=precision == "bfloat16",
        seed=seed,
        use_cpu=device == "cpu",
        logging_steps=min(LOG_EVERY, steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
    )
    looker = _looker(frozenset(points), at_point) if at_point else None
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        data_collator=_stack,
        callbacks=[*([looker] if looker else []), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # a library never prints
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def deterministic(device: str) -> None:
    """Ask for the same numbers from the same seed; on a GPU that costs some speed and a cuBLAS workspace."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's attention has no deterministic way; the others have
        torch.use_deterministic_algorithms(True, warn_only=True)


def _stack(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def _looker(points: frozenset[int], look: Callable[[Any, int], None]) -> Any:
    from transformers import TrainerCallback

    class Looker(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step in points:
                devices = range(torch.cuda.device_count()) if args.device.type == "cuda" else []
                with torch.random.fork_rng(devices=devices):
                    model.eval()
                    look(model, state.global_step)
                    model.train()

    return Looker()


def stepping(progress: Callable[[int, int], None]) -> Any:
    """A callback that reports the step and the number of steps, every ten."""
    from transformers import TrainerCallback

    class Stepping(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % LOG_EVERY == 0:
                progress(state.global_step, state.max_steps)

    return Stepping()
