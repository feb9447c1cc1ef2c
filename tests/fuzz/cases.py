"""Kinds of input, each a small honest pair in which one file is damaged; what may come of it, and what may not.

Allowed: rows, a named failure of one tensor, or a `DeltaWError` of one line. Nothing else comes out, nothing is written
but in the working folder, and nothing takes long or much memory.
"""

import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import save

import deltaw
from deltaw.errors import DeltaWError
from tests.fuzz.mutators import (
    dumps,
    mutate_header,
    mutate_json,
    mutate_pickle,
    mutate_safetensors,
    mutate_text,
    mutate_zip,
)

SECONDS = 10
WAITING = 60
MEMORY = 2 << 30
LONGEST_MESSAGE = 10_000

State = dict[str, torch.Tensor]
Damage = Callable[[bytes, Random], bytes]


class FoundError(AssertionError):
    """What must not happen."""


@dataclass(frozen=True)
class Kind:
    """A pair of inputs and the file of them that is damaged.

    Attributes:
        name: Of the kind of file.
        write: Writes the honest inputs to a folder.
        victim: The damaged file, in that folder.
        damage: How.
        use: What is done with the folder; `analyze` says whether matrices are measured or headers read only.
    """

    name: str
    write: Callable[[Path], None]
    victim: str
    damage: Damage
    use: Callable[[Path, bool], object]


def state(seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(6, 4, generator=g),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(4, 4, generator=g).bfloat16(),
        "model.layers.0.mlp.experts.down_proj": torch.randn(2, 4, 3, generator=g),
        "model.norm.weight": torch.randn(4, generator=g),
    }


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "text_config": {"model_type": "llama", "hidden_size": 4},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]},
}


def pair(base: Path, ft: Path, *, analyze: bool) -> object:
    """Open and pair two inputs, and measure them if asked for."""
    if analyze:
        return deltaw.analyze(base, ft, jobs=1, cache=False, memory="1GB")
    return deltaw.inspect(base, ft, split_fused=True)


def full(path: str) -> Callable[[Path, bool], object]:
    return lambda folder, analyze: pair(folder / "base" / path, folder / "ft" / path, analyze=analyze)


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_safetensors(folder: Path) -> None:
    for i, side in enumerate(("base", "ft")):
        put(folder / side / "model.safetensors", save(state(i)))
        put(folder / side / "config.json", json.dumps(CONFIG | {"quantization_config": None}).encode())


def write_sharded(folder: Path) -> None:
    for i, side in enumerate(("base", "ft")):
        tensors = state(i)
        shards = {n: f"model-{k % 2 + 1:05d}-of-00002.safetensors" for k, n in enumerate(tensors)}
        for file in set(shards.values()):
            put(folder / side / file, save({n: t for n, t in tensors.items() if shards[n] == file}))
        index = {"metadata": {"total_size": 100}, "weight_map": shards}
        put(folder / side / "model.safetensors.index.json", json.dumps(index).encode())


def write_pickles(folder: Path, *, legacy: bool) -> None:
    for i, side in enumerate(("base", "ft")):
        wrapped = {"model": state(i), "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}}}
        out = io.BytesIO()
        torch.save(wrapped if i else state(i), out, _use_new_zipfile_serialization=not legacy)
        put(folder / side / "model.pt", out.getvalue())


def write_pipeline(folder: Path) -> None:
    for i, side in enumerate(("base", "ft")):
        put(folder / side / "unet/diffusion_pytorch_model.safetensors", save(state(i)))
        put(folder / side / "vae/diffusion_pytorch_model.safetensors", save(state(i + 2)))
        parts = {"unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"], "scheduler": [None, None]}
        put(folder / side / "model_index.json", json.dumps({"_class_name": "X"} | parts).encode())


def write_quantised(folder: Path) -> None:
    for i, side in enumerate(("base", "ft")):
        g = torch.Generator().manual_seed(i)
        name = "model.layers.0.mlp.up_proj"
        tensors = {f"{name}.weight": torch.randn(4, 4, generator=g).to(torch.float8_e4m3fn)}
        tensors |= {f"{name}.weight_scale_inv": torch.rand(2, 2, generator=g), "model.norm.weight": torch.ones(4) + i}
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.randn(4, 4, generator=g)
        put(folder / side / "model.safetensors", save(tensors))
        put(folder / side / "config.json", json.dumps(CONFIG).encode())


