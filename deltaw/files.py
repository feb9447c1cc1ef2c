"""Files that are there whole or not at all, and sizes in bytes."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from deltaw.errors import OptionError, ResultsError, near

MOST_BESIDE = 2000  # names of a directory that are looked at for a suggestion
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


LEFT = re.compile(r"\..+\.(?P<pid>\d{1,9})\.\d+\.tmp")


def remove_left(folder: Path) -> None:
    """Remove the temporary files that a killed run left in a folder. The caller holds its lock: nobody uses them.

    Raises:
        OSError: One cannot be removed.
    """
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if LEFT.fullmatch(path.name) and path.is_file():
                path.unlink()


def _remove_left_of(path: Path) -> None:
    """Remove the temporary files of one path whose processes are no more."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.startswith(f".{path.name}.")]
    except OSError:  # no such folder: writing there says so
        return
    for name in names:
        if (found := LEFT.fullmatch(name)) and not _lives(int(found["pid"])):
            path.with_name(name).unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def refuse_link(folder: Path) -> None:
    """End where a folder of results is a link: what is written to a directory stays in it.

    Raises:
        ResultsError: It is one.
    """
    if folder.is_symlink():
        raise ResultsError(f"{folder}: is a link, and links inside of results are not followed; remove it")


def cache_directory() -> Path:
    """Where what can be computed again is kept between runs: `$XDG_CACHE_HOME/deltaw`, or `~/.cache/deltaw`.

    Raises:
        RuntimeError: There is no home directory.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltaw"


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home directory; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def replacing(path: Path, *, one_of_many: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    The bytes reach the disk before the rename, so that a power cut leaves the old file or the new one. What a process
    that is no more has left of the same file is removed.

    Args:
        path: The file.
        one_of_many: Whether its folder may hold thousands, through which nobody should look for each of them.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors import SafetensorError

    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    if not one_of_many:
        _remove_left_of(path)
    try:
        try:
            yield temporary
        except SafetensorError as e:  # what the library calls a full disk
            raise OSError(str(e)) from e
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def near_path(path: Path) -> str:
    """A hint that ends a message about a path that is not there: what lies beside it and is spelt nearly so."""
    path = expanded(path)
    missing = next((p for p in (path, *path.parents) if p.parent.is_dir()), None)
    if missing is None or missing.name in {"", ".."}:
        return ""
    folder = missing.parent
    try:
        names = [entry.name for entry in islice(folder.iterdir(), MOST_BESIDE)]
    except OSError:  # not ours to read: there is nothing to suggest
        return ""
    return near(missing.name, names, within="" if folder == Path() else f"{folder}{os.sep}")


def parse_size(text: str) -> int:
    """Bytes of a size such as `500M`, `20GB`, `1.5 GiB` or `1000` (powers of 1024).

    Raises:
        OptionError: It is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", text, flags=re.IGNORECASE)
    if not found:
        raise OptionError(f"size {text!r} cannot be read; expected a number and a unit, such as 500M or 20G")
    return int(float(found[1]) * UNITS[found[2].upper()])
