"""Analyses made by hand: a small transformer, and what different kinds of fine-tuning do to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import deltaw.metrics  # noqa: F401  (fills the registry)
from deltaw.delta.shrink import shrink_marks
from deltaw.metrics.deconvolution import interval, without_rounding
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import evaluate
from deltaw.metrics.uniformity import is_shrink
from deltaw.results.analysis import Analysis
from deltaw.results.sources import Source
from deltaw.types import Reason, Skipped, Spectrum

Change = Callable[[np.random.Generator, np.ndarray, str], np.ndarray]
FRACTION_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}

# Names that try to break out: of a script, an attribute, a line, the writing direction, a label's width, a spreadsheet.
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "x" * 300,
    "a\nb\tc",
    "\u202eevil\u2066",
    "\u0634\u0628\u0643\u0629 \u6a21\u578b \U0001f9ec",
    "=cmd|' /C calc'!A1",
    "$\\alpha_{1$ & <b>{{ 7*7 }}</b> --> ]]>",
    "\ue000\ue002 \u2028 \u2029",
)

MODULES = (
    ("self_attn.q_proj", "attention", (1.0, 1.0)),
    ("self_attn.k_proj", "attention", (0.5, 1.0)),
    ("self_attn.v_proj", "attention", (0.5, 1.0)),
    ("self_attn.o_proj", "attention", (1.0, 1.0)),
    ("mlp.gate_proj", "mlp", (2.75, 1.0)),
    ("mlp.up_proj", "mlp", (2.75, 1.0)),
    ("mlp.down_proj", "mlp", (1.0, 2.75)),
)


def store(w: np.ndarray, dtype: str) -> np.ndarray:
    """`w` rounded to the fraction bits of `dtype`, to nearest, ties to even."""
    mantissa, exponent = np.frexp(w)
    scale = 2.0 ** (FRACTION_BITS[dtype] + 1)
    return np.ldexp(np.round(mantissa * scale) / scale, exponent)


def rounding_variance(w: np.ndarray, dtype: str) -> np.ndarray:
    _, exponent = np.frexp(w)
    ulp = np.where(w == 0, 0.0, np.ldexp(1.0, exponent - 1 - FRACTION_BITS[dtype]))
    return ulp**2 / 12


def measured(w0: np.ndarray, w: np.ndarray, dtype: str) -> tuple[dict[str, Any], np.ndarray]:
    """The metrics of W − W0 and its singular values."""
    delta = w - w0
    noise = rounding_variance(w, dtype)
    quantities: dict[str, Any] = {
        "entries": delta.size,
        "max_abs": float(np.abs(delta).max()),
        "equal": int((delta == 0).sum()),
        "delta_sq": float((delta**2).sum()),
        "base_sq": float((w0**2).sum()),
        "delta_base": float((delta * w0).sum()),
    }
    if delta.ndim == 1:
        return evaluate(Quantities(**quantities), ("size", "regularisation")), np.zeros(0)
    s = np.linalg.svd(delta, compute_uv=False)
    c = -quantities["delta_base"] / quantities["base_sq"]
    quantities |= {
        "rows": delta.shape[0],
        "cols": delta.shape[1],
        "s": s,
        "s_residual": np.linalg.svd(delta + c * w0, compute_uv=False),
        "delta_row_sq": (delta**2).sum(1),
        "base_row_sq": (w0**2).sum(1),
        "delta_base_row": (delta * w0).sum(1),
        "noise_row": noise.sum(1),
        "noise_col": noise.sum(0),
    }
    if is_shrink(c, math.sqrt(quantities["delta_sq"] / quantities["base_sq"]), delta.size):
        quantities["shrink_marks"] = shrink_marks(torch.from_numpy(w0), torch.from_numpy(delta))
    steps, counts = np.unique(np.sqrt(12 * noise), return_counts=True)
    known = Quantities(**quantities, noise_steps=steps, noise_counts=counts.astype(np.float64))
    found = without_rounding(known)
    bounds = interval(found) if found is not None and found.share else {}
    row = evaluate(
        replace(known, s_denoised=None if found is None else found.values),
        ("size", "rank", "energy", "precision", "regularisation"),
        {name: estimate.value for name, estimate in bounds.items()},
    )
    row |= {f"{name}_low": estimate.low for name, estimate in bounds.items()}
    return row | {f"{name}_high": estimate.high for name, estimate in bounds.items()}, s


def make(
    change: Change,
    *,
    layers: int = 4,
    hidden: int = 32,
    vocabulary: int = 64,
    dtype: str = "float32",
    seed: int = 0,
    stack: str = "model.layers",
    skipped: tuple[Skipped, ...] = (),
    rename: Callable[[str], str] = lambda name: name,
) -> Analysis:
    """An analysis of a small Llama-shaped model whose tensors are changed by `change(rng, w0, kind)`."""
    rng = np.random.default_rng(seed)
    rows: list[Mapping[str, Any]] = []
    spectra: dict[str, Spectrum] = {}

    def add(name: str, stack: str, layer: int | None, module: str, kind: str, shape: tuple[int, ...]) -> None:
        name = rename(name)
        scale = 0.02 if len(shape) > 1 else 1.0
        w0 = store(rng.normal(0, scale, shape), dtype)
        w = store(w0 + change(rng, w0, kind), dtype)
        values, s = measured(w0, w, dtype)
        same = bool((w == w0).all())
        route = "unchanged" if same else "vector" if len(shape) == 1 else "dense"
        rows.append(
            {
                **{"name": name, "stack": stack, "layer": layer, "module": module, "kind": kind, "part": ""},
                **{"rows": shape[0], "cols": shape[1] if len(shape) > 1 else 1, "ndim": len(shape)},
                **{"base_dtype": dtype, "ft_dtype": dtype, "route": route, "method": "exact", "seconds": 0.01},
                **values,
            }
        )
        if len(shape) > 1:
            spectra[name] = Spectrum(s, *shape)

    add("model.embed_tokens.weight", "", None, "model.embed_tokens", "embedding", (vocabulary, hidden))
    for layer in range(layers):
        where = f"{stack}.{layer}"
        for module, kind, (m, n) in MODULES:
            add(f"{where}.{module}.weight", stack, layer, module, kind, (int(m * hidden), int(n * hidden)))
        for module in ("input_layernorm", "post_attention_layernorm"):
            add(f"{where}.{module}.weight", stack, layer, module, "norm", (hidden,))
    add("model.norm.weight", "", None, "model.norm", "norm", (hidden,))
    add("lm_head.weight", "", None, "lm_head", "head", (vocabulary, hidden))
    about = Source(format="safetensors", nbytes=12_345_678, tensors=len(rows))
    return Analysis(
        rows,
        spectra,
        skipped,
        base=replace(about, path="models/base"),
        ft=replace(about, path="models/tuned"),
        options={"mode": "exact", "alignment": False, "split_fused": False},
        device="cpu",
        seconds=3.21,
        versions={"deltaw": "0.1.0", "torch": "2.11.0", "numpy": "2.0.0"},
    )


def nothing(rng: np.random.Generator, w0: np.ndarray, kind: str) -> np.ndarray:
    return np.zeros_like(w0)


def full(size: float = 0.02) -> Change:
    """Full fine-tuning: a few strong directions over a broad bulk."""

    def change(rng: np.random.Generator, w0: np.ndarray, kind: str) -> np.ndarray:
        d = rng.normal(size=w0.shape)
        if w0.ndim == 2:
            u, s, vt = np.linalg.svd(d, full_matrices=False)
            d = (u * (s * (1 + 2 * np.exp(-np.arange(len(s)) / 3)))) @ vt
        return d * (size * np.linalg.norm(w0) / np.linalg.norm(d))

    return change


def lora(rank: int = 4, size: float = 0.05) -> Change:
    """A merged LoRA: rank-`rank` updates of the projections, nothing elsewhere."""

    def change(rng: np.random.Generator, w0: np.ndarray, kind: str) -> np.ndarray:
        if kind not in {"attention", "mlp"}:
            return np.zeros_like(w0)
        d = rng.normal(size=(w0.shape[0], rank)) @ rng.normal(size=(rank, w0.shape[1]))
        return d * (size * np.linalg.norm(w0) / np.linalg.norm(d))

    return change


def decay(c: float = 0.02) -> Change:
    return lambda rng, w0, kind: -c * w0


def only(kinds: set[str], change: Change) -> Change:
    return lambda rng, w0, kind: change(rng, w0, kind) if kind in kinds else np.zeros_like(w0)


def unrelated(rng: np.random.Generator, w0: np.ndarray, kind: str) -> np.ndarray:
    return rng.normal(0, w0.std(), w0.shape) - w0


def many(matrices: int, experts: int = 0) -> Analysis:
    """An analysis of many matrices of realistic size, from made-up spectra."""
    rng = np.random.default_rng(0)
    rows, spectra = [], {}
    for i in range(matrices):
        layer, j = divmod(i, experts or 7)
        s = np.sort(rng.pareto(3, 1024) + 1e-3)[::-1]
        module = f"mlp.experts.{j}.up_proj" if experts else f"self_attn.proj_{j}"
        name = f"model.layers.{layer}.{module}.weight"
        q = {
            "s": s,
            "rows": 4096,
            "cols": 1024,
            "delta_sq": float(s @ s),
            "base_sq": 1e4,
            "entries": 2**22,
            "max_abs": 1.0,
            "equal": 0,
        }
        q |= {"noise_row": np.full(4096, 1e-9), "noise_col": np.full(1024, 4e-9)}
        rows.append(
            {
                **{"name": name, "stack": "model.layers", "layer": layer, "module": module, "kind": "mlp", "part": ""},
                **{"rows": 4096, "cols": 1024, "ndim": 2, "base_dtype": "float32", "ft_dtype": "float32"},
                **{"route": "dense", "method": "exact", "seconds": 1.234567},
                **evaluate(Quantities(**q), ("size", "rank", "energy", "precision")),
            }
        )
        spectra[name] = Spectrum(s, 4096, 1024)
    return Analysis(rows, spectra)


@pytest.fixture(scope="session")
def full_analysis() -> Analysis:
    skipped = (
        Skipped("model.rotary.inv_freq", Reason.ONLY_IN_BASE),
        Skipped("model.layers.0.position_ids", Reason.NOT_FLOATING, "int64"),
    )
    return make(full(), skipped=skipped)


@pytest.fixture(scope="session")
def lora_analysis() -> Analysis:
    return make(lora(), hidden=64, dtype="bfloat16")


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The makers above, for tests that make their own analysis."""
    return SimpleNamespace(
        make=make,
        nothing=nothing,
        full=full,
        lora=lora,
        decay=decay,
        only=only,
        unrelated=unrelated,
        hostile=HOSTILE,
        many=many,
    )


@pytest.fixture(scope="session")
def full_report(full_analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_analysis.report(tmp_path_factory.mktemp("full") / "report.html")


@pytest.fixture(scope="session")
def lora_report(lora_analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_analysis.report(tmp_path_factory.mktemp("lora") / "report.html")
