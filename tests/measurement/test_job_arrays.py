"""The job arrays of the recipe, run as they stand there: the array, torchrun, and the indexed job give one analysis."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deltaw
from tests.conftest import changed, pico_state, save_single

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "large.md"
COUNT = 2  # parts here, where the recipe has 16, and processes of torchrun, where it has 8


def lines(kind: str) -> str:
    """What the recipe has of one kind of job, on this machine's two parts and its CPU."""
    text = RECIPE.read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "SLURM_ARRAY_TASK_ID/16" in b)
    found = next(part for part in block.split("\n\n") if kind in part)
    script = "\n".join(line for line in found.splitlines() if not line.startswith(("#SBATCH", "spec:")))
    for theirs, ours in {
        "/16": f"/{COUNT}",
        "--nproc-per-node 8": f"--nproc-per-node {COUNT}",
        "--device cuda:$LOCAL_RANK": "--device cpu",
        "--device cuda": "--device cpu",
        "/models/base": "llama-70b",
        "/models/ft": "my-70b",
        "--out /parts/": "--out parts/",
        "deltaw analyze": "deltaw analyze --no-report -q --format csv --jobs 1",
    }.items():
        script = script.replace(theirs, ours)
    assert "cuda" not in script
    return script


JOBS = [("#SBATCH", "SLURM_ARRAY_TASK_ID", 1), ("spec:", "JOB_COMPLETION_INDEX", 0), ("torchrun", "", 0)]


@pytest.mark.parametrize(("kind", "index", "first"), JOBS)
def test_the_parts_of_a_job_array_are_the_whole(tmp_path: Path, kind: str, index: str, first: int):
    here = Path(sys.executable).parent
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("deltaw", path=path) is None or (not index and shutil.which("torchrun", path=path) is None):
        pytest.skip("the commands are not installed in this environment")
    base = save_single(pico_state(), tmp_path / "llama-70b")
    ft = save_single(changed(pico_state()), tmp_path / "my-70b")
    given = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    each = [{index: str(first + i)} for i in range(COUNT)] if index else [{}]
    jobs = [subprocess.Popen(["bash", "-ec", lines(kind)], cwd=tmp_path, env=given | about) for about in each]
    assert [job.wait(timeout=120) for job in jobs] == [0] * len(each)
    folders = sorted((tmp_path / "parts").iterdir())
    assert len(folders) == COUNT
    found = deltaw.gather(folders)
    expected = deltaw.analyze(base, ft, device="cpu")
    assert sorted(found.to_pandas()["name"]) == sorted(expected.to_pandas()["name"])
    assert found.summary.coverage == expected.summary.coverage
