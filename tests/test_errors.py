"""What every error of ours has in common."""

import pytest

from deltaw.errors import LONGEST, MOST_LINES, DeltaWError, MissingExtraError, OptionError, UnknownNameError


@pytest.mark.parametrize("kind", [DeltaWError, OptionError, UnknownNameError, MissingExtraError])
def test_a_message_is_shown_as_it_is_written(kind: type[DeltaWError]):
    assert str(kind("x: 'a' is missing; expected b")) == "x: 'a' is missing; expected b"


def test_a_message_is_bounded_whatever_names_it_tells():
    assert len(str(DeltaWError("a" * 38_000_000))) == LONGEST + 1
    many = str(DeltaWError("\n".join(["a" * 3000] * 5000)))
    assert many.endswith(f"… ({5000 - MOST_LINES:,} more lines)")
    assert len(many) < (MOST_LINES + 1) * (LONGEST + 2)
