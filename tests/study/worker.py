"""A study in a process of its own, to be killed: `python worker.py PLAN OUT CACHE JOBS`."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from deltaw.study import runner

if __name__ == "__main__":
    plan, out, cache, jobs = sys.argv[1:]
    runner.compare = lambda _: None  # type: ignore[assignment, return-value]  # compared once, by the test
    runner.run(
        pickle.loads(Path(plan).read_bytes()),
        out,
        cache=cache,
        jobs=int(jobs),
        device="cpu",
        progress=lambda p: print(p.stage, p.done, p.total, flush=True),
    )
