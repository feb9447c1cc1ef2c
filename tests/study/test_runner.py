"""Whole studies: what they leave, that they resume after SIGKILL, and that nothing depends on how they were run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

import deltaw
from deltaw.comparison import read_manifest
from deltaw.comparison.manifest import draft
from deltaw.errors import MissingExtraError, OptionError, ResultsError
from deltaw.study import StudyPlan, arms, costs, extra, runner
from deltaw.study.outcome import learned
from deltaw.study.workspace import finishing

from .conftest import FULL, LORA, MORA6

TABLES = Path(__file__).parents[2] / "docs" / "study_tables.py"


def run(plan: StudyPlan, out: Path, cache: Path, **options: object) -> pd.DataFrame:
    return runner.run(plan, out, cache=cache, jobs=1, device="cpu", **options).points  # type: ignore[arg-type]


@pytest.fixture
def without_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "compare", lambda _: None)


def numbers(out: Path) -> dict[str, str]:
    """A digest of everything a study measured: its points, its manifest, every table and spectrum."""
    found = {name: (out / name).read_text() for name in ("points.csv", "runs.toml")}
    for path in sorted(out.glob("runs/*/*/results")):
        analysis = deltaw.load(path)
        table = analysis.to_pandas().drop(columns="seconds")
        spectra = {name: s.values.tobytes() for name, s in sorted(analysis.spectra.items())}
        found[str(path.relative_to(out))] = table.to_csv() + repr(spectra)
    for path in sorted(out.glob("runs/*/*/checkpoint/*.safetensors")):
        found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_study_from_beginning_to_end(plan: StudyPlan, tmp_path: Path) -> None:
    """Trained, scored, measured and compared; the same again from the same seeds; then more of it."""
    told: list[runner.Progress] = []
    study = runner.run(plan, tmp_path / "a", cache=tmp_path / "cache", jobs=1, device="cpu", progress=told.append)
    points = study.points
    assert len(points) == 2 + 2 * 3 * 2  # two bases; targets × arms × saved points
    assert points["tokens"].tolist()[:4] == [0, 0, 2 * 2 * 384, 4 * 2 * 384]
    assert points.loc[points["target"] == "maths", "accuracy"].notna().all()
    assert points.loc[points["target"] == "code", "accuracy"].isna().all()
    assert points["learning"].between(0, 1).all()
    assert points["diversity"].between(1, 4).all()
    assert set(learned(points)["arm"]) == {a.name for a in plan.arms}
    assert {p.stage.split()[0] for p in told} >= {"reading", "training", "trained", "comparing"}
    assert told[-2].done == told[-2].total == 8

    manifest = read_manifest(tmp_path / "a" / "runs.toml")
    assert {(r.method, r.tokens) for r in manifest.runs} == {
        (m, t) for m in ("full", "lora", "mora") for t in (1536, 3072)
    }
    assert {(r.hyperparameters["domain"], r.hyperparameters["training"]) for r in manifest.runs} == {
        ("code", "cpt"),
        ("maths", "ift"),
    }
    draft([tmp_path / "a"], tmp_path / "a" / "found.toml")  # without the study's own manifest
    found = {(r.group, r.tokens): r for r in read_manifest(tmp_path / "a" / "found.toml").runs}
    assert len(found) == len(manifest.runs)
    for r in manifest.runs:
        twin = found[r.group, r.tokens]
        assert (twin.method, twin.seed, twin.scores) == (r.method, r.seed, r.scores)
        assert (twin.hyperparameters, twin.results) == (r.hyperparameters, r.results)
    assert len(deltaw.compare(tmp_path / "a" / "found.toml").runs()) == len(found)
    for r in manifest.runs:
        assert r.results is not None
        analysis = deltaw.load(r.results)
        assert not analysis.failed
        checkpoint = Path(analysis.ft.path)
        target, source = analysis.options["activations"]
        assert Path(target).name == f"{r.hyperparameters['domain']}-activations.safetensors"
        again = deltaw.analyze(manifest.base, checkpoint, device="cpu", jobs=1, activations=(target, source))
        pd.testing.assert_frame_equal(
            again.to_pandas().drop(columns="seconds").sort_values("name", ignore_index=True),
            analysis.to_pandas().drop(columns="seconds").sort_values("name", ignore_index=True),
        )
    assert len(study.comparison.claims()) > 0
    assert (tmp_path / "a" / "comparison" / "report.html").stat().st_size > 10_000
    about = json.loads((tmp_path / "a" / "study.json").read_text())
    code, maths = about["domains"]["code"], about["domains"]["maths"]
    assert code["train_tokens"] > 0
    assert (code["text_share"], code["train_dropped_too_long"]) == (1, 0)
    assert 0 < maths["learned_share"] < maths["text_share"] < 1
    assert maths["train_dropped_too_long"] > 0
    tables = subprocess.run(
        [sys.executable, TABLES, tmp_path / "a"], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout
    assert tables.count("\n| full |") == 2
    assert "of 6 arms learned" in tables
    assert "| LoRA learns less than full fine-tuning |" in tables


@pytest.mark.usefixtures("without_comparison")
def test_a_grown_plan_trains_only_what_is_new(plan: StudyPlan, tmp_path: Path) -> None:
    small = dataclasses.replace(plan, arms=(LORA,), targets=plan.targets[:1])
    before = run(small, tmp_path / "a", tmp_path / "cache")
    (folder,) = (tmp_path / "a" / "runs").glob("*lora*")
    stamp = folder.stat().st_mtime_ns
    more = dataclasses.replace(LORA, learning_rates=(*LORA.learning_rates, 1e-3))
    after = run(dataclasses.replace(small, arms=(more,), seeds=(0, 1)), tmp_path / "a", tmp_path / "cache")
    assert folder.stat().st_mtime_ns == stamp
    assert len(after) == 1 + 4 * 2
    merged = after.merge(before)
    assert len(merged) == len(before)

    with pytest.raises(ResultsError, match="a study of other data"):
        run(plan, tmp_path / "a", tmp_path / "cache")
    fresh = run(small, tmp_path / "a", tmp_path / "cache", fresh=True)
    pd.testing.assert_frame_equal(fresh, before)
    assert folder.stat().st_mtime_ns > stamp


@pytest.mark.usefixtures("without_comparison")
def test_a_training_that_diverges_is_kept_and_named(plan: StudyPlan, tmp_path: Path) -> None:
    wild = dataclasses.replace(FULL, learning_rates=(1e20, 1e-3))
    points = run(dataclasses.replace(plan, arms=(wild,)), tmp_path / "a", tmp_path / "cache")
    lost = points[points["learning_rate"] == 1e20]
    assert lost["target_loss"].isna().any()
    assert learned(points)["fell"].all()
    about = json.loads((tmp_path / "a" / "study.json").read_text())
    assert all(arm["diverged_points"] > 0 for arm in about["arms"])
    assert len(read_manifest(tmp_path / "a" / "runs.toml").runs) == 8


@pytest.mark.usefixtures("without_comparison")
def test_arms_that_do_not_fit_the_base_are_left_out_and_named(plan: StudyPlan, base: Path, tmp_path: Path) -> None:
    """GPT-2 has no nn.Linear but its head: MoRA cannot be put into it, which is told before anything is trained."""
    import transformers

    config = transformers.GPT2Config(vocab_size=400, n_positions=64, n_embd=16, n_layer=1, n_head=2, n_inner=24)
    gpt2 = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(gpt2)
    arms.open_tokenizer(base).save_pretrained(gpt2)
    own = dataclasses.replace(
        plan,
        arms=(MORA6, FULL),
        base=dataclasses.replace(plan.base, model=str(gpt2)),
        targets=plan.targets[:1],
        training=dataclasses.replace(plan.training, length=32, points=1, steps=2, warmup=1),
    )
    study = runner.run(own, tmp_path / "a", cache=tmp_path / "cache", jobs=1, device="cpu")
    assert set(study.points["arm"]) == {"base", FULL.name}
    assert list(study.left_out) == [MORA6.name]
    assert json.loads((tmp_path / "a" / "study.json").read_text())["left_out"] == dict(study.left_out)
    assert read_manifest(tmp_path / "a" / "runs.toml").reference == f"code: {FULL.name}"
    shown = costs.in_words(own, costs.estimate(own, device="cpu"))
    assert "does not fit this base: left out" in shown
    with pytest.raises(OptionError, match="no arm of the plan fits"):
        run(dataclasses.replace(own, arms=(MORA6,)), tmp_path / "b", tmp_path / "cache")


def test_runs_at_a_time_fit_in_the_memory(plan: StudyPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "usable_cores", lambda: 16)
    free = psutil.virtual_memory()._replace(available=8_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert runner.default_jobs(plan, "cpu", 1_000_000) == 11
    assert runner.default_jobs(plan, "cpu", 150_000_000) == 2
    assert runner.default_jobs(plan, "cpu", 7_000_000_000) == 1


@pytest.mark.usefixtures("without_comparison")
def test_a_base_of_ones_own(plan: StudyPlan, base: Path, tmp_path: Path) -> None:
    own = dataclasses.replace(
        plan,
        base=dataclasses.replace(plan.base, model=str(base)),
        targets=plan.targets[:1],
        training=dataclasses.replace(plan.training, length=64, checkpoints="last"),
    )
    points = run(own, tmp_path / "a", tmp_path / "cache")
    assert len(points) == 1 + 3 * 2
    assert not (tmp_path / "cache").exists()
    assert read_manifest(tmp_path / "a" / "runs.toml").base == str(base)
    kept = {p.parent.name for p in tmp_path.glob("a/runs/*/*/checkpoint")}
    assert kept == {"step-00000004"}


@pytest.mark.slow
def test_killed_and_started_again_it_is_the_same_study(plan: StudyPlan, tmp_path: Path) -> None:
    """SIGKILL while the base is trained, and while two runs are in two processes; then on in one."""
    stored = tmp_path / "plan"
    stored.write_bytes(pickle.dumps(plan))
    out = tmp_path / "killed"
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(stored), str(out), str(tmp_path / "c")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for wanted, jobs in (("training the base", "1"), ("trained code", "2")):
        process = subprocess.Popen([*command, jobs], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        next(line for line in lines if line.startswith(wanted))
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        wait_for_end([int(pid) for pid in children.stdout.split()])
    finished = {p.name for p in (out / "runs").glob("[!.]*")}
    assert 0 < len(finished) < 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "compare", lambda _: None)
        run(plan, out, tmp_path / "c")
        run(plan, tmp_path / "whole", tmp_path / "c2")
    assert not list(out.glob("**/.*.tmp"))
    killed, whole = numbers(out), numbers(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("without_comparison")
def test_on_a_gpu_the_same_seed_gives_the_same_numbers(plan: StudyPlan, tmp_path: Path, precision: str) -> None:
    there = dataclasses.replace(plan, training=dataclasses.replace(plan.training, precision=precision))
    for name in ("a", "b"):
        runner.run(there, tmp_path / name, cache=tmp_path / f"cache-{name}", jobs=1, device="cuda")
    a, b = numbers(tmp_path / "a"), numbers(tmp_path / "b")
    assert [name for name in a if a[name] != b[name]] == []


def full(job: object) -> str:
    """A training that does not fit."""
    raise torch.OutOfMemoryError(f"CUDA out of memory in {job}. Tried to allocate 256.00 MiB. GPU 0 has …")


@pytest.mark.parametrize(
    ("processes", "message"),
    [(1, "one training does not fit into the GPU's memory"), (2, "2 ran at a time: run the same command again with")],
)
def test_a_gpu_that_is_full_is_one_line(processes: int, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        list(runner._finished(full, ["a", "b"], processes))  # type: ignore[list-item]


def wait_for_end(pids: list[int]) -> None:
    """Workers end on their own when their parent is gone."""
    until = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until, "orphans go on"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("without_comparison")
def test_two_studies_in_one_place_are_refused(plan: StudyPlan, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / ".lock"), pytest.raises(ResultsError, match="another study is running there"):
        run(plan, tmp_path / "a", tmp_path / "cache")


def test_work_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyError

    with pytest.raises(KeyError), finishing(tmp_path / "x") as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with finishing(tmp_path / "x") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "x" / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_device_that_is_not_there() -> None:
    for name in ("tpu", "cuda:99x"):
        with pytest.raises(OptionError, match="cannot be used for training here"):
            runner.resolve_device(name)


def test_a_missing_extra_says_what_to_install(plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(MissingExtraError, match=r"needs peft, .*: pip install 'deltaw\[study\]'"):
        run(plan, tmp_path / "a", tmp_path / "cache")
