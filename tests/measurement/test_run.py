"""`deltaw.analyze` from Python, over tensors in memory and on disk: what a caller may pass, and what comes back."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import deltaw
import deltaw.measurement.directory
from deltaw.measurement.journal import Journal
from deltaw.measurement.measured import Measured
from tests.conftest import State, changed, save_single


def test_empty_tensors_are_rows_that_did_not_change():
    shapes = {"rows": (0, 4), "cols": (4, 0), "stack": (2, 0, 3), "none": (0, 0), "vector": (0,), "w": (3, 2)}
    base = {name: torch.ones(shape) for name, shape in shapes.items()}
    result = deltaw.analyze(base, {k: v + 1 for k, v in base.items()})
    frame = result.to_pandas().set_index("name")
    assert not result.skipped
    empty = frame.drop("w")
    assert set(empty.route) == {"unchanged"}
    assert (empty.fro_norm == 0).all()
    assert empty.effective_rank.isna().all()
    assert (frame.loc["rows", "rows"], frame.loc["rows", "cols"]) == (0, 4)


def test_a_checkpoint_of_empty_tensors_only():
    result = deltaw.analyze({"a": torch.zeros(0, 4)}, {"a": torch.zeros(0, 4)})
    assert len(result.rows) == 1
    assert not result.failed


def test_one_pattern_is_not_a_list_of_letters(pico: State):
    result = deltaw.analyze(pico, changed(pico), include="q_proj")
    assert all("q_proj" in row["name"] for row in result.rows)
    inspected = deltaw.inspect(pico, changed(pico), exclude="mlp")
    assert not any("mlp" in pair.name for pair in inspected.plan.pairs)


@pytest.mark.parametrize("memory", ["1KB", "8GB", 1])
def test_memory_is_bytes_or_a_size(memory: int | str, pico: State):
    assert len(deltaw.analyze(pico, changed(pico), memory=memory).rows) == len(pico)


@pytest.mark.parametrize("memory", ["lots", 0, -5])
def test_no_memory_budget(memory: int | str, pico: State):
    with pytest.raises(deltaw.DeltaWError):
        deltaw.analyze(pico, changed(pico), memory=memory)


def test_an_unknown_name_is_an_error_of_ours_and_a_key_error(pico: State):
    result = deltaw.analyze(pico, changed(pico), include="q_proj")
    name = result.rows[0]["name"]
    with pytest.raises(deltaw.DeltaWError, match="Did you mean") as error:
        result.spectrum(name[:-1])
    assert isinstance(error.value, KeyError)
    assert str(error.value).startswith("no spectrum of ")


def test_a_tied_head_is_measured_as_the_embedding_in_every_format(tmp_path: Path, pico: State):
    """A safetensors file keeps the embedding alone, a pickle both names: the rows are the same."""
    tied = {k: v for k, v in pico.items() if k != "lm_head.weight"}
    frames = []
    for form in ("safetensors", "bin"):
        paths = []
        for side, state in (("base", tied), ("ft", changed(tied))):
            folder = tmp_path / form / side
            if form == "safetensors":
                save_single(state, folder)
            else:
                folder.mkdir(parents=True)
                both = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
                torch.save(both, folder / "pytorch_model.bin")
            paths.append(folder)
        result = deltaw.analyze(*paths)
        frames.append(result.to_pandas().drop(columns="seconds"))
    assert [(s.name, s.reason) for s in result.skipped] == [("lm_head.weight", "tied_to model.embed_tokens.weight")]
    pd.testing.assert_frame_equal(*frames)


def test_tables_of_an_earlier_run_do_not_stay_beside_the_new_numbers(tmp_path: Path, pico: State):
    deltaw.analyze(pico, changed(pico), out=tmp_path)
    other = deltaw.analyze(pico, changed(pico, scale=0.5), out=tmp_path, formats=["json"], force=True)
    assert sorted(p.name for p in tmp_path.glob("layers.*")) == ["layers.json"]
    found = deltaw.load(tmp_path).to_pandas().fro_norm
    assert all(math.isclose(a, b) for a, b in zip(found, other.to_pandas().fro_norm, strict=True))


def test_an_edited_config_is_not_resumed_from(tmp_path: Path, pico: State, monkeypatch: pytest.MonkeyPatch):
    """config.json says which tensors are tied or stored transposed: rows of another one are measured again."""
    base, ft = save_single(pico, tmp_path / "b"), save_single(changed(pico), tmp_path / "f")
    identities = []
    real = deltaw.measurement.directory.Journal

    def opened(out: Path, identity: str, **options: Any) -> Any:
        identities.append(identity)
        return real(out, identity, **options)

    monkeypatch.setattr("deltaw.measurement.directory.Journal", opened)
    for config in ('{"fan": 1}', '{ "fan": 1 }', '{"fan": 2}'):
        (ft / "config.json").write_text(config)
        deltaw.analyze(base, ft, out=tmp_path / "o", jobs=1)
    assert identities[0] == identities[1] != identities[2]


def test_what_is_resumed_has_the_threads_that_it_would_have_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The number of threads decides the last digits: it must not follow from how much is left to do."""
    g = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.w.weight": torch.randn(40, 40 + i, generator=g) for i in range(3)}
    folders = save_single(base, tmp_path / "base"), save_single(changed(base), tmp_path / "ft")
    threads: list[int] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    add, kept = Journal.add, []

    def cut_off(journal: Journal, key: str, measured: Measured) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(key)
        add(journal, key, measured)

    with monkeypatch.context() as cut:
        cut.setattr(Journal, "add", cut_off)
        with pytest.raises(KeyboardInterrupt):
            deltaw.analyze(*folders, out=tmp_path / "out")
    whole = set(threads[:3])
    threads.clear()
    deltaw.analyze(*folders, out=tmp_path / "out")
    assert len(threads) == 2  # the one that was left, and what the caller had
    assert threads[0] in whole
