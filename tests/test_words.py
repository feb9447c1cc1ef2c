"""Phrases that a reader would stumble over, and that have come back before."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    p
    for pattern in ("deltaw/**/*.py", "cli/*.py", "reports/*", "docs/**/*.md", "docs/*.py", "*.md")
    for p in sorted(ROOT.glob(pattern))
    if p.suffix in {".py", ".html", ".md", ".js"} and not p.name.endswith(".min.js")
]
FORBIDDEN = {
    r"\bstands? clear\b": "say what rounding hides, or what it leaves readable",
    r"\bheld against\b": "compared with, checked against",
    r"\bcommonest\b": "most frequent",
    r"\bequally much\b": "as much, the same amount",
    r"\bat neither side\b": "on neither side",
    r"\btold of the\b": "reported for the",
    r"\bmatrix' (?!else|if|for)": "matrix's",
    r"\bmatrix’ ": "matrix’s",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_phrase_that_a_reader_stumbles_over(path: Path):
    text = path.read_text(encoding="utf-8")
    for pattern, instead in FORBIDDEN.items():
        for found in re.finditer(pattern, text):
            line = text.count("\n", 0, found.start()) + 1
            pytest.fail(f"{path.relative_to(ROOT)}:{line}: {found[0]!r}; {instead}")


def test_the_lint_sees_what_it_forbids():
    for phrase in (
        "it stands clear of rounding",
        "held against it",
        "the commonest",
        "a matrix' shape",
        "learned equally much",
    ):
        assert any(re.search(p, phrase) for p in FORBIDDEN)
    for fine in ("'matrix' if one else 'matrices'", "{'matrix' if x}", "the matrix's shape"):
        assert not any(re.search(p, fine) for p in FORBIDDEN)
