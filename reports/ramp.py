"""The ramp of the heatmaps: dark is much on a light page and light is much on a dark one, and text on it is legible.

The colours are seaborn's `crest` in 32 steps, so that each has a counterpart on a dark page (`DARK`), which is the same
ramp from its other end. A number on a cell is black or white, whichever has a contrast of 4.5:1 or more on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.colors import ListedColormap

LEVELS: tuple[str, ...] = (
    *("#9dc991", "#94c591", "#8bc191", "#82bc91", "#7bb991", "#72b490", "#6ab090", "#62ac90", "#5ca890", "#56a390"),
    *("#509e90", "#4a9a8f", "#45958f", "#40918f", "#3b8c8e", "#36878d", "#31838d", "#2c7e8c", "#277a8c", "#23758b"),
    *("#20718b", "#1d6c8a", "#1c6689", "#1d6188", "#1e5d86", "#205784", "#225282", "#254c80", "#27477d", "#29427a"),
    *("#2a3c77", "#2b3674"),
)
# Text by what it is on a light and on a dark page. All are black or white; four, so that each maps to one counterpart.
TEXT = {
    ("white", "black"): ("#fdfdfd", "#000000"),
    ("white", "white"): ("#fefefe", "#fefefe"),
    ("black", "white"): ("#010101", "#ffffff"),
    ("black", "black"): ("#020202", "#020202"),
}
DARK: dict[str, str] = {
    **dict(zip(LEVELS, reversed(LEVELS), strict=True)),
    **dict(TEXT.values()),
}


def luminance(colour: str) -> float:
    """The relative luminance of `#rrggbb` (WCAG 2)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def level(share: float) -> int:
    """The step of the ramp for a number between 0 and 1."""
    return min(max(int(share * len(LEVELS)), 0), len(LEVELS) - 1)


def text_colour(step: int) -> str:
    """The colour of a number that stands on a step of the ramp."""
    light, dark = LEVELS[step], DARK[LEVELS[step]]
    return TEXT[_legible(light), _legible(dark)][0]


def _legible(colour: str) -> str:
    return "white" if contrast(colour, "#ffffff") >= contrast(colour, "#000000") else "black"


def shades(colour: str, count: int, towards: str = "#000000", most: float = 0.5) -> list[str]:
    """`count` shades of one colour, the first as it is, the others mixed with `towards`, up to a share of `most`."""
    shares: Sequence[float] = [most * i / max(count - 1, 1) for i in range(count)]
    ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (colour, towards)]
    return ["#" + "".join(f"{round(a + (b - a) * s):02x}" for a, b in zip(*ends, strict=True)) for s in shares]


def colormap() -> ListedColormap:
    """The ramp for matplotlib."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(LEVELS, name="deltaw")
