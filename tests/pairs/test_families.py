"""Real models of transformers: every tensor pairs, with and without head, and rows equal what peft's merge does."""

import copy
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import deltaw
from tests.pairs.families import FAMILIES, Family, build


@dataclass(frozen=True)
class Saved:
    """One family on disk: with and without head, both perturbed, an adapter, the merge, and what it changed."""

    base: Path
    bare: Path | None
    ft: Path
    bare_ft: Path | None
    adapter: Path
    merged: Path
    deltas: dict[str, torch.Tensor]
    heads: set[str]


def perturbed(model, seed: int = 7):
    out, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in out.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=g))
    return out


def save(family: Family, folder: Path) -> Saved:
    import peft
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = build(family)
    ft = perturbed(model)
    model.save_pretrained(folder / "base")
    ft.save_pretrained(folder / "ft")
    bare = bare_ft = None
    if family.bare:
        bare, bare_ft = folder / "bare", folder / "bare_ft"
        for each, where in ((model, bare), (ft, bare_ft)):
            getattr(each, each.base_model_prefix).save_pretrained(where)
    loaded = type(model).from_pretrained(folder / "base")
    before = {n: t.detach().double().clone() for n, t in loaded.state_dict().items()}
    tuned = peft.get_peft_model(loaded, peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **family.lora))
    g = torch.Generator().manual_seed(2)
    for p in tuned.parameters():
        if p.requires_grad:
            p.data = 0.05 * torch.randn(p.shape, generator=g)
    tuned.save_pretrained(folder / "adapter")
    merged = tuned.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    after = {n: t.detach().double() for n, t in merged.state_dict().items()}
    deltas = {n: after[n] - t for n, t in before.items() if not torch.equal(after[n], t)}
    own = set(getattr(model, model.base_model_prefix).state_dict()) if family.bare else set()
    heads = {n for n in model.state_dict() if n.removeprefix(model.base_model_prefix + ".") not in own}
    return Saved(folder / "base", bare, folder / "ft", bare_ft, folder / "adapter", folder / "merged", deltas, heads)


@pytest.fixture(scope="session", params=FAMILIES)
def saved(request, tmp_path_factory) -> Saved:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def norms(deltas: dict[str, torch.Tensor]) -> list[float]:
    """‖ΔW‖ of everything that changed, of a stack each expert by itself."""
    return sorted(float(e.norm()) for d in deltas.values() for e in (d if d.ndim == 3 else [d]))


def found_norms(result: deltaw.Analysis) -> list[float]:
    """The same of the rows; gate and up of one expert, which the Hub keeps apart, together."""
    sums: dict[str, float] = {}
    for row in result.rows:
        if row["fro_norm"] > 0:
            at = re.sub(r"\.(gate_proj|up_proj|w1|w3)\.weight$", ".gate_up", f"{row['name']} {row['part']}".strip())
            at = at if "experts" in at else row["name"]
            sums[at] = sums.get(at, 0.0) + row["fro_norm"] ** 2
    return sorted(x**0.5 for x in sums.values())


def reasons(result: deltaw.Analysis) -> set[str]:
    return {s.because.value for s in result.skipped} - {"tied_to", "not_floating"}


def test_base_and_fine_tune(saved):
    result = deltaw.analyze(saved.base, saved.ft)
    assert result.summary.coverage.share == 1
    assert not reasons(result)


def test_without_its_head(saved):
    """`BertModel` against `BertForMaskedLM`, both ways: all that both have is compared."""
    if saved.bare is None:
        pytest.skip("this family has no head that stands apart")
    result = deltaw.analyze(saved.bare, saved.ft)
    assert result.summary.coverage.share == 1
    assert reasons(result) <= {"only_in_ft"}
    back = deltaw.analyze(saved.base, saved.bare_ft)
    assert len(back.rows) == len(result.rows)
    assert reasons(back) <= {"only_in_base"}
    assert found_norms(back) == pytest.approx(found_norms(result), rel=1e-12)


def test_the_adapter_is_what_peft_merges(saved):
    result = deltaw.analyze(saved.base, saved.adapter)
    assert found_norms(result) == pytest.approx(norms(saved.deltas), rel=1e-4)
    assert {r["route"] for r in result.rows} == {"factored"}
    assert reasons(result) <= {"only_in_base"}
    if saved.bare is not None and all(n not in saved.heads for n in saved.deltas):
        bare = deltaw.analyze(saved.bare, saved.adapter)
        assert found_norms(bare) == pytest.approx(found_norms(result), rel=1e-12)


def test_the_merge_is_the_base_and_the_adapter(saved):
    result = deltaw.analyze(saved.base, saved.merged)
    assert result.summary.coverage.share == 1
    assert not reasons(result)
    assert found_norms(result) == pytest.approx(norms(saved.deltas), rel=1e-4)
    assert deltaw.verify(saved.base, saved.adapter, saved.merged).passed


def test_the_table_names_what_was_asked_for():
    asked = "gpt2 bert roberta distilbert vit bloom gpt_neox esm electra llama opt t5 whisper clip mixtral qwen3_moe"
    asked += (
        " gemma3 llava qwen2_5_vl gpt_oss phi3 gemma2 mistral falcon qwen2 stablelm olmo2 deepseek_v3 granite mamba"
    )
    assert {*asked.split(), "deberta-v2"} <= set(FAMILIES)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gemma3", "llava", "qwen2_5_vl"])
def test_the_common_ones_are_built_in(family, tmp_path, monkeypatch):
    """Without transformers' own mapping, as where transformers is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = save(FAMILIES[family], tmp_path)
    monkeypatch.setattr("deltaw.pairs.matching.conversion", lambda config: None)
    result = deltaw.analyze(saved.base, saved.adapter)
    assert found_norms(result) == pytest.approx(norms(saved.deltas), rel=1e-4)
    assert deltaw.analyze(saved.base, saved.bare_ft).summary.coverage.share > 0.8
