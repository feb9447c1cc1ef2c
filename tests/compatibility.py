"""What is read, joined, bridged and refused, each with the test that shows it: the table of docs/compatibility.md."""

# ruff: noqa: E501  (a row of a table is a line)

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.pairs.families import FAMILIES

ROOT = Path(__file__).parent.parent


class Case(NamedTuple):
    """One situation.

    Attributes:
        library: Who leaves files like that.
        what: The situation.
        becomes: `read`, `joined` (several files are one checkpoint), `bridged` (other names or pieces), `skipped` (that
            tensor, with its reason), `noted`, `chosen` (with an option) or `refused` (one line with the way out).
        how: What it is compared as.
        test: The test.
    """

    library: str
    what: str
    becomes: str
    how: str
    test: str


M, F, C = "pairs/test_matching", "pairs/test_families", "pairs/test_coverage"
W, P, Q = "checkpoints/test_which_file", "checkpoints/test_pickles", "checkpoints/quantised/test_reading"
CASES = (
    Case("safetensors", "a file, a directory, shards with an index", "read", "headers first, rows on demand", "checkpoints/test_formats::test_every_form_holds_the_same_tensors"),
    Case("safetensors", "on the Hub or a web server (`hf://`, ids, `https://`)", "read", "headers and tensors by ranges, where they lie", "checkpoints/test_remote::test_rows_of_the_hub_are_those_of_the_files_and_little_else_is_read"),
    Case("safetensors", "in a bucket (`s3://`, `gs://`, `az://`)", "read", "the same, with the extra `deltaw[remote]`", "checkpoints/test_remote::test_a_bucket"),
    Case("PyTorch", "on the Hub or a web server", "refused", "`--download` fetches it whole", "checkpoints/test_remote::test_pickles_are_not_read_where_they_lie_but_downloaded_whole"),
    Case("safetensors", "numbered shards without an index", "joined", "one checkpoint", f"{W}::test_numbered_shards_are_joined"),
    Case("safetensors", "other names of shared tensors in the header (`save_model`)", "read", "as tied", "checkpoints/test_formats::test_the_other_names_of_shared_tensors"),
    Case("PyTorch", "state dicts, wrappers, old and new archives", "read", "without running anything", f"{P}::test_honest"),
    Case("PyTorch", "a whole pickled module, TorchScript", "read", "its tensors", f"{P}::test_whole_modules"),
    Case("PyTorch", "sparse, meta, nested, quantised tensors", "skipped", "`unsupported: KIND`", f"{P}::test_a_tensor_that_is_not_read_has_its_reason"),
    Case("PyTorch", "EMA weights beside the model", "chosen", "`FILE::ema`", f"{P}::test_what_else_holds_weights_is_named_and_can_be_chosen"),
    Case("PyTorch", "a pickle that would run code", "refused", "nothing of it is run", "checkpoints/test_hostile_pickles::test_hostile"),
    Case("PyTorch", "`torch.distributed.checkpoint` (`.distcp`: FSDP2, torchtitan, verl)", "read", "tensor by tensor, its pieces put together", "checkpoints/test_distcp::test_it_gives_the_rows_of_the_whole_files"),
    Case("DeepSpeed, FSDP", "ZeRO-3 and flat parameters", "refused", "with the command that consolidates them", f"{W}::test_zero_and_fsdp"),
    Case("Megatron, Meta", "tensor-parallel slices", "refused", "as slices of one checkpoint", f"{W}::test_slices_are_refused_by_name"),
    Case("any", "weights in files beside the one that is read", "noted", "with their number of tensors", f"{W}::test_what_lies_beside_is_noted"),
    Case("FSDP, DDP, torch.compile, DeepSpeed, activation checkpointing", "wrappers anywhere in a name", "bridged", "without them", f"{M}::test_wrappers_and_one_constant_prefix"),
    Case("any", "one constant prefix more on one side", "bridged", "where it is the only one, and shapes agree", f"{M}::test_wrappers_and_one_constant_prefix"),
    Case("any", "two prefixes that fit equally well", "chosen", "`--rename`", f"{M}::test_two_prefixes_are_not_chosen_between"),
    Case("any", "names that differ by a rule", "chosen", "`--rename`, which the error offers", f"{M}::test_rename_is_for_names_that_differ_by_a_rule"),
    Case("TensorFlow's BERT", "`gamma`, `beta`", "bridged", "`weight`, `bias`", f"{M}::test_known_renames"),
    Case("PyTorch", "`weight_g`, `weight_v`", "bridged", "`parametrizations.weight.original0`, `1`", f"{M}::test_known_renames"),
    Case("transformers", "models that see, as published and as in memory", "bridged", "`language_model.model.` = `model.language_model.`", f"{M}::test_models_that_see_under_published_names_and_in_memory"),
    Case("transformers", "Mixtral's `w1`, `w3`, `w2`", "bridged", "gate, up and down", f"{M}::test_known_renames"),
    Case("transformers", "experts stacked on one side, apart on the other", "bridged", "one row per expert and part", f"{M}::test_experts_stacked_or_apart"),
    Case("transformers", "all other renames of its conversion mapping", "bridged", "by the config's `model_type`", f"{F}::test_base_and_fine_tune"),
    Case("transformers", "a model saved without its head", "bridged", "all that both have", f"{F}::test_without_its_head"),
    Case("transformers, timm", "q, k and v, or gate and up, fused on one side and apart on the other", "bridged", "one row per part", "pairs/test_fused::test_each_part_is_compared_with_its_own"),
    Case("PyTorch", "`weight_orig` of spectral norm; `base_layer` without factors", "bridged", "`parametrizations.weight.original`; without it", "pairs/test_fused::test_what_wrappers_and_libraries_left_in_names"),
    Case("PyTorch", "`in_proj_weight` of its attention on one side, q, k and v on the other", "bridged", "one row per part", "pairs/test_fused::test_the_attention_of_torch_is_cut_too"),
    Case("CodeGen, MiniMax", "`qkv_proj` that interleaves, against q, k and v apart", "skipped", "`only_in_base`, `only_in_ft`", "pairs/test_fused::test_codegen_is_not_cut_like_others"),
    Case("Meta, Mistral", "their own names against transformers'", "refused", "the rows of q and k lie in another order", f"{M}::test_the_names_of_meta_are_not_called_a_rename_away"),
    Case("any", "whole checkpoints of several steps in one directory", "refused", "the file has to be named", f"{W}::test_checkpoints_of_one_training_are_no_parts"),
    Case("nanoGPT", "`Linear` against the hub's `Conv1D`", "bridged", "transposed; siblings settle square ones", f"{M}::test_siblings_settle_a_square_matrix"),
    Case("any", "a square matrix whose siblings disagree", "skipped", "`shape_mismatch`", f"{M}::test_a_square_matrix_whose_siblings_disagree_is_not_compared"),
    Case("any", "no matrix that both sides have", "refused", "with the nearest names", f"{C}::test_no_sentence_about_the_model_where_less_than_nine_tenths_were_compared"),
    Case("PEFT", "LoRA on modules and on parameters of experts", "read", "as factors, equal to its merge", f"{F}::test_the_adapter_is_what_peft_merges"),
    Case("PEFT", "the state of a whole model", "read", "as the adapter that it is", "adapters/test_wrapped::test_a_directory_with_the_config_beside"),
    Case("PEFT", "such a state without adapter_config.json", "refused", "its scaling is not known", "adapters/test_wrapped::test_without_a_config_the_scaling_is_not_known"),
    Case("PEFT", "AdaLoRA with a module pruned to nothing", "read", "ΔW = 0", "adapters/test_degenerate::test_a_module_that_adalora_pruned_to_nothing"),
    Case("PEFT", "LoRA on a vocabulary that grew", "read", "the common rows; the others `only_in_ft`", "adapters/test_degenerate::test_a_vocabulary_of_another_size_is_compared_where_both_have_rows"),
    Case("PEFT", "a merge of a padded vocabulary", "read", "`verify` looks at the common rows", "pairs/test_counterparts::test_a_padded_vocabulary"),
    Case("kohya, diffusers", "LoRA in one file", "read", "as factors", "adapters/test_singlefile::test_kohya"),
    Case("ComfyUI", "LoRA in one file, keys behind `diffusion_model.`", "bridged", "on a model, a checkpoint or a pipeline", "adapters/test_singlefile::test_the_prefix_of_comfyui_on_any_base"),
    Case("musubi, LyCORIS", "`diff`, `diff_b`, `w_norm`, `b_norm`", "read", "added as they are", "adapters/test_singlefile::test_differences_beside_the_factors"),
    Case("diffusers", "`lora_magnitude_vector` in one file", "read", "DoRA, as PEFT computes it", "adapters/test_singlefile::test_dora_as_diffusers_saves_it"),
    Case("LyCORIS", "LoHa, LoKr, OFT, `dora_scale` in one file", "refused", "by the method's name", "adapters/test_singlefile::test_other_methods_of_lycoris_are_named"),
    Case("OneTrainer", "an embedding bundled with a LoRA", "skipped", "`only_in_ft`", "adapters/test_singlefile::test_a_bundled_embedding_has_its_reason"),
    Case("LLaVA", "`non_lora_trainables.bin` beside an adapter", "read", "with the adapter", "adapters/test_companions::test_what_llava_trained_whole_is_read_and_verified"),
    Case("any", "a weight of the base in another file beside an adapter", "skipped", "`base_changed`; `verify` refuses", "adapters/test_companions::test_a_weight_in_a_file_that_is_not_read_is_not_called_unchanged"),
    Case("PEFT", "keys of an adapter that is called \"lora\" (0.17 and older)", "read", "as factors", "adapters/test_companions::test_names_of_other_versions"),
    Case("PEFT", "LoRA on codes that are not read", "read", "without what needs W0", "adapters/test_companions::test_lora_on_codes_that_are_not_read"),
    Case("AdapterHub", "an adapter of the adapters library", "refused", "with the command that merges it", "adapters/test_companions::test_an_adapter_of_adapterhub_is_named"),
    Case("DeepSeek, Qwen", "FP8 blocks", "read", "dequantised", f"{Q}::test_fp8_blocks_with_partial_edges"),
    Case("gpt-oss", "MXFP4 blocks", "read", "dequantised, as transformers' parameter", f"{Q}::test_gpt_oss_is_transposed_as_transformers_has_it"),
    Case("AutoGPTQ, AutoAWQ", "GPTQ, AWQ", "read", "dequantised", f"{Q}::test_gptq"),
    Case("bitsandbytes", "NF4, FP4, LLM.int8", "read", "dequantised", f"{Q}::test_bitsandbytes_four_bits"),
    Case("compressed-tensors", "FP8, int4, int8, NVFP4, MXFP4", "read", "dequantised", f"{Q}::test_compressed_tensors_reads_the_same"),
    Case("MLX", "`weight`, `scales`, `biases`", "read", "dequantised", f"{Q}::test_mlx"),
    Case("SmoothQuant, EETQ, Marlin, SqueezeLLM, SVDQuant", "codes in the order of a kernel, scales of any name", "skipped", "`quantised: FORMAT`", "checkpoints/quantised/test_detection::test_a_row_of_the_table"),
    Case("ModelOpt, torch.ao", "ranges and scales of fake quantisation", "skipped", "`not_a_weight`; the weights are read", "checkpoints/quantised/test_detection::test_what_a_quantiser_measured_is_no_weight"),
    Case("any", "codes of a format that is not known", "skipped", "`quantised: FORMAT`", "checkpoints/quantised/test_detection::test_codes_are_read_or_skipped_and_companions_are_no_rows"),
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def pinned() -> dict[str, str]:
    """The versions that the tests run with, from constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return {name: m[1] for name in LIBRARIES if (m := re.search(rf"^{name}==(\S+)", text, re.MULTILINE))}


def table() -> str:
    """The situations, then the families, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in pinned().items())
    rows = [f"| {c.library} | {c.what} | {c.becomes} | {c.how} | `{c.test.split('::')[1]}` |" for c in CASES]
    families = []
    for name, family in FAMILIES.items():
        targets = family.lora["target_modules"]
        named = [targets] if isinstance(targets, str) else targets
        modules = [*named, *family.lora.get("target_parameters", ())]
        head = "with and without" if family.bare else "with"
        families.append(f"| `{name}` | `{family.model}` | {head} | {', '.join(f'`{m}`' for m in modules)} |")
    return "\n".join([
        f"Tested with {versions}.\n",
        "| who writes it | what | becomes | compared as | test |",
        "|---|---|---|---|---|",
        *rows,
        "\nEvery tensor of these families of transformers pairs, and the rows of an adapter and of its merge equal "
        "what peft's merge does to the weights:\n",
        "| family | class | head | adapted modules and parameters |",
        "|---|---|---|---|",
        *families,
    ])  # fmt: skip
