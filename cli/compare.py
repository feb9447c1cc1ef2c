"""`deltaw compare`: contrast several runs of one base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from deltaw.cli.interrupt import keeps
from deltaw.cli.options import FilePath, Size, matching, verbosity
from deltaw.cli.printable import say
from deltaw.errors import ManifestError

if TYPE_CHECKING:
    from deltaw.cli.progress import Reporter
    from deltaw.comparison import Comparison

MOST_CLAIMS = 12


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="MANIFEST.toml | RESULT_DIR...")
@click.option("--init", is_flag=True, help="Write a manifest of the runs below DIR... to --out, to start from.")
@click.option("--out", type=FilePath(), help="Where results go.  [default: deltaw-results/<name>; --init: runs.toml]")
@click.option("--reference", metavar="GROUP", help="Compare the others with this group.  [default: full fine-tuning]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--similarity/--no-similarity", default=None, help="Compare the runs' weights.  [default: if not too large]"
)
@click.option("--no-report", is_flag=True, help="Tables only.")
@click.option("--force", is_flag=True, help="Overwrite other results in --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@click.option("--mode", type=click.Choice(["exact", "fast"]), help="For runs not analysed yet: as in analyze.")
@click.option("--device", metavar="auto|cpu|cuda[:N]|mps", help="For runs not analysed yet.")
@matching
@click.option("--alignment", is_flag=True, help="For runs not analysed yet: also intruder dimensions.")
@click.option("--jobs", type=click.IntRange(min=1), help="Matrices at a time on the CPU.")
@click.option("--memory", type=Size(), help="Memory budget, like 8GB.")
@verbosity
def command(
    runs: tuple[str, ...],
    init: bool,
    out: Path | None,
    reference: str | None,
    seed: int,
    similarity: bool | None,
    no_report: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Contrast several runs of one base: effects with intervals, fronts, and what they say about published claims.

    Give a manifest (TOML) that lists runs with their groups, checkpoints and scores, or result directories of analyze.
    Writes runs.csv, layers.csv, contrasts.csv, report.html and figures/ to --out. Analyses are kept there and found
    again. With --init the arguments are directories, and what is found below them becomes a manifest.
    """  # noqa: DOC501  (a help text)
    import deltaw
    from deltaw.cli.progress import reporting
    from deltaw.comparison.tables import refuse_others
    from deltaw.reports.comparison import write_figures

    if not all(run.strip() for run in runs):
        raise click.UsageError("the path is empty; give . for the working directory")
    if init:
        _init(runs, out or Path("runs.toml"), quiet)
        return
    out = out or Path("deltaw-results") / _name(runs)
    if runs[0].endswith(".toml"):  # result directories are analysed already
        keeps(f"Finished analyses are kept in {out / 'analyses'} and found again")
    if not force:
        refuse_others(out, None)
    given = {k: v for k, v in options.items() if v not in {None, False, ()}}
    try:
        with reporting(quiet=quiet) as progress:
            comparison = deltaw.compare(
                runs[0] if len(runs) == 1 else list(runs),
                out=out,
                reference=reference,
                seed=seed,
                similarity=similarity,
                progress=_each(progress),
                **given,
            )
            progress.say("contrasting the runs")
            comparison.save(out, report=False, force=force)
            if not no_report:
                progress.say("writing the report")
                comparison.report(out / "report.html")
                write_figures(comparison, out / "figures")
    except ManifestError as e:
        _end(e)
    if as_json:
        click.echo(json.dumps(comparison.to_dict() | {"out": str(out)}, indent=1, allow_nan=False))
    elif not quiet:
        _show(comparison, out / ("runs.csv" if no_report else "report.html"))


def _init(folders: tuple[str, ...], out: Path, quiet: bool) -> None:
    """Write a manifest, and say what it lacks."""
    from collections import Counter

    from deltaw.comparison.manifest import draft
    from deltaw.types import counted

    found = draft(folders, out)
    if not quiet:
        for line, count in Counter(found.missing).items():
            say(f"note: {line}" + (f" ({count} times)" if count > 1 else ""))
        say(f"{counted(found.runs, 'run')}: {found.path}; then: deltaw compare {found.path}")


def _end(error: ManifestError) -> NoReturn:
    """Show every problem but the last one, which is what the command ends with: one line each.

    Raises:
        ManifestError: The last one.
    """
    *first, last = str(error).splitlines()
    for line in first:
        say(f"Error: {line}", err=True)
    raise ManifestError(last) from error


def _name(runs: tuple[str, ...]) -> str:
    if len(runs) > 1:
        return "comparison"
    path = Path(runs[0])
    return f"compare-{path.resolve().parent.name}" if path.stem in {"runs", "manifest"} else f"compare-{path.stem}"


def _each(progress: Reporter) -> Callable[[str, int, int], Callable[[Any], None]]:
    def start(run: str, index: int, count: int) -> Callable[[Any], None]:
        progress.say(f"analysing run {index + 1} of {count}: {run}")
        return progress

    return start


def _show(comparison: Comparison, where: Path) -> None:
    """The report's own sentences, the groups, and what the runs say about the claims."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from deltaw.cli.screen import bullet, console, file_link
    from deltaw.reports.comparison_findings import answer
    from deltaw.reports.text import percent
    from deltaw.types import counted

    screen = console()
    for finding in answer(comparison):
        bullet(screen, finding.text)
    for warning in comparison.warnings:
        screen.print(escape(f"note: {warning}"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("group", "seeds", "relative\nchange", "rank for\n90 %", "learning", "retention"):
        table.add_column(head, justify="left" if head == "group" else "right")
    for _, row in comparison.fingerprints().iterrows():
        change = row["relative_change"]
        numbers = (_number(row[c]) for c in ("rank_90", "learning", "retention"))
        known = "" if change != change else percent(change)
        table.add_row(escape(str(row["group"])), str(row["n_seeds"]), known, *numbers)
    screen.print(table)
    claims = comparison.claims()
    told = claims[claims["basis"] != ""]
    for _, row in told.head(MOST_CLAIMS).iterrows():
        about = f" ({row['about']})" if row["about"] else ""
        screen.print(escape(f"{row['verdict']}: {row['text']}{about}"), soft_wrap=True)
    if len(told) < len(claims):
        left = counted(len(claims) - len(told), "claim")
        screen.print(f"{left} could not be checked with these runs; claims.csv says why.")
    runs = counted(len(comparison.runs_.items), "run")
    screen.print(Text.assemble(f"\n{runs}: ", file_link(where)), soft_wrap=True)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3g}"  # NaN: not measured
