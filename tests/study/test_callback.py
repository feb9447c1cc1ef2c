"""The callback against `deltaw.analyze` on checkpoints saved at the same steps."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import deltaw
from deltaw.errors import OptionError
from deltaw.study import SpectrumCallback, arms
from deltaw.study.plan import Arm
from deltaw.study.training import train
from deltaw.types import Reason

from .conftest import DORA, FULL, LORA, MORA6, blocks

TIMES = ["seconds"]


def fit(model: Any, folder: Path, **options: Any) -> None:
    settings: dict[str, Any] = {"steps": 4, "batch": 4, "schedule": "constant_with_warmup", "warmup": 1}
    with arms.quiet():
        train(model, blocks(), workdir=folder, learning_rate=1e-2, **settings | options)


def check(found: deltaw.Analysis, expected: deltaw.Analysis) -> None:
    tables = [a.to_pandas().drop(columns=TIMES).sort_values("name", ignore_index=True) for a in (found, expected)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert len(tables[0]) > 10
    assert set(found.spectra) == set(expected.spectra)
    for name in found.spectra:
        assert (found.spectra[name].values == expected.spectra[name].values).all()


WHOLE = Arm("LoRA and a head", "lora", (3e-2,), rank=2, options={"modules_to_save": ["lm_head"]})


@pytest.mark.parametrize("arm", [FULL, LORA, DORA, WHOLE], ids=lambda a: a.name)
def test_records_equal_analyze_on_saved_checkpoints(base: Path, tmp_path: Path, arm: Arm) -> None:
    with arms.quiet():
        model = arms.prepare(arms.open_base(base), arm)
    spectra = SpectrumCallback(every=2, device="cpu", jobs=1)

    def save(model: Any, step: int) -> None:
        arms.save(model, arm, tmp_path / str(step), str(base))

    fit(model, tmp_path, points=(2, 4), at_point=save, callbacks=[spectra])
    assert list(spectra.analyses) == [2, 4]
    for step, found in spectra.analyses.items():
        check(found, deltaw.analyze(base, tmp_path / str(step), device="cpu", jobs=1))
    if arm is LORA:
        routes = set(spectra.to_pandas()["route"])
        assert routes == {"factored"}


def test_a_method_of_ones_own_is_saved_by_its_own_function(base: Path, tmp_path: Path) -> None:
    with arms.quiet():
        model = arms.prepare(arms.open_base(base), MORA6)
    save = partial(arms.save, arm=MORA6, base=str(base))
    spectra = SpectrumCallback(base, every=None, at=[3], save=lambda m, out: save(m, out=out), device="cpu", jobs=1)
    fit(model, tmp_path, points=(3,), at_point=lambda m, _: save(m, out=tmp_path / "saved"), callbacks=[spectra])
    assert list(spectra.analyses) == [3]
    check(spectra.analyses[3], deltaw.analyze(base, tmp_path / "saved", device="cpu", jobs=1))


def test_the_table_and_the_files(base: Path, tmp_path: Path) -> None:
    spectra = SpectrumCallback(every=3, at=[2], out=tmp_path / "out", include=[r"q_proj"], device="cpu")
    assert spectra.to_pandas().empty
    with arms.quiet():
        model = arms.open_base(base)
    fit(model, tmp_path, callbacks=[spectra])
    table = spectra.to_pandas()
    assert table.columns[0] == "step"
    assert table["step"].tolist() == [2, 2, 3, 3]
    assert table["relative_change"].gt(0).all()
    again = deltaw.load(tmp_path / "out" / "step-00000003").to_pandas()
    assert again["fro_norm"].tolist() == table.loc[table["step"] == 3, "fro_norm"].tolist()
    assert 0 < spectra.overhead < 1
    assert list(spectra.analyses) == [2, 3]
    assert spectra.monitor is not None
    assert spectra.monitor.last is not None
    pd.testing.assert_frame_equal(spectra.analyses[3].to_pandas(), spectra.monitor.last.to_pandas(), check_exact=True)
    first = weakref.ref(spectra.record(model, 4))
    spectra.record(model, 5)
    gc.collect()
    assert first() is None, "what is in files is not kept in memory"
    assert list(spectra.analyses) == [2, 3, 4, 5]


def test_tied_weights_stay_tied(base: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(base)
    config.tie_word_embeddings = True
    spectra = SpectrumCallback(every=4, device="cpu")
    fit(transformers.LlamaForCausalLM(config), tmp_path, callbacks=[spectra])
    found = spectra.analyses[4]
    names = [r["name"] for r in found.rows]
    assert ("lm_head.weight" in names) + ("model.embed_tokens.weight" in names) == 1
    assert any(s.because == Reason.TIED_TO for s in found.skipped)


def test_a_record_leaves_the_threads_of_the_training_alone() -> None:
    model = torch.nn.Linear(8, 6)
    base = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        SpectrumCallback(base, device="cpu", jobs=1).record(model, 6)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_options_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match="every = 0"):
        SpectrumCallback(every=0)
    with pytest.raises(OptionError, match="needs `base`"):
        SpectrumCallback(save=lambda *_: None)
