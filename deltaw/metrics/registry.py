"""The one registry of metrics: columns, `deltaw metrics`, the glossary and the docs are all read from it.

A metric is a pure function whose parameters are fields of `Quantities` or metrics that were registered before it, by
their names: a misspelt one fails when the module is imported. `evaluate` calls every metric whose quantities are known;
the others do not apply, and their columns stay empty.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeAlias, TypeVar

from deltaw.metrics.quantities import NAMES, OF_THE_BASE, Quantities

P = ParamSpec("P")
R = TypeVar("R")

Value: TypeAlias = int | float | str

SECTIONS = ("size", "rank", "energy", "precision", "regularisation", "adapter", "alignment", "on data")


@dataclass(frozen=True)
class Column:
    """One column of `layers`, and what is known of its values.

    Attributes:
        name: The column.
        unit: `1` for a pure number, `share` of a whole, `count` (whole numbers), `word`, else what is counted.
        section: One of `SECTIONS`, or `identity`.
        signed: Whether two values are compared by their difference and not by a ratio: they may be negative, or 0.
        of_the_base: Whether it needs W0.
        hidden_by_noise: Whether the rounding of the storage is in the number, so that it may only be quoted of a matrix
            that is larger than it.
        denoised: The column that holds the same with the rounding taken out, where there is one.
        of_sigma: Whether it adds up σ and not σ²: then rounding of a thousandth of the energy is in it already.
        always: Whether every row has a value.
        fixed: Whether it is of the base or of chance alone: equal in all runs of one base.
    """

    name: str
    unit: str
    section: str
    signed: bool = False
    of_the_base: bool = False
    hidden_by_noise: bool = False
    denoised: str = ""
    of_sigma: bool = False
    always: bool = False
    fixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric(Column):
    """A column that is computed: how, and where that comes from.

    Attributes:
        formula: In the notation of the paper, plain text.
        source: The reference for the definition, or empty for a plain norm.
        description: One or two sentences for a reader who does not know it.
        function: The pure function.
        parameters: The quantities and metrics that `function` takes, by name, in order.
        required: Those of them that have no default.
    """

    formula: str
    source: str
    description: str
    function: Callable[..., Value]
    parameters: tuple[str, ...]
    required: frozenset[str] = frozenset()


REGISTRY: dict[str, Metric] = {}


def metric(
    *,
    section: str,
    formula: str,
    unit: str = "1",
    source: str = "",
    signed: bool = False,
    hidden_by_noise: bool = False,
    denoised: str = "",
    of_sigma: bool = False,
    fixed: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a pure function as a column; its docstring's first paragraph is the description."""
    assert section in SECTIONS, section

    def register(function: Callable[P, R]) -> Callable[P, R]:
        column = function.__name__
        assert column not in REGISTRY, column
        description = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
        assert description, f"{column} has no docstring"
        parameters = inspect.signature(function).parameters
        unknown = [name for name in parameters if name not in NAMES and name not in REGISTRY]
        assert not unknown, f"{column} asks for {unknown[0]!r}, which is no field of Quantities and no earlier metric"
        REGISTRY[column] = Metric(
            name=column,
            section=section,
            formula=formula,
            unit=unit,
            source=source,
            description=description,
            function=function,  # type: ignore[arg-type]  # R is a Value
            parameters=tuple(parameters),
            required=frozenset(n for n, p in parameters.items() if p.default is inspect.Parameter.empty),
            signed=signed,
            of_the_base=any(n in OF_THE_BASE or (n in REGISTRY and REGISTRY[n].of_the_base) for n in parameters),
            hidden_by_noise=hidden_by_noise,
            denoised=denoised,
            of_sigma=of_sigma,
            fixed=fixed,
        )
        return function

    return register


def evaluate(
    quantities: Quantities, sections: tuple[str, ...] = SECTIONS, given: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """Every registered metric of `sections` whose quantities are known or computed before it.

    Metrics are evaluated in the order of their registration, so that one may build on another.

    Args:
        quantities: What is known of the matrix.
        sections: The sections to evaluate.
        given: Metrics whose values are known otherwise (certified, or estimated), which are taken as they are.

    Returns:
        Column name to value, for the metrics that apply.
    """
    given = given or {}
    # Arrays and numbers of every kind: `@metric` has checked that each function asks for what there is.
    known: dict[str, Any] = {**quantities.known(), **given}
    out: dict[str, Value] = {}
    for m in REGISTRY.values():
        if m.section not in sections:
            continue
        if m.name in given:
            out[m.name] = given[m.name]
        elif m.required <= known.keys():
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
