"""Tables for the services that a Trainer reports to: its own log takes numbers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback

if TYPE_CHECKING:
    import pandas as pd

KEY = "deltaw/layers"


def log_table(trainer: Any, table: pd.DataFrame, step: int) -> None:
    """Hand a table to W&B, trackio and MLflow, as far as this Trainer reports to them; others take no tables."""
    for callback in trainer.callback_handler.callbacks:
        for kind, log in SERVICES.items():
            if isinstance(callback, kind):
                log(table, step)


def _wandb(table: pd.DataFrame, step: int) -> None:
    import wandb

    # The axis of what the Trainer logs; W&B's own step counts calls.
    wandb.log({KEY: wandb.Table(dataframe=table), "train/global_step": step})


def _trackio(table: pd.DataFrame, step: int) -> None:
    import trackio

    trackio.log({KEY: trackio.Table(dataframe=table), "train/global_step": step})


def _mlflow(table: pd.DataFrame, step: int) -> None:
    import mlflow

    mlflow.log_text(table.to_csv(index=False), f"{KEY}/step-{step:08d}.csv")


SERVICES: dict[Any, Callable[[pd.DataFrame, int], None]] = {
    WandbCallback: _wandb,
    TrackioCallback: _trackio,
    MLflowCallback: _mlflow,
}
