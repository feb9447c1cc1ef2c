"""Print every table of calibration, and enter them into docs/validity.md.

python -m benchmarks.calibration                    all tables in full
python -m benchmarks.calibration --only fronts      one of them
python -m benchmarks.calibration --quick            a short form
python -m benchmarks.calibration --write            also into docs/validity.md
"""

from __future__ import annotations

import argparse
import importlib
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.calibration.rows import Line, markdown

PAGE = Path(__file__).parents[2] / "docs" / "validity.md"


class Table(NamedTuple):
    """A module's table: its name, and what it is called with in full and in short."""

    module: str
    full: int
    quick: int

    def rows(self, quick: bool) -> list[Line]:
        """Its rows."""
        table: Callable[[int], Iterable[Line]] = importlib.import_module(f"benchmarks.calibration.{self.module}").table
        return list(table(self.quick if quick else self.full))


TABLES = [
    Table("claims", 500, 40),
    Table("contrasts", 500, 20),
    Table("fronts", 500, 40),
    Table("decay", 5, 1),
    Table("precision", 60, 10),
    Table("quantised", 20, 2),
]


def entered(text: str, name: str, table: str) -> str:
    """The page with a table between its marks."""
    pattern = re.compile(rf"(<!-- calibration {name} -->\n).*?(<!-- /calibration {name} -->)", re.DOTALL)
    assert pattern.search(text), f"{PAGE} has no marks for {name}"
    return pattern.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[t.module for t in TABLES], default=[t.module for t in TABLES])
    parser.add_argument("--quick", action="store_true", help="few trials")
    parser.add_argument("--write", action="store_true", help=f"enter the tables into {PAGE.name}")
    asked = parser.parse_args()
    for table in TABLES:
        if table.module not in asked.only:
            continue
        start = time.monotonic()
        found = markdown(table.rows(asked.quick))
        print(f"## {table.module} ({time.monotonic() - start:.0f} s)\n\n{found}\n", flush=True)
        if asked.write:
            PAGE.write_text(entered(PAGE.read_text(encoding="utf-8"), table.module, found), encoding="utf-8")


if __name__ == "__main__":
    main()
