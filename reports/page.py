"""The shell that both reports share: one HTML file, offline, with a content security policy, written whole or not.

A report is a template that extends `shell.html`, a context, and data for the scripts. Everything that a name could
break is escaped in one place each: HTML by jinja's autoescape, JSON by `as_json`. The policy allows the scripts and
styles by their hashes, and no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from deltaw.errors import ResultsError
from deltaw.files import replacing
from deltaw.metrics.registry import REGISTRY, SECTIONS, Metric
from deltaw.reports import style, text
from deltaw.results.plain import plain
from deltaw.types import JsonValue

if TYPE_CHECKING:
    from jinja2 import Environment

LIBRARIES = ("d3.min.js", "plot.umd.min.js", "tabulator.min.js")
CHART = "chart"  # the class of Observable Plot's charts; its style sheet below depends on it
PLOT_STYLE = f""":where(.{CHART}) {{
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}}
:where(.{CHART} text),
:where(.{CHART} tspan) {{
  white-space: pre;
}}"""


@dataclass(frozen=True)
class Picture:
    """A figure of a report: the SVG, what it says in one line, and how to read it.

    Attributes:
        identifier: Unique in the page; the anchor, and the file name in `figures/`.
        title: What it shows.
        svg: The inline SVG, or None; then `reason` says why there is none.
        reading: One line: what this figure says here.
        how: How to read it.
        rows: The rows of the table that its cells lead to; a script attaches to them.
        narrow: Whether it can be read on a phone as it is; others scroll there.
    """

    identifier: str
    title: str
    svg: Markup | None
    reading: str = ""
    how: str = ""
    reason: str = ""
    rows: tuple[int, ...] = ()
    narrow: bool = False


@dataclass(frozen=True)
class TableColumn:
    """A column of a table: its key in the records, its heading, how values are written, and the metric it explains."""

    key: str
    title: str
    metric: str = ""
    numeric: bool = True


# Points of a printed line, of one of its figures and of what stands between two columns: `report.css` has the sizes.
LINE, CHARACTER, BETWEEN, HEAD = 515.0, 4.2, 11.0, (85.0, 170.0)


def strips(columns: Sequence[TableColumn], rows: Sequence[Mapping[str, str]], keys: int = 1) -> list[list[TableColumn]]:
    """The columns of a table in groups that fit across a sheet of paper, the first `keys` at the head of each."""

    def wide(column: TableColumn) -> float:
        return BETWEEN + CHARACTER * max(
            map(len, (*re.split("[ _]", column.title), *(row[column.key] for row in rows))), default=0
        )

    head, others = list(columns[:keys]), columns[keys:]
    start = min(max(wide(head[0]), HEAD[0]), HEAD[1]) + sum(map(wide, head[1:]))
    out, used = [list(head)], start
    for column in others:
        if used + wide(column) > LINE and len(out[-1]) > keys:
            out.append(list(head))
            used = start
        out[-1].append(column)
        used += wide(column)
    return out


def render(  # context: whatever a template shows
    template: str, context: Mapping[str, object], data: Mapping[str, JsonValue], scripts: Sequence[str] = ("report.js",)
) -> str:
    """The HTML of a report.

    Args:
        template: A file of this package that extends `shell.html`.
        context: What the template needs; `title` is required.
        data: What the scripts need, embedded as JSON under the id `data`.
        scripts: Files of this package, run after the libraries, in order.
    """
    sources = [asset(name) for name in (*LIBRARIES, *scripts)]
    styles = [asset("tabulator.min.css") + "\n" + colours() + asset("report.css")]
    return environment().get_template(template).render(
        **context,
        scripts=[Markup(s) for s in sources],
        styles=[Markup(s) for s in styles],
        policy=policy(sources, [*styles, PLOT_STYLE]),
        data=as_json({"metrics": glossary(), "chart_class": CHART, **data}),
        licences=asset("THIRD_PARTY_LICENSES.txt"),
        metrics=REGISTRY,
        sections=SECTIONS,
    )  # fmt: skip


def write(path: Path, html: str) -> Path:
    """Write a report whole or not at all.

    Raises:
        ResultsError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(html, encoding="utf-8", newline="\n")
    except OSError as e:
        raise ResultsError(f"{path}: the report cannot be written ({e.strerror or e}); choose another place") from e
    return path


@lru_cache(maxsize=32)
def asset(name: str) -> str:
    """The text of a file of this package, with no way to end the element that it is put into."""
    content = (files("deltaw.reports") / name).read_text(encoding="utf-8")
    if name.endswith((".js", ".css")):
        assert "</script" not in content.lower(), name
        assert "</style" not in content.lower(), name
    return content


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The content security policy: the given scripts and styles by their hashes, images in the file, nothing else."""
    allowed = {"script-src": scripts, "style-src": styles}
    parts = ["default-src 'none'", "img-src data: blob:", "base-uri 'none'", "form-action 'none'"]
    parts += [f"{kind} {' '.join(_sha256(t) for t in texts)}" for kind, texts in allowed.items()]
    return "; ".join(parts)


def _sha256(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def as_json(value: Any) -> Markup:
    """JSON that is safe inside a `<script>` element: NaN as null, and no `<`, `>`, `&` or line separators."""
    content = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        content = content.replace(char, f"\\u{ord(char):04x}")
    return Markup(content)


def glossary() -> dict[str, dict[str, str]]:
    """The registry for the scripts: what each metric is."""
    return {
        name: {
            "section": m.section,
            "formula": m.formula,
            "unit": m.unit,
            "source": m.source,
            "description": m.description,
        }
        for name, m in REGISTRY.items()
    }


def colours() -> str:
    """The palette as CSS variables, for light and for dark pages."""
    dark = "".join(f"--c{light[1:]}:{value};" for light, value in style.DARK.items())
    light = "".join(f"--c{value[1:]}:{value};" for value in style.DARK)
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}\n"
    )


def prose(sentence: str) -> Markup:
    """A sentence with its marks as elements: names as code, key numbers as strong, *words* as emphasis."""
    html = str(escape(text.glued(sentence)))
    for (start, end), tag in ((text.CODE, "code"), (text.STRONG, "strong")):
        inner = "<code><bdi>" if tag == "code" else "<strong>"
        html = html.replace(start, inner).replace(end, "</bdi></code>" if tag == "code" else "</strong>")
    return Markup(re.sub(r"(?<![\w*])\*([a-z][a-z ]*)\*(?![\w*])", r"<em>\1</em>", html))


def breakable(name: str) -> Markup:
    """A name that a narrow page breaks after its dots, slashes and dashes, and not within a word."""
    return Markup(re.sub(r"([/_-](?=[^\W_])|\.(?=[^\W\d_]))", r"\1<wbr>", str(escape(name))))


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates of this package, with autoescape."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.PackageLoader("deltaw.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        text.number,
        text.whole,
        text.percent,
        text.size,
        text.duration,
        text.visible,
        text.short,
        text.plural,
        prose,
        breakable,
        text.glued,
        strips,
    ):
        env.filters[function.__name__] = function
    env.globals["find_metric"] = find_metric
    return env


def find_metric(name: str) -> Metric | None:
    """The metric that a column shows; an interval's bounds are explained by their metric."""
    return REGISTRY.get(name) or REGISTRY.get(re.sub(r"_(low|high)$", "", name))


def plain_text(sentence: str) -> str:
    """A sentence without marks, for a description that is read aloud."""
    return text.unmarked(sentence).replace("*", "")
