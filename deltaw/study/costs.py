"""What a plan will take: parameters, tokens, memory, disk and time, before anything is trained.

Times are measured, not guessed: one step of each kind of arm, one evaluation, one generation and one analysis on the
plan's own model, with random weights where the base is still to be trained; then it is arithmetic. The comparison at
the end is counted with a rate that was measured once (`COMPARED`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import deltaw
from deltaw.study import arms
from deltaw.study.base import llama_config
from deltaw.study.extra import require
from deltaw.study.job import threads
from deltaw.study.plan import Arm, PlannedRun, StudyPlan
from deltaw.study.runner import PROCESS, default_jobs, resolve_device
from deltaw.types import counted

MEASURED_TOKENS = 2048  # of the step that is timed on a CPU; a larger one is taken to cost in proportion
READ = 400_000  # characters a second: parsing, splitting and checking for leaks
COMPARED = 0.5  # seconds for each saved point in the comparison and its report
SOLUTION = 0.75  # of a block: a solution that is generated, at most, for its prompt takes the rest


@dataclass(frozen=True)
class PlanCost:
    """What a plan takes.

    Attributes:
        parameters: Of the base.
        trainable: By arm.
        runs, points: Trainings, and saved points of all of them.
        base_tokens, run_tokens, total_tokens: Trained on by the base, by one run, by everything.
        jobs: Runs at a time.
        memory: Bytes at once, about.
        disk: Bytes of checkpoints and results, about.
        seconds: Wall time, about, by part; `base` is 0 if it is given or cached.
    """

    parameters: int
    trainable: dict[str, int]
    runs: int
    points: int
    base_tokens: int
    run_tokens: int
    total_tokens: int
    jobs: int
    memory: int
    disk: int
    seconds: dict[str, float]


def estimate(plan: StudyPlan, *, device: str = "auto", jobs: int | None = None) -> PlanCost:
    """Estimate a plan by timing its parts on this machine; takes seconds for a small model.

    Args:
        plan: The plan.
        device: Where it would run.
        jobs: Runs at a time.

    Raises:
        DeltaWError: The plan cannot be carried out here.
    """
    require()
    device = resolve_device(device)
    t = plan.training
    with threads(plan.threads), arms.quiet(), torch.random.fork_rng():
        base = _base(plan).to(device)
        parameters = sum(p.numel() for p in base.parameters())
        jobs = jobs or default_jobs(plan, device, parameters)
        left_out = arms.misfits(plan.arms, lambda arm: _base(plan, arm))
        trainable, step = {}, {}
        for arm in (a for a in plan.arms if a.name not in left_out):
            model = arms.prepare(_base(plan, arm), arm).to(device)
            trainable[arm.name] = arms.trainable(model)
            if arm.method not in step:
                step[arm.method] = _step_seconds(model, plan, t.batch)
        point = _point_seconds(base, plan)
    runs = [r for r in plan.runs() if r.arm.name not in left_out]
    points = len(runs) * t.points
    run_tokens = t.steps * t.batch * t.length
    base_tokens = 0 if plan.base.model else plan.base.steps * plan.base.batch * t.length
    train = sum(t.steps * step[r.arm.method] + t.points * point.all for r in runs)
    full = step.get("full") or max(step.values())
    seconds = {
        "data": sum((d.characters or 0) + 2 * plan.held_out for d in (plan.source, *plan.targets)) / READ,
        "base": base_tokens / (t.batch * t.length) * full / max(1, plan.base.threads if device == "cpu" else 1),
        "runs": train / min(jobs, len(runs)),
        "comparison": COMPARED * points,
    }
    if again := _written_again(plan, runs):
        seconds["writing again"] = again * point.written_again / min(jobs, len(runs))
    return PlanCost(
        parameters=parameters,
        trainable=trainable,
        runs=len(runs),
        points=points,
        base_tokens=base_tokens,
        run_tokens=run_tokens,
        total_tokens=base_tokens + len(runs) * run_tokens,
        jobs=jobs,
        memory=min(jobs, len(runs)) * _memory(base, plan, max(trainable.values())),
        disk=_disk(plan, runs, parameters, trainable),
        seconds=seconds,
    )


def _base(plan: StudyPlan, arm: Arm | None = None) -> Any:
    import transformers

    if plan.base.model:
        return arms.open_base(plan.base.model, arm)
    config = llama_config(plan.base, plan.training.length, plan.base.vocabulary)
    return transformers.LlamaForCausalLM(config)


def _step_seconds(model: Any, plan: StudyPlan, batch: int) -> float:
    """One optimiser step of a batch, the quickest of two after a warm-up."""
    length = plan.training.length
    few = _measured(batch, length, model.device)
    ids = torch.randint(model.config.vocab_size, (few, length), device=model.device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=plan.training.precision == "bfloat16")

    def step() -> None:
        with autocast:
            model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    model.train()
    return _quickest(step, model.device) * batch / few


class PointSeconds(NamedTuple):
    """Scoring and measuring one saved point; writing one checkpoint again, and its two losses."""

    all: float
    written_again: float


def _written_again(plan: StudyPlan, runs: Sequence[PlannedRun]) -> int:
    """How many checkpoints are written again."""
    asked = plan.rewriting
    if asked is None:
        return 0
    mine = [r for r in runs if asked.takes(r.arm)]
    return sum(len(asked.ranks) + (len(asked.edits) if r.arm.method == "full" else 0) for r in mine)


def _point_seconds(model: Any, plan: StudyPlan) -> PointSeconds:
    s, length = plan.scores, plan.training.length
    model.eval()
    few = _measured(s.batch, length, model.device)
    ids = torch.randint(model.config.vocab_size, (few, length), device=model.device)
    with torch.no_grad():
        forward = _quickest(lambda: model(input_ids=ids, use_cache=False), model.device) / ids.numel()
        total = losses = 2 * s.tokens * forward
        solving = s.problems if any(t.corpus == "maths" for t in plan.targets) else 0
        solution = int(SOLUTION * length)
        asked = [(s.samples, s.new_tokens)] * s.prompts + [(solving, solution)]
        for rows, new in set(asked):
            if rows:
                once = _quickest(lambda n=rows, k=new: _generate(model, n, k), model.device)  # type: ignore[misc]
                total += once * asked.count((rows, new))
    changed = {name: w * 1.01 + 1e-4 for name, w in model.state_dict().items()}
    started = time.perf_counter()
    deltaw.analyze(model.state_dict(), changed, device=str(model.device), jobs=1)
    measured = time.perf_counter() - started  # to read, solve and write takes about as long
    return PointSeconds(total + measured, losses + measured)


def _measured(batch: int, length: int, device: torch.device) -> int:
    """Sequences of the step that is timed: on a GPU all, as a small step takes as long to launch as a large one."""
    return batch if device.type == "cuda" else max(1, min(batch, MEASURED_TOKENS // length))


def _generate(model: Any, rows: int, new_tokens: int) -> None:
    ids = torch.randint(1, model.config.vocab_size, (rows, 32), device=model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=True,
        pad_token_id=0,
    )


def _quickest(work: Callable[[], Any], device: torch.device) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _memory(model: Any, plan: StudyPlan, trainable: int) -> int:
    """Bytes of one process: weights, base, gradients, AdamW's moments, activations, logits."""
    config, t = model.config, plan.training
    parameters = sum(p.numel() for p in model.parameters())
    tokens = t.batch * t.length
    width = 16 * getattr(config, "hidden_size", 0) + 4 * getattr(config, "intermediate_size", 0)
    activations = tokens * getattr(config, "num_hidden_layers", 1) * width
    logits = 3 * max(tokens, plan.scores.batch * t.length) * int(config.vocab_size)
    return int(PROCESS + 4 * (2 * parameters + 3 * trainable + activations + logits))


