"""`deltaw study`: train the contrasting runs, then compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltaw.cli.interrupt import keeps
from deltaw.cli.options import FilePath, verbosity
from deltaw.cli.printable import say

if TYPE_CHECKING:
    from deltaw.study.runner import Study


@click.command("study")
@click.option("--out", type=FilePath(), help="Where everything goes; needed unless --dry-run.")
@click.option(
    "--preset", type=click.Choice(["quick", "standard", "gpu"]), default="quick", show_default=True, help="How large."
)
@click.option("--plan", "plan_file", type=FilePath(), help="A plan of your own, in TOML, instead of a preset.")
@click.option(
    "--source",
    multiple=True,
    metavar="PATH",
    help="Text that may be forgotten: a file or a directory, instead of the plan's; repeatable.",
)
@click.option(
    "--target",
    multiple=True,
    metavar="PATH",
    help="Text or .jsonl to learn: a file or a directory, instead of the plan's; repeatable.",
)
@click.option("--base", metavar="MODEL", help="A model directory or Hub id, instead of a base trained from scratch.")
@click.option("--seeds", type=click.IntRange(min=1), help="Replicates of each run, instead of the plan's.")
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where the runs are trained."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: by cores, and by a GPU's free memory]"
)
@click.option("--cache", type=FilePath(), help="Where trained bases are kept.  [default: ~/.cache/deltaw/study]")
@click.option(
    "--resume/--fresh", default=True, help="Keep or discard what an interrupted study finished.  [default: resume]"
)
@click.option(
    "--dry-run", is_flag=True, help="Print the plan with its parameters, tokens, memory and time; train nothing."
)
@verbosity
def command(
    out: Path | None,
    preset: str,
    plan_file: Path | None,
    source: tuple[str, ...],
    target: tuple[str, ...],
    base: str | None,
    seeds: int | None,
    device: str,
    jobs: int | None,
    cache: Path | None,
    resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Train full fine-tuning, weight decay, dropout, LoRA and MoRA for real, and compare what they did.

    Needs no download: the text comes from the packages that are installed. Interrupted at any point, the same command
    goes on. Writes points.csv, runs.toml, study.json, the runs and comparison/report.html to --out.
    """
    from deltaw.study.plan import customised, load_plan

    plan = customised(load_plan(plan_file or preset), source=source, target=target, base=base, seeds=seeds)
    if dry_run:
        from deltaw.study.costs import estimate, in_words

        say(in_words(plan, estimate(plan, device=device, jobs=jobs)))
        return
    out = needed(out)
    from rich.text import Text

    from deltaw.cli.progress import reporting
    from deltaw.study.runner import run

    keeps(f"What is finished is kept in {out}")
    with reporting(quiet=quiet) as progress:
        found = run(plan, out, device=device, jobs=jobs, cache=cache, fresh=not resume, progress=progress.studied)
    if not quiet:
        say(summary(found))
        from deltaw.cli.screen import console, file_link

        console().print(Text.assemble("Report: ", file_link(found.out / "comparison" / "report.html")), soft_wrap=True)


def needed(out: Path | None) -> Path:
    """The directory that results go to.

    Raises:
        UsageError: It was not given.
    """
    if out is None:
        raise click.UsageError("--out is missing: where results go, such as --out deltaw-study")
    return out


def summary(found: Study) -> str:
    """Losses of each arm at its best, and how the published claims fared."""
    from deltaw.study.outcome import learned

    lines = [f"{'target':<12}{'arm':<34}{'loss before':>12}{'best after':>12}"]
    for row in learned(found.points).to_dict("records"):
        after = f"{row['best_loss']:.3f}" if row["best_loss"] is not None else "diverged"
        mark = "" if row["fell"] else "   did not fall"
        lines.append(f"{row['target']:<12}{row['arm']:<34}{row['base_loss']:>12.3f}{after:>12}{mark}")
    verdicts = found.comparison.claims()["verdict"].value_counts()
    told = ", ".join(f"{verdicts.get(v, 0)} {v}" for v in ("agrees", "disagrees", "cannot tell"))
    lines += [f"left out: {name}: {why}" for name, why in found.left_out.items()]
    return "\n".join([*lines, "", f"Claims: {told}"])
