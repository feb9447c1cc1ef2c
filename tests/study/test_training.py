from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaw.study import arms
from deltaw.study.plan import Arm
from deltaw.study.tokens import Blocks, packed
from deltaw.study.training import stepping, train

from .conftest import DECAY, FULL, LORA, MORA6


@pytest.fixture
def blocks(base: Path, documents) -> Blocks:  # type: ignore[no-untyped-def]
    return packed(arms.open_tokenizer(base), documents, 32)


@pytest.fixture
def fit(base: Path, blocks: Blocks, tmp_path: Path) -> Callable[..., tuple[Any, list[float]]]:
    import transformers

    def fitted(arm: Arm, **options: Any) -> tuple[Any, list[float]]:
        settings: dict[str, Any] = {"steps": 6, "batch": 4, "schedule": "constant_with_warmup", "warmup": 2, "seed": 3}
        with arms.quiet():
            transformers.set_seed(3)
            model = arms.prepare(arms.open_base(base, arm), arm)
            losses = train(
                model,
                blocks,
                workdir=tmp_path,
                learning_rate=arm.learning_rates[0],
                weight_decay=arm.weight_decay,
                **settings | options,
            )
        return model, losses

    return fitted


def same(a: Any, b: Any) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("arm", [FULL, LORA, MORA6], ids=lambda a: a.name)
def test_the_same_seed_gives_the_same_weights_and_learns(fit: Any, arm: Arm) -> None:
    first, losses = fit(arm, steps=30)
    again, _ = fit(arm, steps=30)
    assert same(first, again)
    assert losses[-1] < losses[0]
    other, _ = fit(arm, steps=30, seed=4)
    assert not same(first, other)


def test_looking_does_not_disturb(fit: Any) -> None:
    seen = []

    def look(model: Any, step: int) -> None:
        seen.append((step, model.training))
        torch.rand(100)

    dropped = Arm("d", "full", (1e-2,), attention_dropout=0.3)
    looked, _ = fit(dropped, points=(2, 6), at_point=look)
    plain, _ = fit(dropped)
    assert seen == [(2, False), (6, False)]
    assert same(looked, plain)


def test_weight_decay_shrinks_what_is_never_seen_by_its_formula(base: Path, fit: Any, blocks: Blocks) -> None:
    """AdamW multiplies by 1 − lr_t·λ: science.md's c, read off the embedding rows without a gradient."""
    rates = [0.0, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2]  # two steps of warm-up from zero
    model, _ = fit(DECAY)
    before = arms.open_base(base).model.embed_tokens.weight
    unseen = [i for i in range(before.shape[0]) if i not in set(blocks.input_ids.flatten().tolist())]
    assert len(unseen) > 20
    kept = torch.prod(1 - torch.tensor(rates))
    torch.testing.assert_close(model.model.embed_tokens.weight[unseen], kept * before[unseen], rtol=1e-6, atol=0)


def test_nothing_is_printed_and_progress_is_told(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    fit(FULL, steps=20, callbacks=[stepping(lambda *p: told.append(p))])
    assert told == [(10, 20), (20, 20)]
    assert capsys.readouterr() == ("", "")
