"""`deltaw inspect`: what would be compared, from headers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli.options import inputs, matching, verbosity

if TYPE_CHECKING:
    from deltaw.measurement.inspection import Expected, Inspection
    from deltaw.types import Coverage, Skipped

HEADS = ("tensors", "rows × cols", "stored as", "kind", "route")
GAP = 2  # between columns
LEAST = 24  # characters of a name, however narrow the terminal
NAMED = 3  # skipped tensors that are named, of each reason


@click.command("inspect")
@click.argument("base", required=False)
@click.argument("ft", required=False)
@click.option("--no-base", is_flag=True, help="Look at an adapter alone.")
@matching
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="What the expected minutes are of.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@verbosity
def command(
    base: str | None,
    ft: str | None,
    no_base: bool,
    mode: str,
    device: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show which tensors of BASE and FT would be compared, and how; nothing but headers is read.

    With it the bytes that this would read, its memory, and the minutes that it is expected to take on this machine,
    whose speed is measured once for each mode (a second or two) and kept.

    With FT alone, its base is looked up and named.

    Tensors that differ by a number in their names share a line; -v gives each its own.
    """
    import deltaw

    opened, ft = inputs(base, ft, no_base, quiet=quiet)
    found = deltaw.inspect(opened, ft, **options)
    if as_json:
        document = found.to_dict() | {"expected": asdict(found.expected(mode, device))}
        click.echo(json.dumps(document, indent=1))
    elif not quiet:
        show(found, found.expected(mode, device), each=bool(click.get_current_context().meta.get("deltaw.verbose")))


def show(found: Inspection, expected: Expected, *, each: bool = False) -> None:
    """The pairs, everything that is skipped by reason, and the notes."""
    from rich.markup import escape

    from deltaw.cli.screen import console
    from deltaw.reports.grouping import grouped
    from deltaw.types import counted

    out = console()
    for name, side in (("base", found.base), ("ft", found.ft)):
        if side is not None:
            what = f"{side.format}, {counted(side.tensors, 'tensor')}, {side.nbytes / 1e6:,.1f} MB"
            out.print(f"{name:4} {escape(side.path)}  {what}", soft_wrap=True)
    pairs = found.rows
    groups = [g for p in pairs for g in grouped([p])] if each else grouped(pairs)
    rows = [(g.title, g.shape, g.dtypes, g.kind, g.route) for g in groups]
    out.print("\n".join(table(rows, out.width)), markup=False, soft_wrap=True)
    if len(stored := {g.dtypes for g in groups}) == 1:
        out.print(f"all stored as {stored.pop()}")
    routes = Counter(pair.route for pair in found.plan.pairs)
    by_route = [counted(n, "vector") if route == "vector" else f"{n:,} {route}" for route, n in routes.items()]
    out.print(f"{len(pairs):,} to measure{': ' if by_route else ''}{', '.join(by_route)}")
    out.print(coverage_line(found.plan.coverage()))
    out.print(expected_line(expected))
    for line in skipped_lines(found.plan.skipped):
        out.print(escape(line), soft_wrap=True)
    for note in found.plan.notes:
        out.print(escape(f"note: {note}"), soft_wrap=True)


def expected_line(e: Expected) -> str:
    """What measuring takes, as an estimate, and what it rests on."""
    from deltaw.reports.text import duration, size

    largest = max(e.timed)
    return (
        f"expected ({e.mode}, {e.device}, {e.at_a_time} at a time): about {duration(e.seconds)} of computing, "
        f"{size(e.bytes)} to read, {size(e.memory)} of memory; an estimate from matrices up to {largest}×{largest} "
        "timed on this machine, as if every weight had changed"
    )


def coverage_line(c: Coverage) -> str:
    """How much of the base is compared, in tensors and in numbers; empty where there is no base."""
    if not c.tensors:
        return "coverage: not known without a base"
    from deltaw.types import counted, floored_percent

    share = f"{100 * c.share:.3g} %" if c.compared_numbers == c.numbers else floored_percent(c.share)
    return (
        f"coverage: {share} of the base, {c.compared_numbers:,} of {c.numbers:,} numbers in {c.compared_tensors:,} of "
        f"{counted(c.tensors, 'tensor')}"
    )


def table(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Texts as aligned lines; rich's table takes seconds for thousands.

    Where they do not fit, the kind is left out first, then names lose their middle. What all rows are stored as is no
    column.
    """
    from rich.cells import cell_len

    from deltaw.reports.text import short

    every = [HEADS, *rows]
    kept = [0, 1, *([2] if len({row[2] for row in rows}) > 1 else []), 3, 4]
    full = {i: max(cell_len(row[i]) for row in every) for i in kept}
    if sum(full.values()) + GAP * (len(kept) - 1) > width:
        kept.remove(3)
    widths = [full[i] for i in kept]
    widths[0] = min(widths[0], max(LEAST, width - sum(widths[1:]) - GAP * (len(widths) - 1)))
    lines = []
    for whole_row in every:
        row = [whole_row[i] for i in kept]
        texts = (short(row[0], widths[0]), *row[1:])
        gaps = [" " * max(0, w - cell_len(text)) for text, w in zip(texts, widths, strict=True)]
        cells = [gap + text if i == 1 else text + gap for i, (text, gap) in enumerate(zip(texts, gaps, strict=True))]
        lines.append((" " * GAP).join(cells).rstrip())
    return ["", lines[0], "─" * (sum(widths) + GAP * (len(widths) - 1)), *lines[1:], ""]


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """One line per reason, with the first names; a subject that differs from tensor to tensor is left to `--json`."""
    from deltaw.reports.reasons import why, words
    from deltaw.types import Reason

    reasons: dict[str, list[str]] = {}
    for s in skipped:
        shared = s.because in {Reason.QUANTISED, Reason.UNSUPPORTED}
        reasons.setdefault(why(s) if shared else words(s.because), []).append(s.name)
    out = []
    for reason, names in reasons.items():
        more = f", … ({len(names) - NAMED:,} more)" if len(names) > NAMED else ""
        out.append(f"skipped, {reason}: {', '.join(names[:NAMED])}{more}")
    return out
