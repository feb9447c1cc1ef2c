"""Every document that others may write, with every value replaced by one of every other kind.

What comes out is a result, or a `DeltaWError` of one bounded text: never a defect, wherever in the document it stands.
"""

import copy
import json
import math
import shutil
import struct
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

import deltaw
from deltaw.errors import DeltaWError
from tests.fuzz import cases
from tests.fuzz.mutators import DEEP

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        3,
        10**30,
        1.5,
        math.nan,
        -math.inf,
        "",
        "x",
        "0",
        "../x",
        "([a-z._0-9]+)+X",
        "a{99999999999}",
    ),
    *("a\x00b\ud800\x1b", "9" * 5000, "/dev/zero", [], [None], ["x"], [[1]], [{}], {}, {"x": 1}, {"": {"x": []}}, DEEP),
)
FEW = (None, 0, 10**30, math.nan, "x", "9" * 5000, [None], {"x": 1}, DEEP)  # where reading takes longer
ONE_EACH = (None, 10**30, "x", {"x": 1})
LONGEST = 300_000  # characters: a hundred lines of a bounded length


@dataclass(frozen=True)
class Kind:
    """A kind of document.

    Attributes:
        write: Writes honest inputs to a folder.
        victim: The document, in that folder.
        use: What reads it.
        load, dump: The document's text as values, and back.
        odd: What is put in the place of values.
    """

    write: Callable[[Path], None]
    victim: str
    use: Callable[[Path], object]
    load: Callable[[bytes], Any] = json.loads
    dump: Callable[[Any], bytes] = lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
    odd: tuple[Any, ...] = ODD


def inspected(folder: Path) -> object:
    return deltaw.inspect(folder / "base", folder / "ft", split_fused=True)


def measured(folder: Path) -> object:
    return deltaw.analyze(folder / "base", folder / "ft", jobs=1, cache=False)


def write_diffusers(folder: Path) -> None:
    cases.write_singlefile(folder)
    factors = {"unet.mid.to_q.lora_A.weight": torch.ones(2, 4), "unet.mid.to_q.lora_B.weight": torch.ones(4, 2)}
    config = {"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {"a": 2}, "unet.use_dora": False}
    cases.put(folder / "ft/lora.safetensors", save(factors, metadata={"lora_adapter_metadata": json.dumps(config)}))


def single(folder: Path) -> object:
    return deltaw.inspect(folder / "base/model.safetensors", folder / "ft/lora.safetensors")


def write_ia3(folder: Path) -> None:
    cases.write_safetensors(folder)
    shutil.rmtree(folder / "ft")
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    cases.put(folder / "ft/adapter_model.safetensors", save({f"{at}.ia3_l": torch.rand(4, 1)}))
    about = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": [], "exclude_modules": None}
    about |= {"fan_in_fan_out": False, "modules_to_save": None, "init_ia3_weights": True, "revision": None}
    cases.put(folder / "ft/adapter_config.json", json.dumps(about).encode())


def write_nf4(folder: Path) -> None:
    cases.write_safetensors(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {k: v for k, v in cases.state(1).items() if k != name}
    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 4], "nested_blocksize": 256}
    about |= {"nested_dtype": "float32", "nested_offset": 0.5}
    put_state(folder, tensors, name, about)


def put_state(folder: Path, tensors: dict[str, torch.Tensor], name: str, about: object) -> None:
    text = json.dumps(about).encode("utf-8", "surrogatepass")
    tensors = tensors | {
        name: torch.zeros(8, 1, dtype=torch.uint8),
        f"{name}.absmax": torch.zeros(1, dtype=torch.uint8),
        f"{name}.quant_map": torch.linspace(-1, 1, 16),
        f"{name}.nested_absmax": torch.ones(1),
        f"{name}.nested_quant_map": torch.linspace(-1, 1, 256),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
    }
    cases.put(folder / "ft/model.safetensors", save(tensors))
    quant = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    cases.put(folder / "ft/config.json", json.dumps(cases.CONFIG | {"quantization_config": quant}).encode())
    cases.put(folder / "about.json", text)


