"""`deltaw analyze`: the main job."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli.failures import SOME_FAILED, list_failed
from deltaw.cli.interrupt import keeps
from deltaw.cli.options import Expression, FilePath, Names, Size, default_out, executors, inputs, matching, verbosity
from deltaw.cli.printable import say

if TYPE_CHECKING:
    from deltaw.results.analysis import Analysis
    from deltaw.results.conditions import Condition, Outcome
    from deltaw.types import JsonValue

CONDITION_HELD = 5


@click.command("analyze")
@click.argument("base", required=False)
@click.argument("ft", required=False)
@click.option("--out", type=FilePath(), help="Where results go.  [default: deltaw-results/<ft name>]")
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="Full spectra, or estimates with 95 % intervals.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where the linear algebra runs.",
)
@matching
@click.option(
    "--alignment", is_flag=True, help="Also measure against the base's singular vectors (intruder dimensions)."
)
@click.option(
    "--activations",
    type=FilePath(),
    multiple=True,
    metavar="FILE",
    help="Also measure on the inputs of a data set (deltaw activations); twice: first what was to be learned, then "
    "what was to be kept.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Intruders are sought among the top k."
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="A direction is an intruder if its largest cosine with the base's is lower.",
)
@click.option("--no-base", is_flag=True, help="Measure an adapter alone: deltaw analyze --no-base ADAPTER.")
@click.option(
    "--format",
    "formats",
    type=Names(("csv", "parquet", "json")),
    default="csv,parquet",
    show_default=True,
    help="Tables to write.",
)
@click.option("--no-report", is_flag=True, help="Tables only.")
@click.option(
    "--resume/--fresh", default=True, help="Keep or discard what an interrupted run finished.  [default: resume]"
)
@click.option("--force", is_flag=True, help="Overwrite results of other inputs in --out.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Matrices at a time on the CPU.  [default: by cores and memory]"
)
@click.option("--memory", type=Size(), help="Memory budget, like 8GB.  [default: most of what is free]")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.03,
    show_default=True,
    help="Fast mode: relative width of an interval to aim for.",
)
@click.option(
    "--cache/--no-cache", default=True, help="Keep the base's singular vectors on disk (--alignment).  [default: cache]"
)
@click.option(
    "--part", metavar="I/N", help="Only the I-th of N shares of equal work, for job arrays; deltaw gather joins them."
)
@executors
@click.option(
    "--download", is_flag=True, help="Fetch a Hub id or an address whole first, instead of reading what is needed."
)
@click.option(
    "--fail-if",
    "conditions",
    type=Expression(),
    multiple=True,
    metavar="EXPR",
    help="End with exit code 5 if it holds: 'relative_change.max > 0.5', 'resolution.noisy > 0', 'compared < 1'.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@verbosity
def command(
    base: str | None,
    ft: str | None,
    out: Path | None,
    no_base: bool,
    formats: tuple[str, ...],
    no_report: bool,
    conditions: tuple[Condition, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure every weight update between BASE and FT; with FT alone, its base is looked up and named.

    Each is a directory or file (safetensors, PyTorch), a Hugging Face Hub id (org/name, org/name@revision), or an
    address (hf://, s3://, gs://, az://, https://) of safetensors, which are read where they lie; FT may be an adapter.
    Writes layers.csv, spectra.safetensors, analysis.json, report.html and figures/ to --out.
    """
    import deltaw
    from deltaw.cli.progress import reporting

    opened, ft = inputs(base, ft, no_base, quiet=quiet, download=options["download"])
    out = out or default_out(ft, options["part"])
    keeps(f"What is finished is kept in {out}")
    with reporting(quiet=quiet) as progress:
        # A failed report must not cost the numbers: they are written first.
        analysis = deltaw.analyze(opened, ft, out=out, formats=formats, progress=progress, **options)
        if not no_report:
            progress.say("writing the report")
            write_report(analysis, out)
    outcomes = [c.check(analysis) for c in conditions]
    if as_json:
        click.echo(json.dumps(document(analysis, out, outcomes), indent=1, allow_nan=False))
    elif not quiet:
        from deltaw.cli.summary import show

        show(analysis, out, report=not no_report)
    list_failed(analysis.failed)
    for outcome in outcomes:
        if line := told(outcome):
            say(line, err=True)
    if any(o.holds for o in outcomes):
        sys.exit(CONDITION_HELD)
    if analysis.failed:
        sys.exit(SOME_FAILED)


def document(analysis: Analysis, out: Path, outcomes: Sequence[Outcome]) -> dict[str, JsonValue]:
    """What `--json` prints: `analysis.json` with the rows, the directory and what became of the conditions."""
    from deltaw.results.plain import plain
    from deltaw.results.tables import records

    held = [{"condition": o.condition.text, "value": o.value, "name": o.name, "holds": o.holds} for o in outcomes]
    more = {"out": str(out), "layers": records(analysis.to_pandas()), "fail_if": plain(held)}
    return analysis.to_dict() | more


def told(outcome: Outcome) -> str:
    """A line about a condition that holds, or that no row can answer; else empty."""
    condition = outcome.condition
    if math.isnan(outcome.value):
        return f"note: --fail-if {condition.text!r} looked at nothing: no row has a value of {condition.column}"
    where = f" in {outcome.name}" if outcome.name else ""
    return f"--fail-if {condition.text!r} holds: it is {outcome.value:.6g}{where}" if outcome.holds else ""


def write_report(analysis: Analysis, out: Path) -> None:
    """Write the report and its figures."""
    from deltaw.reports import write_figures

    analysis.report(out / "report.html")
    write_figures(analysis, out / "figures")
