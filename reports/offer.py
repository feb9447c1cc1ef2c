"""What an adapter of this update would take: the ranks that keep 90 % of the energy, as a `LoraConfig` to paste.

Nothing is offered where an adapter has nothing to hold: a uniform shrink, an unrelated model, rounding.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.reports import adapter_ranks
from deltaw.reports.adapter_ranks import Need
from deltaw.results.verdict import Verdict

if TYPE_CHECKING:
    from deltaw.reports.layers import Layers
    from deltaw.results.analysis import Analysis

SHARE = 0.9  # of the energy above rounding, in every layer
ALPHA = 2  # lora_alpha over r: each adapted module gets the same scaling
NOTHING = frozenset({Verdict.DECAY_ONLY, Verdict.UNRELATED})  # an adapter has nothing to hold of these
WORTH = frozenset({Verdict.LOW_RANK, Verdict.CONCENTRATED, Verdict.SPREAD, Verdict.NOISY})


@dataclass(frozen=True)
class Offer:
    """The adapter that would hold an update.

    Attributes:
        low, high: The least and the largest rank of a module that keeps `SHARE` of the energy in each of its layers.
        size: Parameters of those adapters over those of the matrices that they adapt.
        config: A `LoraConfig(...)` to paste; empty where no module can be named.
        count: The matrices that they adapt.
    """

    low: int
    high: int
    size: float
    config: str
    count: int

    @property
    def ranks(self) -> str:
        """`rank 8`, or `ranks 105–187`."""
        return f"rank {self.low}" if self.low == self.high else f"ranks {self.low}–{self.high}"


def offer(layers: Layers) -> Offer | None:
    """What an adapter of an analysis would take; None where there is nothing for one to hold, or no rank is known."""
    if layers.analysis.summary.verdict not in WORTH:
        return None
    needs = [n for n in adapter_ranks.needs(layers) if n.kind in adapter_ranks.ADAPTED and n.most[SHARE] >= 1]
    if not needs:
        return None
    ranks = [int(n.most[SHARE]) for n in needs]
    size = adapter_ranks.adapter_size(needs, SHARE)
    named = [n for n in needs if not re.search(r"\[.*expert", n.module)]  # stacked experts are no modules of their own
    config = lora_config(named) if named and size < 1 else ""
    return Offer(min(ranks), max(ranks), size, config, sum(n.count for n in needs))


def lora_config(needs: list[Need]) -> str:
    """A PEFT configuration whose ranks keep `SHARE` of the energy in every layer of each module."""
    ranks = json.loads(adapter_ranks.rank_pattern(needs, SHARE))
    common = max(ranks.values(), key=lambda r: (list(ranks.values()).count(r), r))
    other = {module: r for module, r in ranks.items() if r != common}
    lines = [f"r={common},", f"lora_alpha={ALPHA * common},", f"target_modules={_targets(list(ranks))},"]
    if other:
        lines.append(f"rank_pattern={_mapping(other)},")
        lines.append(f"alpha_pattern={_mapping({m: ALPHA * r for m, r in other.items()})},")
    return "\n".join(["LoraConfig(", *(f"    {line}" for line in lines), ")"])


def _targets(modules: list[str]) -> str:
    """The modules by the ends of their names, or, where experts have numbers, as one regular expression."""
    if not any("\\" in m for m in modules):
        return _list(modules)
    return json.dumps(rf".*\.({'|'.join(modules)})")


def _list(items: list[str]) -> str:
    quoted = [json.dumps(i) for i in items]
    text = f"[{', '.join(quoted)}]"
    return text if len(text) < 80 else "[\n        " + ",\n        ".join(quoted) + ",\n    ]"


def _mapping(items: Mapping[str, int]) -> str:
    lines = ",\n        ".join(f"{json.dumps(k)}: {v}" for k, v in items.items())
    return "{" + f"\n        {lines},\n    " + "}"


def extract_command(analysis: Analysis) -> str:
    """The command that writes this fine-tune as an adapter; empty where deltaw has none, or a side has no path."""
    import deltaw

    paths = ["" if side is None else side.path for side in (analysis.base, analysis.ft)]
    if "extract" not in deltaw.__all__ or not all(paths) or analysis.summary.verdict not in WORTH:
        return ""
    return shlex.join(["deltaw", "extract", *paths, "--energy", f"{SHARE:g}", "--out", "adapter"])


def sentence(found: Offer, percent: Any) -> str:
    """What it would take, as the end of a sentence: `90 % in every layer takes ranks 105–187, adapters 57 % as …`."""
    if math.isnan(found.size):
        return ""
    adapters, matrices = ("an adapter", "the matrix") if found.count == 1 else ("adapters", "the matrices")
    size = f"{percent(found.size, 2)} as large as {matrices}" if found.size < 1 else f"larger than {matrices}"
    where = "" if found.count == 1 else " in every layer"
    return f"{percent(SHARE)}{where} takes {found.ranks}, {adapters} {size}"
