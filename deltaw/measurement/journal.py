"""What an unfinished run leaves behind: one line per finished matrix, from which the next run goes on.

The journal lies in the output directory, is only ever appended to, and is removed when the tables are written. Each
line carries its checksum. One that was cut off by a kill or a full disk, or damaged since, is ignored: its matrix is
measured again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np

from deltaw.documents import Document, parse_object
from deltaw.errors import ResultsError
from deltaw.files import remove_left, replacing
from deltaw.measurement.measured import Measured
from deltaw.results import about
from deltaw.results.spectra_file import described, spectrum
from deltaw.types import Cell, JsonValue, Row

if TYPE_CHECKING:
    from filelock import FileLock

NAME = ".deltaw-journal.jsonl"
LOCK = ".deltaw-lock"
LINE = re.compile(r'\["(?P<sum>[0-9a-f]{16})", (?P<text>\{.*\})\]\n?')
FSYNC_SECONDS = 2.0


def digest(*parts: Any) -> str:
    """A short hash of JSON values: equal for the same inputs and options."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Journal:
    """The journal of one run, locked against a second one. A context manager.

    Args:
        out: The output directory, created.
        identity: `digest` of the inputs and of every option that decides the numbers.
        inputs: What `base` and `ft` are called, so that a later run of others does not overwrite them.
        resume: Whether to take over what an earlier run of the same identity finished.

    Attributes:
        done: What earlier runs finished, by `Pair.key`.

    Raises:
        ResultsError: The directory cannot be written, or another run is writing to it.
    """

    def __init__(self, out: Path, identity: str, *, inputs: Mapping[str, Sequence[str]], resume: bool) -> None:
        self.path = out / NAME
        self.identity = identity
        self.done: dict[str, Measured] = {}
        self._write = threading.Lock()
        self._synced = time.monotonic()
        self._lock = lock(out)
        try:
            for folder in (out, out / "figures"):
                remove_left(folder)
            if resume:
                self.done = read(self.path, identity)
            # Written anew, since a line that was cut off must not swallow the next one; beside the old one, since a
            # kill or a full disk in between must not take what is finished.
            with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.write(_line({"identity": identity, "inputs": inputs}))
                for key, measured in self.done.items():
                    file.write(_line(_to_json(key, measured)))
            self._file: IO[str] = self.path.open("a", encoding="utf-8")
        except OSError as e:
            self._lock.release()
            raise ResultsError(
                f"{out}: cannot be written ({e.strerror or e}); free some space, or choose another --out; what an "
                "earlier run finished there is kept"
            ) from e
        except BaseException:  # Ctrl-C
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, key: str, measured: Measured) -> None:
        """Keep one result; safe from several threads.

        Raises:
            ResultsError: The disk is full, or gone; what was kept before stays.
        """
        try:
            with self._write:
                self._append(_line(_to_json(key, measured)))
        except OSError as e:
            raise ResultsError(
                f"{self.path.parent}: cannot be written ({e.strerror or e}); free some space and run again, "
                "what is finished is kept"
            ) from e

    def close(self, *, finished: bool = False) -> None:
        """Release the directory; `finished` removes the journal."""
        try:
            self._file.close()
        except OSError:  # a full disk: the complaint was made by `add`
            finished = False
        if finished:
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def _append(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def read(path: Path, identity: str) -> dict[str, Measured]:
    """The finished results of a journal; empty if there is none, it is of another run, or its first line is damaged.

    Raises:
        OSError: It cannot be read.
    """
    done: dict[str, Measured] = {}
    header, *lines = list(_values(path)) or [None]
    if header is None or header.text("identity") != identity:
        return done
    for value in lines:
        if value is not None and "key" in value:
            key, measured = _from_json(value)
            if measured.skipped is None:  # what failed may have been a full memory or a lost disk: tried again
                done[key] = measured
    return done


def inputs_of(path: Path) -> dict[str, Sequence[str]] | None:
    """What the inputs of a journal's run are called, by side; None where its first line does not say.

    Raises:
        OSError: It cannot be read.
        ResultsError: A value is of another type.
    """
    header = next(_values(path), None)
    if header is None:
        return None
    named = header.inner("inputs")
    return {side: named.texts(side) for side in named}


def _line(value: Mapping[str, JsonValue]) -> str:
    text = json.dumps(value)
    return f'["{_checksum(text)}", {text}]\n'


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _values(path: Path) -> Iterator[Document | None]:
    """What each line of a journal holds; None for one that is damaged or cut off."""
    if not path.is_file():  # nor a pipe, that would be waited for
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            found = LINE.fullmatch(line)
            intact = found is not None and _checksum(found["text"]) == found["sum"]
            yield parse_object(found["text"], str(path), error=ResultsError) if found and intact else None


def lock(out: Path) -> FileLock:
    """Create a directory and lock it for one run.

    Raises:
        ResultsError: Another run holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / LOCK, timeout=0)
        held.acquire()
    except Timeout as e:
        raise ResultsError(f"{out}: another run is writing there; wait for it, or choose another --out") from e
    except OSError as e:
        raise ResultsError(f"{out}: cannot be written ({e.strerror or e}); choose another --out") from e
    return held


def _to_json(key: str, m: Measured) -> dict[str, JsonValue]:
    out: dict[str, JsonValue] = {
        "key": key,
        "row": None if m.row is None else {k: _scalar(v) for k, v in m.row.items()},
    }
    if m.spectrum is not None:
        values = np.ascontiguousarray(m.spectrum.values, dtype="<f8")
        out["values"] = base64.b64encode(values.tobytes()).decode()
        out["spectrum"] = described(m.spectrum)
    if m.skipped is not None:
        out["skipped"] = m.skipped.to_dict()
    if m.intruders:
        out["intruders"] = [asdict(count) for count in m.intruders]
    return out


def _from_json(stored: Document) -> tuple[str, Measured]:
    found = None
    if "spectrum" in stored:
        values = np.frombuffer(base64.b64decode(stored.text("values")), dtype="<f8").astype(np.float64)
        found = spectrum(values, stored.inner("spectrum"))
    return stored.text("key", None), Measured(
        row=_row(stored.inner("row")) if "row" in stored else None,
        spectrum=found,
        skipped=about.skipped(stored.inner("skipped")) if "skipped" in stored else None,
        intruders=tuple(map(about.intruders, stored.inners("intruders"))),
    )


def _row(stored: Document) -> Row:
    return {column: value for column, value in stored.values.items() if _is_cell(value)}


def _is_cell(value: object) -> TypeGuard[Cell]:
    return value is None or isinstance(value, (str, int, float))


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
