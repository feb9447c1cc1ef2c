"""The real pair against an independent computation: float64 NumPy, with the definitions written out again."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import deltaw
from deltaw.checkpoints import open_checkpoint
from tests.conftest import FORMATS


@pytest.fixture(scope="module")
def result(real_pair: tuple[Path, Path]) -> deltaw.Analysis:
    return deltaw.analyze(*real_pair)


def oracle(delta: np.ndarray) -> dict[str, float]:
    sigma = np.linalg.svd(delta, compute_uv=False)
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    p = sigma / sigma.sum()
    q = sigma**2 / np.sum(sigma**2)
    out = {
        "fro_norm": np.sqrt(np.sum(delta**2)),
        "spectral_norm": sigma[0],
        "nuclear_norm": sigma.sum(),
        "stable_rank": np.sum(delta**2) / sigma[0] ** 2,
        "effective_rank": np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))),
        "effective_rank_energy": np.exp(-np.sum(q[q > 0] * np.log(q[q > 0]))),
        "participation_ratio": np.sum(sigma**2) ** 2 / np.sum(sigma**4),
        "numerical_rank": np.sum(sigma > max(delta.shape) * np.finfo(np.float32).eps * sigma[0]),
    }
    out |= {f"rank_{int(100 * t)}": 1 + np.argmax(energy >= t) for t in (0.5, 0.9, 0.95, 0.99)}
    out |= {f"energy_at_{r}": energy[min(r, len(energy)) - 1] for r in (1, 4, 8, 16, 32, 64, 128, 256)}
    return out


def test_what_is_known_of_the_pair(result: deltaw.Analysis):
    frame = result.to_pandas()
    assert len(frame) == 103
    assert [(s.name, s.reason) for s in result.skipped] == [("embeddings.position_ids", "only_in_base")]
    pooler = frame[frame["name"].str.startswith("pooler.")]
    assert len(pooler) == 2
    assert (pooler["route"] == "unchanged").all()
    assert frame["relative_change"].median() == pytest.approx(0.0107, abs=5e-5)


def test_every_matrix_against_numpy(result: deltaw.Analysis, real_pair: tuple[Path, Path]):
    base, ft = (load_file(path) for path in real_pair)
    frame = result.to_pandas().set_index("name")
    matrices = frame[(frame["ndim"] == 2) & (frame["route"] != "unchanged")]
    assert len(matrices) == 39
    for name, row in matrices.iterrows():
        delta = ft[name].astype(np.float64) - base[name].astype(np.float64)
        expected = oracle(delta)
        sigma = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(result.spectrum(name).values, sigma, rtol=0, atol=1e-5 * sigma[0])
        for metric, value in expected.items():
            if "rank_" in metric and not metric.startswith(("stable", "effective")):
                assert row[metric] == value, (name, metric)
            else:
                assert row[metric] == pytest.approx(value, rel=1e-4), (name, metric)
        assert row["relative_change"] == pytest.approx(expected["fro_norm"] / np.linalg.norm(base[name].astype(float)))
        assert row["max_abs"] == pytest.approx(np.abs(delta).max())
        assert row["unchanged_fraction"] == pytest.approx(np.mean(ft[name].view(np.int32) == base[name].view(np.int32)))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_every_stored_form_gives_the_same_rows(
    form: str, result: deltaw.Analysis, real_pair: tuple[Path, Path], tmp_path: Path
):
    """With `module.` on one side; without the one large embedding, for time."""
    small = "word_embeddings"
    states = [{n: h.read() for n, h in open_checkpoint(path).tensors.items() if small not in n} for path in real_pair]
    base = FORMATS[form]({f"module.{n}": t for n, t in states[0].items()}, tmp_path / "base")
    ft = FORMATS[form](states[1], tmp_path / "ft")
    got = deltaw.analyze(base, ft).to_pandas().drop(columns="seconds")
    want = result.to_pandas().drop(columns="seconds")
    want = want[~want["name"].str.contains(small)].reset_index(drop=True)
    assert (got["name"] == want["name"]).all()
    for column in want:
        if want[column].dtype.kind == "f":
            np.testing.assert_allclose(got[column], want[column], rtol=1e-9, err_msg=column)
        else:
            assert (got[column] == want[column]).all(), column


def test_untrained_tokens_show_the_decay(result: deltaw.Analysis):
    row = result.to_pandas().set_index("name").loc["embeddings.word_embeddings.weight"]
    assert row["decay_rows_fraction"] > 0.9
    assert row["decay_estimate"] == pytest.approx(9.5e-5, rel=0.02)
