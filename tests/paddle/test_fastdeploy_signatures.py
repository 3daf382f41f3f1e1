"""Operators that go straight to an op: FastDeploy's published argument orders fit, by place and by name."""

from __future__ import annotations

import inspect
import re

import pytest

from fd_core.compat import fastdeploy as fd
from fd_core.compat.fastdeploy.absent import REASONS
from fd_core.ops.catalogue import catalogue

TEXT = """
    set_value_by_flags_and_idx: pre_ids_all input_ids seq_lens_this_time seq_lens_encoder
            seq_lens_decoder step_idx stop_flags
    extract_text_token_output: max_seq_len max_seq_len_index mm_token_num_len seq_lens_this_time
            cu_seqlens_q hidden_states
    text_image_index_out: token_type_ids text_index image_index
    text_image_gather_scatter: input text_input image_input token_type_ids text_index image_index
            is_scatter
    merge_prefill_decode_output: encoder_res decoder_res seq_lens_encoder seq_lens_decoder
            seq_lens_this_time cu_seq_q head_num head_dim max_token
    fused_get_rotary_embedding: input_ids position_ids head_dim_shape_tensor prompt_num
    fused_neox_rope_embedding: qkv cos_emb sin_emb num_heads head_dim
    reshape_and_cache_flash: key value key_cache value_cache slot_mapping k_scale v_scale
            kv_cache_dtype
    per_token_quant: input block_size use_ue8m0
    dequant_int8: input out_scale dtype
    weight_quantize: x algo arch group_size
    weight_dequantize: x scale algo out_dtype group_size
    weight_only_linear: x weight bias weight_scale weight_dtype arch group_size
    moe_topk_select: gating_logits bias moe_topk apply_norm_weight enable_softmax_top_k_fused
    moe_expert_reduce: ffn_out top_k_weight permute_indices_per_token top_k_indices down_proj_bias
            norm_topk_prob routed_scaling_factor
    top_k_renorm_probs: probs top_k
    min_p_sampling: probs min_p
"""
#: Parameters by operator; a line that starts a name's list has a colon.
SIGNATURES = {name: names.split() for name, names in re.findall(r"(\w+):((?:\s+\w+(?!:)\b)+)", TEXT)}


def test_the_list_is_read() -> None:
    assert len(SIGNATURES) == TEXT.count(":")
    assert SIGNATURES["min_p_sampling"] == ["probs", "min_p"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_published_order(name: str) -> None:
    names = SIGNATURES[name]
    signature = inspect.signature(getattr(fd, name)._forms[0][0])
    bound = signature.bind(*names).arguments
    assert bound == {n: n for n in names}
    assert signature.bind(**bound).arguments == bound


@pytest.mark.parametrize("name", sorted(REASONS))
def test_an_absent_operator_that_got_an_op_is_reached(name: str) -> None:
    assert (name in fd.unsupported()) is (name not in catalogue())
    assert callable(getattr(fd, name))
