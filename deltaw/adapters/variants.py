"""What a LoRA config asks for beyond s·B·A, and what is refused: never a wrong number, always the option's name.

`KNOWN` lists the fields of peft's LoraConfig and AdaLoraConfig by what they mean for ΔW; a test holds it against the
installed peft, so that a new variant is seen before it is misread.
"""

from __future__ import annotations

from deltaw.documents import Document
from deltaw.errors import AdapterError

# Fields that lora.py and its neighbours read.
READ = frozenset({
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights",
    "use_dora", "target_parameters", "trainable_token_indices", "use_bdlora", "kasa_config", "init_r",
    "peft_type", "use_mora", "mora_type",
})  # fmt: skip
# Fields that choose modules, steer training or describe the file; the tensors say the rest.
NEUTRAL = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "bias", "modules_to_save", "layers_to_transform",
    "layers_pattern", "runtime_config", "lora_bias", "eva_config", "corda_config", "lora_ga_config",
    "loftq_config", "velora_config", "monteclora_config", "ensure_weight_tying", "megatron_config",
    "megatron_core", "qalora_group_size", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
    "orth_reg_weight", "total_step", "merge_weights", "fan_in_fan_out",
})  # fmt: skip
REFUSED = {
    "alora_invocation_tokens": "activated LoRA acts on the tokens after its invocation only, so there is no one ΔW",
    "arrow_config": "Arrow routes every token through its own mixture of adapters, so there is no one ΔW",
    "use_qalora": "QA-LoRA acts on pooled inputs of a quantised layer, and peft itself does not merge it",
    "layer_replication": "layer_replication adapts copies of layers that the base does not store",
    "enable_lora": "LoRA on parts of a fused layer (MergedLinear of early peft) is not read",
}
KNOWN = READ | NEUTRAL | frozenset(REFUSED)

# How training began (init_lora_weights), where that leaves the base as it is …
PLAIN_INITS = frozenset({"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"})
# … and where the initial B·A is taken out of the base, so that B·A alone is no update of the original.
CHANGED_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")


def check(config: Document, source: str) -> tuple[str, ...]:
    """Refuse what has no ΔW or is not known; notes on fields that are new but look harmless.

    Raises:
        AdapterError: A field asks for something whose ΔW is not B·A, or that this version does not know.
    """
    for name, why in REFUSED.items():
        if config.says(name):
            raise AdapterError(f"{source}: {name} is set in adapter_config.json; {why}")
    notes = []
    for name, value in config.values.items():
        if name in KNOWN or value in (None, False, "", 0) or (isinstance(value, (list, dict)) and not value):
            continue
        if name.startswith("use_") or name.endswith("_config"):
            raise AdapterError(
                f"{source}: {name} is set in adapter_config.json, and this version does not know what it does to ΔW; "
                "expected LoRA or a variant listed in the documentation of adapters"
            )
        notes.append(f"{name} in adapter_config.json is not known, and was ignored")
    return tuple(notes)


def changed_init(config: Document, source: str) -> str | None:
    """The initialisation that changed the base, or None where training began at the base itself.

    Raises:
        AdapterError: The initialisation is not known.
    """
    init = str(config.values.get("init_lora_weights", True)).lower()
    if init in PLAIN_INITS:
        return None
    for name in CHANGED_INITS:
        if init == name or (name == "pissa" and init.startswith("pissa_niter_")):
            return init
    known = ", ".join(sorted(PLAIN_INITS | set(CHANGED_INITS)))
    raise AdapterError(
        f"{source}: init_lora_weights is {init!r} in adapter_config.json; whether that changes the base is unknown; "
        f"expected one of {known}"
    )
