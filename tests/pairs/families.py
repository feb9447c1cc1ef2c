"""The families of the installed transformers that are compared with peft's own merge: tiny configs, one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
BERT = {k: v for k, v in TEXT.items() if k not in {"head_dim", "num_key_value_heads"}} | {"type_vocab_size": 2}
SEEN = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MOE = TEXT | {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 12, "num_local_experts": 3}
LINEAR = {"target_modules": "all-linear"}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}


@dataclass(frozen=True)
class Family:
    """One family: a model with a head, and which of its modules an adapter changes.

    Attributes:
        model: The class with a head.
        config: Its config.
        lora: What LoraConfig gets.
        bare: Whether the model without its head is saved by itself as well.
    """

    model: str
    config: Mapping[str, Any]
    lora: Mapping[str, Any] = field(default_factory=lambda: {"target_modules": ["q_proj", "v_proj"]})
    bare: bool = True


FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32},
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
    "bert": Family("BertForMaskedLM", BERT, {"target_modules": ["query", "value"]}),
    "roberta": Family("RobertaForSequenceClassification", BERT, {"target_modules": ["query", "value"]}),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 40, "max_position_embeddings": 32},
        {"target_modules": ["q_lin", "v_lin"]},
    ),
    "vit": Family("ViTForImageClassification", SEEN, {"target_modules": ["q_proj", "v_proj"]}),
    "bloom": Family(
        "BloomForCausalLM",
        {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40},
        {"target_modules": ["query_key_value"]},
    ),
    "gpt_neox": Family("GPTNeoXForCausalLM", BERT, {"target_modules": ["query_key_value"]}),
    "esm": Family("EsmForMaskedLM", BERT, {"target_modules": ["query", "value"]}),
    "electra": Family(
        "ElectraForTokenClassification", BERT | {"embedding_size": 16}, {"target_modules": ["query", "value"]}
    ),
    "llama": Family("LlamaForCausalLM", TEXT),
    "opt": Family(
        "OPTForCausalLM",
        {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
        | {"max_position_embeddings": 32, "word_embed_proj_dim": 16, "pad_token_id": 0},
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40},
        {"target_modules": ["q", "v"]},
        bare=False,
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 40}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8}
        | {"max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1}
        | {"eos_token_id": 2, "decoder_start_token_id": 1},
    ),
    "clip": Family(
        "CLIPModel",
        {"text_config": BERT | {"num_hidden_layers": 1}, "vision_config": SEEN, "projection_dim": 8},
        bare=False,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        TEXT | {"num_local_experts": 3, "num_experts_per_tok": 1},
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        TEXT | {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 12},
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration", {"text_config": TEXT, "vision_config": SEEN, "mm_tokens_per_image": 4}
    ),
    "llava": Family(
        "LlavaForConditionalGeneration",
        {"text_config": TEXT | {"model_type": "llama"}, "vision_config": SEEN | {"model_type": "clip_vision_model"}},
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {k: v for k, v in TEXT.items() if k != "head_dim"} | MROPE,
            "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
            | {"out_hidden_size": 16, "fullatt_block_indexes": [0]},
        },
    ),
    "phi3": Family("Phi3ForCausalLM", TEXT, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "gemma2": Family("Gemma2ForCausalLM", TEXT),
    "mistral": Family("MistralForCausalLM", TEXT),
    "falcon": Family(
        "FalconForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40},
        {"target_modules": ["query_key_value"]},
    ),
    "qwen2": Family("Qwen2ForCausalLM", TEXT),
    "stablelm": Family("StableLmForCausalLM", TEXT),
    "olmo2": Family("Olmo2ForCausalLM", TEXT),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        {**TEXT, "head_dim": 4, "num_key_value_heads": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 12}
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1},
        {"target_modules": ["q_b_proj", "kv_b_proj"], "target_parameters": EXPERTS},
    ),
    "granite": Family("GraniteForCausalLM", TEXT),
    "deberta-v2": Family("DebertaV2ForMaskedLM", BERT, {"target_modules": ["query_proj", "value_proj"]}),
    "mamba": Family(
        "MambaForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 40, "pad_token_id": 0},
        {"target_modules": ["in_proj", "x_proj"]},
    ),
    "granitemoe": Family("GraniteMoeForCausalLM", MOE, LINEAR),
    "minimax": Family("MiniMaxForCausalLM", MOE, LINEAR),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        MOE
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
        | {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 12, "num_hidden_layers": 4},
        LINEAR,
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": MOE | MROPE,
            "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
            | {"out_hidden_size": 16, "deepstack_visual_indexes": [0]},
        },
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
    "jamba": Family(
        "JambaForCausalLM",
        MOE
        | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
        | {"expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        {"target_modules": ["q_proj", "in_proj"]},
    ),
    "codegen": Family(
        "CodeGenForCausalLM",
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40, "rotary_dim": 4, "n_positions": 32},
        {"target_modules": ["qkv_proj"]},
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32},
        {"target_modules": ["c_attn", "c_proj"]},
    ),
    "modernbert": Family("ModernBertForMaskedLM", BERT, {"target_modules": ["Wqkv"]}),
    "xlnet": Family(
        "XLNetLMHeadModel",
        {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 40},
        {"target_modules": ["layer_1"]},
    ),
    "siglip": Family(
        "SiglipModel",
        {"text_config": BERT | {"projection_size": 16}, "vision_config": SEEN},
        {"target_modules": ["q_proj"]},
        bare=False,
    ),
    "internvl": Family(
        "InternVLForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": SEEN | {"image_size": [28, 28], "patch_size": [14, 14]},
        },
    ),
    "resnet": Family(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {"target_modules": ["convolution"]},
    ),
    "wav2vec2": Family(
        "Wav2Vec2ForCTC",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
        | {"conv_dim": [8, 8], "conv_stride": [2, 2], "conv_kernel": [3, 3], "num_feat_extract_layers": 2}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        {"target_modules": ["q_proj"]},
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        TEXT | {"num_local_experts": 3, "num_experts_per_tok": 1},
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
}


def build(family: Family) -> Any:
    """The model with its head, float32, from a fixed seed."""
    import torch
    import transformers

    cls = getattr(transformers, family.model)
    torch.manual_seed(1)
    return cls(cls.config_class(**family.config)).float().eval()
