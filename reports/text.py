"""How numbers and names are written: few digits, a unit where there is one, and nothing that a name could break."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

EMPTY = "–"
MINUS = "\N{MINUS SIGN}"
NARROW = "\N{NARROW NO-BREAK SPACE}"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(value: Any) -> bool:
    """Whether a value is None or NaN: does not apply, or is not known."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any, digits: int = 3) -> str:
    """`value` to `digits` significant digits: 0.0107, 48.2, 12 345, 3.1 · 10⁻⁷; an en dash where there is none."""
    if missing(value):
        return EMPTY
    value = float(value)
    if math.isinf(value):
        return MINUS + "∞" if value < 0 else "∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        places = max(digits - 1 - exponent, 0)
        text = f"{value:,.{places}f}".replace(",", NARROW)
        if "." in text:
            text = text.rstrip("0").rstrip(".")
    else:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        ten = f"10{str(int(power)).translate(SUPERSCRIPT)}"
        text = ten if float(mantissa) == 1 else f"{mantissa}{NARROW}·{NARROW}{ten}"
    return text.replace("-", MINUS)


def whole(value: Any) -> str:
    """A count, with a thin space between thousands."""
    return EMPTY if missing(value) else f"{round(float(value)):,}".replace(",", NARROW).replace("-", MINUS)


def percent(value: Any, digits: int = 3) -> str:
    """A share as a percentage: 1.07 %. Never `100 %` or `0 %` for what is not exactly that."""
    if missing(value):
        return EMPTY
    value = float(value)
    if 0 < value < 1e-6:
        return f"<{NARROW}0.0001{NARROW}%"
    if 0.9995 <= value < 1:
        return f">{NARROW}99.9{NARROW}%"
    written = number(100 * value, digits)
    if written == "100" and value < 1:
        return f">{NARROW}99{NARROW}%"
    return f"{written}{NARROW}%"


def aligned(values: Sequence[float], signed: bool = False) -> list[str]:
    """A value and the ends of its interval with the same decimals: as many as half the width has meaning for.

    That is one significant digit of it, or two where the first is a 1 or 2. Where the width says nothing each is
    written by itself.
    """
    known = [v for v in values if not missing(v)]
    half = (max(known) - min(known)) / 2 if known else 0.0
    places = -1
    if half > 0 and math.isfinite(half):
        exponent = math.floor(math.log10(half))
        places = max(0, (half < 3 * 10**exponent) - exponent)
    largest = max(map(abs, known), default=0.0)
    if not 0 <= places <= 6 or largest >= 1e6:
        return [("+" if signed and v > 0 else "") + number(v) for v in values]
    out = []
    for v in values:
        text = EMPTY if missing(v) else f"{v:{'+' if signed else ''},.{places}f}".replace(",", NARROW)
        out.append(text.replace("-", MINUS))
    return out


def glued(sentence: str) -> str:
    """A sentence in which no line breaks between a number and its percent or times sign."""
    return re.sub(r"(?<=\d) %", f"{NARROW}%", re.sub(r"× (?=\d)", f"×{NARROW}", sentence))


def plural(count: int, one: str, many: str = "") -> str:
    """`1 matrix`, `12 matrices`."""
    return f"{whole(count)} {one if count == 1 else many or one + 's'}"


def listed(items: Iterable[str], limit: int = 3) -> str:
    """`a, b and c`; beyond `limit`: `a, b, c and 4 more`."""
    items = list(items)
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def visible(name: Any) -> str:
    """A name as text: control characters, line breaks and marks that turn the writing direction become visible."""
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSEEN else c for c in str(name))


_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def _escaped(char: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\N{ZERO WIDTH JOINER}": char}
    return known.get(char, f"\\u{{{ord(char):x}}}")


def short(name: str, limit: int = 40) -> str:
    """A name that fits a label: its middle is left out where it is longer than `limit`."""
    name = visible(name)
    if len(name) <= limit:
        return name
    head = (limit - 1) // 3
    return f"{name[:head]}…{name[-(limit - 1 - head) :]}"


def size(nbytes: Any) -> str:
    """A size in bytes, decimal units."""
    if missing(nbytes):
        return EMPTY
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{number(value)}{NARROW}{unit}"
        value /= 1000
    return f"{number(value)}{NARROW}TB"


def count(value: float) -> str:
    """A large number in short: 950, 22.7 M, 7.24 B."""
    for limit, scale, unit in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "B")):
        if value < limit:
            return f"{number(value / scale)}{NARROW}{unit}" if unit else whole(value)
    return f"{number(value / 1e12)}{NARROW}T"


def duration(seconds: Any) -> str:
    """A time span: 3.2 s, 4 min 10 s, 2 h 5 min."""
    if missing(seconds):
        return EMPTY
    seconds = float(seconds)
    if seconds < 60:
        return f"{number(seconds, 2)}{NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NARROW}h {minutes}{NARROW}min" if hours else f"{minutes}{NARROW}min {rest}{NARROW}s"


CODE, STRONG = ("\ue000", "\ue001"), ("\ue002", "\ue003")  # private characters: `visible` lets none through from a name


def code(name: Any, limit: int = 80) -> str:
    """A name inside a sentence; `deltaw.reports.page.prose` sets it as code."""
    return f"{CODE[0]}{short(str(name), limit)}{CODE[1]}"


def strong(text: str) -> str:
    """The number of a sentence that a hurried reader should see."""
    return f"{STRONG[0]}{text}{STRONG[1]}"


def unmarked(sentence: str) -> str:
    """A sentence without its marks."""
    return sentence.translate(dict.fromkeys(map(ord, (*CODE, *STRONG))))
