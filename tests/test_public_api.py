"""`deltaw.__all__`: what it holds, whichever name is asked for first, and that every function of it can be called."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltaw

NAMES = [
    "Activations",
    "Alert",
    "Analysis",
    "Comparison",
    "DeltaWError",
    "Edited",
    "Extraction",
    "Inspection",
    "Interval",
    "Monitor",
    "Prediction",
    "Progress",
    "Skipped",
    "Spectrum",
    "Survey",
    "Verification",
    "__version__",
    "analyze",
    "collect_activations",
    "compare",
    "directions",
    "edit",
    "extract",
    "gather",
    "inspect",
    "load",
    "metrics",
    "predict",
    "resize",
    "study",
    "survey",
    "verify",
]


def parts(at: Path) -> list[Path]:
    """Two parts of an analysis, measured."""
    for i in (1, 2):
        deltaw.analyze(at / "base", at / "merged", out=at / f"part{i}", part=f"{i}/2", force=True)
    return [at / "part1", at / "part2"]


class Tokens:
    """A tokenizer that names its tokens by their numbers."""

    def decode(self, tokens: list[int]) -> str:
        return str(tokens[0])


def told(at: Path) -> object:
    """What an update of a language model's matrix reads."""
    embedding, name = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
    base = {embedding: torch.eye(9, 4), name: torch.ones(6, 4)}
    for side, scale in (("language.safetensors", 1.0), ("tuned.safetensors", 1.5)):
        save_file({k: v * scale for k, v in base.items()}, at / side)
    result = deltaw.analyze(at / "language.safetensors", at / "tuned.safetensors")
    return deltaw.directions(result, name, Tokens())


# What each public function is called with, in a folder that `inputs` filled; later calls use what earlier ones wrote.
CALLS: dict[str, Callable[[Path], object]] = {
    "analyze": lambda at: deltaw.analyze(at / "base", at / "merged", out=at / "results", force=True),
    "collect_activations": lambda at: deltaw.collect_activations(
        torch.nn.Linear(8, 12), [torch.ones(2, 8)], at / "activations.safetensors"
    ),
    "gather": lambda at: deltaw.gather(parts(at)),
    "inspect": lambda at: deltaw.inspect(at / "base", at / "adapter"),
    "load": lambda at: deltaw.load(at / "results"),
    "compare": lambda at: deltaw.compare({"a": at / "results", "b": at / "results"}),
    "predict": lambda at: deltaw.predict(at / "base", at / "adapter", "int4-g32"),
    "extract": lambda at: deltaw.extract(at / "base", at / "merged", at / "extracted", rank=2, force=True),
    "directions": told,
    "edit": lambda at: deltaw.edit(at / "base", at / "merged", at / "edited", scale=0.5, force=True),
    "resize": lambda at: deltaw.resize(at / "adapter", at / "resized", rank=1, force=True),
    "survey": lambda at: deltaw.survey(at / "base", [at / "adapter", at / "resized"]),
    "verify": lambda at: deltaw.verify(at / "base", at / "adapter", at / "merged"),
}


def inputs(folder: Path) -> None:
    """A base of two matrices, a LoRA of one of them, and the merged checkpoint."""
    g = torch.Generator().manual_seed(0)
    W0, other = torch.randn(2, 12, 8, generator=g)
    A, B = torch.randn(2, 8, generator=g), torch.randn(12, 2, generator=g)
    for name, state in {"base": {"a.weight": W0}, "merged": {"a.weight": W0 + B @ A}}.items():
        (folder / name).mkdir()
        save_file(state | {"b.weight": other}, folder / name / "model.safetensors")
    (folder / "adapter").mkdir()
    factors = {"base_model.model.a.lora_A.weight": A, "base_model.model.a.lora_B.weight": B}
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def test_the_names():
    assert deltaw.__all__ == NAMES
    assert dir(deltaw) == NAMES


def test_every_function_has_a_call():
    functions = {name for name in NAMES if inspect.isfunction(getattr(deltaw, name))}
    assert functions == set(CALLS), "a new public function needs a line in CALLS"


@pytest.mark.parametrize("first", NAMES)
def test_any_name_may_be_the_first(first: str, tmp_path: Path):
    """In an interpreter of its own: `import deltaw` has loaded nothing there, and order cannot be undone here."""
    inputs(tmp_path)
    done = subprocess.run([sys.executable, __file__, first, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(CALLS)


PACKAGES = [
    name
    for _, name, is_package in pkgutil.walk_packages(deltaw.__path__, "deltaw.")
    if is_package and name not in {"deltaw.cli", "deltaw.reports"}
]


@pytest.mark.parametrize("name", ["deltaw", *PACKAGES])
def test_no_module_bears_the_name_of_what_its_package_exports(name: str):
    """Loading such a module would put it in the export's place."""
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    shadowed = {n for n in modules & set(dir(package)) if not isinstance(getattr(package, n), types.ModuleType)}
    assert not shadowed


def ask(first: str, folder: Path) -> None:
    """Take `first`, then every other name, then call every function; print those that were called."""
    taken = {name: getattr(deltaw, name) for name in [first, *deltaw.__all__]}
    for name, value in taken.items():
        assert getattr(deltaw, name) == value, f"deltaw.{name} became something else"
        assert isinstance(value, types.ModuleType) == (name in {"metrics", "study"}), f"deltaw.{name} is {value!r}"
    for name, call in CALLS.items():
        call(folder)
        print(name)


if __name__ == "__main__":
    ask(sys.argv[1], Path(sys.argv[2]))
