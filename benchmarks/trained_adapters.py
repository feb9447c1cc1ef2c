"""Adapters that were really trained, surveyed: `python -m benchmarks.trained_adapters FOLDER`.

LoRA of rank 8 on the base of the study's preset `quick`: 4 tasks × 5 seeds × 2 learning rates. What is trained is kept
in FOLDER, and an interrupted run goes on. One line of JSON says how well the clusters recover the tasks (adjusted Rand
index), and what the cosines of pairs are by what the two have in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pandas as pd

from benchmarks.many_adapters import adjusted_rand
from deltaw.study.data import Data, prepare_data
from deltaw.study.plan import Arm, Domain, PlannedRun, StudyPlan, Training, load_plan

TASKS = (
    Domain("code", "code", characters=1_000_000),
    Domain("prose", "docstrings", characters=1_000_000),  # more of what the base was trained on
    Domain("maths", "maths", "instruction"),
    Domain("maths-text", "maths"),
)


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


def quartiles(pairs: pd.DataFrame) -> Iterator[tuple[str, list[float]]]:
    """Quartiles of the cosines of each kind of pair, and their number; of one seed both have the same initial A."""
    tasks, seeds = pairs["task_a"] == pairs["task_b"], pairs["seed_a"] == pairs["seed_b"]
    kinds = {
        "one task, one seed, two rates": tasks & seeds,
        "one task, two seeds": tasks & ~seeds,
        "two tasks, one seed": ~tasks & seeds,
        "two tasks, two seeds": ~tasks & ~seeds,
    }
    for name, mine in kinds.items():
        of = pairs[mine]
        yield name, [*np.quantile(of["cosine"], (0.25, 0.5, 0.75)).round(4).tolist(), len(of)]


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
    frame = survey.adapters()
    task = pd.factorize(frame["name"].map(lambda name: runs[name].target.name))[0]
    pairs = survey.pairs()
    for side in "ab":
        pairs[f"task_{side}"] = pairs[side].map(lambda name: runs[name].target.name)
        pairs[f"seed_{side}"] = pairs[side].map(lambda name: runs[name].seed)
    click.echo(
        json.dumps(
            {
                "adapters": len(frame),
                "adjusted_rand": round(adjusted_rand(task, frame["cluster"].to_numpy(dtype=np.int64)), 3),
                "clusters": frame["cluster"].value_counts().tolist(),
                "nearest_of_its_task": round(
                    float((task == task[frame["name"].searchsorted(frame["nearest"])]).mean()), 3
                ),
                "cosine_null": round(float(pairs["cosine_null"].median()), 5),
                "cosines": dict(quartiles(pairs)),
            }
        )
    )


if __name__ == "__main__":
    main()
