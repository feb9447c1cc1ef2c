"""Claims that compare domains or kinds of training: where the gap between LoRA and full fine-tuning is larger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltaw.comparison.claims.evidence import Found, claim
from deltaw.comparison.claims.scores import CODE, LEARNING, MATHS
from deltaw.comparison.claims.sources import BIDERMAN
from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.manifest import AXES
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Runs
from deltaw.comparison.score_differences import Weighted, score_combination, score_endpoints

PRETRAINING = ("cpt", "pretraining", "continued pretraining", "continued-pretraining")
INSTRUCTION = ("ift", "sft", "instruction", "instruction tuning", "instruction-tuning", "instruction finetuning")
RULE = (
    "For each LoRA rank that both have: the gap in the first minus the gap in the second, in the units of the scores, "
    "each at the largest number of tokens that LoRA and full have. Welch's t over the seeds of all four groups, Holm "
    "over the ranks. For: above 0 at 5 %."
)


def across(runs: Runs, found: Sequence[Arena]) -> Iterator[Claim]:
    """The claims about two domains, and about two kinds of training."""
    for axis in AXES:
        domains = [(x, y) for x, y in _pairs(found) if _is(x, y, CODE, MATHS) and x.training == y.training]
        yield claim(
            f"{axis}-gap-larger-for-code",
            f"The gap between LoRA and full fine-tuning in {axis} is larger for code than for maths",
            RULE,
            None,
            [e for x, y in domains for e in _gaps(runs, x, y, axis)],
            'needs runs of both domains (hyperparameters.domain = "code" and "maths")',
            BIDERMAN,
        )
        kinds = [
            (x, y)
            for x, y in _pairs(found)
            if x.training in PRETRAINING and y.training in INSTRUCTION and x.domain == y.domain
        ]
        yield claim(
            f"{axis}-gap-larger-for-pretraining",
            f"The gap in {axis} is larger for continued pretraining than for instruction tuning",
            RULE,
            None,
            [e for x, y in kinds for e in _gaps(runs, x, y, axis)],
            'needs runs of both kinds (hyperparameters.training = "cpt" and "ift")',
            BIDERMAN,
        )


def _pairs(found: Sequence[Arena]) -> list[tuple[Arena, Arena]]:
    return [(x, y) for x in found for y in found if x is not y]


def _is(x: Arena, y: Arena, first: Sequence[str], second: Sequence[str]) -> bool:
    return x.domain in first and y.domain in second


def _gaps(runs: Runs, x: Arena, y: Arena, axis: str) -> Iterator[Found]:
    """For each LoRA rank that both arenas have, the gap in the one − the gap in the other."""
    sign = -1.0 if axis == LEARNING else 1.0  # LoRA is expected to learn less and to keep more
    others = {r: g for r, g in y.lora if r is not None}
    for rank, g in x.lora:
        if rank is None or rank not in others or x.full is None or y.full is None:
            continue
        first, second = score_endpoints(runs, g, x.full, axis), score_endpoints(runs, others[rank], y.full, axis)
        if first is None or second is None:
            continue
        found = score_combination(
            [Weighted(sign, first.a), Weighted(-sign, first.b), Weighted(-sign, second.a), Weighted(sign, second.b)],
            axis,
            max(first.trials, second.trials),
        )
        where = first.where if first.where == second.where else f"{first.where} and{second.where}"
        what = f"gap of rank {rank}, {x.label} − {y.label}"
        yield ClaimEvidence(what, found.estimate, items=found.items, where=where, paired=found.paired)
