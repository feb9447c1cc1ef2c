"""The pairs, comparisons and surveys that the reports are looked at with: small, made from a seed, like real ones.

Each kind is a function of a folder that returns the result. `docs/make_screenshots.py` renders them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import deltaw
from deltaw import Analysis, Comparison, Survey

State = dict[str, Tensor]
HIDDEN, INNER, VOCABULARY = 96, 256, 800


def normal(seed: int, *shape: int, scale: float = 0.02) -> Tensor:
    """Gaussian numbers of a seed."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llama(layers: int = 8, hidden: int = HIDDEN, inner: int = INNER) -> State:
    """A Llama's tensors, float32."""
    state = {"model.embed_tokens.weight": normal(1, VOCABULARY, hidden)}
    for i in range(layers):
        at, seed = f"model.layers.{i}", 100 * i
        for j, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            out = hidden // 4 if name in {"k_proj", "v_proj"} else hidden
            state[f"{at}.self_attn.{name}.weight"] = normal(seed + j, out, hidden)
        for j, (name, shape) in enumerate(
            {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}.items()
        ):
            state[f"{at}.mlp.{name}.weight"] = normal(seed + 10 + j, *shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{at}.{name}.weight"] = torch.ones(hidden)
    return {**state, "model.norm.weight": torch.ones(hidden), "lm_head.weight": normal(2, VOCABULARY, hidden)}


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> State:
    """Every tensor in another precision."""
    return {name: w.to(dtype) for name, w in state.items()}


def power_law(w: Tensor, seed: int, size: float, exponent: float = 0.7) -> Tensor:
    """An update of `size` times ‖W‖ whose singular values fall like i^-exponent: what full fine-tuning leaves."""
    noise = normal(seed, *w.shape)
    if w.ndim < 2:
        return size * w.norm() * noise / noise.norm()
    u, s, vt = torch.linalg.svd(noise.reshape(len(noise), -1), full_matrices=False)
    decayed = torch.arange(1, len(s) + 1) ** -exponent
    delta = ((u * decayed) @ vt).reshape(w.shape)
    return size * w.norm() * delta / delta.norm()


def tuned(base: State, size: float = 0.01, exponent: float = 0.7, grows: float = 0.06, seed: int = 0) -> State:
    """Every tensor moved, later layers a little more."""
    out = {}
    for i, (name, w) in enumerate(base.items()):
        depth = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else 0
        out[name] = w + power_law(w, 5000 + i + 100_000 * seed, size * (1 + grows * depth), exponent)
    return out


def low_rank(base: State, rank: int = 8, size: float = 0.02, seed: int = 0) -> State:
    """A merged LoRA of all projections."""
    out = dict(base)
    for i, (name, w) in enumerate(base.items()):
        if "_proj" in name:
            at = i + 100_000 * seed
            delta = normal(7000 + at, w.shape[0], rank) @ normal(8000 + at, rank, w.shape[1])
            out[name] = w + size * w.norm() * delta / delta.norm()
    return out


def adapter(folder: Path, base: State, dora: bool = False, rank: int = 8, task: int = 0, seed: int = 0) -> Path:
    """A PEFT adapter of all projections; those of one task share most of their directions."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": names, "use_dora": dora}
    config["base_model_name_or_path"] = "example/llama"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors: State = {}
    for i, (name, w) in enumerate(base.items()):
        if "_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            at, own = i + 100_000 * task, i + 1_000_000 * seed
            tensors[f"{module}.lora_A.weight"] = normal(9000 + at, rank, w.shape[1])
            tensors[f"{module}.lora_B.weight"] = normal(9500 + at, w.shape[0], rank, scale=0.01)
            if seed:
                tensors[f"{module}.lora_A.weight"] += normal(9000 + own, rank, w.shape[1], scale=0.012)
                tensors[f"{module}.lora_B.weight"] += normal(9500 + own, w.shape[0], rank, scale=0.006)
            if dora:
                tensors[f"{module}.lora_magnitude_vector"] = w.norm(dim=1) * 1.01
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def saved(folder: Path, base: State, ft: State, name: str = "llama") -> tuple[Path, Path]:
    """Both sides as checkpoints."""
    paths = folder / f"{name}-base", folder / f"{name}-tuned"
    for path, state in zip(paths, (base, ft), strict=True):
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in state.items()}, path / "model.safetensors")
    return paths


def demo(folder: Path) -> Analysis:
    """The pair of `deltaw demo`, by names that are the same on every machine."""
    from deltaw.cli.demo import BASE, FT, find

    with contextlib.chdir(folder):
        for name, of in (("all-MiniLM-L6-v2", BASE), ("sre-embedding-model", FT)):
            Path(name).symlink_to(find(*of).parent, target_is_directory=True)
        return deltaw.analyze("all-MiniLM-L6-v2", "sre-embedding-model")


def full_bf16(folder: Path) -> Analysis:
    """A full fine-tune of 1 %, stored in bfloat16."""
    base = cast(llama(), torch.bfloat16)
    return deltaw.analyze(*saved(folder, base, cast(tuned(cast(base, torch.float32)), torch.bfloat16)))


def merged_bf16(folder: Path) -> Analysis:
    """A merged LoRA, stored in bfloat16."""
    base = cast(llama(), torch.bfloat16)
    return deltaw.analyze(*saved(folder, base, cast(low_rank(cast(base, torch.float32)), torch.bfloat16)))


def lora(folder: Path) -> Analysis:
    """A LoRA adapter."""
    base = llama()
    return deltaw.analyze(saved(folder, base, base)[0], adapter(folder / "lora-r8", base))


def dora(folder: Path) -> Analysis:
    """A DoRA adapter."""
    base = llama(4)
    return deltaw.analyze(saved(folder, base, base)[0], adapter(folder / "dora-r8", base, dora=True))


def decay_only(folder: Path) -> Analysis:
    """Weight decay and nothing else."""
    base = llama()
    return deltaw.analyze(*saved(folder, base, {k: w * (1 - 0.004) if w.ndim > 1 else w for k, w in base.items()}))


def experts(folder: Path) -> Analysis:
    """64 experts of which a fifth did not change."""
    base = {"model.embed_tokens.weight": normal(1, VOCABULARY, HIDDEN), "lm_head.weight": normal(2, VOCABULARY, HIDDEN)}
    for i in range(6):
        for j, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            base[f"model.layers.{i}.self_attn.{name}.weight"] = normal(100 * i + j, HIDDEN, HIDDEN)
        base[f"model.layers.{i}.mlp.gate.weight"] = normal(100 * i + 9, 64, HIDDEN)
        for e in range(64):
            for j, (name, shape) in enumerate({"gate_proj": (48, HIDDEN), "down_proj": (HIDDEN, 48)}.items()):
                base[f"model.layers.{i}.mlp.experts.{e}.{name}.weight"] = normal(10000 + 640 * i + 2 * e + j, *shape)
    ft = tuned(base)
    for name in base:
        if ".experts." in name and int(name.split(".experts.")[1].split(".")[0]) % 5 == 2:
            ft[name] = base[name]
    return deltaw.analyze(*saved(folder, base, ft))


def gpt2(folder: Path) -> Analysis:
    """GPT-2's names and its transposed matrices."""
    base = {"transformer.wte.weight": normal(1, VOCABULARY, HIDDEN), "transformer.wpe.weight": normal(2, 128, HIDDEN)}
    for i in range(6):
        at = f"transformer.h.{i}"
        shapes = {"attn.c_attn": (HIDDEN, 3 * HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN)}
        shapes |= {"mlp.c_fc": (HIDDEN, 4 * HIDDEN), "mlp.c_proj": (4 * HIDDEN, HIDDEN)}
        for j, (name, shape) in enumerate(shapes.items()):
            base[f"{at}.{name}.weight"] = normal(100 * i + j, *shape)
            base[f"{at}.{name}.bias"] = normal(100 * i + 50 + j, shape[1])
        for name in ("ln_1", "ln_2"):
            base[f"{at}.{name}.weight"], base[f"{at}.{name}.bias"] = torch.ones(HIDDEN), normal(3 + i, HIDDEN)
    base["transformer.ln_f.weight"] = torch.ones(HIDDEN)
    return deltaw.analyze(*saved(folder, base, tuned(base, 0.03, 1.2), "gpt2"))


def cnn(folder: Path) -> Analysis:
    """A small ResNet."""
    base = {"conv1.weight": normal(1, 32, 3, 7, 7), "bn1.weight": torch.ones(32)}
    for stage, width in enumerate((32, 64, 128, 256), start=1):
        for block in range(2):
            for c in (1, 2):
                inner = width // 2 if stage > 1 and block == 0 and c == 1 else width
                base[f"layer{stage}.{block}.conv{c}.weight"] = normal(100 * stage + 10 * block + c, width, inner, 3, 3)
                base[f"layer{stage}.{block}.bn{c}.weight"] = torch.ones(width)
    base["fc.weight"] = normal(9, 100, 256)
    return deltaw.analyze(*saved(folder, base, tuned(base, 0.05, 1.0), "resnet"))


def one_matrix(folder: Path) -> Analysis:
    """A single matrix."""
    base = {"weight": normal(1, 200, 300)}
    return deltaw.analyze(*saved(folder, base, tuned(base)))


def eighty_layers(folder: Path) -> Analysis:
    """80 layers."""
    base = llama(80, 48, 96)
    return deltaw.analyze(*saved(folder, base, tuned(base, grows=0.01)))


def gptq(w: Tensor, group: int = 32) -> State:
    """A matrix as GPTQ's int4 codes: eight to an int32 along the inputs, a scale and a zero point for each group."""
    grid = w.T.reshape(w.shape[1] // group, group, w.shape[0])  # groups of inputs, inputs, outputs
    low, high = grid.amin(1).clamp(max=0), grid.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 16).long()
    codes = (grid / scales[:, None].float()).round().long().add(zeros[:, None]).clamp(0, 15).reshape(w.shape[1], -1)
    shifts = 4 * torch.arange(8)
    return {
        "qweight": (codes.reshape(-1, 8, w.shape[0]) << shifts[None, :, None]).sum(1).to(torch.int32),
        "qzeros": ((zeros - 1).reshape(len(scales), -1, 8) << shifts).sum(2).to(torch.int32),
        "scales": scales,
        "g_idx": (torch.arange(w.shape[1]) // group).to(torch.int32),
    }


def quantised(folder: Path) -> Analysis:
    """A fine-tune of which most matrices are stored as GPTQ's codes."""
    base = llama(6)
    ft = tuned(base)
    for name in [n for n in base if ".mlp." in n]:
        module = name.removesuffix(".weight")
        ft |= {f"{module}.{part}": codes for part, codes in gptq(ft.pop(name)).items()}
    return deltaw.analyze(*saved(folder, base, ft))


def unrelated(folder: Path) -> Analysis:
    """Two models of one shape that have nothing to do with each other."""
    base = llama(4)
    return deltaw.analyze(
        *saved(folder, base, {k: normal(40000 + i, *w.shape) for i, (k, w) in enumerate(base.items())})
    )


ANALYSES: dict[str, Callable[[Path], Analysis]] = {
    f.__name__: f
    for f in (
        *(demo, full_bf16, merged_bf16, lora, dora, decay_only, experts, gpt2, cnn, one_matrix, eighty_layers),
        *(quantised, unrelated),
    )
}


def compared(folder: Path, groups: Mapping[str, tuple[str, float, float]], seeds: int, points: int = 1) -> Comparison:
    """Runs of some groups: method, learning and retention by name, each with as many seeds and numbers of tokens."""
    base = llama(4, 48, 96)
    save_file(base, folder / "base.safetensors")
    lines = ['title = "Example runs"', 'base = "base.safetensors"']
    for g, (name, (method, learning, retention)) in enumerate(groups.items()):
        for seed in range(seeds):
            for point in range(1, points + 1):
                size = (0.02 + 0.001 * seed) * point / points
                drawn = 97 * g + seed
                rank = int(name.partition("r=")[2] or 8)
                ft = low_rank(base, min(rank, 40), size, drawn) if method == "lora" else tuned(base, size, seed=drawn)
                file = f"{g}-{seed}-{point}.safetensors"
                save_file({k: v.contiguous() for k, v in ft.items()}, folder / file)
                spread = 0.004 * float(
                    torch.randn((), generator=torch.Generator().manual_seed(31 * g + 7 * seed + point))
                )
                gained, lost = learning * (point / points) ** 0.5, (0.7 - retention) * point / points
                lines.append(f'[[runs]]\nname = "{name} s{seed} {point} M"\ncheckpoint = "{file}"\ngroup = "{name}"')
                lines.append(f'method = "{method}"\nseed = {seed}\ntokens = {point}_000_000\n[runs.scores]')
                lines.append(f"learning = {gained + spread}\nretention = {0.7 - lost - spread / 2}")
    (folder / "runs.toml").write_text("\n".join(lines))
    return deltaw.compare(folder / "runs.toml")


def two_runs(folder: Path) -> Comparison:
    """Full fine-tuning and LoRA, once each."""
    return compared(folder, {"full": ("full", 0.29, 0.55), "LoRA r=8": ("lora", 0.22, 0.62)}, 1)


def eight_runs(folder: Path) -> Comparison:
    """Four groups with two seeds each."""
    groups = {"full": ("full", 0.29, 0.55), "full, decay": ("full", 0.29, 0.56)}
    groups |= {"LoRA r=8": ("lora", 0.22, 0.62), "LoRA r=64": ("lora", 0.25, 0.6)}
    return compared(folder, groups, 2, 1)


def forty_runs(folder: Path) -> Comparison:
    """Four groups with five seeds at two numbers of tokens each."""
    groups = {"full": ("full", 0.29, 0.55)}
    groups |= {f"LoRA r={r}": ("lora", 0.2 + 0.01 * r**0.5, 0.63 - 0.006 * r**0.5) for r in (4, 16, 36)}
    return compared(folder, groups, 5, 2)


COMPARISONS: dict[str, Callable[[Path], Comparison]] = {f.__name__: f for f in (two_runs, eight_runs, forty_runs)}


def surveyed(folder: Path, tasks: int, seeds: int) -> Survey:
    """Adapters of some tasks, with one that is like no other, one that is a copy, and one that cannot be read."""
    base = llama(4, 48, 96)
    path = saved(folder, base, base)[0]
    adapters = folder / "adapters"
    for task in range(tasks):
        for seed in range(1, seeds + 1):
            adapter(adapters / f"team-{task % 3}" / f"task-{task}-seed-{seed}", base, rank=4, task=task, seed=seed)
    adapter(adapters / "alone", base, rank=8, task=tasks)
    adapter(adapters / "copied", base, rank=4, task=0, seed=1)
    (adapters / "unfinished").mkdir()
    (adapters / "unfinished" / "adapter_config.json").write_text("{}")
    merge = ["task-0-seed-1", "task-1-seed-1", "alone"]
    return deltaw.survey(path, [adapters], merge_check=merge)


def small_survey(folder: Path) -> Survey:
    """Twelve adapters of three tasks, and three others."""
    return surveyed(folder, 3, 4)


def large_survey(folder: Path) -> Survey:
    """240 adapters of twenty tasks, which are compared by sketches, and three others."""
    return surveyed(folder, 20, 12)


SURVEYS: dict[str, Callable[[Path], Survey]] = {f.__name__: f for f in (small_survey, large_survey)}
