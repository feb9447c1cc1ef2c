"""A row depends on its pair and the options: random probes are seeded by the matrix's name, and by nothing else."""

import hashlib

import pandas as pd
import pytest
import torch

import deltaw
from deltaw.spectra import seeded
from tests.conftest import State, changed

SIDE = 1024  # from which fast mode estimates
NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"]


def same_matrix() -> State:
    """One matrix under three names, and a small one."""
    w = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(NAMES, w) | {"model.layers.0.mlp.gate.weight": torch.eye(8)}


@pytest.fixture(scope="module")
def pair() -> tuple[State, State]:
    base = same_matrix()
    tuned = changed({NAMES[0]: base[NAMES[0]]})[NAMES[0]]
    return {n: w.clone() for n, w in base.items()}, {n: w.clone() for n, w in base.items()} | {
        n: tuned.clone() for n in NAMES
    }


def rows(found: deltaw.Analysis) -> pd.DataFrame:
    return found.to_pandas().drop(columns="seconds").set_index("name")


def test_an_estimate_is_the_same_alone_and_in_company_in_any_order_and_part(pair: tuple[State, State]):
    base, tuned = pair
    whole = deltaw.analyze(base, tuned, mode="fast", jobs=1)
    expected = rows(whole)
    assert (expected.loc[NAMES, "method"] == "estimate").all()
    turned = deltaw.analyze(dict(reversed(base.items())), dict(reversed(tuned.items())), mode="fast", jobs=1)
    alone = deltaw.analyze(base, tuned, mode="fast", jobs=1, include="layers.1.mlp.up")
    parts = [deltaw.analyze(base, tuned, mode="fast", jobs=1, part=f"{i}/2") for i in (1, 2)]
    for found in (turned, alone, *parts):
        for name, row in rows(found).iterrows():
            pd.testing.assert_series_equal(row, expected.loc[name], check_exact=True, check_dtype=False)
    assert rows(alone).index.tolist() == [NAMES[1]]
    assert sum(len(rows(p)) for p in parts) == 4


def test_equal_matrices_of_other_names_have_other_probes(pair: tuple[State, State]):
    found = rows(deltaw.analyze(*pair, mode="fast", jobs=1))
    values = found.loc[NAMES, "nuclear_norm"].tolist()
    assert len(set(values)) == 3
    low, high = found.loc[NAMES, "nuclear_norm_low"].max(), found.loc[NAMES, "nuclear_norm_high"].min()
    assert low <= high  # estimates of one number


def test_a_seed_is_that_of_the_name_on_every_machine():
    cpu = torch.device("cpu")
    assert seeded(cpu, "a").initial_seed() == int.from_bytes(hashlib.sha256(b"a").digest()[:8], "little") // 2
    assert seeded(cpu, "a").initial_seed() != seeded(cpu, "b").initial_seed()
    assert torch.equal(torch.randn(3, generator=seeded(cpu, "\udc80")), torch.randn(3, generator=seeded(cpu, "\udc80")))


def test_a_small_matrix_is_the_same_in_other_company():
    g = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(24, 16, generator=g) for i in range(9)}
    tuned = changed(base)
    together, alone = deltaw.analyze(base, tuned, jobs=1), deltaw.analyze(base, tuned, jobs=1, include="layers.3.mlp")
    (name,) = rows(alone).index
    pd.testing.assert_series_equal(rows(together).loc[name], rows(alone).loc[name], check_exact=True, check_dtype=False)
