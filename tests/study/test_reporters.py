"""What a real Trainer reports: read back from the files of the services, at the right steps, and equal to `analyze`."""

from __future__ import annotations

import json
import re
import shutil
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import transformers

import deltaw
from deltaw.monitoring.scalars import scalars
from deltaw.study import SpectrumCallback, arms

from .conftest import trainer_of

STEPS = (2, 4)


def fit(base: Path, folder: Path, service: str) -> None:
    """Train the base with all its weights, and report to one service."""
    with arms.quiet():
        spectra = SpectrumCallback(every=2, device="cpu", jobs=1)
        trainer = trainer_of(
            arms.open_base(base), folder / "run", logging_steps=3, report_to=[service], callbacks=[spectra]
        )
        spectra.set_trainer(trainer)
        trainer.train()


def measured(base: Path, folder: Path, step: int) -> deltaw.Analysis:
    return deltaw.analyze(base, folder / "run" / f"checkpoint-{step}", device="cpu", jobs=1)


def test_tensorboard(base: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(base, tmp_path, "tensorboard")
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    tags = [t for t in events.Tags()["scalars"] if "deltaw/" in t]
    for step in STEPS:
        found = {t[t.index("deltaw/") :]: e.value for t in tags for e in events.Scalars(t) if e.step == step}
        assert found == pytest.approx(scalars(measured(base, tmp_path, step)), rel=1e-6)  # events are float32
        assert len(found) > 8
    assert all([e.step for e in events.Scalars(t)] == [2, 4] for t in tags)


BLOCK = 32768  # bytes in which W&B's file is cut, as LevelDB's log is
WHOLE, LAST = 1, 4


def records(data: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: seven bytes, then pieces that each have a checksum, a length and a kind."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {WHOLE, LAST}:
            yield parts
            parts = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """What was logged to W&B offline, call by call."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = []
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without a network, an account or a word on the terminal."""
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    wandb.finish()


@pytest.mark.usefixtures("offline")
def test_wandb_offline(base: Path, tmp_path: Path) -> None:
    import wandb

    fit(base, tmp_path, "wandb")
    wandb.finish()
    logged = history(tmp_path)
    numbers = {h["train/global_step"]: h for h in logged if any("deltaw/all/" in key for key in h)}
    tables = {h["train/global_step"]: h for h in logged if "deltaw/layers/path" in h}
    assert tuple(numbers) == tuple(tables) == STEPS
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    for step in STEPS:
        expected = measured(base, tmp_path, step)
        prefix = "train/deltaw/"
        found = {key.removeprefix("train/"): v for key, v in numbers[step].items() if key.startswith(prefix)}
        assert found == scalars(expected)
        saved = json.loads((files / tables[step]["deltaw/layers/path"]).read_text())
        table, rows = pd.DataFrame(saved["data"], columns=saved["columns"]), expected.to_pandas()
        assert table["name"].tolist() == rows["name"].tolist()
        assert table["fro_norm"].tolist() == rows["fro_norm"].tolist()


def test_trackio(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    fit(base, tmp_path, "trackio")
    (project,) = SQLiteStorage.get_projects()
    (run,) = SQLiteStorage.get_runs(project)
    logged = SQLiteStorage.get_logs(project, run)
    numbers = {h["train/global_step"]: h for h in logged if any("deltaw/all/" in key for key in h)}
    tables = {h["train/global_step"]: h["deltaw/layers"]["_value"] for h in logged if "deltaw/layers" in h}
    assert tuple(numbers) == tuple(tables) == STEPS
    for step in STEPS:
        expected = measured(base, tmp_path, step)
        found = {key.removeprefix("train/"): v for key, v in numbers[step].items() if key.startswith("train/deltaw/")}
        assert found == scalars(expected)
        assert [row["name"] for row in tables[step]] == expected.to_pandas()["name"].tolist()
        assert [row["fro_norm"] for row in tables[step]] == expected.to_pandas()["fro_norm"].tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, of what it keeps its runs with
def test_mlflow(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it keeps files
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    fit(base, tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    names = [name for name in run.data.metrics if name.startswith("deltaw/")]
    for step in STEPS:
        expected = measured(base, tmp_path, step)
        values = {n: v.value for n in names for v in client.get_metric_history(run.info.run_id, n) if v.step == step}
        assert values == scalars(expected)
        file = client.download_artifacts(run.info.run_id, f"deltaw/layers/step-{step:08d}.csv", str(tmp_path))
        pd.testing.assert_series_equal(pd.read_csv(file)["fro_norm"], expected.to_pandas()["fro_norm"], rtol=0, atol=0)


def without_times(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if not re.search(r"runtime|per_second", k)}


def fine_tune(folder: Path, spectra: SpectrumCallback | None) -> Any:
    """TRL's SFTTrainer with a LoRA of peft, on three sentences."""
    trl, peft, datasets = (pytest.importorskip(name) for name in ("trl", "peft", "datasets"))
    base = folder / "base"
    with arms.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own, on options of its defaults that transformers renamed
        datasets.disable_progress_bars()
        settings = trl.SFTConfig(
            output_dir=str(folder / "run"),
            max_steps=4,
            save_steps=2,
            logging_steps=3,
            learning_rate=1e-2,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            max_length=32,
        )
        trainer = trl.SFTTrainer(
            arms.open_base(base),
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"text": ["the value of a matrix is returned"] * 12}),
            processing_class=arms.open_tokenizer(base),
            peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
            callbacks=[spectra] if spectra else [],
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        if spectra is not None:
            spectra.set_trainer(trainer)
        trainer.train()
    return trainer


def test_trl_with_peft(base: Path, tmp_path: Path) -> None:
    """The adapter in memory is the one that TRL saves, and what TRL logs by itself is the same without us."""
    histories = []
    for watched in (False, True):
        folder = tmp_path / str(watched)
        shutil.copytree(base, folder / "base")
        spectra = SpectrumCallback(every=2, device="cpu", jobs=1)
        histories.append(fine_tune(folder, spectra if watched else None).state.log_history)
    ours = {entry["step"]: entry for entry in histories[1] if "deltaw/all/relative_change" in entry}
    assert tuple(ours) == STEPS
    for step in STEPS:
        found = measured(folder / "base", folder, step)
        assert set(found.to_pandas()["route"]) == {"factored"}
        assert {k: v for k, v in ours[step].items() if k.startswith("deltaw/")} == scalars(found)
    own = [[without_times(e) for e in h if e not in ours.values()] for h in histories]
    assert own[0] == own[1]
    assert "mean_token_accuracy" in own[0][0]
