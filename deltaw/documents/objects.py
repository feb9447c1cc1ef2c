"""Objects that others wrote, as JSON and TOML have them: bounded when they are read, typed when they are asked.

Whatever a file holds, what comes out is a value of the type that was asked for, or one line that says where it stands,
what was found and what was expected.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeGuard

from deltaw.errors import CheckpointError, DeltaWError

LARGEST = 256 << 20  # bytes of a document: the index of a model of 100,000 tensors takes some 10 MB
LARGEST_WHOLE = 2**63 - 1
LARGEST_SCORE = 1e60  # or its error: their fourth powers are finite, too
SHOWN = 60  # characters of a foreign value in a message
HALVES = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON writes half a character
UNWRITABLE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """An object (TOML: a table), and where it stands.

    Attributes:
        values: Its values by key, as the file has them.
        where: The file, and for a nested object the keys that lead to it.
        error: What is raised where a value is of another type than the one asked for.
    """

    values: Mapping[str, object] = field(default_factory=dict)  # foreign: the accessors below give types
    where: str = ""
    error: type[DeltaWError] = CheckpointError

    def __bool__(self) -> bool:
        return bool(self.values)

    def __contains__(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self.values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def says(self, key: str) -> bool:
        """Whether there is a value that says something: not null, false, 0, or empty. So are options read."""
        return bool(self.values.get(key))

    def text(self, key: str, default: str | None = "") -> str:
        """A text; `default` where there is none, or null.

        Raises:
            DeltaWError: It is of another type, or missing where `default` is None. So for every accessor below.
        """
        found = self._get(key, default)
        return found if isinstance(found, str) else self._refuse(key, found, "a text")

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        found = self._get(key, default)
        return found if isinstance(found, bool) else self._refuse(key, found, "true or false")

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number that fits in 64 bits; without a default it has to be there."""
        found = self._get(key, default)
        return found if is_whole(found) else self._refuse(key, found, "a whole number")

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default it has to be there."""
        found = self._get(key, default)
        return float(found) if is_number(found) else self._refuse(key, found, "a number")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or a single one; empty where there is none."""
        found = self._get(key, [])
        if isinstance(found, str):
            return (found,)
        if isinstance(found, (list, tuple)) and all(isinstance(v, str) for v in found):
            return tuple(found)
        return self._refuse(key, found, "a text, or a list of texts")

    def score(self, key: str) -> float:
        """A number that can be a score; it has to be there."""
        found = self._get(key, None)
        return float(found) if is_score(found) else self._refuse(key, found, "a number to 1e60")

    def scores(self, key: str) -> tuple[float, ...]:
        """A list of scores; empty where there is none."""
        found = self._get(key, [])
        if isinstance(found, list) and all(map(is_score, found)):
            return tuple(map(float, found))
        return self._refuse(key, found, "a list of numbers to 1e60")

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; empty where there is none."""
        found = self._get(key, [])
        if isinstance(found, list) and all(map(is_whole, found)):
            return tuple(found)
        return self._refuse(key, found, "a list of whole numbers")

    def numbers(self, key: str) -> dict[str, float]:
        """An object whose values are finite numbers; empty where there is none."""
        inner = self.inner(key)
        return {name: inner.number(name) for name in inner}

    def inner(self, key: str) -> Document:
        """A nested object; an empty one where there is none."""
        found = self._get(key, {})
        if not isinstance(found, Mapping):
            return self._refuse(key, found, "an object")
        return Document(found, f"{self.where}: {key}" if self.where else key, self.error)

    def inners(self, key: str) -> tuple[Document, ...]:
        """A list of objects; empty where there is none."""
        found = self._get(key, [])
        if not (isinstance(found, list) and all(isinstance(v, Mapping) for v in found)):
            return self._refuse(key, found, "a list of objects")
        return tuple(Document(v, f"{self.where}: {key}[{i}]", self.error) for i, v in enumerate(found))

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        return default if value is None else value

    def _refuse(self, key: str, found: object, expected: str) -> NoReturn:
        what = "missing" if found is None else shown(found)
        raise self.error(f"{self.where}: {key!r} is {what}; expected {expected}")


def read_object(path: Path, *, error: type[DeltaWError] = CheckpointError, largest: int = LARGEST) -> Document:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        error: What is raised, here and by the accessors of what is returned.
        largest: The most bytes it may have.

    Raises:
        DeltaWError: It is no regular file, too large, unreadable, not UTF-8, not JSON, or no object.
    """
    text = read_text(path, error=error, largest=largest)
    return parse_object(text, str(path), error=error)


def read_text(path: Path, *, error: type[DeltaWError] = CheckpointError, largest: int = LARGEST) -> str:
    """Read a text file that others wrote.

    Raises:
        DeltaWError: It is no regular file (a pipe or a device would wait or never end), too large, unreadable, or not
            UTF-8.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise error(f"{path}: is not a regular file; expected a text file")
        if about.st_size > largest:
            raise error(f"{path}: has {about.st_size:,} bytes; expected at most {largest:,}")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as e:
        raise error(f"{path}: is not UTF-8 text (byte {e.start}); write it again as UTF-8") from e
    except PermissionError as e:
        raise error(f"{path}: cannot be read (no permission); ask its owner, or change its mode") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise error(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e


def parse_object(text: str, where: str, *, error: type[DeltaWError] = CheckpointError) -> Document:
    """The JSON object that a text holds.

    Raises:
        DeltaWError: It is not JSON, nested too deeply, or no object.
    """
    found = parse_json(text, where, error=error, expected="an object")
    if not isinstance(found, Mapping):
        raise error(f"{where}: holds {shown(found)}; expected an object")
    return Document(found, where, error)


def parse_json(text: str, where: str, *, error: type[DeltaWError], expected: str) -> object:
    """What a JSON text holds, of whatever type.

    Raises:
        DeltaWError: It is not JSON, nested too deeply, or holds a number or a text that nothing else can.
    """
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as e:
        raise error(f"{where}: is not valid JSON ({e.msg} in line {e.lineno}); expected {expected}") from e
    except (RecursionError, ValueError) as e:  # ValueError: a number of thousands of digits
        reason = "nested too deeply" if isinstance(e, RecursionError) else "a number has too many digits"
        raise error(f"{where}: cannot be read ({reason}); expected {expected}") from e
    if HALVES.search(text) and UNWRITABLE.search(json.dumps(found, ensure_ascii=False)):
        raise error(f"{where}: holds half a character (a lone surrogate), which no file can; correct it")
    return found


def shown(value: object) -> str:
    """A foreign value in a message: what JSON calls it, cut to a length that a line can bear."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_whole(value: object) -> TypeGuard[int]:
    """A whole number of 64 bits; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST_WHOLE <= value <= LARGEST_WHOLE


def is_number(value: object) -> TypeGuard[float]:
    """A finite number; true and false are none."""
    return (isinstance(value, float) and math.isfinite(value)) or is_whole(value)


def is_score(value: object) -> TypeGuard[float]:
    """A number that can be a score, or the error of one: at most 1e60 either way."""
    return is_number(value) and abs(value) <= LARGEST_SCORE
