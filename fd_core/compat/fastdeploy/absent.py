"""FastDeploy's operators that the catalogue does not have, with the reason of each.

An entry counts only as long as no op of the catalogue has its name. Calling one raises UnsupportedOpError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError

_ENGINE = "fd-core's engine keeps this state on the host: its scheduler and block pool do this"
_QUEUE = "tokens leave fd-core's engine as Python objects, not through System V message queues"
_PLANNED = "no op of the catalogue yet"
_FORMAT = "a layout of one vendor's kernels; fd-core packs weights in QuantMethod.process_weights"
_KERNEL_PLAN = "attention kernels plan for themselves; fd_core.api.attention has plan(batch)"

_GROUPS: dict[str, str] = {
    _ENGINE: """
        update_inputs update_inputs_v1 recover_decode_task step_paddle step_system_cache step_reschedule
        speculate_step_paddle speculate_step_system_cache speculate_step_reschedule speculate_schedule_cache
        mtp_step_paddle recover_block""",
    _QUEUE: """
        save_output save_output_dynamic get_output get_output_dynamic save_output_topk speculate_save_output
        speculate_get_output speculate_save_output_topk mtp_save_first_token mtp_save_first_token_with_topk
        get_output_topk open_shm_and_get_meta_signal init_kv_signal_per_query init_signal_layerwise
        get_output_kv_signal ep_kv_signal""",
    _KERNEL_PLAN: "get_block_shape_and_split_kv_block pre_cache_len_concat",
    _FORMAT: """
        machete_prepack_B machete_mm gptq_marlin_repack moe_wna16_marlin_gemm MoeWna16MarlinGemmApi
        w4afp8_gemm_weight_convert w4afp8_gemm_scale_permute winx_unzip moe_expert_ffn_wint2""",
    "memory is shared between processes by DLPack owners, not by device pointers": """
        cuda_host_alloc cuda_host_free set_data_ipc share_external_data get_data_ptr_ipc read_data_ipc
        unset_data_ipc""",
    _PLANNED: """
        gqa_rope_write_cache flash_mask_attention moba_attention plas_attention prefill_mla_write_cache
        decode_mla_write_cache multi_head_latent_attention sage_attention sparge_attention
        sageattn_qk_int8_pv_fp8_cuda spas_sage2_attn_meansim_cuda get_mm_split_fuse
        per_token_quant_padding masked_per_token_quant dynamic_per_token_scaled_fp8_quant
        dynamic_scaled_fp8_quant static_scaled_fp8_quant fused_hadamard_quant_fp8
        moe_fused_hadamard_quant_fp8 cutlass_scaled_mm cutlass_scaled_mm_azp cutlass_fp8_fp8_half_gemm_fused
        per_channel_fp8_fp8_half_gemm_fused cutlass_fp8_fp8_half_block_gemm_fused
        cutlass_fp8_fp8_fp8_dual_gemm_fused moe_redundant_topk_select ep_moe_expert_dispatch
        ep_moe_expert_dispatch_fp8 ep_moe_expert_combine moe_permute moe_unpermute w4afp8_gemm
        w8a8_group_gemm fused_bias_act air_top_p_sampling top_p_candidates
        speculate_get_token_penalty_multi_scores
        speculate_set_stop_value_multi_seqs speculate_get_padding_offset speculate_get_seq_lens_output
        speculate_get_output_padding_offset speculate_rebuild_append_padding speculate_pre_process
        build_sampling_params padding_sampling_params speculate_verify verify_draft_tokens speculate_update
        speculate_update_v2 speculate_update_v3 unified_update_model_status
        speculate_set_value_by_flags_and_idx speculate_clear_accept_nums draft_model_preprocess
        draft_model_update draft_model_postprocess draft_model_set_value_by_flags eagle_get_hidden_states
        eagle_get_self_hidden_states eagle_gather_hidden_states ngram_match hybrid_mtp_ngram
        speculate_get_logits speculate_insert_first_token speculate_get_target_logits
        speculate_limit_thinking_content_length speculate_limit_thinking_content_length_v1
        speculate_limit_thinking_content_length_v2 reasoning_phase_token_constraint""",
}

#: Why an operator is absent, by name.
REASONS: dict[str, str] = {name: reason for reason, names in _GROUPS.items() for name in names.split()}

#: Ops of the catalogue that do the same work on other layouts or in other steps.
_WORK: dict[str, str] = {
    "weight_quantize, then weight_only_linear (int8 or int4 weights, 16-bit activations)": """
        machete_prepack_B machete_mm w4afp8_gemm w4afp8_gemm_weight_convert w4afp8_gemm_scale_permute""",
    "moe_expert_ffn (experts of floats, or of int8 and int4 codes)": """
        moe_wna16_marlin_gemm MoeWna16MarlinGemmApi moe_expert_ffn_wint2 w8a8_group_gemm""",
    "cutlass_scaled_mm": """
        cutlass_scaled_mm_azp cutlass_fp8_fp8_half_gemm_fused per_channel_fp8_fp8_half_gemm_fused""",
    "rope_and_cache, then paged_attention": "gqa_rope_write_cache",
    "sample_top_k_top_p": "air_top_p_sampling top_p_candidates",
}
INSTEAD: dict[str, str] = {name: ops for ops, names in _WORK.items() for name in names.split()}


def refusal(name: str) -> Verdict:
    """Why there is no op for an operator of `REASONS`, and what to use."""
    use = INSTEAD.get(name)
    fix = f"use {use}" if use else "dir(fd_core.compat.fastdeploy) lists what there is"
    have = f"none: {REASONS[name]}"
    where = "docs/paddle.md says what differs"
    return Verdict.no(
        ReasonCode.NO_KERNEL, f"operator {name!r}", "an op of the catalogue", have, f"{fix}; {where}"
    )


def absent(name: str) -> Callable[..., Any]:
    """A callable that raises UnsupportedOpError with the reason."""
    verdict = refusal(name)

    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedOpError(str(verdict), verdict)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = str(verdict)
    return call
