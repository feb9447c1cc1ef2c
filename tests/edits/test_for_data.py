"""`extract` and `resize` with activations: the pairs are the best for those inputs, and both errors are stated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.activations.file import write_activations
from deltaw.activations.moments import Moments
from deltaw.cli import main
from deltaw.edits import extraction
from deltaw.errors import ActivationsError, EditError
from tests.conftest import State, save_lora, save_single

SHAPES = {"a.weight": (40, 24), "b.weight": (24, 56)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(n: int, count: int = 400, seed: int = 9) -> torch.Tensor:
    """Inputs that favour some directions over others by far."""
    return draw(count, n, seed=seed) * torch.logspace(0, -3, n, dtype=torch.float64)


def moments_of(x: torch.Tensor) -> Moments:
    return Moments("moments", x.T @ x, len(x), float(x.square().sum()))


def pair(folder: Path) -> tuple[Path, Path, State]:
    """A base, a fine-tune, and the update between what is stored."""
    base = {n: draw(*s, seed=i).float() for i, (n, s) in enumerate(SHAPES.items())}
    ft = {n: w + 0.05 * draw(*w.shape, seed=7).float() for n, w in base.items()}
    delta = {n: ft[n].double() - base[n].double() for n in base}
    return save_single(base, folder / "base"), save_single(ft, folder / "ft"), delta


def product(folder: Path, name: str) -> torch.Tensor:
    state = load_file(folder / "adapter_model.safetensors")
    at = f"base_model.model.{name.removesuffix('.weight')}"
    return state[f"{at}.lora_B.weight"].double() @ state[f"{at}.lora_A.weight"].double()


def on(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return x @ delta.T


def best(x: torch.Tensor, delta: torch.Tensor, rank: int) -> float:
    """The least relative error on the inputs that a product of that rank can have."""
    s = np.linalg.svd(on(x, delta).numpy(), compute_uv=False)
    return float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))


def norm(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


@pytest.mark.parametrize("count", [400, 10])  # fewer inputs than dimensions: C is singular
def test_no_pair_of_that_rank_does_better_on_the_inputs(tmp_path: Path, count: int):
    base, ft, delta = pair(tmp_path)
    x = {n: inputs_of(s[1], count) for n, s in SHAPES.items()}
    file = write_activations(tmp_path / "x.safetensors", {n: moments_of(v) for n, v in x.items()})
    found = deltaw.extract(base, ft, tmp_path / "data", rank=4, activations=file)
    plain = deltaw.extract(base, ft, tmp_path / "plain", rank=4)
    for row, other in zip(found.layers, plain.layers, strict=True):
        D, X, P = delta[row.name], x[row.name], product(tmp_path / "data", row.name)
        error = norm(on(X, D - P)) / norm(on(X, D))
        assert row.relative_error_on_data == pytest.approx(error, rel=1e-6)
        assert error == pytest.approx(best(X, D, 4), rel=1e-5)
        assert error < norm(on(X, D - product(tmp_path / "plain", row.name))) / norm(on(X, D))
        assert row.relative_error == pytest.approx(norm(D - P) / norm(D), rel=1e-9)
        assert row.relative_error > other.relative_error
        assert row.energy_kept == pytest.approx(1 - row.relative_error**2, rel=1e-6)  # a projection of ΔW
        assert other.relative_error_on_data is None
    sizes = [(norm(on(x[n], delta[n] - product(tmp_path / "data", n))), norm(on(x[n], delta[n]))) for n in SHAPES]
    whole = np.hypot(*(e / count**0.5 for e, _ in sizes)) / np.hypot(*(s / count**0.5 for _, s in sizes))
    assert found.relative_error_on_data == pytest.approx(whole, rel=1e-6)


def test_inputs_that_are_alike_in_all_directions_change_nothing(tmp_path: Path):
    base, ft, _ = pair(tmp_path)
    file = write_activations(
        tmp_path / "x.safetensors",
        {n: Moments("moments", 50 * torch.eye(s[1], dtype=torch.float64), 50, 50.0 * s[1]) for n, s in SHAPES.items()},
    )
    found = deltaw.extract(base, ft, tmp_path / "data", rank=5, activations=file)
    plain = deltaw.extract(base, ft, tmp_path / "plain", rank=5)
    for row, other in zip(found.layers, plain.layers, strict=True):
        torch.testing.assert_close(product(tmp_path / "data", row.name), product(tmp_path / "plain", row.name))
        assert row.relative_error_on_data == pytest.approx(row.relative_error, rel=1e-6)
        assert row.energy_kept == pytest.approx(other.energy_kept, rel=1e-6)


def test_energy_is_that_of_the_signal_on_the_inputs(tmp_path: Path):
    """Fewer directions are needed where inputs meet few; what is below the rounding is not among them."""
    g = torch.Generator().manual_seed(3)
    base = {"a.weight": (0.05 * torch.randn(96, 80, generator=g)).bfloat16()}
    low = 0.02 * torch.randn(96, 12, generator=g).double() @ torch.randn(12, 80, generator=g).double()
    ft = {"a.weight": (base["a.weight"].double() + low).bfloat16()}
    sides = save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft")
    x = inputs_of(80)
    file = write_activations(tmp_path / "x.safetensors", {"a.weight": moments_of(x)})
    (all_,) = deltaw.extract(*sides, tmp_path / "all", above_noise=True, activations=file).layers
    assert (all_.rank, all_.signal_rank) == (12, 12)
    (row,) = deltaw.extract(*sides, tmp_path / "some", energy=0.99, activations=file).layers
    signal = product(tmp_path / "all", "a.weight")
    s = np.linalg.svd(on(x, signal).numpy(), compute_uv=False)
    assert row.rank == int(np.searchsorted(np.cumsum(s**2), 0.99 * (s**2).sum()) + 1) < 12
    (plain,) = deltaw.extract(*sides, tmp_path / "plain", energy=0.99).layers
    assert row.rank < plain.rank


def test_a_budget_is_spent_where_it_does_most_to_the_inputs(tmp_path: Path):
    base, ft, delta = pair(tmp_path)
    x = {n: inputs_of(s[1]) for n, s in SHAPES.items()}
    file = write_activations(tmp_path / "x.safetensors", {n: moments_of(v) for n, v in x.items()})
    budget = 900
    found = deltaw.extract(base, ft, tmp_path / "data", parameters=budget, activations=file)
    assert found.parameters <= budget
    energies = {n: np.linalg.svd(on(x[n], delta[n]).numpy() / 20, compute_uv=False) ** 2 for n in SHAPES}

    def kept(ranks: dict[str, int]) -> float:
        return float(sum(energies[n][:r].sum() for n, r in ranks.items()))

    choices = [{"a.weight": i, "b.weight": j} for i in range(15) for j in range(12) if 64 * i + 80 * j <= budget]
    chosen = {row.name: row.rank for row in found.layers}
    assert kept(chosen) == pytest.approx(max(map(kept, choices)), rel=1e-3)


def test_rows_of_an_embedding_count_as_often_as_they_are_looked_up(tmp_path: Path):
    base = {"embed_tokens.weight": draw(30, 12).float()}
    ft = {"embed_tokens.weight": base["embed_tokens.weight"] + 0.1 * draw(30, 12, seed=1).float()}
    counts = torch.arange(30, dtype=torch.float64)
    file = write_activations(
        tmp_path / "x.safetensors",
        {"embed_tokens.weight": Moments("counts", counts, int(counts.sum()), float(counts.sum()))},
    )
    sides = save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft")
    (row,) = deltaw.extract(*sides, tmp_path / "out", rank=3, activations=file).layers
    D = ft["embed_tokens.weight"].double() - base["embed_tokens.weight"].double()
    s = np.linalg.svd((counts.sqrt()[:, None] * D).numpy(), compute_uv=False)
    assert row.relative_error_on_data == pytest.approx(np.sqrt((s[3:] ** 2).sum() / (s**2).sum()), rel=1e-5)


def test_a_matrix_whose_layout_is_not_known_is_turned(tmp_path: Path):
    """The model says inputs × outputs; a bare state dict does not."""
    W0 = {"c_fc.weight": draw(24, 40).float()}
    W = {"c_fc.weight": W0["c_fc.weight"] + 0.1 * draw(24, 40, seed=1).float()}
    x = inputs_of(24)
    moments = Moments("moments", x.T @ x, len(x), float(x.square().sum()), inputs_first=True)
    file = write_activations(tmp_path / "x.safetensors", {"c_fc.weight": moments})
    sides = save_single(W0, tmp_path / "base"), save_single(W, tmp_path / "ft")
    (row,) = deltaw.extract(*sides, tmp_path / "out", rank=3, activations=file).layers
    D = (W["c_fc.weight"].double() - W0["c_fc.weight"].double()).T
    assert row.relative_error_on_data == pytest.approx(best(x, D, 3), rel=1e-5)


def test_the_error_on_a_sketch_is_the_most_that_it_may_be(tmp_path: Path):
    base, ft, delta = pair(tmp_path)
    x = inputs_of(56)
    model = torch.nn.Linear(56, 24, bias=False).double()
    file = deltaw.collect_activations(model, [x], tmp_path / "x.safetensors", sketch_above=20, sketch_rows=12)
    assert file.moments("weight").error > 0
    write_activations(tmp_path / "b.safetensors", {"b.weight": file.moments("weight")})
    options = {"rank": 6, "activations": tmp_path / "b.safetensors", "include": "b"}
    found = deltaw.extract(base, ft, tmp_path / "out", **options)
    assert "on those the relative error is at most 0." in " ".join(found.sentences())
    (row,) = found.layers
    D = delta["b.weight"]
    true = norm(on(x, D - product(tmp_path / "out", "b.weight"))) / norm(on(x, D))
    assert best(x, D, 6) <= true <= row.relative_error_on_data < 3 * true


def test_resize_keeps_factors_factors(tmp_path: Path):
    lora = save_lora(tmp_path / "lora")
    (whole, *_) = deltaw.resize(lora, tmp_path / "same", above_noise=True).layers
    x = inputs_of(whole.cols)
    file = write_activations(tmp_path / "x.safetensors", {whole.name: moments_of(x)})
    found = deltaw.resize(lora, tmp_path / "out", rank=1, activations=file)
    row = next(r for r in found.layers if r.name == whole.name)
    D = product(tmp_path / "same", whole.name)
    assert row.relative_error_on_data == pytest.approx(best(x, D, 1), rel=1e-5)
    assert row.relative_error == pytest.approx(norm(D - product(tmp_path / "out", whole.name)) / norm(D), rel=1e-6)


def test_the_command_says_both_errors_and_what_has_no_inputs(tmp_path: Path):
    base, ft, _ = pair(tmp_path)
    file = tmp_path / "x.safetensors"
    write_activations(file, {"a.weight": moments_of(inputs_of(24))})
    out = tmp_path / "out"
    args = ["extract", str(base), str(ft), "--rank", "4", "--activations", str(file), "--out", str(out)]
    told = CliRunner().invoke(main, args)
    assert told.exit_code == 0, told.output
    assert "They were made for the inputs in x.safetensors: on those the relative error is 0." in told.output
    card = (out / "README.md").read_text()
    assert (
        "on data: x.safetensors has the inputs of 1 of 2 matrices, and none of b.weight; of these the largest" in card
    )
    assert f"--activations {file}" in card
    table = pd.read_csv(out / "extraction.csv").set_index("name")
    assert table["relative_error_on_data"].notna().tolist() == [True, False]
    found = json.loads(CliRunner().invoke(main, [*args, "--force", "--json"]).stdout)
    assert found["relative_error_on_data"] == pytest.approx(table["relative_error_on_data"]["a.weight"])
    assert found["activations"] == str(file)
    assert "relative_error_on_data" not in pd.read_csv(plain_table(base, ft, tmp_path)).columns


def plain_table(base: Path, ft: Path, folder: Path) -> Path:
    deltaw.extract(base, ft, folder / "plain", rank=4)
    return folder / "plain" / "extraction.csv"


def test_bad_activations_are_one_line(tmp_path: Path):
    base, ft, _ = pair(tmp_path)
    some = write_activations(tmp_path / "some.safetensors", {"a.weight": moments_of(inputs_of(24))})
    with pytest.raises(EditError, match=r"one budget for all matrices, but .* none of b\.weight; leave these out"):
        deltaw.extract(base, ft, tmp_path / "out", parameters=900, activations=some)
    other = write_activations(tmp_path / "other.safetensors", {"z.weight": moments_of(inputs_of(24))})
    with pytest.raises(ActivationsError, match="holds the inputs of no matrix of this analysis"):
        deltaw.extract(base, ft, tmp_path / "out", rank=2, activations=other)
    save_file({"x": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ActivationsError, match=r"none\.safetensors"):
        deltaw.extract(base, ft, tmp_path / "out", rank=2, activations=tmp_path / "none.safetensors")


def test_what_an_interrupted_run_made_for_other_inputs_is_not_taken_over(tmp_path: Path, monkeypatch):
    base, ft, delta = pair(tmp_path)
    files = [
        write_activations(
            tmp_path / f"{seed}.safetensors", {n: moments_of(inputs_of(s[1], seed=seed)) for n, s in SHAPES.items()}
        )
        for seed in (9, 10)
    ]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(extraction, "_written", killed)
        with pytest.raises(KeyboardInterrupt):
            deltaw.extract(base, ft, tmp_path / "out", rank=4, activations=files[0])
    found = deltaw.extract(base, ft, tmp_path / "out", rank=4, activations=files[1])
    for row in found.layers:
        assert row.relative_error_on_data == pytest.approx(
            best(inputs_of(row.cols, seed=10), delta[row.name], 4), rel=1e-5
        )