def write_gptq(folder: Path) -> None:
    """Four bits in groups of 32: 32 inputs, 8 outputs, and a bitsandbytes matrix beside them."""
    about = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": True}
    for i, side in enumerate(("base", "ft")):
        g = torch.Generator().manual_seed(i)
        at = "model.layers.0.mlp.up_proj"
        tensors = {f"{at}.qweight": torch.randint(-(2**31), 2**31 - 1, (4, 8), generator=g, dtype=torch.int32)}
        tensors |= {f"{at}.qzeros": torch.zeros(1, 1, dtype=torch.int32), f"{at}.g_idx": torch.zeros(32).int()}
        tensors |= {f"{at}.scales": torch.rand(1, 8, generator=g).half(), "model.norm.weight": torch.ones(4) + i}
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.randn(4, 4, generator=g)
        put(folder / side / "model.safetensors", save(tensors))
        put(folder / side / "config.json", json.dumps(CONFIG | {"quantization_config": about}).encode())


def write_nf4(folder: Path) -> None:
    state = {"quant_type": "nf4", "blocksize": 16, "dtype": "float32", "shape": [8, 8]}
    about = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    for i, side in enumerate(("base", "ft")):
        g = torch.Generator().manual_seed(i)
        at = "model.layers.0.mlp.up_proj.weight"
        tensors = {at: torch.randint(0, 255, (32, 1), generator=g, dtype=torch.uint8)}
        tensors |= {f"{at}.absmax": torch.rand(4, generator=g), f"{at}.quant_map": torch.linspace(-1, 1, 16)}
        tensors |= {f"{at}.quant_state.bitsandbytes__nf4": about, "model.norm.weight": torch.ones(4) + i}
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.randn(4, 4, generator=g)
        put(folder / side / "model.safetensors", save(tensors))
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        put(folder / side / "config.json", json.dumps(CONFIG | {"quantization_config": config}).encode())


