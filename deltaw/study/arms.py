"""An arm → a model ready to train, and its checkpoint: full fine-tuning, LoRA and peft's other methods, MoRA.

Every arm starts from the same files. Attention dropout is set in the model's configuration, weight decay in the
optimiser's (`deltaw.study.training`); an adapter goes beside every linear layer but the output layer, as in Biderman
et al. 2024.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw.errors import CheckpointError, OptionError
from deltaw.study import mora
from deltaw.study.extra import require
from deltaw.study.plan import Arm
from deltaw.types import OptionValue

DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")


def open_base(base: str | Path, arm: Arm | None = None) -> Any:
    """The base as a transformers model in float32, with the arm's attention dropout.

    Raises:
        CheckpointError: There is no such model, or transformers cannot load it without running foreign code.
        OptionError: The arm wants attention dropout and this architecture has none.
    """
    require("transformers")
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(base))
    except (OSError, ValueError) as e:
        raise CheckpointError(_not_a_model(base, e)) from e
    if arm is not None and arm.attention_dropout:
        setattr(config, _dropout_name(config), arm.attention_dropout)
    try:
        return AutoModelForCausalLM.from_pretrained(str(base), config=config, dtype=torch.float32)
    except (OSError, ValueError) as e:
        raise CheckpointError(_not_a_model(base, e)) from e


def _not_a_model(base: str | Path, error: Exception) -> str:
    return f"{base}: not a causal language model that transformers can load ({str(error).splitlines()[0]})"


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars: the study has one."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def open_tokenizer(base: str | Path) -> Any:
    """The base's tokenizer.

    Raises:
        CheckpointError: There is none.
    """
    require("transformers")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(base))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{base}: no tokenizer that transformers can load ({str(e).splitlines()[0]})") from e


def _dropout_name(config: Any) -> str:
    for name in DROPOUTS:
        if hasattr(config, name):
            return name
    raise OptionError(f"{config.model_type} has no attention dropout in its configuration; leave out such arms")


def prepare(model: Any, arm: Arm) -> Any:
    """The model as the arm trains it: itself, or frozen with an adapter.

    Raises:
        OptionError: The arm does not fit the model.
    """
    if arm.method == "full":
        return model
    if arm.method == "mora":
        assert arm.rank is not None
        mora.inject(model, linear_layers(model), arm.rank, arm.mora_type, arm.dropout)
        return model
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft and transformers, about each other
            return peft.get_peft_model(model, _peft_config(arm))
    except (ValueError, TypeError) as e:
        raise OptionError(f"arm {arm.name!r} does not fit the model: {e}") from e


def misfits(known: Sequence[Arm], open_model: Callable[[Arm], Any]) -> dict[str, str]:
    """Why arms do not fit a base, by name: told before hours are spent on the others.

    Args:
        known: The arms.
        open_model: A fresh base for an arm.

    Raises:
        OptionError: None of them fits.
    """
    found = {}
    for arm in known:
        if arm.method != "full" or arm.attention_dropout:  # the plain one fits every model
            try:
                prepare(open_model(arm), arm)
            except OptionError as e:
                found[arm.name] = str(e)
    if len(found) == len(known):
        raise OptionError(f"no arm of the plan fits the base: {'; '.join(found.values())}")
    return found


def linear_layers(model: Any) -> list[str]:
    """The names of the linear layers, without the output layer."""
    head = model.get_output_embeddings()
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]


def _peft_config(arm: Arm) -> Any:
    import peft

    options: dict[str, OptionValue | None] = dict(arm.options)
    known = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    kind = str(options.pop("peft_type", "LORA")).upper()
    if kind not in known:
        raise OptionError(
            f"arm {arm.name!r}: peft_type {kind!r} is unknown; expected one of {', '.join(sorted(known))}"
        )
    if arm.method == "lora":
        own = {"r": arm.rank, "lora_alpha": arm.lora_alpha, "lora_dropout": arm.dropout}
        options = {**own, **options}
    try:
        return known[kind](**{"task_type": "CAUSAL_LM", "target_modules": "all-linear"} | options)
    except TypeError as e:
        raise OptionError(f"arm {arm.name!r}: {e}; see peft's {known[kind].__name__}") from e


def save(model: Any, arm: Arm, out: Path, base: str) -> None:
    """Write the checkpoint of an arm: a full model, or an adapter that names its base."""
    if arm.method == "mora":
        assert arm.rank is not None
        mora.save(model, out, arm.rank, base)
        return
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # peft warns when it cannot see the base's config.json; it has nothing to look up
        model.save_pretrained(out)
    if arm.method != "full":
        path = out / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"base_model_name_or_path": base}, indent=2) + "\n", encoding="utf-8")


def trainable(model: nn.Module) -> int:
    """Parameters that the arm trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
