"""The registry: the contract's columns in the contract's order, and what `evaluate` makes of what it is given."""

import subprocess
import sys

import numpy as np
import pytest

from deltaw import metrics
from deltaw.metrics import REGISTRY, evaluate, registry
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.shrink_marks import ShrinkMarks

# the contract's columns, section by section
COLUMNS = {
    "size": "fro_norm base_fro_norm relative_change spectral_norm nuclear_norm max_abs unchanged_fraction max_over_rms",
    "rank": "stable_rank effective_rank effective_rank_energy participation_ratio rank_50 rank_90 rank_95 rank_99 "
    "numerical_rank rank_90_null rank_90_ratio",
    "energy": " ".join(f"energy_at_{r}" for r in (1, 4, 8, 16, 32, 64, 128, 256)),
    "precision": "rounding_noise noise_edge signal_rank signal_energy effective_rank_denoised rank_90_denoised "
    "energy_at_16_denoised resolution",
    "regularisation": "shrinkage shrinkage_z cosine_to_base norm_growth effective_rank_residual rank_90_residual "
    "magnitude_change direction_change decay_rows_fraction decay_estimate",
    "adapter": "factor_balance",
    "alignment": "intruders intruders_right intruder_energy amplification base_overlap_left base_overlap_right "
    "spectral_shift rotation update_ratio sign_flips",
    "on data": "relative_change_on_data effective_rank_on_data rank_90_on_data energy_at_16_on_data "
    "relative_change_on_source effective_rank_on_source rank_90_on_source energy_at_16_on_source selectivity",
}


@pytest.mark.parametrize(("section", "columns"), COLUMNS.items())
def test_contract_columns_in_order(section, columns):
    contract = columns.split()
    found = [m.name for m in REGISTRY.values() if m.section == section and m.name in contract]
    assert found == contract, "the contract's columns keep their order; others may stand between them"


def test_sections_in_order():
    sections = list(dict.fromkeys(m.section for m in REGISTRY.values()))
    assert sections == list(COLUMNS)


@pytest.mark.parametrize("m", REGISTRY.values(), ids=lambda m: m.name)
def test_every_metric_is_a_public_function_with_its_words(m):
    assert getattr(metrics, m.name, None) is m.function, f"import {m.name} in deltaw/metrics/__init__.py"
    assert m.name in metrics.__all__, f"add {m.name} to __all__ in deltaw/metrics/__init__.py"
    assert m.formula
    assert m.description.endswith(".")
    assert len(m.description) > 15


def test_only_numpy_is_loaded():
    code = "import sys, deltaw.metrics; print([m for m in ('torch','pandas','scipy','matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def matrix_quantities():
    g = np.random.default_rng(0)
    w0, d = g.standard_normal((6, 4)), 0.1 * g.standard_normal((6, 4))
    return {
        "s": np.linalg.svd(d, compute_uv=False),
        "rows": 6,
        "cols": 4,
        "entries": 24,
        "max_abs": float(abs(d).max()),
        "equal": 3,
        "equal_null": 2.5,
        "base_noise": 0.0,
        "clipped": 6,
        "delta_sq": float((d**2).sum()),
        "base_sq": float((w0**2).sum()),
        "delta_base": float((d * w0).sum()),
        "delta_row_sq": (d**2).sum(1),
        "base_row_sq": (w0**2).sum(1),
        "delta_base_row": (d * w0).sum(1),
        "noise_row": np.full(6, 1e-9),
        "noise_col": np.full(4, 1.5e-9),
    }


def test_a_row_is_filled():
    marks = ShrinkMarks(0.1, 0.1, *([np.ones(4)] * 2), 0.0, 0.0, 1.0, *([np.ones(4)] * 2))
    last = {"s_residual": np.ones(4), "s_denoised": np.ones(4), "shrink_marks": marks}
    row = evaluate(Quantities(**matrix_quantities(), **last))
    sections = ("size", "rank", "energy", "precision", "regularisation")
    assert set(row) == {m.name for m in REGISTRY.values() if m.section in sections}
    assert row["resolution"] == "resolved"


def test_what_is_not_known_stays_out():
    q = matrix_quantities()
    for name in ("base_sq", "delta_base", "base_row_sq", "delta_base_row"):
        del q[name]
    row = evaluate(Quantities(**q))
    assert not {"base_fro_norm", "relative_change", "shrinkage", "cosine_to_base", "norm_growth"} & set(row)
    assert {"fro_norm", "effective_rank", "signal_rank"} <= set(row)


def test_a_vector_has_sizes_and_shrinkage_only():
    q = {
        k: v
        for k, v in matrix_quantities().items()
        if k in ("entries", "max_abs", "equal", "delta_sq", "base_sq", "delta_base")
    }
    sizes = {"fro_norm", "base_fro_norm", "relative_change", "max_abs", "max_over_rms", "unchanged_fraction"}
    assert set(evaluate(Quantities(**q))) == sizes | {"shrinkage", "shrinkage_z"}


def test_a_given_value_wins():
    row = evaluate(Quantities(**matrix_quantities()), given={"rank_90": 2.5, "rank_90_null": 5.0})
    assert row["rank_90"] == 2.5
    assert row["rank_90_ratio"] == 0.5


def test_optional_quantities_reach_their_metrics():
    q = matrix_quantities()
    q["energy"] = float(q["s"] @ q["s"])
    q["s"] = q["s"][:2]
    row = evaluate(Quantities(**q))
    assert np.isnan(row["effective_rank"])
    assert row["energy_at_1"] == pytest.approx(q["s"][0] ** 2 / q["energy"])


def test_sections_can_be_chosen():
    assert set(evaluate(Quantities(**matrix_quantities()), ("energy",))) == set(COLUMNS["energy"].split())


def test_a_name_is_registered_once():
    with pytest.raises(AssertionError):

        @registry.metric(section="size", formula="")
        def fro_norm(x: float) -> float:
            """Taken."""
            return x


def test_the_markdown_table_names_every_metric():
    table = registry.markdown_table()
    lines = table.splitlines()
    assert len(lines) == len(REGISTRY) + 2
    bars = {line.replace("\\|", "").count("|") for line in lines}
    assert bars == {6}
