"""Held-out splits by file or template, and the check that nothing leaks.

Origins are put in an order that their names decide (SHA-256), and every tenth is held out: the same split on every
machine, and no document has a sibling on the other side. Installed packages copy code from each other, so a held-out
document is dropped if any 13 words in a row of it occur in training (the rule of Brown et al. 2020, appendix C), and
exact copies are dropped everywhere.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from deltaw.errors import OptionError
from deltaw.study.domains import Corpus, Text

WORDS = 13
EVERY = 10
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Split:
    """Training and held-out documents of one corpus, and what was left out to keep them apart."""

    train: Sequence[Text]
    held_out: Sequence[Text]
    about: dict[str, int] = field(default_factory=dict)


def ordered(origins: Iterable[str]) -> list[str]:
    """The origins in an order that depends on nothing but their names."""
    return sorted(set(origins), key=lambda name: hashlib.sha256(name.encode()).digest())


def split(corpus: Corpus, characters: int | None = None, held_out_characters: int | None = None) -> Split:
    """Read a corpus until both sides are full, and hold out whole origins.

    Args:
        corpus: Where the documents come from.
        characters: Training text to read, or None for all there is.
        held_out_characters: Held-out text to keep, or None for all there is.

    Raises:
        OptionError: The corpus is too small to hold anything out.
    """
    names = ordered(corpus.origins())
    taken = _read(corpus, [n for i, n in enumerate(names) if i % EVERY], characters)
    # Dropped documents are replaced from further origins: twice what is wanted has been enough by far.
    asked = None if held_out_characters is None else 2 * held_out_characters
    others = _read(corpus, names[::EVERY], asked)
    train, others = _unique(taken), _unique(others)
    seen = shingles(train)
    kept = [d for d in others if not leaks(d, seen)]
    Random(0).shuffle(kept)  # many files a little, not the first few whole
    held_out = _until(kept, held_out_characters)
    if not train or not held_out:
        raise OptionError(
            f"{len(names)} files, templates or documents leave {len(train)} documents for training and "
            f"{len(held_out)} held out; expected some on both sides: give more text"
        )
    about = {
        "origins": len(names),
        "train_documents": len(train),
        "held_out_documents": len(held_out),
        "dropped_copies": len(taken) - len(train),
        "dropped_leaking": len(others) - len(kept),
    }
    return Split(train, held_out, about)


def _read(corpus: Corpus, origins: Iterable[str], characters: int | None) -> list[Text]:
    documents: list[Text] = []
    size = 0
    for origin in origins:
        if characters is not None and size >= characters:
            break
        new = corpus.read(origin)
        documents += new
        size += sum(len(d.text) + len(d.prompt) for d in new)
    return documents


def _until(documents: Iterable[Text], characters: int | None) -> list[Text]:
    kept, size = [], 0
    for document in documents:
        if characters is not None and size >= characters:
            break
        kept.append(document)
        size += len(document.text) + len(document.prompt)
    return kept


def _unique(documents: Iterable[Text]) -> list[Text]:
    return list({(d.prompt, d.text): d for d in documents}.values())


def leaks(document: Text, seen: Hashes) -> bool:
    """Whether any 13 words in a row of the document are among the training shingles."""
    mine = shingles([document])
    where = np.searchsorted(seen, mine)
    found = seen[np.minimum(where, len(seen) - 1)] == mine if len(seen) else np.zeros(len(mine), bool)
    return bool(found.any())


def shingles(documents: Iterable[Text]) -> Hashes:
    """Sorted 64-bit hashes of every 13 words in a row (of the whole text if it is shorter), case folded."""
    found = [_shingles(f"{d.prompt} {d.text}") for d in documents]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def _shingles(text: str) -> Hashes:
    words = [w.encode() for w in text.casefold().split()]
    # Two independent checksums make one 64-bit word; Python's own hash would differ from process to process.
    codes = np.array([zlib.crc32(w) << 32 | zlib.adler32(w) for w in words], dtype=np.uint64)
    width = min(WORDS, len(codes))
    if not width:
        return np.zeros(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, width)
    powers = np.array([pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(width)], dtype=np.uint64)
    return np.asarray((windows * powers).sum(axis=1), dtype=np.uint64)  # modulo 2^64, as unsigned sums are
