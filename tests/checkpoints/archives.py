"""torch's zip archives, rewritten entry by entry."""

import zipfile
from collections.abc import Callable
from pathlib import Path


def rezip(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info.filename)))
    return target
