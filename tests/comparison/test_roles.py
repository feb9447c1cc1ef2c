from collections.abc import Callable

import pytest

from deltaw.comparison.roles import arenas
from deltaw.comparison.runs import Runs


@pytest.mark.parametrize(
    ("groups", "plain", "decay", "dropout"),
    [
        (["full (no weight decay)", "full (wd 0.1)"], 0, [1], []),
        (["full, without weight decay", "full, weight decay .01"], 0, [1], []),
        (["full weight-decay=0", "full weight-decay=1e-4"], 0, [1], []),
        (["full w/o wd", "full"], 0, [], []),
        (["full decay off", "full decay"], 0, [1], []),
        (["full .1 decay", "full"], 1, [0], []),
        (["full", "full decay .1"], 0, [1], []),
        (["full lr-decay cosine", "full lr constant"], 0, [], []),
        (["full (cosine decay)", "full (linear decay, weight decay 0.1)"], 0, [1], []),
        (["full, no dropout", "full, attention dropout 0.1"], 0, [], [1]),
        (["full_dropout_0.1", "full_dropout_0"], 1, [], [0]),
        (["full", "full dropout + weight decay"], 0, [1], [1]),
    ],
)
def test_roles_in_words(
    scored: Callable[..., Runs], groups: list[str], plain: int, decay: list[int], dropout: list[int]
) -> None:
    found = arenas(scored(*((g, "full", 0.3, 0.6, {}) for g in groups)))[0]
    assert found.full == groups[plain]
    assert list(found.decay) == [groups[i] for i in decay]
    assert list(found.dropout) == [groups[i] for i in dropout]


def test_numbers_come_before_words(scored: Callable[..., Runs]) -> None:
    found = arenas(
        scored(
            ("plain decay baseline", "full", 0.3, 0.6, {"hyperparameters": {"weight_decay": 0.0}}),
            ("strong", "full", 0.3, 0.6, {"hyperparameters": {"weight_decay": 0.1}}),
        )
    )[0]
    assert (found.full, list(found.decay)) == ("plain decay baseline", ["strong"])
