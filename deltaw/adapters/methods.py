"""PEFT's methods by what can be known of their ΔW; the list itself is read from the installed peft."""

from __future__ import annotations

from typing import NamedTuple

from deltaw.errors import MissingExtraError

# Read here, without peft: LoRA's family as factors, trained tokens as rows of the base.
NATIVE = {
    "LORA": "factors (DoRA, KaSA and MoRA dense)",
    "ADALORA": "factors",
    "TRAINABLE_TOKENS": "trained rows of the base's embedding",
}
# No one ΔW: what these add is no change of a weight, or depends on the input.
PROMPTS = "it trains vectors that are put before the input or the keys and values, not the weights"
NO_DELTA = {
    "PROMPT_TUNING": PROMPTS,
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS,
    "ADAPTION_PROMPT": PROMPTS,
    "CPT": PROMPTS,
    "CARTRIDGE": PROMPTS,
    "XLORA": "a router mixes several adapters for every token",
    "POLY": "a router mixes several adapters for every task",
    "LILY": "a router mixes its factors for every token",
    "SHADOW": "it trains a second, smaller model beside the base",
}
# Methods whose merge changes the bias of a layer as well.
CHANGES_BIAS = frozenset({"IA3", "ROAD", "BEFT", "GLORA", "ADAMSS", "LN_TUNING"})


class Method(NamedTuple):
    """One method: peft's name, how its ΔW is obtained, or why there is none."""

    name: str
    how: str
    reason: str = ""


def installed() -> dict[str, type]:
    """The tuners of the installed peft, by the name of their method.

    Raises:
        MissingExtraError: There is no peft.
    """
    try:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    except ImportError as e:
        raise MissingExtraError(
            "this adapter's method is computed by the peft library, which is not installed; pip install 'deltaw[peft]'"
        ) from e
    return {str(kind.value): tuner for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}


def supported() -> list[Method]:
    """Every method of the installed peft and what deltaw does with it, in alphabetical order.

    Raises:
        MissingExtraError: There is no peft.
    """
    out = []
    for name in sorted({*installed(), *NATIVE}):
        if name in NO_DELTA:
            out.append(Method(name, "refused", NO_DELTA[name]))
        else:
            out.append(Method(name, NATIVE.get(name, "dense, computed by peft")))
    return out


def table() -> str:
    """The list of `supported` in Markdown, for the documentation.

    Raises:
        MissingExtraError: There is no peft.
    """
    rows = [f"| {m.name} | {m.how}{': ' + m.reason if m.reason else ''} |" for m in supported()]
    return "\n".join(["| method | ΔW |", "|---|---|", *rows]) + "\n"
