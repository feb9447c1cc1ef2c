"""Runs of different bases are found before any work starts; layers are paired whatever wraps their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.comparison import same_base
from deltaw.errors import ManifestError
from tests.conftest import HIDDEN, State, changed, pico_state, save_single

Write = Callable[[str], Path]


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(k): v for k, v in state.items()}


def results(folder: Path, base: State, ft: State | None = None, at: str = "") -> Path:
    """`folder`/r: a saved analysis of a base (kept in `folder`/base or `at`) and its fine-tune."""
    path = save_single(base, folder.parent / (at or f"{folder.name}-base"))
    other = save_single(changed(base) if ft is None else ft, folder.parent / f"{folder.name}-ft")
    deltaw.analyze(path, other, out=folder, jobs=1)
    return folder


def lora(folder: Path, modules: tuple[str, ...] = ("q_proj", "v_proj")) -> Path:
    g = torch.Generator().manual_seed(5)
    state = {}
    for i in range(2):
        for m in modules:
            at = f"base_model.model.model.layers.{i}.self_attn.{m}"
            state[f"{at}.lora_A.weight"] = torch.randn(2, HIDDEN, generator=g)
            state[f"{at}.lora_B.weight"] = torch.randn(HIDDEN, 2, generator=g)
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def complaint(*args: Any, **options: Any) -> str:
    with pytest.raises(ManifestError) as e:
        deltaw.compare(*args, **options)
    return str(e.value)


def never(run: str, index: int, count: int) -> None:
    raise AssertionError(f"{run} was analysed")


def test_results_that_share_no_tensor(tmp_path: Path) -> None:
    a = results(tmp_path / "a", pico_state())
    b = results(tmp_path / "b", renamed(pico_state(1), lambda n: n[::-1]))
    message = complaint([a, b])
    assert message.startswith(f"{b}: run 'b' has no tensor in common with run 'a'")
    assert f"({tmp_path / 'b-base'})" in message
    assert "compare runs of one base only" in message
    assert len(message.splitlines()) == 1


def test_results_of_another_base_than_the_manifest_names(tmp_path: Path, manifest: Write) -> None:
    results(tmp_path / "good", pico_state(), at="base")
    run = '[[runs]]\nname = "{0}"\nresults = "{0}"\n'
    text = 'base = "base"\n' + run.format("good")
    assert deltaw.compare(manifest(text)).warnings == [
        "One group has a single run ('good'): intervals cover layers only there, not what another seed would give."
    ]
    results(tmp_path / "same-names", pico_state(1))
    results(tmp_path / "no-names", renamed(pico_state(1), lambda n: n[::-1]))
    wider = {k: torch.cat([v, v]) for k, v in pico_state(1).items()}
    results(tmp_path / "shapes", wider)
    for name, words in (
        ("same-names", "has a base norm of"),
        ("no-names", "no tensor in common"),
        ("shapes", "layernorm.weight has 32 entries, there 16"),
    ):
        path = manifest('base = "base"\n' + run.format(name))
        message = complaint(path)
        assert message.startswith(f"{path}:2: run {name!r} has another base ({tmp_path / f'{name}-base'}) than ")
        assert words in message
        assert "compare runs of one base only" in message
    message = complaint(manifest(text + run.format("same-names") + run.format("shapes")))
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        f"run {name!r} has another base ({tmp_path / f'{name}-base'}) than run 'good' ({tmp_path / 'base'})"
        for name in ("same-names", "shapes")
    ]


def test_another_base_is_found_before_a_checkpoint_is_analysed(tmp_path: Path, manifest: Write) -> None:
    base = pico_state()
    save_single(base, tmp_path / "base")
    save_single(changed(base, seed=3), tmp_path / "ft")
    results(tmp_path / "old", pico_state(1))
    path = manifest(
        'base = "base"\n[[runs]]\nname = "ft"\ncheckpoint = "ft"\n[[runs]]\nname = "old"\nresults = "old"\n'
    )
    assert f"{path}:5: run 'old' has another base" in complaint(path, out=tmp_path / "out", progress=never)
    assert not (tmp_path / "out").exists()


def test_experts_resized_vocabularies_and_wrappers_are_of_the_base(tmp_path: Path, manifest: Write) -> None:
    base = pico_state() | {"model.layers.0.mlp.experts.down_proj": torch.randn(3, HIDDEN, 8)}
    ft = changed(base)
    ft["model.embed_tokens.weight"] = ft["model.embed_tokens.weight"][:-4]
    results(tmp_path / "r", base, renamed(ft, lambda n: f"module.{n}"), at="base")
    path = manifest('base = "base"\n[[runs]]\nname = "r"\nresults = "r"\n')
    deltaw.compare(path)
    base["model.layers.0.mlp.experts.down_proj"][1] *= 1.01
    save_single(base, tmp_path / "base")
    assert "experts.down_proj has a base norm of" in complaint(path)


def test_of_a_large_base_a_part_is_read(tmp_path: Path, manifest: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    results(tmp_path / "r", pico_state(), at="base")
    path = manifest('base = "base"\n[[runs]]\nname = "r"\nresults = "r"\n')
    read: list[int] = []
    norm = same_base._norm

    def counted(handle: Any) -> float:
        read.append(handle.nbytes)
        return norm(handle)

    monkeypatch.setattr(same_base, "_norm", counted)
    deltaw.compare(path, similarity=False)
    assert len(read) == 21
    read.clear()
    monkeypatch.setattr(same_base, "READ_BYTES", 4000)
    deltaw.compare(path, similarity=False)
    assert 0 < sum(read) <= 6000


def test_a_base_that_cannot_be_read_is_a_warning(tmp_path: Path, manifest: Write) -> None:
    results(tmp_path / "r", pico_state())
    (tmp_path / "base").mkdir()
    c = deltaw.compare(manifest('base = "base"\n[[runs]]\nname = "r"\nresults = "r"\n'))
    assert any("cannot be read" in w and "nobody can check" in w for w in c.warnings)


def test_adapters_on_different_modules_of_one_base(tmp_path: Path, manifest: Write) -> None:
    """They share no tensor, which is no error where the base is known to be the same, but a warning."""
    base = save_single(pico_state(), tmp_path / "base")
    copy = save_single(pico_state(), tmp_path / "copy")
    for name, module, of in (("q", "q_proj", base), ("v", "v_proj", base), ("w", "v_proj", copy)):
        deltaw.analyze(of, lora(tmp_path / f"lora-{name}", (module,)), out=tmp_path / name, jobs=1)
    c = deltaw.compare([tmp_path / "q", tmp_path / "v"])
    assert len(c.contrasts()) == 0
    (warning,) = (w for w in c.warnings if "share no layer" in w)
    assert "'q' and 'v'" in warning
    assert "no tensor in common" in complaint([tmp_path / "q", tmp_path / "w"])
    run = '[[runs]]\nname = "{0}"\nresults = "{0}"\n'
    deltaw.compare(manifest('base = "base"\n' + run.format("q") + run.format("w")))
    deltaw.analyze(base, save_single(changed(pico_state()), tmp_path / "ft"), out=tmp_path / "full", jobs=1)
    deltaw.compare([tmp_path / "q", tmp_path / "w", tmp_path / "full"])  # which has a layer of each


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_of_which_only_a_part_was_compared_says_so(tmp_path: Path, saved: bool):
    base, ft = pico_state(), changed(pico_state())
    part = {n: t for n, t in ft.items() if "layers.0" in n}
    results = {name: deltaw.analyze(base, state, jobs=1) for name, state in {"whole": ft, "part": part}.items()}
    for name, result in results.items():
        result.save(tmp_path / name)
    c = deltaw.compare([tmp_path / n for n in results] if saved else results)
    assert [w for w in c.warnings if "of its base" in w] == [
        "Run 'part' compares only 38.6 % of its base: what is said of it is about that part."
    ]


@pytest.mark.parametrize(
    "change",
    [lambda n: f"module.{n}", lambda n: f"_orig_mod.{n}", lambda n: n.removeprefix("model.")],
    ids=["module", "orig_mod", "no model"],
)
@pytest.mark.parametrize("order", [("full", "lora"), ("lora", "full")])
def test_layers_are_paired_whatever_wraps_their_names(
    change: Callable[[str], str], order: tuple[str, str], tmp_path: Path, manifest: Write
) -> None:
    base = pico_state()
    save_single(base, tmp_path / "base")
    save_single(renamed(changed(base), change), tmp_path / "full")
    save_single(changed(base), tmp_path / "plain")
    lora(tmp_path / "lora")

    def compared(full: str) -> deltaw.Comparison:
        text = 'base = "base"\n'
        for name in order:
            text += f'[[runs]]\nname = "{name}"\ncheckpoint = "{full if name == "full" else name}"\n'
        return deltaw.compare(manifest(text), jobs=1)

    found, expected = compared("full"), compared("plain")
    assert expected.contrasts().set_index("metric").loc["relative_change", "n_layers"] == 4
    assert found.contrasts().equals(expected.contrasts())
    assert found.similarity().equals(expected.similarity())
    assert not any("share no layer" in w for w in found.warnings)
    layers = found.layers()
    assert set(layers[layers["run"] == "full"]["name"]) == {change(n) for n in base}  # as the checkpoint has them
