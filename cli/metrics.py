"""`deltaw metrics`: every metric, from the registry."""

from __future__ import annotations

import json

import click

from deltaw.errors import near


@click.command("metrics")
@click.option("--format", "style", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.argument("names", nargs=-1)
def command(style: str, names: tuple[str, ...]) -> None:
    """List every metric, or only NAMES: formula, unit, reference."""  # noqa: DOC501  (a help text)
    from deltaw.metrics import REGISTRY, markdown_table

    unknown = [n for n in names if n not in REGISTRY]
    if unknown:
        hint = near(unknown[0], REGISTRY) or " `deltaw metrics` lists them all."
        raise click.UsageError(f"no metric {unknown[0]!r}.{hint}")
    chosen = [m for m in REGISTRY.values() if not names or m.name in names]
    if style == "json":
        fields = ("name", "section", "formula", "unit", "source", "description")
        click.echo(json.dumps([{f: getattr(m, f) for f in fields} for m in chosen], indent=1, ensure_ascii=False))
    elif style == "markdown":
        click.echo(markdown_table())
    else:
        section = ""
        for m in chosen:
            if m.section != section:
                section = m.section
                click.echo(("\n" if m is not chosen[0] else "") + click.style(section.capitalize(), bold=True))
            click.echo(f"  {click.style(m.name, fg='cyan')}  [{m.unit}]  {m.formula}")
            click.echo(f"      {m.description} ({m.source or 'by definition'})")
