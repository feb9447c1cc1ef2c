from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.errors import OptionError
from deltaw.study.domains import ProblemCorpus, Text
from deltaw.study.splits import WORDS, leaks, ordered, shingles, split


class Texts:
    """A corpus in memory."""

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self.texts = texts

    def origins(self) -> Sequence[str]:
        return list(self.texts)

    def read(self, origin: str) -> list[Text]:
        return [Text(t) for t in self.texts[origin]]


def windows(text: str) -> set[tuple[str, ...]]:
    """The oracle: every 13 words in a row, as words."""
    words = text.casefold().split()
    n = min(WORDS, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n else set()


words = st.lists(st.sampled_from(["a", "b", "c"]), min_size=0, max_size=30).map(" ".join)


@given(st.lists(words, max_size=6), words)
def test_leaks_agrees_with_comparing_words(train: list[str], text: str) -> None:
    seen = {w for t in train for w in windows(t)}
    found = leaks(Text(text), shingles(Text(t) for t in train))
    assert found == bool(windows(text) & seen)


@settings(max_examples=30)
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.lists(words, min_size=1, max_size=4), min_size=11, max_size=25)
)
def test_no_held_out_text_occurs_in_training(texts: dict[str, list[str]]) -> None:
    corpus = Texts(texts)
    try:
        found = split(corpus)
    except OptionError:
        return  # everything held out was a copy: refused, not leaked
    seen = {w for d in found.train for w in windows(d.text)}
    assert not any(windows(d.text) & seen for d in found.held_out)
    held = set(ordered(texts)[::10])
    assert {d.text for d in found.held_out} <= {t for o in held for t in texts[o]}
    assert {d.text for d in found.train} <= {t for o in set(texts) - held for t in texts[o]}
    assert found.about["origins"] == len(texts)


def test_thirteen_words_leak_and_twelve_do_not() -> None:
    train = " ".join(f"w{i}" for i in range(40))
    seen = shingles([Text(train)])
    inside = train.split()[10:22]
    assert leaks(Text(" ".join(["x", *inside, "w22", "y"])), seen)
    assert not leaks(Text(" ".join(["x", *inside, "y"])), seen)


def test_the_order_follows_from_the_names_alone() -> None:
    names = [f"file{i}" for i in range(50)]
    assert ordered(names) == ordered(reversed(names))
    assert ordered(names) != names
    assert all(a != b for a, b in pairwise(ordered(names * 2)))


def test_limits_are_kept_about() -> None:
    texts = {f"f{i}": [f"{i} {j} " + " ".join(f"{i}_{j}_{k}" for k in range(20)) for j in range(5)] for i in range(100)}
    found = split(Texts(texts), 5000, 1000)
    assert 5000 <= sum(len(d.text) for d in found.train) < 5000 + 5 * 300
    assert 1000 <= sum(len(d.text) for d in found.held_out) < 1300


def test_copies_are_counted_and_dropped() -> None:
    texts = {f"f{i}": [f"{i} alone is here", "the same everywhere"] for i in range(30)}
    found = split(Texts(texts))
    assert len({d.text for d in found.train}) == len(found.train) == 28
    assert found.about["dropped_copies"] == 26
    assert found.about["dropped_leaking"] == 1
    assert all("alone" in d.text for d in found.held_out)


def test_a_corpus_too_small_is_refused() -> None:
    with pytest.raises(OptionError, match="1 files, templates or documents leave 0 documents"):
        split(Texts({"only": ["one text"]}))


def test_templates_of_problems_are_on_one_side() -> None:
    corpus = ProblemCorpus(3)
    found = split(corpus)
    held = {d.prompt for o in ordered(corpus.origins())[::10] for d in corpus.read(o)}
    assert {d.prompt for d in found.held_out} <= held
    assert not held & {d.prompt for d in found.train}
