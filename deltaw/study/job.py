"""One run of a study, from the base to a finished directory; small enough to send to another process.

    runs/<name>-<key>/run.json                     scores and losses at every saved point
    runs/<name>-<key>/step-00000120/checkpoint/    weights: a full model or an adapter
    runs/<name>-<key>/step-00000120/results/       what `deltaw analyze` finds in them

The key is a digest of everything that decides the numbers: a changed plan makes other directories, and what another
plan has finished is used again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import deltaw
from deltaw.measurement.versions import versions
from deltaw.study import arms, scores
from deltaw.study.data import Data
from deltaw.study.plan import Domain, PlannedRun, Scoring, Training
from deltaw.study.training import deterministic, train
from deltaw.study.workspace import LIBRARIES, finishing, key, write_json
from deltaw.types import JsonValue

MEASURED = "on data"  # what an analysis of an earlier version lacks


@dataclass(frozen=True)
class Job:
    """A run, and all that it needs.

    Attributes:
        run: What to train; None to score the base itself.
        target: The domain that is learned.
        source: The domain that may be forgotten.
        training, scores, threads: Of the plan.
        data: The prepared data.
        device: `cpu` or `cuda`.
        folder: The study's `runs`.
    """

    run: PlannedRun | None
    target: Domain
    source: Domain
    training: Training
    scores: Scoring
    threads: int
    data: Data
    device: str
    folder: Path

    @property
    def key(self) -> str:
        """A digest of all that decides the numbers."""
        kind = self.device.partition(":")[0]
        target = dataclasses.replace(self.target, arms=())
        plain = [dataclasses.asdict(p) for p in (target, self.source, self.training, self.scores)]
        if self.run:
            # Without the rest of the sweep: a learning rate added to an arm does not make its other runs new.
            arm = dataclasses.replace(self.run.arm, learning_rates=(self.run.learning_rate,))
            plain.append(dataclasses.asdict(dataclasses.replace(self.run, arm=arm, target=target)))
        return key(plain, self.threads, self.data.key, kind, versions(*LIBRARIES), MEASURED)

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.run.name if self.run else f"{self.target.name}-base"

    @property
    def out(self) -> Path:
        """Where it ends; there if and only if it is finished."""
        return self.folder / f"{self.name}-{self.key}"


def work(job: Job) -> str:
    """Carry out a job, unless it is finished; returns its name."""
    if not job.out.exists():
        with finishing(job.out) as folder, threads(job.threads), arms.quiet():
            deterministic(job.device)
            found = _train(job, folder) if job.run else _score_base(job)
            write_json(folder / "run.json", found)
    return job.name


@contextmanager
def threads(count: int) -> Iterator[None]:
    """How many threads torch uses inside the block: their number may change the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Scorer:
    """Scores a model on a job's two domains."""

    def __init__(self, job: Job) -> None:
        self.job, self.about = job, job.scores
        self.target, self.source = job.data.held_out(job.target.name), job.data.held_out(job.source.name)
        self.tokenizer = arms.open_tokenizer(job.data.base)
        documents = job.data.documents(job.target.name)
        length = job.training.length
        self.problems = scores.problems_of(self.tokenizer, documents, self.about.problems, length)
        self.prompts = scores.prompts_of(self.tokenizer, documents, self.about.prompts)

    def __call__(self, model: Any) -> dict[str, float]:
        """Losses, their normalised scores, exact matches and diversity, as far as they apply."""
        with self._precision(model):
            return self._scores(model)

    def losses(self, model: Any) -> dict[str, float]:
        """The losses alone, and their normalised scores unless the model diverged."""
        with self._precision(model):
            return self._losses(model)

    def _precision(self, model: Any) -> AbstractContextManager[object]:
        """That of the training, of the base too: accelerate leaves its autocast on a trained model."""
        context: AbstractContextManager[object] = torch.autocast(
            model.device.type, torch.bfloat16, enabled=self.job.training.precision == "bfloat16"
        )
        return context

    def _losses(self, model: Any) -> dict[str, float]:
        found = {
            "target_loss": scores.loss(model, self.target, self.about.batch),
            "source_loss": scores.loss(model, self.source, self.about.batch),
        }
        if all(_is_finite(loss) for loss in found.values()):
            found["learning"] = scores.normalised(found["target_loss"])
            found["retention"] = scores.normalised(found["source_loss"])
        return found

    def _scores(self, model: Any) -> dict[str, float]:
        s, found = self.about, self._losses(model)
        if "learning" not in found:
            return found  # it diverged: there is nothing to sample from
        if self.problems:
            found["accuracy"] = scores.accuracy(model, self.tokenizer, self.problems)
        if self.prompts:
            found["diversity"] = scores.diversity(
                model, self.tokenizer, self.prompts, s.samples, s.temperature, s.new_tokens
            )
        return found


