"""Adapters that were really trained, surveyed: `python -m benchmarks.trained_adapters FOLDER`.

LoRA of rank 8 on the base of the study's preset `quick`: 4 tasks × 5 seeds × 2 learning rates. What is trained is kept
in FOLDER, and an interrupted run goes on. JSON says how well clusters recover tasks and subjects (adjusted Rand index),
and what the cosines of pairs are by what the two have in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import pandas as pd

from benchmarks.many_adapters import adjusted_rand
from deltaw.study.data import Data, prepare_data
from deltaw.study.plan import Arm, Domain, PlannedRun, StudyPlan, Training, load_plan
from deltaw.surveys.clusters import CUT, Cut, clusters

if TYPE_CHECKING:
    from numpy.typing import NDArray

TASKS = (
    Domain("code", "code", characters=1_000_000),
    Domain("prose", "docstrings", characters=1_000_000),  # more of what the base was trained on
    Domain("maths", "maths", "instruction"),
    Domain("maths-text", "maths", subject="maths"),
)
CUTS = (CUT, 0.2, 0.1, 0.05)  # the survey's, and lower ones


def plan_of() -> StudyPlan:
    """The quick study's base, and runs of 60 steps."""
    quick = load_plan("quick")
    return replace(
        quick,
        source=replace(quick.source, name="source"),
        targets=TASKS,
        arms=(Arm("lora", "lora", (1e-3, 3e-3), rank=8),),
        seeds=tuple(range(5)),
        training=Training(length=256, batch=4, steps=60, points=1),
    )


def train_one(plan: StudyPlan, data: Data, folder: Path, run: PlannedRun) -> None:
    """Train one adapter, if it is not there."""
    import torch
    import transformers

    from deltaw.study import arms
    from deltaw.study.training import train
    from deltaw.study.workspace import finishing

    if (folder / run.name).exists():
        return
    torch.set_num_threads(1)
    with finishing(folder / run.name) as out, arms.quiet():
        transformers.set_seed(run.seed)  # of the adapter's initial weights
        model = arms.prepare(arms.open_base(data.base, run.arm), run.arm)
        train(
            model,
            data.train(run.target.name),
            workdir=out,
            steps=plan.training.steps,
            batch=plan.training.batch,
            learning_rate=run.learning_rate,
            schedule=plan.training.schedule,
            warmup=plan.training.warmup,
            seed=run.seed,
        )
        arms.save(model, run.arm, out, data.base)


def quartiles(
    value: pd.Series[float], a: NDArray[np.int64], b: NDArray[np.int64], runs: Sequence[PlannedRun]
) -> Iterator[tuple[str, list[float]]]:
    """Quartiles of what pairs (a, b) have, by kind of pair, and their number; two of one seed began from one A."""
    task, subject, seed = (
        np.array([of(run) for run in runs], dtype=object)
        for of in (lambda r: r.target.name, subject_of, lambda r: r.seed)
    )
    kind = np.where(task[a] == task[b], "one task", np.where(subject[a] == subject[b], "one subject", "no more"))
    for what in ("one task", "one subject", "no more"):
        for same, words in ((True, "one seed"), (False, "two seeds")):
            of = value[(kind == what) & ((seed[a] == seed[b]) == same)]
            yield f"{what}, {words}", [*np.quantile(of, (0.25, 0.5, 0.75)).round(3).tolist(), len(of)]


def subject_of(run: PlannedRun) -> str:
    """What a task is about."""
    return run.target.subject or run.target.name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time.")
def main(folder: Path, jobs: int) -> None:
    """Train what is missing, then survey all of it."""
    import deltaw

    plan, folder = plan_of(), folder.absolute()
    data = prepare_data(plan, folder, folder / "cache", "cpu", lambda stage, done, total: None)
    runs = {run.name: run for run in plan.runs()}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(train_one, plan, data, folder / "adapters"), runs.values()))
    survey = deltaw.survey(data.base, folder / "adapters", out=folder / "survey", force=True)
    survey.report(folder / "survey" / "report.html")
    frame, pairs = survey.adapters(), survey.pairs()
    ordered = [runs[name] for name in frame["name"]]
    place = pd.Series(range(len(frame)), index=frame["name"])
    a, b, cosine = place[pairs["a"]].to_numpy(), place[pairs["b"]].to_numpy(), np.eye(len(frame))
    cosine[a, b] = cosine[b, a] = pairs["cosine"]
    task, subject = (
        pd.factorize(np.array([of(run) for run in ordered]))[0] for of in (lambda r: r.target.name, subject_of)
    )
    recovered = {}
    for cut in CUTS:
        found = clusters(cosine, Cut(cut, 0.0, "fixed"))
        recovered[cut] = [int(found.max()), *(round(adjusted_rand(truth, found), 3) for truth in (task, subject))]
    about = {
        "adapters": len(frame),
        "clusters and adjusted Rand to tasks and to subjects by cut": recovered,
        "nearest of its task": round(float((task == task[place[frame["nearest"]]]).mean()), 3),
        "cosine_null": round(float(pairs["cosine_null"].median()), 5),
        "overlap_null": round(float(pairs["overlap_null"].median()), 5),
        "quartiles and number of pairs": {
            column: dict(quartiles(pairs[column], a, b, ordered))
            for column in ("cosine", "overlap_left", "overlap_right")
        },
    }
    click.echo(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
