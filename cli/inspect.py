"""`deltaw inspect`: what would be compared, from headers alone."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli.options import console, inputs, matching, verbosity

if TYPE_CHECKING:
    from deltaw.measurement.run import Inspection


@click.command("inspect")
@click.argument("base", required=False)
@click.argument("ft", required=False)
@click.option("--no-base", is_flag=True, help="Look at an adapter alone.")
@matching
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@verbosity
def command(base: str | None, ft: str | None, no_base: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show which tensors of BASE and FT would be compared, and how; nothing but headers is read."""
    import deltaw

    base, ft = inputs(base, ft, no_base)
    found = deltaw.inspect(base, ft, **options)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not quiet:
        show(found)


def show(found: Inspection) -> None:
    """The pairs by route, everything that is skipped by reason, and the notes."""
    from rich.markup import escape

    out = console()
    about = found.to_dict()
    for side in ("base", "ft"):
        if about[side]:
            a = about[side]
            out.print(
                f"{side:4} {escape(a['path'])}  {a['format']}, {a['tensors']:,} tensors, {a['bytes'] / 1e6:,.1f} MB",
                soft_wrap=True,
            )
    out.print("\n".join(table(about["pairs"])), markup=False, soft_wrap=True)
    routes = Counter(pair["route"] for pair in about["pairs"])
    out.print(
        f"{len(about['pairs']):,} to measure: " + ", ".join(f"{count:,} {route}" for route, count in routes.items())
    )
    for line in skipped_lines(about["skipped"]):
        out.print(escape(line), soft_wrap=True)
    for note in about["notes"]:
        out.print(escape(f"note: {note}"), soft_wrap=True)


def table(pairs: list[dict[str, Any]]) -> list[str]:
    """The pairs as aligned lines; rich's table takes seconds for a few thousand of them."""
    from rich.cells import cell_len

    rows = [("tensor", "rows × cols", "base", "fine-tuned", "kind", "route")]
    for pair in pairs:
        name = " ".join((pair["name"] + (f" [{pair['part']}]" if pair["part"] else "")).splitlines())
        size = f"{pair['rows']:,} × {pair['cols']:,}" if pair["route"] != "vector" else f"{pair['rows']:,}"
        rows.append((name, size, pair["base_dtype"], pair["ft_dtype"], pair["kind"], pair["route"]))
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], 100)  # one very long name does not move all others
    lines = []
    for row in rows:
        gaps = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        cells = [gap + text if i == 1 else text + gap for i, (text, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append("   ".join(cells).rstrip())
    return ["", lines[0], "─" * (sum(widths) + 15), *lines[1:], ""]


def skipped_lines(skipped: list[dict[str, str]]) -> list[str]:
    """One line per reason, with the first names."""
    reasons: dict[str, list[str]] = {}
    for s in skipped:
        reasons.setdefault(s["reason"], []).append(s["name"])
    out = []
    for reason, names in reasons.items():
        more = f", … ({len(names) - 3:,} more)" if len(names) > 3 else ""
        out.append(f"skipped, {reason}: {', '.join(names[:3])}{more}")
    return out
