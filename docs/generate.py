"""Write the generated parts of the documentation, between `<!-- NAME: … -->` and `<!-- /NAME -->`.

Run `python docs/generate.py` after a change of the metrics' registry, of the installed peft or of the table in
`tests/compatibility.py`; a test compares.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from deltaw.adapters import methods
from deltaw.metrics import markdown_table

ROOT = Path(__file__).parent.parent


def compatibility() -> str:
    """What is read, joined, bridged and refused, from the table that the tests are compared with."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.compatibility import table

    return table()


PARTS: dict[str, Callable[[], str]] = {
    "metrics": markdown_table,
    "adapters": methods.table,
    "compatibility": compatibility,
}


def generated(text: str) -> str:
    """A document with its generated parts written anew."""
    for name, write in PARTS.items():
        pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda m, write=write: f"{m[1]}\n{write().strip()}\n\n{m[2]}", text)
    return text


def documents() -> list[Path]:
    """Every document that may hold generated parts."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for path in documents():
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")
