"""The captions of the figures."""

import re

import pytest

from deltaw.reports.readings import TITLES


@pytest.mark.parametrize("words", [text for pair in TITLES.values() for text in pair])
def test_a_sentence_begins_after_a_space(words: str):
    assert not re.search(r"[a-z][.!?:;][A-Z]|  |\s$", words)
