"""The base of a fine-tune that is given alone: seven kinds of hints, right and wrong ones, without a network."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import save_file

import deltaw
from deltaw.cli import main
from deltaw.errors import CheckpointError, OptionError
from deltaw.measurement.found_base import find_base
from tests.conftest import State, changed, pico_state, save_lora, save_single

COMMIT = "c" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A Hub cache; called with an id, the snapshot of it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def place(name: str, commit: str = COMMIT, ref: str = "main") -> Path:
        at = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (at / "refs").mkdir(parents=True, exist_ok=True)
        (at / "refs" / ref).write_text(commit)
        (at / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        return at / "snapshots" / commit

    return place


@pytest.fixture
def base(hub: Callable[[str], Path], pico: State) -> Path:
    return save_single(pico, hub("org/base"))


@pytest.fixture
def ft(tmp_path: Path, pico: State) -> Path:
    return save_single(changed(pico), tmp_path / "ft")


def card(folder: Path, front: str) -> None:
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n")


def config(folder: Path, **values: object) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def hub_says(monkeypatch: pytest.MonkeyPatch, *ids: str) -> list[str]:
    """The Hub's answer on baseModels; every question is recorded."""
    asked: list[str] = []

    class Api:
        def __init__(self, endpoint: str = "") -> None:
            pass

        def model_info(self, repo: str, *, revision: str, **asked_for: object) -> SimpleNamespace:
            if asked_for != {"expand": ["baseModels"]}:
                raise OfflineModeIsEnabled("its files are in the cache")
            asked.append(f"{repo}@{revision}")
            return SimpleNamespace(base_models={"relation": "finetune", "models": [{"_id": "1", "id": i} for i in ids]})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


def test_an_adapter_names_its_base_and_its_revision(hub: Callable[..., Path], base: Path, tmp_path: Path, pico: State):
    save_single(changed(pico), hub("org/base", "d" * 40, "v2"))
    adapter = save_lora(tmp_path / "a", base_model_name_or_path="org/base", revision="v2")
    found = find_base(adapter)
    assert (found.source, found.revision) == ("org/base@v2", "d" * 40)
    assert found.found_by == "named by adapter_config.json"
    plain = save_lora(tmp_path / "b", base_model_name_or_path="org/base", revision=None)
    assert find_base(plain).revision == COMMIT