def nf4(folder: Path) -> object:
    tensors = {k: v for k, v in cases.state(1).items() if "q_proj" not in k}
    put_state(
        folder, tensors, "model.layers.0.self_attn.q_proj.weight", json.loads((folder / "about.json").read_bytes())
    )
    return measured(folder)


def header_of(data: bytes) -> Any:
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_header(header: Any) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + bytes(1000)


def loaded(folder: Path) -> object:
    found = deltaw.load(folder / "out")
    assert isinstance(repr(found), str)
    json.dumps(found.to_dict(), allow_nan=False)
    return found.to_pandas()


def contrasted(folder: Path) -> object:
    return deltaw.compare([str(folder / "out"), str(folder / "other")]).runs()


def write_two(folder: Path) -> None:
    cases.write_results(folder)
    shutil.copytree(folder / "out", folder / "other")


def write_table(form: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        cases.write_safetensors(folder)
        deltaw.analyze(folder / "base", folder / "ft", out=folder / "out", formats=(form,), jobs=1, cache=False)

    return write


def first_row(data: bytes) -> Any:
    lines = data.decode().splitlines()
    return {"row": dict(zip(lines[0].split(","), lines[1].split(","), strict=True)), "rest": "\n".join(lines[2:])}


def csv_of(value: Any) -> bytes:
    if not isinstance(value, dict) or not isinstance(value.get("row"), dict):
        return str(value).encode("utf-8", "replace")
    row = value["row"]
    cells = [str(v).encode("utf-8", "replace").decode().replace(",", ";").replace("\n", " ") for v in row.values()]
    return "\n".join([",".join(row), ",".join(cells), str(value.get("rest"))]).encode("utf-8", "replace")


def write_spectra(folder: Path) -> None:
    cases.write_results(folder)
    from safetensors import safe_open

    with safe_open(folder / "out/spectra.safetensors", framework="numpy") as file:
        about = json.loads(file.metadata()["spectra"])
    cases.put(folder / "about.json", json.dumps(about).encode())


def spectra(folder: Path) -> object:
    text = (folder / "about.json").read_text(encoding="utf-8", errors="surrogatepass")
    values = {name: np.ones(3) for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight")}
    metadata = {"spectra": text.encode("utf-8", "replace").decode()}
    (folder / "out/spectra.safetensors").write_bytes(save_arrays(values, metadata=metadata))
    return loaded(folder)


def toml(value: Any) -> str:
    """A value as TOML; what TOML cannot say is said as a text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, (str, int, float)) else '"null"'


def toml_of(value: Any) -> bytes:
    pairs = value.items() if isinstance(value, dict) else [("value", value)]
    return "\n".join(f"{toml(k)} = {toml(v)}" for k, v in pairs).encode("utf-8", "surrogatepass")


def write_manifest(folder: Path) -> None:
    cases.write_manifest(folder)
    table = tomllib.loads(cases.MANIFEST.decode())
    (folder / "runs.toml").write_bytes(toml_of(table))


def compared(folder: Path) -> object:
    from deltaw.comparison.manifest import read_manifest

    return read_manifest(folder / "runs.toml")


def write_scores(folder: Path) -> None:
    runs = [
        {"name": n, "group": n[0], "seed": int(n[1])} | {"scores": {"learning": 0.1, "retention": 0.5}} for n in NAMES
    ]
    for run in runs:
        run |= {"tokens": 100, "hyperparameters": {"rank": 8, "lr": 1e-4, "optimizer": "adamw"}, "method": "lora"}
    cases.put(folder / "runs.toml", toml_of({"title": "t", "reference": "a", "runs": runs}))


NAMES = ("a0", "a1", "b0", "b1")


def scored(folder: Path) -> object:
    found = deltaw.compare(folder / "runs.toml")
    found.save(folder / "compared", report=False, force=True)
    return found.to_dict()


def study_plan(folder: Path) -> object:
    from deltaw.study.plan import load_plan

    return load_plan(folder / "plan.toml")


def write_plan(folder: Path) -> None:
    from importlib.resources import files

    text = files("deltaw.study").joinpath("quick.toml").read_text(encoding="utf-8")
    cases.put(folder / "plan.toml", toml_of(tomllib.loads(text)))


KINDS = {
    "config.json": Kind(cases.write_safetensors, "ft/config.json", inspected),
    "config.json of a quantised model": Kind(cases.write_quantised, "ft/config.json", measured),
    "index": Kind(cases.write_sharded, "ft/model.safetensors.index.json", inspected),
    "model_index.json": Kind(cases.write_pipeline, "ft/model_index.json", inspected),
    "header": Kind(cases.write_safetensors, "ft/model.safetensors", inspected, header_of, with_header),
    "adapter_config.json of LoRA": Kind(cases.write_adapter, "ft/adapter_config.json", measured),
    "adapter_config.json of a bridged method": Kind(write_ia3, "ft/adapter_config.json", measured),
    "metadata of a single file": Kind(
        write_diffusers,
        "ft/lora.safetensors",
        single,
        lambda data: json.loads(header_of(data)["__metadata__"]["lora_adapter_metadata"]),
        lambda value: save(
            {"unet.mid.to_q.lora_A.weight": torch.ones(2, 4), "unet.mid.to_q.lora_B.weight": torch.ones(4, 2)},
            metadata={"lora_adapter_metadata": json.dumps(value)},
        ),
    ),
    "state of bitsandbytes": Kind(write_nf4, "about.json", nf4),
    "analysis.json": Kind(cases.write_results, "out/analysis.json", loaded, odd=FEW),
    "analysis.json in a comparison": Kind(write_two, "out/analysis.json", contrasted, odd=ONE_EACH),
    "layers.csv": Kind(write_table("csv"), "out/layers.csv", loaded, first_row, csv_of, ONE_EACH),
    "layers.json": Kind(write_table("json"), "out/layers.json", loaded, odd=ONE_EACH),
    "spectra": Kind(write_spectra, "about.json", spectra, odd=FEW),
    "manifest": Kind(write_manifest, "runs.toml", compared, lambda d: tomllib.loads(d.decode()), toml_of),
    "manifest of scores": Kind(write_scores, "runs.toml", scored, lambda d: tomllib.loads(d.decode()), toml_of, FEW),
    "lm-eval": Kind(write_manifest, "results.json", compared),
    "plan of a study": Kind(write_plan, "plan.toml", study_plan, lambda d: tomllib.loads(d.decode()), toml_of),
}


def replaced(document: Any, odd: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """The document with one value in the place of another, at every place; and each value alone."""
    for i, value in enumerate(odd):
        yield f"<- {i}", value
    for where in places(document):
        for i, value in enumerate(odd):
            out = copy.deepcopy(document)
            at = out
            for key in where[:-1]:
                at = at[key]
            at[where[-1]] = value
            yield f"{'/'.join(map(str, where))} <- {i}", out


def places(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = list(node) if isinstance(node, dict) else range(min(2, len(node))) if isinstance(node, list) else ()
    for key in keys:
        yield (*here, key)
        yield from places(node[key], (*here, key))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers of a table that nobody measured may divide by 0
@pytest.mark.parametrize("name", KINDS)
def test_every_wrong_type_at_every_key(name: str, tmp_path: Path):
    if "adapter" in name:
        import peft  # noqa: F401  (its import takes seconds, which no input is to be charged with)
    kind = KINDS[name]
    kind.write(tmp_path)
    victim = tmp_path / kind.victim
    honest = victim.read_bytes()
    kind.use(tmp_path)
    found = []
    for what, value in replaced(kind.load(honest), kind.odd):
        victim.write_bytes(kind.dump(value))
        try:
            with cases.limited():
                kind.use(tmp_path)
        except DeltaWError as e:
            if not 0 < len(str(e).strip()) <= LONGEST:
                found.append(f"{what}: a message of {len(str(e)):,} characters")
        except Exception as e:
            found.append(f"{what}: {type(e).__name__}: {str(e)[:150]}")
    assert not found, f"{len(found)} of them:\n" + "\n".join(found[:40])
