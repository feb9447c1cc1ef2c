"""`adapter_config.json` of a LoRA whose ranks differ from module to module.

lora_alpha is the rank everywhere, so that the scaling is 1 for every module, whoever ignores the patterns. The keys of
the patterns are regular expressions that PEFT matches with the end of a module's path: anchored and escaped, each
matches its own module alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from deltaw.documents import Document
from deltaw.edits.architecture import Architecture
from deltaw.edits.placement import PairTarget, Whole
from deltaw.types import JsonValue

# PEFT's classes of these do nothing but forward; that of a classifier would look for modules of its own.
TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def adapter_config(
    targets: Sequence[PairTarget],
    ranks: Mapping[str, int],
    whole: Sequence[Whole],
    *,
    base: tuple[str, str | None],
    config: Document,
    model: Architecture | None,
    modules: Collection[str],
) -> dict[str, JsonValue]:
    """The configuration as JSON values.

    Args:
        targets: What has a pair.
        ranks: Their ranks, by the tensor's name.
        whole: What is stored as it is.
        base: Path or Hub id of the base, and its revision.
        config: The model's config.json.
        model: What the modules are, where that is known.
        modules: The paths of all modules that are known.
    """
    rank = max(ranks.values())
    other: dict[str, JsonValue] = {f"^{re.escape(t.key)}": ranks[t.name] for t in targets if ranks[t.name] != rank}
    wrapped = [t.module for t in targets if t.form != "parameter"]
    parameters: list[JsonValue] = [t.name for t in targets if t.form == "parameter"]
    found: dict[str, JsonValue] = {
        "peft_type": "LORA",
        "task_type": _task(config),
        "base_model_name_or_path": base[0] or None,
        "revision": base[1],
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "lora_dropout": 0.0,
        "fan_in_fan_out": _conv1d(targets, model),
        "bias": "all" if any(w.is_bias for w in whole) else "none",
        "target_modules": _targets(wrapped, modules),
        "modules_to_save": [w.name for w in whole if not w.is_bias] or None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    return found | {"target_parameters": parameters} if parameters else found


def _targets(wrapped: Sequence[str], modules: Collection[str]) -> JsonValue:
    """The modules by their paths; as one regular expression where a path is the end of another module's.

    PEFT takes a path in a list for every module whose path ends with it.
    """
    own = set(wrapped)
    ends = {
        ".".join(parts[i:]) for m in modules if m not in own for parts in [m.split(".")] for i in range(1, len(parts))
    }
    if own & ends:
        return "|".join(re.escape(m) for m in wrapped)
    return list(wrapped)


def _conv1d(targets: Sequence[PairTarget], model: Architecture | None) -> bool:
    kinds = model.kinds if model is not None else {}
    return any(
        kinds.get(t.module, "conv1d" if t.pairs[0].view.transposed else "linear") == "conv1d"
        for t in targets
        if t.form == "linear"
    )


def _task(config: Document) -> str | None:
    names = config.texts("architectures")
    return next((task for end, task in TASKS.items() if names and names[0].endswith(end)), None)