def _score_base(job: Job) -> dict[str, JsonValue]:
    model = arms.open_base(job.data.base).to(job.device).eval()
    with torch.random.fork_rng():
        found = Scorer(job)(model)
    return {"points": [{"step": 0, "tokens": 0, **finite(found)}]}


def _train(job: Job, folder: Path) -> dict[str, JsonValue]:
    import transformers

    from deltaw.study.callback import SpectrumCallback

    run, plan = job.run, job.training
    assert run is not None
    transformers.set_seed(run.seed)  # of the adapter's initial weights
    model = arms.prepare(arms.open_base(job.data.base, run.arm), run.arm)
    save = partial(arms.save, arm=run.arm, base=job.data.base)
    spectra = SpectrumCallback(
        job.data.base,
        every=None,
        at=plan.saved_steps,
        save=None if run.arm.method == "full" else lambda m, out: save(m, out=out),
        device=job.device,
        jobs=1,
        activations=tuple(job.data.activations(domain.name) for domain in (job.target, job.source)),
    )
    scorer, points, seconds = Scorer(job), [], {"scores": 0.0}

    def look(model: Any, step: int) -> None:
        started = time.perf_counter()
        points.append({"step": step, "tokens": step * plan.batch * plan.length} | finite(scorer(model)))
        seconds["scores"] += time.perf_counter() - started
        if plan.checkpoints == "all" or (plan.checkpoints == "last" and step == plan.steps):
            save(model, out=point_folder(folder, step) / "checkpoint")

    started = time.perf_counter()
    losses = train(
        model,
        job.data.train(job.target.name),
        workdir=folder,
        steps=plan.steps,
        batch=plan.batch,
        learning_rate=run.learning_rate,
        schedule=plan.schedule,
        warmup=plan.warmup,
        weight_decay=run.arm.weight_decay,
        seed=run.seed,
        precision=plan.precision,
        device=job.device,
        points=plan.saved_steps,
        at_point=look,
        callbacks=[spectra],
    )
    for step, analysis in spectra.analyses.items():
        _placed(analysis, job, step).save(point_folder(folder, step) / "results", formats=("parquet",))
    seconds |= {"all": time.perf_counter() - started, "spectra": sum(spectra.seconds.values())}
    return {
        "run": dataclasses.asdict(run),
        "described": run.described,
        "trainable": arms.trainable(model),
        "losses": [loss if _is_finite(loss) else None for loss in losses],
        "points": points,
        "seconds": seconds,
    }


def _placed(analysis: deltaw.Analysis, job: Job, step: int) -> deltaw.Analysis:
    """The analysis of what was in memory, as one of the checkpoint that was saved from it."""
    checkpoint = point_folder(job.out, step) / "checkpoint"
    return dataclasses.replace(analysis, ft=dataclasses.replace(analysis.ft, path=str(checkpoint.resolve())))


def point_folder(folder: Path, step: int) -> Path:
    """Where a saved point of a run lies."""
    return folder / f"step-{step:08d}"


def finite(found: dict[str, float]) -> dict[str, float | None]:
    """The scores, with None for those of a training that diverged: NaN is no JSON."""
    return {k: v if _is_finite(v) else None for k, v in found.items()}


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
