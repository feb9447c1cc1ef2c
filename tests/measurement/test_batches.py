"""Stacks of equal small shapes are solved at once, and nobody can tell from the numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import deltaw
from deltaw.measurement import measure
from deltaw.measurement.journal import Journal
from deltaw.measurement.measured import Measured
from tests.conftest import changed, save_single

State = dict[str, torch.Tensor]


@pytest.fixture
def experts() -> State:
    """Two stacks of small experts (130 is more than one batch holds), heads of another shape, and a larger matrix."""
    g = torch.Generator().manual_seed(0)
    return {
        "layers.0.mlp.experts.up_proj": torch.randn(130, 24, 16, generator=g),
        "layers.0.mlp.experts.down_proj": torch.randn(3, 16, 24, generator=g),
        "layers.0.head.weight": torch.randn(8, 40, generator=g),
        "layers.1.head.weight": torch.randn(8, 40, generator=g).bfloat16(),
        "layers.0.q.weight": torch.randn(64, 48, generator=g),
        "layers.0.norm.weight": torch.ones(16),
    }


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each batched call solves."""
    sizes: list[int] = []
    solve = measure.singular_values_batched

    def counted(xs: torch.Tensor) -> list[deltaw.types.Spectrum]:
        sizes.append(len(xs))
        return solve(xs)

    monkeypatch.setattr(measure, "singular_values_batched", counted)
    return sizes


def test_the_numbers_are_those_of_each_matrix_alone(experts: State, monkeypatch: pytest.MonkeyPatch):
    tuned = changed(experts, 1e-2)
    sizes = calls(monkeypatch)
    together = deltaw.analyze(experts, tuned)
    assert sorted(sizes) == [1, 1, 2, 3, 64, 64]
    monkeypatch.setattr("deltaw.spectra.route.BATCHED_UP_TO", {})
    monkeypatch.setattr(measure, "BATCHED_UP_TO", {})
    alone = deltaw.analyze(experts, tuned)
    assert sorted(sizes) == [1, 1, 2, 3, 64, 64]
    a, b = (x.to_pandas().drop(columns="seconds") for x in (together, alone))
    assert a["name"].tolist() == b["name"].tolist()
    assert len(a) == 130 + 3 + 4
    for column in a:
        if a[column].dtype.kind == "f":
            np.testing.assert_allclose(a[column], b[column], rtol=1e-9, atol=1e-12, err_msg=column)
        else:
            assert a[column].equals(b[column]), column
    for key, spectrum in alone.spectra.items():
        s = spectrum.values
        np.testing.assert_allclose(together.spectra[key].values, s, atol=1e-7 * s[0], err_msg=key)


def test_unchanged_and_damaged_experts_do_not_take_the_others_along(experts: State):
    tuned = changed(experts, 1e-2)
    stack = "layers.0.mlp.experts.up_proj"
    tuned[stack][4] = experts[stack][4]
    tuned[stack][7, 0, 0] = torch.nan
    found = deltaw.analyze(experts, tuned)
    rows = found.to_pandas().set_index(["name", "part"])
    assert rows.loc[(stack, "expert 4"), "route"] == "unchanged"
    assert [s.name for s in found.failed] == [f"{stack}[expert 7]"]
    assert "not finite" in found.failed[0].reason
    expected = torch.linalg.svdvals(tuned[stack][8].double() - experts[stack][8].double()).numpy()
    np.testing.assert_allclose(found.spectrum(stack, "expert 8").values, expected, atol=1e-7 * expected[0])
    assert len(rows) == 130 + 3 + 4 - 1


def test_resumed_in_the_middle_of_a_batch(experts: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same numbers, to the last digit, although the journal has a part of a batch."""
    base, tuned = save_single(experts, tmp_path / "base"), save_single(changed(experts, 1e-2), tmp_path / "tuned")
    expected = deltaw.analyze(base, tuned, jobs=1).to_pandas().drop(columns="seconds")
    add, kept = Journal.add, []

    def cut_off(journal: Journal, key: str, measured: Measured) -> None:
        if len(kept) == 100:
            raise KeyboardInterrupt
        kept.append(key)
        add(journal, key, measured)

    monkeypatch.setattr(Journal, "add", cut_off)
    with pytest.raises(KeyboardInterrupt):
        deltaw.analyze(base, tuned, out=tmp_path / "out", jobs=1)
    monkeypatch.undo()
    resumed = deltaw.analyze(base, tuned, out=tmp_path / "out", jobs=1).to_pandas().drop(columns="seconds")
    assert resumed.equals(expected)
