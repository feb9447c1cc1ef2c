"""How much was compared is counted right and said first; nothing is said of the model where it is a part."""

import re
from math import prod

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import deltaw
from deltaw.cli import main
from deltaw.cli.summary import show
from deltaw.errors import PairingError
from deltaw.reports.findings import answer
from deltaw.reports.text import unmarked
from tests.conftest import changed, pico_state, save_single

PICO = pico_state(layers=1)
FT = changed(PICO)
NAMES = sorted(PICO)
# What would be a sentence about the whole model.
OF_THE_MODEL = re.compile(
    r"Nothing changed|\ball \d+ (tensors|matrices)|\bthe model\b|^Only (?!\d+(\.\d+)? % of the base)|"
    r"^These are not a base|^\d+ of \d+ tensors|hold the same numbers on both sides(?<!compared)$"
)


def said(result) -> list[str]:
    return [unmarked(finding.text) for finding in answer(result.summary)]


@given(
    st.sets(st.sampled_from(NAMES)),
    st.sets(st.sampled_from(NAMES)),
    st.sampled_from(["changed", "equal", "vectors", "unrelated"]),
)
@settings(max_examples=200)
def test_no_sentence_about_the_model_where_less_than_nine_tenths_were_compared(deleted, renamed, how):
    ft = {
        "changed": FT,
        "equal": PICO,
        "vectors": {n: t if t.ndim > 1 else FT[n] for n, t in PICO.items()},
        "unrelated": {n: 1 + torch.randn_like(t) for n, t in PICO.items()},
    }[how]
    ft = {(f"zz{i}" if n in renamed else n): ft[n] for i, n in enumerate(NAMES) if n not in deleted}
    left = set(NAMES) - deleted - renamed
    if not any(PICO[n].ndim > 1 for n in left):
        with pytest.raises(PairingError, match=r"nearest names|no tensor"):
            deltaw.analyze(PICO, ft)
        return
    result = deltaw.analyze(PICO, ft)
    c = result.summary.coverage
    assert (c.compared_tensors, c.tensors) == (len(left), len(NAMES))
    assert c.compared_numbers == sum(PICO[n].numel() for n in left)
    assert c.numbers == sum(t.numel() for t in PICO.values())
    assert (c.ft_tensors, c.ft_numbers) == (len(ft), sum(t.numel() for t in ft.values()))
    sentences = said(result)
    if c.share < 0.9:
        assert sentences[0].startswith(f"Only {int(1000 * c.share) / 10:.3g} % of the base was compared")
        assert not [s for s in sentences if OF_THE_MODEL.search(s)]
    else:
        assert "of the base was compared" not in sentences[0]


def test_the_terminal_says_it_first(tmp_path):
    base, ft = save_single(PICO, tmp_path / "b"), {n: t for n, t in FT.items() if "layers.0" not in n}
    args = [str(base), str(save_single(ft, tmp_path / "f"))]
    out = CliRunner().invoke(main, ["analyze", *args, "--out", str(tmp_path / "o"), "--no-report"])
    assert out.exit_code == 0
    share = sum(t.numel() for t in ft.values()) / sum(t.numel() for t in PICO.values())
    assert out.output.lstrip("• ").startswith(f"Only {int(1000 * share) / 10:.3g} % of the base was compared")
    assert re.search(
        r"the largest group without a row is .*only in the base.* \(9 tensors\)", " ".join(out.output.split())
    )
    looked = CliRunner().invoke(main, ["inspect", *args])
    assert f"coverage: {int(1000 * share) / 10:.3g} % of the base" in looked.output


def test_what_was_not_asked_for_does_not_count():
    c = deltaw.analyze(PICO, FT, include="mlp").summary.coverage
    mlp = [t for n, t in PICO.items() if "mlp" in n]
    assert (c.share, c.tensors, c.numbers) == (1, len(mlp), sum(t.numel() for t in mlp))
    c = deltaw.analyze(PICO, FT, exclude="layers").summary.coverage
    assert (c.share, c.tensors) == (1, 3)


