"""Typed access to the tables of a manifest, collecting every problem with its line instead of stopping at the first."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deltaw.checkpoints.hub import looks_like_id
from deltaw.documents import Document, KeyPath, Toml, is_score, shown
from deltaw.errors import ManifestError, near
from deltaw.types import OptionValue, is_option_value

SHOWN = 25  # problems in one message
LISTED = 8  # known names, where none is near
LONGEST_NAME, LONGEST_PATH = 255, 4096  # characters


class Problems:
    """What is wrong with a manifest, by line.

    Attributes:
        file: The manifest.
        about: The dotted paths that have a problem.
    """

    def __init__(self, file: Path, toml: Toml):
        self.file, self.toml = file, toml
        self.about: list[str] = []
        self._found: list[tuple[int, str]] = []

    def add(self, path: KeyPath, message: str) -> None:
        """Note a problem at a key."""
        self.about.append(".".join(map(str, path)))
        self._found.append((self.toml.line(path), message))

    def unknown(self, path: KeyPath, message: str, name: str, known: Sequence[str]) -> None:
        """Note an unknown name, with the near ones."""
        self.add(path, f"{message}.{near(name, known, listed=LISTED)}")

    def stop(self) -> None:
        """End here if there is any problem.

        Raises:
            ManifestError: With one line per problem.
        """
        if not self._found:
            return
        found = [f"{self.file}:{line}: {message}" for line, message in sorted(self._found, key=lambda p: p[0])]
        if len(found) > SHOWN:
            found = [*found[:SHOWN], f"{self.file}: and {len(found) - SHOWN} more problems"]
        raise ManifestError("\n".join(found))

    def resolve(self, path: KeyPath, what: str, value: str, *, hub: bool = True) -> str | None:
        """The absolute path of something that must exist, or a Hub id as it is.

        A text such as `runs/lora` may be either: where its first folder exists beside the manifest, it is a path.

        Args:
            path: The key, for the line.
            what: What is looked for, for the message.
            value: As written.
            hub: Whether a Hub id is possible.
        """
        try:
            local = self.file.parent / Path(value).expanduser()
            os.stat(local)  # noqa: PTH116  (Path.exists is silent about cycles of links)
            return str(local.resolve())
        except OSError as e:
            if e.errno == errno.ELOOP:
                self.add(path, f"{what} {value!r} is a cycle of links; point to the directory itself")
                return None
            if e.errno not in {errno.ENOENT, errno.ENOTDIR}:  # no permission, or too long
                self.add(path, f"{what} {shown(value)} cannot be accessed ({e.strerror})")
                return None
        except (ValueError, RuntimeError) as e:  # a NUL in the name; `~` of nobody
            self.add(path, f"{what} {value!r} is no path ({e})")
            return None
        if hub and looks_like_id(value) and not (self.file.parent / value.split("/", 1)[0]).exists():
            return value
        also = ", and it has not the form of a Hub id" if hub and not looks_like_id(value) else ""
        self.add(path, f"{what} {value!r} does not exist (looked for {local}){also}")
        return None


class Fields:
    """One table of the manifest."""

    def __init__(self, table: Document, path: KeyPath, problems: Problems, what: str):
        self.table, self.path, self.problems, self.what = table, path, problems, what

    def problem(self, key: str, message: str) -> None:
        """Note a problem at one of this table's keys."""
        self.problems.add((*self.path, key), f"{self.what}: {message}")

    def only(self, keys: Iterable[str]) -> None:
        """Every other key is unknown."""
        known = list(keys)
        for key in self.table:
            if key not in known:
                message = f"{self.what}: unknown key {key!r}"
                self.problems.unknown((*self.path, key), message, key, known)

    def text(self, key: str, *, required: bool = False, longest: int = LONGEST_NAME) -> str | None:
        """A text without control characters: tables and one-line messages show it."""
        value = self.table.values.get(key)
        if value is None:
            if required:
                self.problem(key, f"{key} is missing")
            return None
        if not isinstance(value, str):
            self.problem(key, f"{key} is {value!r}, {_kind(value)}; expected a text in quotes")
        elif not value.strip():
            self.problem(key, f"{key} is empty")
        elif any(ord(c) < 32 or ord(c) == 127 for c in value):
            self.problem(key, f"{key} is {value!r}; remove the line break or control character")
        elif len(value) > longest:
            self.problem(key, f"{key} has {len(value):,} characters; expected at most {longest:,}")
        else:
            return value
        return None

    def whole(self, key: str) -> int | None:
        """A whole number; `2e9` is one."""
        value = self.table.values.get(key)
        if value is None:
            return None
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, f"{key} is {value!r}, {_kind(value)}; expected a whole number")
            return None
        return value

    def texts(self, key: str) -> list[str]:
        """One text or a list of them."""
        value = self.table.values.get(key, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) for i in items):
            self.problem(key, f'{key} is {value!r}; expected a list like ["hellaswag:acc_norm", "winogrande:acc"]')
            return []
        return list(items)

    def free(self, key: str) -> dict[str, OptionValue]:
        """A table of free keys with plain values."""
        out: dict[str, OptionValue] = {}
        for name, v in self._inner(key).values.items():
            path = (*self.path, key, name)
            if isinstance(v, Mapping):
                self.problems.add(path, f"{self.what}: {key}.{name} is a table; expected a value")
            elif isinstance(v, float) and not math.isfinite(v):
                self.problems.add(path, f"{self.what}: {key}.{name} is {v}; expected a finite number")
            elif not is_option_value(v):
                message = f"{self.what}: {key}.{name} is {shown(v)}; expected a text, a number, or a list of them"
                self.problems.add(path, message)
            else:
                out[name] = tuple(v) if isinstance(v, list) else v
        return out

    def numbers(self, key: str, expected: Sequence[str]) -> dict[str, float]:
        """A table of finite numbers; a name that is nearly an expected one is taken for a slip."""
        out: dict[str, float] = {}
        for name, v in self._inner(key).values.items():
            path = (*self.path, key, name)
            if isinstance(v, bool) or not isinstance(v, (int, float)):
                self.problems.add(path, f"{self.what}: {key}.{name} is {v!r}, {_kind(v)}; expected a number")
            elif not is_score(v):
                found = v if isinstance(v, float) else shown(v)
                message = f"{self.what}: {key}.{name} is {found}; expected a finite number (to 1e60)"
                self.problems.add(path, f"{message}: leave out a score that was not measured")
            elif (hint := _slip(name, expected)) is not None:
                self.problems.add(path, f"{self.what}: {key}.{name} is unknown. Did you mean {hint!r}?")
            else:
                out[name] = float(v)
        return out

    def _inner(self, key: str) -> Document:
        value = self.table.values.get(key, {})
        if isinstance(value, Mapping):
            return self.table.inner(key)
        self.problem(key, f'{key} is {value!r}; expected a table: write "[runs.{key}]"')
        return Document()


def _slip(name: str, expected: Sequence[str]) -> str | None:
    import difflib

    if name in expected:
        return None
    close = difflib.get_close_matches(name.lower(), expected, n=1, cutoff=0.8)
    return close[0] if close else None


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    return {str: "a text", int: "a number", float: "a number", list: "a list", dict: "a table"}.get(
        type(value), f"a {type(value).__name__}"
    )
