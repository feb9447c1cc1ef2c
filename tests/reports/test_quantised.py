"""The section on quantised storage: what it says at its thresholds, and where it stands."""

import math
from pathlib import Path

import pytest
import torch

import deltaw
from benchmarks.calibration.quantised import KINDS, NAME, fp8_rows, symmetric, weights
from deltaw.reports.quantised import findings, table
from deltaw.results.quantised import bits_per_weight, quantised
from deltaw.results.summary import Summary


def rows(
    explained: float, energy: float = 0.1, ratio: float = 1.0, layers: int = 3, step: float = 0.02
) -> list[dict[str, object]]:
    return [
        {
            "name": f"model.layers.{i}.q.weight",
            "layer": i,
            "ndim": 2,
            "rows": 64,
            "cols": 64,
            "base_dtype": "bfloat16",
            "ft_dtype": "int4_g32",
            "base_fro_norm": 10.0,
            "fro_norm": 1.0,
            "relative_change": 0.1,
            "rounding_noise": math.sqrt(explained) * (1 + step * i),
            "energy_at_16": energy,
            "rank_90_ratio": ratio,
            "clipped_fraction": 0.02,
        }
        for i in range(layers)
    ]


def said(*args: float) -> str:
    return " ".join(f.text for f in findings(Summary(quantised=quantised(rows(*args)))))


@pytest.mark.parametrize(
    ("explained", "words"),
    [(0.6, "no update can be told from it"), (0.4, "stands above its edge"), (0.005, "it does not matter here")],
)
def test_what_may_be_concluded(explained: float, words: str):
    text = said(explained)
    assert words in text
    assert "int4_g32" in text
    assert "largest in layer 2" in text
    assert ("correction" in text) == (explained > 0.5)


@pytest.mark.parametrize(("energy", "ratio", "worth"), [(0.3, 0.5, True), (0.3, 0.95, False), (0.2, 0.5, False)])
def test_whether_a_low_rank_correction_is_worth_it(energy: float, ratio: float, worth: bool):
    assert ("has few directions" in said(0.9, energy, ratio)) == worth


def test_layers_that_are_alike_are_said_to_be():
    assert "largest in layer 2" in said(0.04, 0.1, 1.0, 3, 0.0151)
    assert "about 2\u202f% of ‖W0‖ in every layer" in said(0.04, 0.1, 1.0, 3, 0.0149)


def test_one_layer_has_no_largest():
    assert "largest in layer" not in " ".join(f.text for f in findings(Summary(quantised=quantised(rows(0.9)[:1]))))


@pytest.mark.parametrize(
    ("form", "bits"),
    [("int4_g32", 4.5), ("gptq_int4_g128", 4 + 20 / 128), ("mlx_int4_g64", 4.5), ("int8_row", 8), ("fp8_block", 8)],
)
def test_bits_per_weight(form: str, bits: float):
    assert bits_per_weight(form) == pytest.approx(bits)


def test_bits_of_ggml_are_those_of_its_blocks():
    import gguf

    for kind, (weights_, octets) in gguf.GGML_QUANT_SIZES.items():
        form = kind.name.lower()
        if form in {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "nvfp4"} or form.startswith(("iq", "tq")):
            assert bits_per_weight(form) == 8 * octets / weights_, form
        if form.endswith("_k") and form != "q8_k":
            assert bits_per_weight(form) == 8 * octets / weights_, form


def test_the_section_of_a_real_report(tmp_path: Path):
    w = weights(KINDS[0], 1)
    result = deltaw.analyze({NAME: w}, symmetric(4, 32, 0.85)(w), out=tmp_path)
    (q,) = result.summary.quantised
    assert (q.side, q.format, q.matrices, q.bits) == ("fine-tuned", "int4_g32", 1, 4.5)
    assert q.explained.median == pytest.approx(1, abs=0.05)
    assert 0.03 < q.clipped.median < 0.08
    result.report(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert '<section id="quantised">' in html
    assert "A low-rank correction is not worth it" in html
    assert deltaw.load(tmp_path).summary.quantised == result.summary.quantised


def test_a_report_without_codes_has_no_such_section(tmp_path: Path):
    w = weights(KINDS[0], 1)
    deltaw.analyze({NAME: w}, {NAME: w + 0.001 * torch.randn_like(w)}).report(tmp_path / "report.html")
    assert '<section id="quantised">' not in (tmp_path / "report.html").read_text()


def test_a_quantised_base_alone_adds_nothing():
    w = weights(KINDS[0], 1)
    summary = deltaw.analyze(fp8_rows(w), {NAME: w}).summary
    (text,) = [f.text for f in findings(summary)]
    assert "taken for what its codes stand for" in text
    assert len(table(summary)[1]) == 1
