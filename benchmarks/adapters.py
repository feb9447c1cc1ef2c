"""How long an adapter of a 7B Llama takes without its base, against the dense SVD of the same matrices.

    python benchmarks/adapters.py [--rank 16] [--layers 32] [--no-dense]

32 layers of hidden size 4096 and intermediate size 11008, all seven projections, random factors. Target: under 15 s on
two cores. One matrix of each shape is multiplied out and its singular values are computed in float32, as a merged
checkpoint would need them; the time for all matrices is that of the sample times their number.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import deltaw
from deltaw.adapters import open_adapter

HIDDEN, INTERMEDIATE = 4096, 11008
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def write_adapter(folder: Path, rank: int, layers: int) -> None:
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for module, (m, n) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}.lora_"
            tensors[f"{name}A.weight"] = (0.02 * torch.randn(rank, n, generator=g)).bfloat16()
            tensors[f"{name}B.weight"] = (0.02 * torch.randn(m, rank, generator=g)).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def dense_seconds(folder: Path) -> float:
    """The singular values of one product of each shape, scaled to all modules of that shape."""
    spent: dict[tuple[int, int], float] = {}
    total = 0.0
    for pair in open_adapter(folder).updates(None).pairs:
        shape = pair.ft.shape
        key = (min(shape), max(shape))
        if key not in spent:
            B, A = pair.ft.delta(None)
            W = (B @ A).float()
            started = time.perf_counter()
            torch.linalg.svdvals(W)
            spent[key] = time.perf_counter() - started
            print(f"dense svdvals of {shape[0]} × {shape[1]}: {spent[key]:.1f} s")
        total += spent[key]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--no-dense", action="store_true", help="only the adapter")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_adapter(folder, arguments.rank, arguments.layers)
        started, processor = time.perf_counter(), time.process_time()
        frame = deltaw.analyze(None, folder).to_pandas()
        took, processor = time.perf_counter() - started, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"deltaw, {len(frame)} modules of rank {arguments.rank}: {took:.1f} s ({processor:.1f} s of processor)")
        print(f"peak memory of the process: {peak:.0f} MB; threads: {torch.get_num_threads()}")
        if not arguments.no_dense:
            dense = dense_seconds(folder)
            print(f"dense, all {len(frame)}: about {dense:.0f} s, {dense / took:.0f} times as long")


if __name__ == "__main__":
    main()
