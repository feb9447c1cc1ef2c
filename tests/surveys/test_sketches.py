"""Sketches: right in the mean, within their intervals, blind to how an update is factored, exact for a copy."""

import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from deltaw.surveys import sketches
from deltaw.surveys.all_pairs import sketched_cosines
from deltaw.surveys.parts import Looked
from deltaw.surveys.table import UpdateTable
from deltaw.types import Factors


def norm(value: Factors) -> float:
    return float((value.B @ value.A).norm())


def test_the_mean_of_many_sketches_is_the_inner_product(monkeypatch: pytest.MonkeyPatch):
    g = torch.Generator().manual_seed(0)
    a = Factors(torch.randn(30, 2, generator=g).double(), torch.randn(2, 20, generator=g).double())
    b = Factors(a.B + torch.randn(30, 2, generator=g).double(), a.A)
    exact = float(((a.B @ a.A) * (b.B @ b.A)).sum()) / (norm(a) * norm(b))
    found = []
    for trial in range(400):
        monkeypatch.setattr(sketches, "_seed", lambda text, trial=trial: zlib.crc32(f"{text} {trial}".encode()))
        sketches.gaussian.cache_clear()
        x, y = (sketches.sketch(v, norm(v), "k").double() for v in (a, b))
        found.append(float((x * y).sum(1).mean()))
    sketches.gaussian.cache_clear()
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(exact, abs=4 * error)
    assert error < 0.01


def test_a_sketch_sees_the_product_and_neither_its_factors_nor_its_form():
    g = torch.Generator().manual_seed(0)
    B, A = torch.randn(30, 3, generator=g).double(), torch.randn(3, 20, generator=g).double()
    M = torch.randn(3, 3, generator=g).double()
    size = float((B @ A).norm())
    one, other = (sketches.sketch(v, size, "k") for v in (Factors(B, A), Factors(B @ M, torch.linalg.inv(M) @ A)))
    assert torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(one, sketches.sketch(B @ A, size, "k"), atol=1e-4)


def estimated(table: UpdateTable, kept: list[np.ndarray], memory: int = 1 << 30) -> tuple[np.ndarray, np.ndarray]:
    with TemporaryDirectory() as folder:
        return sketched_cosines(
            table, kept.__getitem__, Path(folder) / "scratch", memory=memory, done=lambda d, t: None
        )


def population(matrices: int, alike: float, count: int, seed: int) -> tuple[UpdateTable, list[np.ndarray], np.ndarray]:
    """Adapters of ranks 1 to 4 that share a part, some of them not all matrices: table, sketches, cosines."""
    g = torch.Generator().manual_seed(seed)
    keys = [f"model.layers.{k}.mlp.up_proj.weight" for k in range(matrices)]
    common = [torch.randn(40, 4, generator=g).double() @ torch.randn(4, 50, generator=g).double() for _ in keys]
    all_, looked, kept = [], [], []
    for i in range(count):
        r = 1 + i % 4
        own = {}
        for k, key in enumerate(keys):
            if k % 5 == 4 and i % 3 == 0:
                continue
            D = torch.randn(40, r, generator=g).double() @ torch.randn(r, 50, generator=g).double()
            own[key] = D / D.norm() + alike * common[k] / common[k].norm()
        sizes = np.array([float(D.norm()) for D in own.values()])
        rows = [sketches.sketch(D, float(D.norm()), key).half().numpy() for key, D in own.items()]
        looked.append(Looked(keys=tuple(own), shapes=((40, 50),) * len(own), ranks=(r,) * len(own), norms=sizes))
        all_.append(own)
        kept.append(np.stack(rows))
    cosine = np.eye(count)
    for i in range(count):
        for j in range(i):
            shared = [k for k in all_[i] if k in all_[j]]
            x, y = (torch.cat([d[k].flatten() for k in shared]) for d in (all_[i], all_[j]))
            cosine[i, j] = cosine[j, i] = float(x @ y / (x.norm() * y.norm()))
    return UpdateTable.of(looked), kept, cosine


@pytest.mark.parametrize(("matrices", "alike"), [(2, 0.0), (2, 1.5), (14, 0.0), (14, 0.5), (14, 3.0)])
def test_intervals_hold_what_is_true(matrices: int, alike: float):
    """95 % of them by design. Pairs share sketches, so several populations are drawn: 93 % at least is asked for."""
    within, errors, widths = [], [], []
    for seed in range(6):
        table, kept, cosine = population(matrices, alike, 24, seed)
        names = [c.key for c in table.columns]
        assert len(names) == matrices
        found, half = estimated(table, kept, 1 << 20)
        upper = np.triu_indices(len(cosine), 1)
        within.append(np.abs(found - cosine)[upper] <= half[upper])
        errors.append((found - cosine)[upper])
        widths.append(half[upper])
    assert np.mean(within) >= 0.93
    assert np.mean(np.abs(np.concatenate(errors))) > 0.1 * np.mean(np.concatenate(widths)), "intervals say nothing"


def test_blocks_give_the_numbers_of_one_product(tmp_path: Path):
    table, kept, _ = population(7, 0.5, 20, 0)
    for_all, half = estimated(table, kept)
    steps: list[tuple[int, int]] = []
    small, half_ = sketched_cosines(
        table, kept.__getitem__, tmp_path / "scratch", memory=40_000, done=lambda d, t: steps.append((d, t))
    )
    assert len(steps) > 10
    assert steps[-1][0] == steps[-1][1]
    assert np.allclose(for_all, small, atol=1e-5)
    assert np.allclose(half, half_, atol=1e-5)


def test_a_copy_has_cosine_one_and_no_interval():
    table, kept, _ = population(2, 0.0, 3, 0)
    kept[1] = kept[0]
    index, norms = table.index.copy(), table.norms.copy()
    index[1], norms[1] = index[0], 3 * norms[0]
    table = UpdateTable(table.columns, index, norms, table.ranks, table.dense)
    found, half = estimated(table, kept)
    assert found[0, 1] == pytest.approx(1, abs=1e-6)
    assert half[0, 1] == pytest.approx(0, abs=1e-4)
    assert half[0, 2] > 0.01


def test_two_that_share_nothing_have_no_cosine():
    looked = [Looked(keys=(key,), shapes=((40, 50),), ranks=(1,), norms=np.ones(1)) for key in ("a.weight", "b.weight")]
    kept = [sketches.sketch(torch.randn(40, 50).double(), 1.0, "a").half().numpy()[None]] * 2
    found, half = estimated(UpdateTable.of(looked), kept)
    assert np.isnan(found[0, 1])
    assert np.isnan(half[0, 1])