def write_gguf(folder: Path) -> None:
    import gguf

    for i, side in enumerate(("base", "ft")):
        rng = np.random.default_rng(i)
        (folder / side).mkdir(parents=True)
        writer = gguf.GGUFWriter(folder / side / "model.gguf", "llama")
        writer.add_block_count(1)
        writer.add_head_count(2)
        writer.add_head_count_kv(2)
        for name, shape in {"blk.0.attn_q.weight": (4, 32), "blk.0.ffn_up.weight": (4, 32)}.items():
            w = rng.standard_normal(shape).astype(np.float32)
            kind = gguf.GGMLQuantizationType.Q4_0 if "ffn" in name else gguf.GGMLQuantizationType.F32
            coded = "ffn" in name
            writer.add_tensor(name, gguf.quantize(w, kind) if coded else w, raw_dtype=kind if coded else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def write_adapter(folder: Path, peft_type: str = "LORA") -> None:
    write_safetensors(folder)
    shutil.rmtree(folder / "ft")
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    g = torch.Generator().manual_seed(3)
    shapes = {"lora_A": (2, 4), "lora_B": (4, 2)}
    factors = {f"{at}.{name}.weight": torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    put(folder / "ft/adapter_model.safetensors", save(factors))
    about = {
        "peft_type": peft_type,
        "base_model_name_or_path": "x",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "rank_pattern": {"k_proj": 4},
        "alpha_pattern": {},
        "use_rslora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_pattern": None,
        "bias": "none",
    }
    put(folder / "ft/adapter_config.json", json.dumps(about).encode())


def write_singlefile(folder: Path) -> None:
    put(folder / "base/model.safetensors", save({"unet.mid.to_q.weight": torch.ones(4, 4)}))
    shapes = {"lora_down.weight": (2, 4), "lora_up.weight": (4, 2), "alpha": ()}
    factors = {f"lora_unet_mid_to_q.{name}": torch.ones(shape) for name, shape in shapes.items()}
    put(folder / "ft/lora.safetensors", save(factors, metadata={"ss_network_module": "networks.lora", "x": "{}"}))


def write_results(folder: Path) -> None:
    write_safetensors(folder)
    deltaw.analyze(folder / "base", folder / "ft", out=folder / "out", formats=("csv",), jobs=1, cache=False)


def load(folder: Path, analyze: bool) -> object:
    found = deltaw.load(folder / "out")
    return found.to_pandas() if analyze else found.summary


def write_journal(folder: Path) -> None:
    """A run that ended in the middle: the journal without the tables."""
    from deltaw.measurement import journal

    write_safetensors(folder)
    kept: list[bytes] = []
    close = journal.Journal.close

    def keep(self: journal.Journal, *, finished: bool = False) -> None:
        kept.append(self.path.read_bytes() if self.path.exists() else b"")
        close(self, finished=finished)

    journal.Journal.close = keep  # type: ignore[method-assign]
    try:
        deltaw.analyze(folder / "base", folder / "ft", out=folder / "out", jobs=1, cache=False)
    finally:
        journal.Journal.close = close  # type: ignore[method-assign]
    shutil.rmtree(folder / "out")
    put(folder / "out" / journal.NAME, kept[0])


def resume(folder: Path, analyze: bool) -> object:
    """What a damaged journal leaves is right or measured again: the rows are those of the honest run."""
    found = deltaw.analyze(folder / "base", folder / "ft", out=folder / "out", formats=("csv",), jobs=1, cache=False)
    honest = deltaw.analyze(folder / "base", folder / "ft", jobs=1, cache=False)
    ours, theirs = (a.to_pandas().drop(columns="seconds").to_csv() for a in (found, honest))
    if ours != theirs:
        raise FoundError("the rows differ from those of an honest run")
    return found


MANIFEST = b"""title = "t"
base = "base"

[[runs]]
name = "a"
checkpoint = "ft"
group = "LoRA r=16"
method = "lora"
seed = 0
tokens = 1000
[runs.hyperparameters]
rank = 16
[runs.scores]
retention = 0.5
[runs.lm_eval]
file = "results.json"
learning = ["humaneval:pass@1"]

[[runs]]
name = "b"
group = "full"
[runs.scores]
learning = 0.3
retention = 0.4
"""
LM_EVAL = {
    "results": {"humaneval": {"alias": "humaneval", "pass@1,create_test": 0.3, "pass@1_stderr,create_test": 0.01}},
    "higher_is_better": {"humaneval": {"pass@1": True}},
    "n-shot": {"humaneval": 0},
    "n-samples": {"humaneval": {"original": 164, "effective": 164}},
    "config": {"model": "hf", "model_args": "pretrained=x"},
    "versions": {"humaneval": 1.0},
}


def write_manifest(folder: Path) -> None:
    write_safetensors(folder)
    put(folder / "runs.toml", MANIFEST)
    put(folder / "results.json", json.dumps(LM_EVAL).encode())


def compare(folder: Path, analyze: bool) -> object:
    from deltaw.comparison.manifest import read_manifest

    return read_manifest(folder / "runs.toml")


PLAN = b"""title = "t"
seeds = [0]
[source]
name = "s"
corpus = "docstrings"
[training]
steps = 10
points = 2
[[targets]]
name = "c"
corpus = "code"
[[arms]]
name = "full"
method = "full"
learning_rates = [1e-3, 3]
"""


def write_plan(folder: Path) -> None:
    put(folder / "plan.toml", PLAN)


def read_plan(folder: Path, analyze: bool) -> object:
    from deltaw.study.plan import load_plan

    return [run.name for run in load_plan(folder / "plan.toml").runs()]


def write_comparison(folder: Path) -> None:
    write_safetensors(folder)
    result = deltaw.analyze(folder / "base", folder / "ft", jobs=1, cache=False)
    deltaw.compare({"a": result, "b": [result]}).save(folder / "out", report=False)


def load_comparison(folder: Path, analyze: bool) -> object:
    found = deltaw.Comparison.load(folder / "out")
    return found.contrasts() if analyze else found.runs()


def json_file(data: bytes, r: Random) -> bytes:
    return dumps(mutate_json(json.loads(data), r), r)


KINDS = (
    Kind("folder", write_safetensors, "ft/model.safetensors", mutate_safetensors, full("")),
    Kind("safetensors", write_safetensors, "base/model.safetensors", mutate_safetensors, full("model.safetensors")),
    Kind("shard", write_sharded, "ft/model-00001-of-00002.safetensors", mutate_safetensors, full("")),
    Kind("index", write_sharded, "ft/model.safetensors.index.json", json_file, full("")),
    Kind("zip pickle", lambda f: write_pickles(f, legacy=False), "ft/model.pt", mutate_zip, full("model.pt")),
    Kind("legacy pickle", lambda f: write_pickles(f, legacy=True), "ft/model.pt", mutate_pickle, full("model.pt")),
    Kind("config", write_safetensors, "ft/config.json", json_file, full("")),
    Kind("pipeline", write_pipeline, "base/model_index.json", json_file, full("")),
    Kind("quantised", write_quantised, "ft/model.safetensors", mutate_safetensors, full("")),
    Kind("GPTQ", write_gptq, "ft/model.safetensors", mutate_safetensors, full("")),
    Kind("NF4", write_nf4, "ft/model.safetensors", mutate_safetensors, full("")),
    Kind("GGUF", write_gguf, "ft/model.gguf", mutate_header, full("model.gguf")),
    Kind("quantised config", write_quantised, "base/config.json", json_file, full("")),
    Kind("adapter config", write_adapter, "ft/adapter_config.json", json_file, full("")),
    Kind("adapter", write_adapter, "ft/adapter_model.safetensors", mutate_safetensors, full("")),
    Kind(
        "single-file LoRA",
        write_singlefile,
        "ft/lora.safetensors",
        mutate_safetensors,
        lambda f, analyze: pair(f / "base/model.safetensors", f / "ft/lora.safetensors", analyze=analyze),
    ),
    Kind("analysis.json", write_results, "out/analysis.json", json_file, load),
    Kind("layers.csv", write_results, "out/layers.csv", mutate_text, load),
    Kind("spectra", write_results, "out/spectra.safetensors", mutate_safetensors, load),
    Kind("journal", write_journal, "out/.deltaw-journal.jsonl", mutate_text, resume),
    Kind("manifest", write_manifest, "runs.toml", mutate_text, compare),
    Kind("study plan", write_plan, "plan.toml", mutate_text, read_plan),
    Kind("runs.json", write_comparison, "out/runs.json", json_file, load_comparison),
    Kind("lm-eval", write_manifest, "results.json", json_file, compare),
)


def run(kind: Kind, folder: Path, numbers: Iterator[int], *, analyze_each: int) -> dict[str, int]:
    """Damage and use one kind of input for every number; how many came to what.

    Args:
        kind: What is damaged.
        folder: An empty folder to work in.
        numbers: The seeds; a finding names its own.
        analyze_each: Of this many inputs one is measured, the others are opened and paired.

    Raises:
        FoundError: Something else than rows, a named failure or a `DeltaWError` came out.
    """
    kind.write(folder)
    honest = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    victim = folder / kind.victim
    before = set(folder.parent.iterdir())
    counts = {"used": 0, "refused": 0, "analysed": 0}
    for number in numbers:
        for path in [p for p in folder.rglob("*") if p.is_file() and p not in honest]:
            path.unlink()
        for path, data in honest.items():
            if path == victim or kind.use is resume:
                path.write_bytes(data)
        data = kind.damage(honest[victim], Random(number))
        victim.write_bytes(data)
        analyze = number % analyze_each == 0
        try:
            with limited():
                kind.use(folder, analyze)
            counts["used"] += 1
            counts["analysed"] += analyze
        except DeltaWError as e:
            said = str(e)
            if not said.strip() or len(said) > LONGEST_MESSAGE:
                raise FoundError(f"{kind.name} {number}: a message of {len(said)} characters") from e
            counts["refused"] += 1
        except Exception as e:
            raise FoundError(f"{kind.name} {number}: {type(e).__name__}: {str(e)[:300]}") from e
        if set(folder.parent.iterdir()) != before:
            raise FoundError(f"{kind.name} {number}: wrote outside of its folder")
    return counts


@contextmanager
def limited() -> Iterator[None]:
    """Ten seconds of this process, a minute of the clock (for what waits), and two gigabytes more than before."""

    def late(*_: object) -> None:
        raise FoundError(f"it takes more than {SECONDS} s, or waits for {WAITING} s")

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = [signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 > MEMORY:
        raise FoundError("it takes more than 2 GB")


def working_folder(parent: Path, kind: Kind) -> Path:
    """A folder in a folder of its own, so that what is written beside it is seen."""
    folder = parent / kind.name.replace(" ", "-") / "work"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    return folder
