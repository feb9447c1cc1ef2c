import math

import pytest

from deltaw.reports import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.010723, "0.0107"),
        (48.23, "48.2"),
        (12345.6, "12\u202f346"),
        (999.96, "1\u202f000"),
        (0, "0"),
        (1e-7, "10⁻⁷"),
        (3.14e-7, "3.14\u202f·\u202f10⁻⁷"),
        (-0.5, "−0.5"),
        (2.0, "2"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value, shown):
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0107, "1.07\u202f%"),
        (1, "100\u202f%"),
        (0.99999, ">\u202f99.9\u202f%"),
        (0, "0\u202f%"),
        (1e-9, "<\u202f0.0001\u202f%"),
        (1.42, "142\u202f%"),
        (math.nan, "–"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(value, shown):
    assert text.percent(value) == shown


def test_counts_and_lists():
    assert text.plural(1, "matrix", "matrices") == "1 matrix"
    assert text.plural(2000, "matrix", "matrices") == "2\u202f000 matrices"
    assert text.listed([]) == ""
    assert text.listed(["a"]) == "a"
    assert text.listed(["a", "b", "c"]) == "a, b and c"
    assert text.listed("abcde") == "a, b, c and 2 more"


def test_what_cannot_be_seen_in_a_name_becomes_visible():
    assert text.visible("a\nb\tc\u202ed\u0000\ue000") == "a\\nb\\tc\\u{202e}d\\u{0}\\u{e000}"
    assert text.visible("модель 模型 👩‍🔬 شبكة") == "модель 模型 👩‍🔬 شبكة"


def test_a_long_name_keeps_its_ends():
    name = "start." + "x" * 300 + ".end"
    assert len(text.short(name, 40)) == 40
    assert text.short(name, 40).startswith("start.")
    assert text.short(name, 40).endswith("x.end")
    assert text.short("short", 40) == "short"


def test_marks_cannot_come_from_a_name():
    sentence = f"Most in {text.code(chr(0xE002) + '<b>')}."
    assert text.unmarked(sentence) == "Most in \\u{e002}<b>."


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3.21, "3.2\u202fs"), (250, "4\u202fmin 10\u202fs"), (7500, "2\u202fh 5\u202fmin"), (None, "–")],
)
def test_duration(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("nbytes", "shown"), [(999, "999\u202fB"), (90_856_960, "90.9\u202fMB"), (2e15, "2\u202f000\u202fTB"), (None, "–")]
)
def test_size(nbytes, shown):
    assert text.size(nbytes) == shown
