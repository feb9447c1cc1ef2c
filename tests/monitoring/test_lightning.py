"""A monitor in a Lightning callback: what it logs, against the checkpoints that Lightning saves at the same steps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import deltaw
from deltaw.monitoring.scalars import scalars

lightning = pytest.importorskip("lightning")


class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """Two layers that learn to roll their input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 16))

    def training_step(self, batch: tuple[torch.Tensor], _: int) -> torch.Tensor:
        (x,) = batch
        return torch.as_tensor((self.net(x) - x.roll(1, 1)).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Spectra(lightning.Callback):  # type: ignore[misc, name-defined]
    """As in docs/training.md."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.monitor = deltaw.Monitor(module, every=2, log=trainer.logger.log_metrics, device="cpu", jobs=1)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.monitor.step(trainer.global_step)


def test_a_callback_of_lightning(tmp_path: Path) -> None:
    module = Net()
    base = {n: t.clone() for n, t in module.state_dict().items()}
    spectra = Spectra()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own: few workers, torch's renamed functions
        logger = lightning.pytorch.loggers.CSVLogger(tmp_path, name="", version="")
        saver = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1
        )
        trainer = lightning.Trainer(
            max_steps=4,
            accelerator="cpu",
            accumulate_grad_batches=3,
            logger=logger,
            callbacks=[spectra, saver],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.TensorDataset(torch.randn(96, 16, generator=torch.Generator().manual_seed(0)))
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    assert [r.step for r in spectra.monitor.records] == [2, 4], "three batches have the same step"
    logged = pd.read_csv(tmp_path / "metrics.csv").set_index("step")
    for step in (2, 4):
        found = logged.loc[step].dropna().to_dict()
        assert found == pytest.approx(scalars(deltaw.analyze(base, tmp_path / f"step={step}.ckpt", device="cpu")))
        assert len(found) > 5
