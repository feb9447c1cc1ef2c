"""Sixty saved results of 224 matrices each: how long a comparison and its report take, and how much memory.

    python benchmarks/comparison.py [--width 4096]

The target: under 60 s and 2 GB on two cores, a report under 10 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GROUPS, SEEDS, BLOCKS = 20, 3, 32


def write(folder: Path, run: int, width: int) -> None:
    """Synthetic results with every column of an exact analysis; singular values of full length."""
    from deltaw.metrics.registry import REGISTRY
    from deltaw.results.analysis import Analysis
    from deltaw.types import Spectrum

    rng = np.random.default_rng(run)
    inner = int(width * 2.7)
    shapes = {f"self_attn.{n}_proj": (width, width) for n in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    rows, spectra = [], {}
    for block in range(BLOCKS):
        for module, (m, n) in shapes.items():
            name = f"model.layers.{block}.{module}.weight"
            kind = "mlp" if module.startswith("mlp") else "attention"
            row = {"name": name, "stack": "model.layers", "layer": block, "module": module, "kind": kind, "part": ""}
            row |= {"rows": m, "cols": n, "ndim": 2, "route": "dense", "method": "exact", "seconds": 1.0}
            for metric in REGISTRY.values():
                value = (1 + run % GROUPS / 5) * math.exp(rng.normal(0, 0.3))
                row[metric.name] = round(10 * value) if metric.unit == "count" else value
            rows.append(row | {"base_fro_norm": math.sqrt(m * n) * 0.02, "resolution": "resolved"})
            s = np.sort(rng.random(min(m, n)))[::-1]
            spectra[name] = Spectrum(s, m, n, energy=float((s**2).sum()))
    about = {"path": "base", "revision": None, "format": "safetensors", "tensors": len(rows), "bytes": 1}
    Analysis(rows, spectra, base=about, ft=about, options={"mode": "exact"}).save(folder / f"run{run}", ["parquet"])


def manifest(folder: Path) -> Path:
    """Twenty groups of three seeds, with scores."""
    rng = np.random.default_rng(0)
    lines = ['title = "Sixty runs"']
    for run in range(GROUPS * SEEDS):
        group = run % GROUPS
        lines += ["[[runs]]", f'name = "run{run}"', f'group = "arm {group}"', f"seed = {run // GROUPS}"]
        lines += [f'method = "{"full" if group == 0 else "lora"}"', f'results = "run{run}"', "[runs.scores]"]
        lines += [f"learning = {0.3 - 0.01 * group + rng.normal(0, 0.005)}", f"retention = {0.5 + 0.01 * group}"]
    path = folder / "runs.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def measure(path: Path, out: Path) -> None:
    """One comparison in this process, from nothing to the files."""
    start = time.perf_counter()
    import deltaw

    comparison = deltaw.compare(path)
    loaded = time.perf_counter()
    comparison.save(out, report=False)
    tables = time.perf_counter()
    comparison.report(out / "report.html")
    done = time.perf_counter()
    result = {
        "load_s": loaded - start,
        "tables_s": tables - loaded,
        "report_s": done - tables,
        "total_s": done - start,
        "cpu_s": time.process_time(),
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "report_MB": (out / "report.html").stat().st_size / 1e6,
        "contrasts": len(comparison.contrasts()),
    }
    print(json.dumps({k: round(v, 2) for k, v in result.items()}))


def main() -> None:
    """Write the results, then measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.measure.parent / "out")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in range(GROUPS * SEEDS):
            write(folder, run, args.width)
        subprocess.run([sys.executable, __file__, "--measure", str(manifest(folder))], check=True)


if __name__ == "__main__":
    main()
