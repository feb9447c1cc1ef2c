"""`deltaw survey`: many adapters of one base."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltaw.cli.failures import SOME_FAILED
from deltaw.cli.interrupt import keeps
from deltaw.cli.options import FilePath, Size, executors, verbosity
from deltaw.cli.printable import say

if TYPE_CHECKING:
    from deltaw.surveys import Survey

MOST = 12  # flagged adapters that are listed on the screen


class NameList(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """Names separated by commas."""

    name = "names"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names."""
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(n.strip() for n in str(value).split(",") if n.strip()))
        if len(found) < 2:
            self.fail(f"{value!r}: expected two names at least, separated by commas", param, ctx)
        return found


@click.command("survey")
@click.argument("base")
@click.argument("adapters", nargs=-1, metavar="ADAPTER...")
@click.option("--no-base", is_flag=True, help="Every argument is an adapter; what needs the base is empty.")
@click.option("--out", type=FilePath(), help="Where results go.  [default: deltaw-results/survey-<base name>]")
@click.option("--mark", metavar="NAME", default="", help="Mark this adapter throughout the report.")
@click.option(
    "--merge-check", type=NameList(), default=(), metavar="A,B,C", help="Also say how these would interfere if merged."
)
@click.option("--include", multiple=True, metavar="REGEX", help="Only matrices whose name matches.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Leave out matrices whose name matches.")
@click.option("--no-report", is_flag=True, help="Tables only.")
@click.option("--resume/--fresh", default=True, help="Keep or discard what an interrupted survey read.")
@click.option("--force", is_flag=True, help="Overwrite other results in --out.")
@click.option("--jobs", type=click.IntRange(min=1), help="Adapters at a time.  [default: as many as cores]")
@click.option("--memory", type=Size(), help="Memory budget, like 2GB.  [default: 400MB]")
@executors
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@verbosity
def command(
    base: str,
    adapters: tuple[str, ...],
    no_base: bool,
    out: Path | None,
    mark: str,
    merge_check: tuple[str, ...],
    no_report: bool,
    as_json: bool,
    quiet: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    resume: bool,
    force: bool,
    jobs: int | None,
    memory: int | None,
    executor: str,
    ray_address: str | None,
) -> None:
    """Survey many adapters of BASE: a row for each, which are alike, what stands out.

    ADAPTER is an adapter of any method, a full fine-tune, a folder of them, a pattern ('runs/*/adapter'), @FILE with
    one on each line, a Hub id or a filter of the Hub ('hub: filter=TAG limit=N'). Writes adapters.csv, pairs.csv and
    report.html to --out. An adapter that cannot be read has a row with the reason, and the exit code is 3.
    """  # noqa: DOC501  (a help text)
    import deltaw
    from deltaw.cli.options import default_out
    from deltaw.cli.progress import reporting

    given = [base, *adapters] if no_base else list(adapters)
    if not given:
        raise click.UsageError("expected BASE and at least one ADAPTER: a path, a pattern, @FILE or a Hub id")
    name = "adapters" if no_base else default_out(base).name
    out = out or Path("deltaw-results") / f"survey-{name}"
    keeps(f"What was read is kept in {out}")
    with reporting(quiet=quiet) as progress:
        found = deltaw.survey(
            None if no_base else base,
            given,
            include=include,
            exclude=exclude,
            merge_check=merge_check,
            mark=mark,
            out=out,
            jobs=jobs,
            memory=memory,
            resume=resume,
            force=force,
            executor=executor,
            ray_address=ray_address,
            progress=progress.surveyed,
        )
        if not no_report:
            progress.say("writing the report")
            found.report(out / "report.html", mark=mark)
    if as_json:
        click.echo(json.dumps(found.to_dict() | {"out": str(out)}, indent=1, allow_nan=False))
    elif not quiet:
        _show(found, out / ("adapters.csv" if no_report else "report.html"))
    _end(found)


def _end(found: Survey) -> None:
    """What failed, one by one, and the exit code that says so."""
    for name, why in [*found.failed, *found.incomplete]:
        say(f"failed: {name}: {why}", err=True)
    if found.failed or found.incomplete:
        sys.exit(SOME_FAILED)


def _show(found: Survey, where: Path) -> None:
    """The report's own sentences, what is flagged, and where the report is."""
    from rich.markup import escape
    from rich.text import Text

    from deltaw.cli.screen import bullet, console, file_link
    from deltaw.reports.survey_findings import answer, merge_sentences
    from deltaw.types import counted

    screen = console()
    for finding in [*answer(found), *merge_sentences(found.merge)]:
        bullet(screen, finding.text)
    frame = found.adapters()
    flagged = frame[(frame["flags"] != "") & (frame["reason"] == "")]
    for row in flagged.head(MOST).itertuples():
        screen.print(escape(f"  {row.name}: {row.why}"), soft_wrap=True)
    if len(flagged) > MOST:
        screen.print(f"  and {len(flagged) - MOST:,} more in adapters.csv")
    for note in found.about.notes:
        screen.print(escape(f"note: {note}"), soft_wrap=True)
    took = f"\n{counted(len(frame), 'adapter')} in {found.about.seconds:.1f} s: "
    screen.print(Text.assemble(took, file_link(where)), soft_wrap=True)
