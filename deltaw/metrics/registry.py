"""The one registry of metrics: columns, `deltaw metrics`, the glossary and the docs are all read from it.

A metric is a pure function whose parameters are named quantities: `s` (descending singular values), `rows`,
`cols`, the sums of `deltaw.delta.sums`, or any other metric by its name. `evaluate` calls every metric whose
quantities are known; the others do not apply, and their columns stay empty.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

SECTIONS = ("size", "rank", "energy", "precision", "regularisation", "adapter", "alignment")


@dataclass(frozen=True)
class Metric:
    """One column: what it is called, how it is computed and where that comes from.

    Attributes:
        name: The column of `layers`.
        section: One of `SECTIONS`.
        formula: In the notation of the paper, plain text.
        unit: `1` for a pure number, else what is counted.
        source: The reference for the definition, or empty for a plain norm.
        hidden_by_noise: Whether the rounding of the storage is in the number, so that it may only be quoted of a matrix
            that stands clear of it.
        description: One or two sentences for a reader who does not know it.
        function: The pure function.
        parameters: The quantities that `function` takes, by name, in order.
        optional: Those of them that have a default and may be missing.
    """

    name: str
    section: str
    formula: str
    unit: str
    source: str
    description: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    hidden_by_noise: bool = False


REGISTRY: dict[str, Metric] = {}


def metric(
    *, section: str, formula: str, unit: str = "1", source: str = "", hidden_by_noise: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a pure function as a column; its docstring's first paragraph is the description."""
    assert section in SECTIONS, section

    def register(function: Callable[P, R]) -> Callable[P, R]:
        column = function.__name__
        assert column not in REGISTRY, column
        description = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
        assert description, f"{column} has no docstring"
        parameters = inspect.signature(function).parameters
        REGISTRY[column] = Metric(
            name=column,
            section=section,
            formula=formula,
            unit=unit,
            source=source,
            description=description,
            function=function,
            parameters=tuple(parameters),
            optional=frozenset(n for n, p in parameters.items() if p.default is not inspect.Parameter.empty),
            hidden_by_noise=hidden_by_noise,
        )
        return function

    return register


def evaluate(quantities: Mapping[str, Any], sections: tuple[str, ...] = SECTIONS) -> dict[str, Any]:
    """Every registered metric of `sections` whose quantities are among `quantities` or computed before it.

    A value given in `quantities` under a metric's own name is taken as it is (a certified value, an
    estimate). Metrics are evaluated in the order of their registration, so that one may build on another.

    Args:
        quantities: Named inputs: `s`, `rows`, `cols`, sums over entries, known metrics.
        sections: The sections to evaluate.

    Returns:
        Column name to value, for the metrics that apply.
    """
    known = dict(quantities)
    out: dict[str, Any] = {}
    for m in REGISTRY.values():
        if m.section not in sections:
            continue
        if m.name in quantities:
            out[m.name] = quantities[m.name]
        elif all(p in known or p in m.optional for p in m.parameters):
            out[m.name] = known[m.name] = m.function(**{p: known[p] for p in m.parameters if p in known})
    return out


def markdown_table(sections: tuple[str, ...] = SECTIONS) -> str:
    """Every registered metric of `sections` as a Markdown table: column, formula, unit, source, meaning."""
    lines = ["| column | formula | unit | source | what it says |", "|---|---|---|---|---|"]
    for m in REGISTRY.values():
        if m.section in sections:
            cells = (f"`{m.name}`", m.formula, "" if m.unit == "1" else m.unit, m.source, m.description)
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)
