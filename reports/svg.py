"""SVG of matplotlib made fit for a page: small, themed, described, safe beside others and under a security policy.

Ids get a prefix (several figures share one page), `style` attributes become presentation attributes (a policy forbids
the former), known colours become CSS variables (so that a dark page recolours them), and texts inherit the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from deltaw.reports import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
DROPPED = {"stroke-linejoin", "stroke-linecap", "stroke-miterlimit", "font-family", "white-space"}
NUMBER = re.compile(r"-?\d+\.\d{2,}")
FONT = re.compile(r"(?:(?P<weight>bold|\d00) )?(?P<size>[\d.]+)px")
Cell = Callable[[int], Mapping[str, str] | None]


def inline(fig: Figure, identifier: str, title: str, description: str, cell: Cell | None = None) -> Markup:
    """A figure as an inline SVG.

    Args:
        fig: The figure.
        identifier: Unique in the page; the prefix of all ids inside.
        title: Its accessible name.
        description: What it shows, for who cannot see it.
        cell: For a heatmap: attributes of the link around the i-th cell (row-major), or None for no link.
    """
    root = ElementTree.fromstring(_render(fig))
    _drop(root, {"metadata", "title", "style"})  # the policy allows no style inside
    _prefix(root, identifier)
    for element in root.iter():
        _restyle(element)
        _shorten(element)
    background = root.find(f".//{{{SVG}}}g[@id='{identifier}-patch_1']")
    if background is not None:
        background.clear()
    if cell is not None:
        _link_cells(root, identifier, cell)
    _unname(root, identifier)
    _describe(root, identifier, title, description)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("ns0:", "").replace("ns1:", "xlink:")
    text = re.sub(r">\s*\n\s*<", "><", text).replace("xlink:href", "href")
    return Markup(text)  # made by matplotlib and ElementTree, which escape every text


def _render(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    with style.settings(**{"svg.fonttype": "none"}):
        style.settle(fig)
        fig.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def _drop(root: ElementTree.Element, names: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in names:
                parent.remove(child)


def _prefix(root: ElementTree.Element, identifier: str) -> None:
    """Every id and every reference to one, with a prefix."""
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, f"{identifier}-{value}")
            elif name in {f"{{{XLINK}}}href", "href"} and value.startswith("#"):
                del element.attrib[name]
                element.set("href", f"#{identifier}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{identifier}-"))


def _restyle(element: ElementTree.Element) -> None:
    """The `style` attribute as presentation attributes, with the page's colours and font."""
    declarations = element.attrib.pop("style", "")
    for declaration in declarations.split(";"):
        name, _, value = (t.strip() for t in declaration.partition(":"))
        if name == "font":
            if found := FONT.search(value):
                element.set("font-size", found["size"])
                if found["weight"]:
                    element.set("font-weight", found["weight"])
        elif name and name not in DROPPED:
            element.set(name, value)
    if element.tag == f"{{{SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", style.INK)
    for name in ("fill", "stroke"):
        value = element.attrib.get(name, "").lower()
        if value in style.DARK:
            element.set(name, f"var(--c{value[1:]},{value})")
        elif value in {"#ffffff", "white"} and element.tag != f"{{{SVG}}}text":  # white text stands on a dark cell
            element.set(name, "var(--page,#fff)")


def _shorten(element: ElementTree.Element) -> None:
    """Coordinates to a tenth of a point."""
    for name in ("d", "x", "y", "width", "height", "transform", "points"):
        if name in element.attrib:
            element.set(name, NUMBER.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), element.attrib[name]))
    if "d" in element.attrib:
        element.set("d", " ".join(element.attrib["d"].split()))


def _link_cells(root: ElementTree.Element, identifier: str, cell: Cell) -> None:
    """Each cell of a heatmap inside a link, so that it can be hovered, focused and followed."""
    group = root.find(f".//{{{SVG}}}g[@id='{identifier}-cells']")
    assert group is not None
    paths = group.findall(f"{{{SVG}}}path")
    for index, path in enumerate(paths):
        path.attrib.pop("clip-path", None)
        attributes = cell(index)
        if attributes is None:
            group.remove(path)
            continue
        if (
            float(path.attrib.get("fill-opacity", path.attrib.get("opacity", "1"))) == 0
            or path.attrib.get("fill") == "none"
        ):
            path.set("fill", "transparent")  # masked: no colour, but there to be clicked
            path.attrib.pop("opacity", None)
            path.attrib.pop("fill-opacity", None)
        position = list(group).index(path)
        group.remove(path)
        link = ElementTree.Element(f"{{{SVG}}}a", dict(attributes))
        title = link.attrib.pop("title", "")
        link.append(path)
        if title:
            ElementTree.SubElement(path, f"{{{SVG}}}title").text = title
        group.insert(position, link)


def _unname(root: ElementTree.Element, identifier: str) -> None:
    """Drop the ids that nothing refers to: matplotlib numbers every group."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text)) | {f"{identifier}-cells"}
    for element in root.iter():
        if element.attrib.get("id", "") not in used:
            element.attrib.pop("id", None)


def _describe(root: ElementTree.Element, identifier: str, title: str, description: str) -> None:
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    linked = root.find(f".//{{{SVG}}}a") is not None
    root.attrib.update({"role": "group" if linked else "img", "aria-labelledby": f"{identifier}-t {identifier}-d"})
    for tag, suffix, text in (("desc", "d", description), ("title", "t", title)):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{identifier}-{suffix}"})
        element.text = text
        root.insert(0, element)
