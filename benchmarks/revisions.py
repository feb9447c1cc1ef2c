"""A revision of the code, checked out and put together as it installs, to be measured beside another."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The first lines of a process that runs a revision: nothing else is called deltaw.
IMPORT = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if str(getattr(f, "__module__", "")).startswith("_frozen_importlib")]
sys.path.insert(0, {package!r})
"""


@contextmanager
def package_of(revision: str, work: Path) -> Iterator[Path]:
    """The directory that holds `deltaw` of a git revision, below a directory to work in, while it is asked for."""
    name = revision.replace("/", "-").replace("^", "-parent").replace("~", "-back")
    tree, package = work / f"{name}-tree", work / f"{name}-package"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(tree), revision], check=True)
    try:
        (package / "deltaw").mkdir(parents=True)
        for path in [*(tree / "deltaw").iterdir(), tree / "cli", tree / "reports"]:
            (package / "deltaw" / path.name).symlink_to(path)
        yield package
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