def test_tied_tensors_count_once_and_buffers_of_integers_do_not():
    base = PICO | {"ids": torch.arange(4)}
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    ft = changed({n: t for n, t in base.items() if n != "ids"}) | {"ids": torch.arange(4)}
    ft["lm_head.weight"] = ft["model.embed_tokens.weight"]
    c = deltaw.analyze(base, ft).summary.coverage
    numbers = sum(t.numel() for n, t in PICO.items() if n != "lm_head.weight")
    assert (c.share, c.tensors, c.numbers) == (1, len(PICO) - 1, numbers)


def test_a_resized_vocabulary_counts_by_its_rows():
    ft = dict(FT) | {"model.embed_tokens.weight": FT["model.embed_tokens.weight"][:30]}
    c = deltaw.analyze(PICO, ft).summary.coverage
    assert c.numbers - c.compared_numbers == 10 * 16
    assert c.compared_tensors == c.tensors


def test_what_failed_was_not_compared():
    ft = dict(FT) | {"lm_head.weight": torch.full((40, 16), torch.inf)}
    result = deltaw.analyze(PICO, ft)
    c = result.summary.coverage
    assert c.numbers - c.compared_numbers == 40 * 16
    assert c.share < 0.9
    assert re.search(r"the largest group without a row is .*could not be measured.* \(1 tensor\)", said(result)[0])


def test_what_the_fine_tune_has_more_is_said_before_that_nothing_changed():
    more = {f"vision.{i}.weight": torch.ones(16, 16) for i in range(9)}
    result = deltaw.analyze(PICO, PICO | more)
    assert result.summary.coverage.share == 1
    numbers = sum(t.numel() for t in PICO.values())
    first, second = said(result)
    counts = [int(re.sub(r"\D", "", n)) for n in re.findall(r"\d[\d\s]*", first)]
    assert first.startswith("The fine-tuned side holds more than the base: ")
    assert counts == [9 * 256, numbers + 9 * 256]
    assert second.startswith("Nothing changed")
    assert len(said(deltaw.analyze(PICO, PICO | {"v_head.weight": torch.ones(1, 16)}))) == 1


def test_codes_without_scales_are_called_what_they_are():
    def codes(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {n: t.mul(50).to(dtype) if t.ndim > 1 else t for n, t in PICO.items()}

    with pytest.raises(PairingError, match=r"lm_head.weight is quantised: integer codes: codes without the scales"):
        deltaw.analyze(PICO, codes(torch.int8))
    with pytest.raises(PairingError, match=r"is float32 in the base and int64 in the fine-tuned side: codes without"):
        deltaw.analyze(PICO, codes(torch.int64))


def test_a_model_without_a_matrix():
    assert said(deltaw.analyze({"n.weight": torch.ones(4)}, {"n.weight": torch.zeros(4)}))[0] == (
        "The one vector changed, and there is no matrix to compare."
    )
    vectors = {"n.weight": torch.ones(4), "n.bias": torch.zeros(4)}
    assert said(deltaw.analyze(vectors, vectors | {"n.bias": torch.ones(4)}))[0] == (
        "1 of 2 vectors changed, and there is no matrix to compare."
    )


def test_a_base_of_zeros_is_called_one():
    base = {"a.weight": torch.zeros(8, 8)}
    first = said(deltaw.analyze(base, {"a.weight": torch.eye(8)}))[0]
    assert first == "1 of 1 matrix changed; the base is zero there, so nothing relative to it can be said."


def test_nothing_that_could_be_measured():
    base = {"a.weight": torch.ones(8, 8)}
    first = said(deltaw.analyze(base, {"a.weight": torch.full((8, 8), torch.nan)}))[0]
    assert first == (
        "Nothing of the base was compared: it has 64 numbers in 1 tensor; the largest group without a row is “could "
        "not be measured” (1 tensor)."
    )


@pytest.mark.parametrize("split", [False, True])
def test_experts_and_parts_add_up(split):
    base = {"l.0.mlp.experts.gate_up_proj": torch.randn(3, 8, 6), "l.0.mlp.gate.weight": torch.randn(3, 6)}
    ft = {n: t + 0.1 for n, t in base.items()}
    c = deltaw.analyze(base, ft, split_fused=split).summary.coverage
    assert (c.compared_numbers, c.numbers) == (sum(prod(t.shape) for t in base.values()),) * 2


def test_the_terminal_of_a_python_session(capsys, tmp_path):
    show(deltaw.analyze(PICO, FT), tmp_path, report=False)
    assert "coverage: 100 % of the base" in capsys.readouterr().out
