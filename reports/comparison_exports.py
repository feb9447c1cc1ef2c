"""A comparison to put into a paper or an issue: Markdown and LaTeX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltaw.reports import comparison_findings as findings
from deltaw.reports.comparison import fingerprints
from deltaw.reports.exports import latex_table, markdown_table, markdown_text
from deltaw.reports.text import plural, visible

if TYPE_CHECKING:
    from deltaw.comparison import Comparison
    from deltaw.comparison.claims.verdicts import Claim


def markdown(comparison: Comparison) -> str:
    """The sentences, the table of the groups and the verdicts, for an issue or a README."""
    verdicts = [_verdict(claim) for claim in comparison.checked if claim.basis]
    parts = [
        f"## {markdown_text(title(comparison))}",
        *(markdown_text(f.text) for f in findings.answer(comparison)),
        *markdown_table(*fingerprints(comparison)),
        *(["\n".join(verdicts)] if verdicts else []),
        footer(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(claim: Claim) -> str:
    about = f" ({claim.about})" if claim.about else ""
    return f"* **{claim.verdict}**: {markdown_text(visible(f'{claim.text}{about}. {claim.says}'))}"


def latex(comparison: Comparison) -> str:
    """The table of the groups, for a paper: needs the package booktabs."""
    caption = f"{title(comparison)}: medians over matrices with 95 % intervals; scores: means over seeds."
    return latex_table(*fingerprints(comparison), caption, "tab:deltaw-comparison")


def title(comparison: Comparison) -> str:
    """The manifest's title, or how many runs are compared."""
    return visible(comparison.title or f"{plural(len(comparison.runs_.items), 'run')} of one base, compared")


def footer(comparison: Comparison) -> str:
    """What made the numbers."""
    origin = comparison.origin
    command = f": `{visible(origin.command)}`" if origin.command and "`" not in origin.command else ""
    date = f", {origin.date[:10]}" if origin.date else ""
    return f"Compared with deltaw {origin.versions.get('deltaw', '')}{date}{command}".rstrip()
