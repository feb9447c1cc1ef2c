"""Tick labels that are written together, so that no two of an axis read alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.ticker import Formatter
from numpy.typing import NDArray

from deltaw.reports.text import MINUS, NARROW, number

MOST_DIGITS = 7  # of a tick of a logarithmic axis
MOST_PLACES = 6  # decimals of a tick; beyond, it is written with a power of ten


class TickLabels(Formatter):
    """Writes the ticks of an axis by a function of all of them, with a unit behind each."""

    def __init__(self, write: Callable[[NDArray[np.float64]], list[str]], scale: float = 1.0, unit: str = "") -> None:
        self._write, self._scale, self._unit = write, scale, unit

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """A label for each tick."""
        return [text + self._unit for text in self._write(self._scale * np.asarray(values, dtype=np.float64))]

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of one number."""
        return self.format_ticks([x])[0]


def linear(at: NDArray[np.float64]) -> list[str]:
    """All with as many decimals as their step needs."""
    places = _places(at)
    texts = [f"{v + 0.0:,.{places}f}" if places <= MOST_PLACES else number(v, 3) for v in at.tolist()]
    return [text.replace("-", MINUS).replace(",", NARROW) for text in texts]


def logarithmic(at: NDArray[np.float64]) -> list[str]:
    """All with as many digits as tell them apart: 1, 10, 100, or 1.32, 1.34."""
    values = at.tolist()
    digits = range(1, MOST_DIGITS)
    enough = next((d for d in digits if len({number(v, d) for v in values}) == len(set(values))), MOST_DIGITS)
    return [number(v, enough) for v in values]


def _places(at: NDArray[np.float64]) -> int:
    """The decimals that write every tick exactly: those of their step."""
    steps = np.diff(np.unique(at))
    if not steps.size or not steps.min() > 0:
        return 0
    least = float(steps.min())
    exact = (d for d in range(MOST_PLACES + 1) if abs(round(least, d) - least) < 1e-3 * least)
    return next(exact, MOST_PLACES + 1)