def test_an_adapter_of_mlx_names_its_base_as_model(base: Path, tmp_path: Path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    factors = {"lora_a": torch.randn(16, 2), "lora_b": torch.randn(2, 16)}
    save_file({f"model.layers.0.self_attn.q_proj.{n}": t for n, t in factors.items()}, folder / "adapters.safetensors")
    about = {"model": "org/base", "fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 1.0}}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    assert len(deltaw.analyze(folder).rows) == 1


@pytest.mark.parametrize(
    "front",
    [
        "base_model: org/base",
        "license: mit\nbase_model:\n- org/base\ndate: 2024-01-01",
        "base_model: https://huggingface.co/org/base",
        "base_model: [org/base, org/base, '']",
    ],
)
def test_a_model_card_names_it(base: Path, ft: Path, front: str):
    card(ft, front)
    found = find_base(ft)
    assert (found.source, found.revision) == ("org/base", COMMIT)
    assert found.found_by == "named by README.md"


def test_a_config_names_it_as_a_path_or_an_id(base: Path, ft: Path, pico: State, tmp_path: Path):
    for name in (save_single(pico, tmp_path / "here"), "here", "org/base"):
        config(ft, _name_or_path=str(name))
        found = find_base(ft / "model.safetensors")
        assert found.source == str(name)
        assert found.found_by.startswith("named by config.json (_name_or_path)")


def test_a_pipeline_names_it(base: Path, tmp_path: Path, pico: State):
    folder = tmp_path / "pipeline"
    save_single(changed(pico), folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_name_or_path": "org/base", "transformer": ["a", "B"]}))
    found = find_base(folder)
    assert found.source == "org/base"
    assert found.found_by.startswith("named by model_index.json (_name_or_path)")


def test_the_hub_is_asked_last_but_one_and_once_a_commit(
    hub: Callable[[str], Path], base: Path, pico: State, monkeypatch: pytest.MonkeyPatch
):
    asked = hub_says(monkeypatch, "org/base")
    folder = save_single(changed(pico), hub("me/tuned"))
    config(folder, _name_or_path="somewhere/else")
    for _ in range(2):
        assert find_base("me/tuned").found_by.startswith("named by the Hub's baseModels")
    assert asked == [f"me/tuned@{COMMIT}"]
    card(folder, "base_model: org/base")
    assert find_base("me/tuned").found_by == "named by README.md"
    assert len(asked) == 1


def test_a_model_in_memory_knows_what_it_was_loaded_from(base: Path, pico: State):
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(pico["lm_head.weight"] + 1e-3)
            self.config = SimpleNamespace(to_dict=lambda: {"_name_or_path": "org/base"})

    assert find_base(Tiny()).source == "org/base"
    with pytest.raises(CheckpointError, match="no base was found: the model's config"):
        find_base(pico)


def test_a_wrong_hint_is_passed_over_and_told(base: Path, tmp_path: Path):
    adapter = save_lora(tmp_path / "a", base_model_name_or_path="/home/someone/llama")
    card(adapter, "base_model: org/base")
    result = deltaw.analyze(adapter)
    assert result.base is not None
    assert "'/home/someone/llama', which is not opened" in result.base.found_by
    assert result.base.found_by.startswith("named by README.md; adapter_config.json names")
    assert result.command.startswith(f"deltaw analyze org/base@{COMMIT} ")
    assert any("org/base was not given, but found" in note for note in result.notes)


def test_a_merge_of_several_is_refused_by_their_names(base: Path, ft: Path):
    card(ft, "base_model:\n- org/base\n- org/other\nbase_model_relation: merge")
    with pytest.raises(CheckpointError, match=r"made from several models \(README.md names org/base, org/other\)"):
        deltaw.analyze(ft)


def test_private_and_missing_bases_are_told_with_the_way_out(ft: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    card(ft, "base_model: org/private")
    config(ft, _name_or_path="../gone")
    done = CliRunner().invoke(main, ["analyze", str(ft)])
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1
    for part in ("org/private", "../gone", "no base was found", f"deltaw analyze BASE {ft}"):
        assert part in done.stderr


def test_hostile_and_useless_hints_name_nothing(base: Path, ft: Path):
    for front, said in {
        "base_model: [org/base": "cannot be read",
        "a: &a [org/base]\nbase_model: *a": "refers to another part",
        "base_model: {a: b}": "expected a text",
        "base_model: https://example.org/model": "not followed",
        "base_model: file:///etc/passwd": "not followed",
        f"base_model: {ft}": "names itself",
        "base_model: .": "not opened",
        "base_model: ''": "names no base_model",
    }.items():
        card(ft, front)
        with pytest.raises(CheckpointError, match="no base was found") as caught:
            find_base(ft)
        assert said in str(caught.value), front
    card(ft, "base_model: org/base")
    (ft / "README.md").write_text("base_model: org/base\n")  # no front matter: a sentence, and no hint
    with pytest.raises(CheckpointError, match="names no base_model"):
        find_base(ft)


def test_an_adapter_on_an_adapter_is_no_base(base: Path, hub: Callable[[str], Path], tmp_path: Path):
    first = hub("org/adapter")
    first.rmdir()
    save_lora(first)
    adapter = save_lora(tmp_path / "a", base_model_name_or_path="org/adapter")
    card(adapter, "base_model: org/base")
    assert find_base(adapter).source == "org/base"


def test_a_wrong_base_is_unrelated(hub: Callable[[str], Path], ft: Path):
    save_single(pico_state(seed=5), hub("org/other"))
    card(ft, "base_model: org/other")
    assert deltaw.analyze(ft).summary.verdict == "unrelated"


def test_a_quantised_parent_is_taken_as_it_is_and_said(hub: Callable[[str], Path], ft: Path, pico: State):
    folder = hub("org/base-int8")
    state = dict(pico)
    name = "model.layers.0.mlp.up_proj.weight"
    scale = state[name].abs().amax(1) / 127
    state[name] = (state[name] / scale[:, None]).round().to(torch.int8)
    state[name.replace("weight", "SCB")] = scale * 127
    save_single(state, folder)
    config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    card(ft, "base_model: org/base-int8")
    assert "and taken as it is" in find_base(ft).found_by


def test_the_command_says_it_in_one_line_and_keeps_it(base: Path, ft: Path, tmp_path: Path):
    card(ft, "base_model: org/base")
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["analyze", str(ft), "--out", str(out), "--no-report", "--json"])
    assert done.exit_code == 0, done.output
    assert next(line for line in done.stderr.splitlines() if "base" in line) == "base: org/base (named by README.md)"
    said = json.loads(done.stdout)["base"]
    assert (said["path"], said["revision"], said["found_by"]) == ("org/base", COMMIT, "named by README.md")
    loaded = deltaw.load(out)
    assert loaded.base is not None
    assert loaded.base.found_by == "named by README.md"
    given = deltaw.analyze("org/base", ft)
    assert loaded.to_pandas().drop(columns="seconds").equals(given.to_pandas().drop(columns="seconds"))
    shown = CliRunner().invoke(main, ["inspect", str(ft), "--json"])
    assert json.loads(shown.stdout)["base"]["found_by"] == "named by README.md"


def test_nothing_at_all_is_a_usage_error():
    assert CliRunner().invoke(main, ["analyze"]).exit_code == 2
    with pytest.raises(OptionError, match="nothing to analyze"):
        deltaw.analyze(None)