def _disk(plan: StudyPlan, runs: Sequence[PlannedRun], parameters: int, trainable: dict[str, int]) -> int:
    """Bytes of the checkpoints that are kept, and of the results of every point."""

    def checkpoint(arm: Arm) -> int:
        if arm.method == "full":
            return 4 * parameters
        return 4 * trainable[arm.name] * (2 if arm.method == "mora" else 1)

    kept = {"all": plan.training.points, "last": 1, "none": 0}[plan.training.checkpoints]
    results = 200_000 * plan.training.points
    weights = 0 if plan.base.model else 4 * parameters
    return weights + sum(checkpoint(r.arm) * kept + results for r in runs)


def in_words(plan: StudyPlan, found: PlanCost) -> str:
    """The plan and its estimate, for people."""
    t = plan.training
    base = plan.base.model or "a Llama trained from scratch"
    lines = [
        plan.title,
        f"base        {base}: {found.parameters:,} parameters, {found.base_tokens:,} tokens of {plan.source.name}",
        f"targets     {', '.join(f'{d.name} ({d.regime})' for d in plan.targets)}",
        f"runs        {found.runs}: {counted(len(plan.arms), 'arm')}, {counted(len(plan.targets), 'target')}, "
        f"{counted(len(plan.seeds), 'seed')}",
        f"each run    {t.steps} steps of {t.batch} × {t.length} = {found.run_tokens:,} tokens (with padding), "
        f"{t.points} saved points",
        f"tokens      {found.total_tokens:,} in all",
        f"at a time   {found.jobs} runs, about {found.memory / 1e9:.1f} GB of memory",
        f"disk        about {found.disk / 1e9:.2f} GB",
        f"time        about {_minutes(sum(found.seconds.values()))}: "
        + ", ".join(f"{name} {_minutes(value)}" for name, value in found.seconds.items()),
        "",
        f"{'arm':<32}{'trained parameters':>20}   learning rates",
    ]
    for arm in plan.arms:
        rates = ", ".join(f"{r:g}" for r in arm.learning_rates)
        if arm.name in found.trainable:
            lines.append(f"{arm.name:<32}{found.trainable[arm.name]:>20,}   {rates}")
        else:
            lines.append(f"{arm.name:<32}{'does not fit this base: left out':>35}")
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
