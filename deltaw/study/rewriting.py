"""The optional last step of a study: what a part of an update learned and forgot, by scores and not by energy alone.

The last checkpoint of a run is written again, as an adapter of low rank (`extract`) or without a part of its update
(`edit`), and scored on the data that the run was scored on.

    rewritten/<run>-<key>/scores.json    scores of the run's end, and of each way that it was written again
    rewritten.csv                        one row for each of them, see `rewritten_table`
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltaw
from deltaw.files import replacing
from deltaw.study import arms
from deltaw.study.job import Job, Scorer, finite, point_folder, threads
from deltaw.study.outcome import identity_of
from deltaw.study.plan import Rewriting
from deltaw.study.training import deterministic
from deltaw.study.workspace import finishing, key, read_json, write_json
from deltaw.types import Cell, JsonValue

if TYPE_CHECKING:
    import pandas as pd

AS_TRAINED = "as trained"
FOUND = ("target_loss", "source_loss", "learning", "retention")


@dataclass(frozen=True)
class RewrittenRun:
    """A finished run, whose last checkpoint is to be written again and scored.

    Attributes:
        job: The run.
        rewriting: Of the plan.
        folder: The study's `rewritten`.
    """

    job: Job
    rewriting: Rewriting
    folder: Path

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.job.name

    @property
    def out(self) -> Path:
        """Where it ends; there if and only if it is finished."""
        asked = dataclasses.replace(self.rewriting, arms=())
        return self.folder / f"{self.name}-{key(self.job.key, dataclasses.asdict(asked))}"


def rewritten_runs(jobs: Sequence[Job], rewriting: Rewriting | None, out: Path) -> list[RewrittenRun]:
    """The runs of a study that are written again, in the order of the plan."""
    if rewriting is None:
        return []
    return [
        RewrittenRun(job, rewriting, out / "rewritten")
        for job in jobs
        if job.run is not None and rewriting.takes(job.run.arm)
    ]


def rewrite(run: RewrittenRun) -> str:
    """Write a run's last checkpoint again in every way of the plan and score each; returns the run's name."""
    job = run.job
    if not run.out.exists():
        with finishing(run.out) as folder, threads(job.threads), arms.quiet():
            deterministic(job.device)
            last = read_json(job.out / "run.json")["points"][-1]
            found: dict[str, dict[str, JsonValue]] = {AS_TRAINED: {name: last.get(name) for name in FOUND}}
            checkpoint = point_folder(job.out, int(last["step"])) / "checkpoint"
            if last.get("target_loss") is not None:  # else it diverged
                with tempfile.TemporaryDirectory(dir=folder) as name:
                    found |= dict(_written_again(run, checkpoint, Path(name)))
            write_json(folder / "scores.json", found)
    return run.name


def _written_again(run: RewrittenRun, checkpoint: Path, work: Path) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Each way by its name: its scores, and what it kept of the update."""
    base, device, scorer = run.job.data.base, run.job.device, Scorer(run.job)
    for rank in run.rewriting.ranks:
        out = work / f"rank-{rank}"
        adapter = deltaw.extract(base, checkpoint, out, rank=rank, device=device, jobs=1)
        kept: dict[str, JsonValue] = {"rank": rank, "relative_error": adapter.relative_error}
        yield f"extract --rank {rank}", kept | _scores(scorer, _with_adapter(base, out))
    if (checkpoint / "adapter_config.json").exists():
        return  # `edit` writes full checkpoints
    for operation in run.rewriting.edits:
        out = work / operation
        edited = deltaw.edit(
            base,
            checkpoint,
            out,
            without_decay=operation == "without-decay",
            denoise=operation == "denoise",
            without_intruders=operation == "without-intruders",
            device=device,
            jobs=1,
        )
        kept = {"tensors": len({row.name for row in edited.rows})}
        yield f"edit --{operation}", kept | _scores(scorer, arms.open_base(out))


def _with_adapter(base: str, adapter: Path) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers, about each other
        return peft.PeftModel.from_pretrained(arms.open_base(base), str(adapter))


def _scores(scorer: Scorer, model: Any) -> dict[str, JsonValue]:
    return {**finite(scorer.losses(model.to(scorer.job.device).eval()))}


def rewritten_table(runs: Sequence[RewrittenRun]) -> pd.DataFrame:
    """One row for every way that each run was written again, behind a row of the run as it was trained.

    Columns: those of `points.csv` that say which run it is; `written`; `rank`, of an extracted adapter; `tensors`,
    how many an edit changed; `relative_error`, of all matrices together; the losses and their normalised scores.
    """
    import pandas as pd

    rows: list[dict[str, Cell]] = []
    for run in runs:
        for written, about in read_json(run.out / "scores.json").items():
            known = {name: about.get(name) for name in ("rank", "tensors", "relative_error", *FOUND)}
            rows.append(identity_of(run.job) | {"written": written} | known)
    whole = {"rank": "Int64", "tensors": "Int64", "seed": "Int64"}
    return pd.DataFrame(rows).astype(dict.fromkeys(("relative_error", *FOUND), "Float64") | whole)


def write_rewritten(runs: Sequence[RewrittenRun], out: Path) -> None:
    """Write `rewritten.csv`, where the plan asks for it."""
    if runs:
        with replacing(out / "rewritten.csv") as temporary:
            temporary.write_text(rewritten_table(runs).to_csv(index=False), encoding="utf-8")
