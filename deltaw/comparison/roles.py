"""Which group plays which part in the claims: plain full fine-tuning, LoRA, MoRA, weight decay, dropout."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deltaw.comparison.runs import Run, Runs, arena

LORA = frozenset({"lora", "rslora", "qlora", "lora+", "loraplus"})
FULL = frozenset({"full", "fft", "full fine-tuning", "full finetuning", "full-finetuning", "sft-full"})
RANK_KEYS = ("rank", "r", "lora_r", "lora_rank")
DECAY_KEYS = ("weight_decay", "decay", "wd")
DROPOUT_KEYS = ("attention_dropout", "attn_dropout", "dropout")
OPTIMISER_KEYS = ("optimizer", "optimiser", "optim")
PRETRAINING_KEYS = ("pretraining_optimizer", "pretraining_optimiser", "pretrain_optimizer")

# What a group's name says of an amount: none of it, so much, or that there is some. A learning rate decays, too.
_NONE = r"\b(?:no|non|without|w/o|zero)[\s_-]*"
_DECAY = r"(?:weight[\s_-]*decay|wd|decay)"
_OTHER_DECAY = r"\b(?:lr|learning[\s_-]*rate|cosine|linear|exponential|step|polynomial|schedule)[\s_-]*decay(?:ed|s)?\b"
_DROPOUT = r"(?:(?:attention|attn)[\s_-]*)?dropout"
_AMOUNT = r"[\s=:_-]*(?P<amount>\d*\.?\d+(?:e-?\d+)?)"
_OFF = r"[\s=:_-]*(?:off|none|false)\b"


@dataclass(frozen=True)
class Arena:
    """The groups of one domain and one kind of training, by the part they play.

    Attributes:
        domain, training: As `runs.arena` names them; empty if the runs do not say.
        full: Plain full fine-tuning: of the full groups the one with the least decay and dropout.
        lora: Groups by rank, ascending.
        mora: The same of MoRA.
        decay, dropout: Full fine-tuning with more weight decay, or more dropout, than the plain one.
        same_optimiser: Full fine-tuning with the optimiser of the pretraining, where the runs say both.
    """

    domain: str
    training: str
    full: str | None = None
    lora: Sequence[tuple[int | None, str]] = field(default_factory=list)
    mora: Sequence[tuple[int | None, str]] = field(default_factory=list)
    decay: Sequence[str] = field(default_factory=list)
    dropout: Sequence[str] = field(default_factory=list)
    same_optimiser: Sequence[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """`code, cpt`; empty if the runs do not say."""
        return ", ".join(t for t in (self.domain, self.training) if t)


def arenas(runs: Runs) -> list[Arena]:
    """The arenas of a comparison, in order of appearance."""
    found: dict[tuple[str, str], list[str]] = {}
    for g in runs.groups:
        found.setdefault(arena(runs.chosen[g]), []).append(g)
    return [_arena(runs, domain, training, groups) for (domain, training), groups in found.items()]


def _arena(runs: Runs, domain: str, training: str, groups: list[str]) -> Arena:
    first = {g: runs.representatives(g)[0] for g in groups}
    strength = {g: (_amount(r, DECAY_KEYS, _DECAY), _amount(r, DROPOUT_KEYS, _DROPOUT)) for g, r in first.items()}
    full = [g for g, r in first.items() if r.method in FULL]
    plain = min(full, key=lambda g: sum(strength[g]), default=None)
    least = strength[plain] if plain is not None else (0.0, 0.0)
    return Arena(
        domain,
        training,
        plain,
        _by_rank([(rank_of(r), g) for g, r in first.items() if r.method in LORA]),
        _by_rank([(rank_of(r), g) for g, r in first.items() if r.method == "mora"]),
        [g for g in full if strength[g][0] > least[0]],
        [g for g in full if strength[g][1] > least[1]],
        [g for g in full if _same_optimiser(first[g])],
    )


def references(runs: Runs) -> dict[str, str]:
    """What each group is compared with: the comparison's reference, in another domain its plain full fine-tuning."""
    out: dict[str, str] = {}
    by_arena: dict[tuple[str, str], list[str]] = {}
    for g in runs.groups:
        by_arena.setdefault(arena(runs.chosen[g]), []).append(g)
    for a in arenas(runs):
        members = by_arena[a.domain, a.training]
        reference = runs.reference if runs.reference in members else a.full or members[0]
        out |= dict.fromkeys(members, reference)
    return out


def _by_rank(found: list[tuple[int | None, str]]) -> list[tuple[int | None, str]]:
    return sorted(found, key=lambda p: (p[0] is None, p[0] or 0))


def _amount(run: Run, keys: Sequence[str], word: str) -> float:
    """How much weight decay or dropout: the hyperparameter's value, else what the group's name says of it.

    A name that says that there is some, and not how much, means infinitely much; `full (no weight decay)` none.
    """
    value = run.hyper(*keys)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return amount_in_words(f"{run.method} {run.spec.group}", word)


def amount_in_words(name: str, word: str) -> float:
    """What a name says of an amount (`_DECAY`, `_DROPOUT`): 0 where it says nothing, or that there is none."""
    text = re.sub(_OTHER_DECAY, " ", name.lower())
    text = re.sub(r"[_/]", " ", text.replace("w/o", "without"))
    if re.search(_NONE + word, text) or re.search(rf"\b{word}{_OFF}", text):
        return 0.0
    numbers = [float(m["amount"]) for m in re.finditer(rf"\b{word}{_AMOUNT}", text)]
    numbers += [float(m["amount"]) for m in re.finditer(rf"(?P<amount>\d*\.?\d+(?:e-?\d+)?)\s*{word}\b", text)]
    if numbers:
        return max(numbers)
    return math.inf if re.search(rf"\b{word}\b", text) else 0.0


def _same_optimiser(run: Run) -> bool:
    """Whether a run says that its optimiser is that of the pretraining: `adamw_torch` is AdamW."""
    mine, theirs = (
        re.match(r"[a-z]+", str(run.hyper(*keys) or "").lower()) for keys in (OPTIMISER_KEYS, PRETRAINING_KEYS)
    )
    return mine is not None and theirs is not None and mine.group() == theirs.group()


def rank_of(run: Run) -> int | None:
    """An adapter's rank: as a hyperparameter, in its analysis, or in the group's name."""
    value = run.hyper(*RANK_KEYS)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    if run.layers is not None and "adapter_rank" in run.layers.columns:
        ranks = run.layers["adapter_rank"].to_numpy(dtype=np.float64)
        if np.isfinite(ranks).any():
            return int(np.nanmedian(ranks))
    found = re.search(r"\b(?:r|rank)\s*[=_-]?\s*(\d{1,9})\b", f"{run.spec.group} {run.spec.name}", re.IGNORECASE)
    return int(found.group(1)) if found else None
