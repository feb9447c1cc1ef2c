"""What a study leaves behind: the table of its points, the manifest for `deltaw compare`, and that comparison.

    points.csv            one row per saved point of every run: scores, losses, hyperparameters
    runs.toml             the manifest of `deltaw compare`
    comparison/           what `deltaw compare` writes: tables and report.html
    study.json            the plan, the data's counts, which arms learned, versions

A run with a point that diverged (a loss that is not finite) keeps its finite points and is named in `study.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.files import replacing
from deltaw.measurement.versions import versions
from deltaw.study.job import Job, point_folder
from deltaw.study.plan import TRAINING, StudyPlan, group_of
from deltaw.study.workspace import read_json
from deltaw.types import Cell

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("learning", "retention", "accuracy", "diversity")
POINT = ("step", "tokens", "target_loss", "source_loss", *SCORES)


def points_table(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per saved point of every finished job, in the order of the plan; a base is a run of 0 tokens."""
    import pandas as pd

    rows: list[dict[str, Cell]] = []
    for job in jobs:
        found = read_json(job.out / "run.json")
        rows += [identity_of(job) | {name: point.get(name) for name in POINT} for point in found["points"]]
    frame = pd.DataFrame(rows)
    return frame.astype({c: "Float64" for c in POINT if c not in {"step", "tokens"}} | {"seed": "Int64"})


def identity_of(job: Job) -> dict[str, Cell]:
    """The columns that say which run a row is of."""
    run = job.run
    about: dict[str, Cell] = {"run": job.name, "target": job.target.name, "training": TRAINING[job.target.regime]}
    if run is None:
        return about | {"arm": "base", "method": "base", "learning_rate": None, "seed": None}
    return about | {
        "arm": run.arm.name,
        "method": run.arm.method,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        **{f"hp_{k}": v for k, v in run.arm.hyperparameters.items()},
    }


def learned(points: pd.DataFrame) -> pd.DataFrame:
    """Per target and arm: the base's and the best held-out loss, and whether training brought it down."""
    import pandas as pd

    rows = []
    for target, of_target in points.groupby("target", sort=False):
        base = float(of_target.loc[of_target["arm"] == "base", "target_loss"].iloc[0])
        for arm, of_arm in of_target[of_target["arm"] != "base"].groupby("arm", sort=False):
            best = of_arm["target_loss"].min()
            known = not pd.isna(best)
            rows.append(
                {
                    "target": target,
                    "arm": arm,
                    "base_loss": base,
                    "best_loss": float(best) if known else None,
                    "fell": bool(known and best < base),
                    "diverged_points": int(of_arm["target_loss"].isna().sum()),
                }
            )
    return pd.DataFrame(rows)


def manifest(plan: StudyPlan, jobs: Sequence[Job], out: Path, base: str) -> str:
    """The manifest of a study, as TOML; paths are relative to the study's directory."""
    lines = [f"title = {_toml(plan.title)}", f"base = {_toml(_relative(base, out))}"]
    trained = {job.run.arm.name for job in jobs if job.run is not None}
    first = next(arm.name for arm in plan.arms if arm.name in trained)
    lines.append(f"reference = {_toml(group_of(plan.targets[0].name, first))}")
    for job in jobs:
        if job.run is not None:
            for point in read_json(job.out / "run.json")["points"]:
                lines += ["", *_run(job, point, out)]
    return "\n".join(lines) + "\n"


def _run(job: Job, point: Mapping[str, Cell], out: Path) -> Iterable[str]:
    run = job.run
    assert run is not None
    about = run.described
    settings = about["hyperparameters"]
    assert isinstance(settings, Mapping)
    tokens, step = point["tokens"], point["step"]
    assert isinstance(step, int)
    known = {name: point[name] for name in SCORES if point.get(name) is not None}
    yield "[[runs]]"
    yield f"name = {_toml(f'{job.name}-t{tokens}')}"
    yield from (f"{name} = {_toml(about[name])}" for name in ("group", "method", "seed"))
    yield f"tokens = {tokens}"
    yield f"results = {_toml(_relative(str(point_folder(job.out, step) / 'results'), out))}"
    yield "[runs.hyperparameters]"
    yield from (f"{name} = {_toml(value)}" for name, value in settings.items())
    if known:
        yield "[runs.scores]"
        yield from (f"{name} = {_toml(value)}" for name, value in known.items())


def _relative(path: str, out: Path) -> str:
    inside = Path(path)
    return inside.relative_to(out).as_posix() if inside.is_relative_to(out) else path


def _toml(value: Any) -> str:
    """A number, truth value or text as TOML: JSON writes the same, but for one control character."""
    return json.dumps(value).replace("\x7f", "\\u007F")


def write_outcome(plan: StudyPlan, jobs: Sequence[Job], out: Path, left_out: Mapping[str, str]) -> pd.DataFrame:
    """Write `points.csv`, `runs.toml` and `study.json`; returns the points."""
    points = points_table(jobs)
    data = jobs[0].data
    document = {
        "plan": dataclasses.asdict(plan),
        "base": data.base,
        "domains": data.about,
        "arms": learned(points).to_dict("records"),
        "left_out": dict(left_out),
        "versions": versions("deltaw", "torch", "transformers", "peft", "accelerate", "tokenizers", "reasoning-gym"),
        "device": jobs[0].device,
    }
    texts = {
        "points.csv": points.to_csv(index=False),
        "runs.toml": manifest(plan, jobs, out, data.base),
        "study.json": json.dumps(document, indent=1, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return points
