"""The JSON Schemas: they ship, are current, hold for what the commands print, and refuse what is not it."""

import importlib.util
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from deltaw.cli import main
from tests.conftest import State, pico_state, save_single

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("make_schemas", ROOT / "docs" / "make_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: module.written(schema) for name, schema in module.schemas().items()}


def shipped(name: str) -> Any:
    return json.loads((files("deltaw") / "schemas" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["analysis", "inspect", "compare", "survey", "extract", "verify"])
def test_they_are_current_and_valid(generated: dict[str, str], name: str):
    text = (files("deltaw") / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    assert text == generated[name], "run `python docs/make_schemas.py`"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def printed(*args: object, code: int = 0) -> Any:
    """The one document on stdout."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def lora(folder: Path, base: State) -> tuple[Path, State]:
    """An adapter, and the base with it merged."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "model.layers.0.self_attn.q_proj"
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 16, generator=g), torch.randn(16, 2, generator=g)
    module = f"base_model.model.{name}"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    return folder, {**base, f"{name}.weight": base[f"{name}.weight"] + b @ a}


@pytest.fixture
def documents(tmp_path: Path, pico_pair: tuple[Path, Path]) -> list[tuple[str, Any]]:
    """Real documents of every command, in every exit path that has a result."""
    base, ft = pico_pair
    state = pico_state()
    adapter, merged = lora(tmp_path / "adapter", state)
    plain = save_single(state, tmp_path / "plain")
    right, wrong = save_single(merged, tmp_path / "merged"), save_single(state, tmp_path / "unmerged")
    broken = {**state, "model.layers.0.mlp.up_proj.weight": torch.full((24, 16), torch.nan)}
    bad = save_single(broken, tmp_path / "broken")
    runs = tmp_path / "runs"
    quick = ("--no-report", "--json")
    return [
        ("analysis", printed("analyze", base, ft, "--out", runs / "a", *quick)),
        ("analysis", json.loads((runs / "a" / "analysis.json").read_text())),
        ("analysis", printed("analyze", base, ft, "--out", runs / "b", "--mode", "fast", "--alignment", *quick)),
        ("analysis", printed("analyze", plain, adapter, "--out", runs / "c", *quick)),
        ("analysis", printed("analyze", "--no-base", adapter, "--out", runs / "d", *quick)),
        ("analysis", printed("analyze", base, bad, "--out", runs / "e", *quick, code=3)),
        ("analysis", printed("analyze", base, ft, "--out", runs / "a", *quick, "--fail-if", "rows.max > 0", code=5)),
        ("inspect", printed("inspect", base, ft, "--json")),
        ("inspect", printed("inspect", "--no-base", adapter, "--json")),
        ("verify", printed("verify", plain, adapter, right, "--json")),
        ("verify", printed("verify", plain, adapter, wrong, "--json", code=4)),
        ("verify", printed("verify", plain, adapter, "--predict", "int4-g32", "--json")),
        ("extract", printed("extract", base, ft, "--rank", 2, "--out", tmp_path / "extracted", "--json")),
        ("extract", printed("resize", adapter, "--rank", 1, "--out", tmp_path / "resized", "--json")),
        ("survey", printed("survey", plain, adapter, tmp_path / "resized", "--out", tmp_path / "one", *quick)),
        ("survey", printed("survey", plain, adapter, "none", "--out", tmp_path / "two", *quick, code=3)),
        ("compare", printed("compare", runs / "a", runs / "b", "--out", tmp_path / "cmp", *quick)),
    ]


def test_every_document_is_valid_and_a_broken_one_is_not(documents: list[tuple[str, Any]]):
    for name, document in documents:
        schema = shipped(name)
        jsonschema.validate(document, schema)
        for key in schema["required"]:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({k: v for k, v in document.items() if k != key}, schema)
    analysis = documents[0][1]
    for path, value in ((("summary", "verdict"), "fine"), (("summary", "tensors"), 1.5), (("skipped",), "none")):
        changed = json.loads(json.dumps(analysis))
        at = changed
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, shipped("analysis"))


def test_every_column_is_in_the_schema():
    from deltaw.results.columns import columns

    assert set(shipped("analysis")["properties"]["layers"]["items"]["properties"]) == set(columns())
