"""Attention and the paged cache (specification ops-attention-kv §§4, 6)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fd_core import ops
from fd_core.api.device import HOST
from fd_core.api.tensor import Storage, Tensor
from fd_core.compat.fastdeploy.arrays import refuse
from fd_core.compat.fastdeploy.overload import form
from fd_core.host.session import current_session
from fd_core.ops.guest import to_tensor

_FIX = "fd_core.ops.append_attention lists what the op does"


@form("append_attention")
def append_attention(
    qkv: Any, key_cache: Any, value_cache: Any, seq_lens_encoder: Any, seq_lens_decoder: Any,
    seq_lens_this_time: Any, batch_id_per_token: Any, cu_seqlens_q: Any, block_tables: Any,
    encoder_batch_ids: Any, encoder_tile_ids_per_batch: Any, encoder_num_blocks: Any, kv_batch_ids: Any,
    kv_tile_ids_per_batch: Any, kv_num_blocks: Any, decoder_batch_ids: Any, decoder_tile_ids_per_batch: Any,
    decoder_num_blocks: Any, set_max_lengths: Any, rotary_embs: Any = None, *options: Any, **named: Any,
) -> Any:  # fmt: skip
    """Tile lists are not read. `options`: FastDeploy's optional arguments in its order, also by name."""
    given = _options(options, named)
    lists = (seq_lens_decoder, seq_lens_this_time, cu_seqlens_q, block_tables)
    return _attend(qkv, key_cache, value_cache, *lists, rotary_embs, given, None)


@form("append_attention_with_output")
def append_attention_with_output(
    qkv: Any, key_cache: Any, value_cache: Any, seq_lens_encoder: Any, seq_lens_decoder: Any,
    seq_lens_this_time: Any, batch_id_per_token: Any, cu_seqlens_q: Any, block_tables: Any,
    encoder_batch_ids: Any, encoder_tile_ids_per_batch: Any, encoder_num_blocks: Any, kv_batch_ids: Any,
    kv_tile_ids_per_batch: Any, kv_num_blocks: Any, decoder_batch_ids: Any, decoder_tile_ids_per_batch: Any,
    decoder_num_blocks: Any, set_max_lengths: Any, fmha_out: Any, rotary_embs: Any = None,
    *options: Any, **named: Any,
) -> Any:  # fmt: skip
    """As append_attention, written into `fmha_out`, which is returned; padding rows become zero."""
    given = _options(options, named)
    lists = (seq_lens_decoder, seq_lens_this_time, cu_seqlens_q, block_tables)
    return _attend(qkv, key_cache, value_cache, *lists, rotary_embs, given, fmha_out)


#: Optional arguments behind `rotary_embs`, in FastDeploy's order, with their defaults.
OPTIONS: dict[str, Any] = {
    "attn_mask": None, "qkv_bias": None, "qkv_out_scales": None, "cache_k_quant_scales": None,
    "cache_v_quant_scales": None, "cache_k_dequant_scales": None, "cache_v_dequant_scales": None,
    "cache_k_zp": None, "cache_v_zp": None, "out_linear_shifts": None, "out_linear_smooths": None,
    "mask_offset": None, "kv_signal_data": None, "q_norm_weight": None, "k_norm_weight": None,
    "sinks": None, "rms_norm_eps": 1e-6, "compute_dtype": "bf16", "cache_quant_type_str": "none",
    "use_neox_rotary_style": False, "rope_3d": False, "max_input_length": 0, "quant_max_bound": 0.0,
    "quant_min_bound": 0.0, "out_linear_in_scale": -1.0, "encoder_block_shape_q": 64,
    "decoder_block_shape_q": 16, "max_partition_size": 32768, "encoder_max_partition_size": 32768,
    "speculate_max_draft_token_num": 1, "causal": True, "speculate_decoder": False, "sliding_window": 0,
    "sink_size": 0, "head_wise_full_hidden": 0,
}  # fmt: skip
#: Names that FastDeploy's Python wrapper gives the same arguments.
ALIASES = {
    "qkv_scale": "qkv_out_scales", "k_quant_scale": "cache_k_quant_scales",
    "v_quant_scale": "cache_v_quant_scales", "k_dequant_scale": "cache_k_dequant_scales",
    "v_dequant_scale": "cache_v_dequant_scales", "linear_shift": "out_linear_shifts",
    "linear_smooth": "out_linear_smooths", "compute_type": "compute_dtype",
    "cache_quant_type": "cache_quant_type_str",
}  # fmt: skip
#: What changes the result and what the op does not do; the others only steer kernels.
_REFUSED = (
    "attn_mask", "qkv_out_scales", "cache_k_quant_scales", "cache_v_quant_scales", "cache_k_dequant_scales",
    "cache_v_dequant_scales", "cache_k_zp", "cache_v_zp", "mask_offset", "kv_signal_data",
    "cache_quant_type_str", "rope_3d", "causal", "sink_size", "head_wise_full_hidden", "rope_3d_delta",
)  # fmt: skip


def _options(positional: Sequence[Any], named: dict[str, Any]) -> dict[str, Any]:
    """All options by name. TypeError for unknown ones, UnsupportedOpError for what the op lacks."""
    known = {ALIASES.get(name, name): value for name, value in named.items()}
    if len(positional) > len(OPTIONS):
        raise TypeError(f"append_attention: want at most {len(OPTIONS)} options, have {len(positional)}")
    by_place = dict(zip(OPTIONS, positional, strict=False))
    wrong = sorted(set(known) - set(OPTIONS) - {"rope_3d_delta"} | set(known) & set(by_place))
    if wrong:
        raise TypeError(f"append_attention: unknown or given twice: {', '.join(wrong)}")
    given = {**OPTIONS, **by_place, **known}
    for name in _REFUSED:
        value = given.get(name)
        default = OPTIONS.get(name)
        if (value is not None) if default is None else (value != default):
            refuse("append_attention", name, value if isinstance(value, int | str) else "a tensor", _FIX)
    if given["out_linear_in_scale"] > 0:
        refuse("append_attention", "out_linear_in_scale", given["out_linear_in_scale"], _FIX)
    return given


def _attend(
    qkv: Any, key_cache: Any, value_cache: Any, decoder: Any, this_time: Any, cumulated: Any, tables: Any,
    rotary_embs: Any, given: dict[str, Any], out: Any,
) -> Any:  # fmt: skip
    return ops.append_attention(
        qkv, key_cache, value_cache, decoder, this_time, cumulated, tables, rotary_embs, given["qkv_bias"],
        given["q_norm_weight"], given["k_norm_weight"], given["sinks"], float(given["rms_norm_eps"]),
        bool(given["use_neox_rotary_style"]), int(given["sliding_window"]), out,
    )  # fmt: skip


@form("swap_cache")
def swap_cache(
    cache_gpu: Any, cache_cpu_ptr: int, max_block_num_cpu: int, swap_block_ids_gpu: Sequence[int],
    swap_block_ids_cpu: Sequence[int], rank: int, mode: int,
) -> None:  # fmt: skip
    """mode 0: device to host, else host to device. `rank` is the session's device."""
    session = current_session()
    cache = to_tensor(cache_gpu, session.platform, session.device.device, True)
    pool = _pool(cache, int(cache_cpu_ptr), int(max_block_num_cpu))
    ids = [np.asarray(row, np.int64) for row in (swap_block_ids_gpu, swap_block_ids_cpu)]
    near, far = (session.platform.from_host(row) for row in ids)
    if mode == 0:
        ops.swap_blocks(cache, pool, near, far)
    else:
        ops.swap_blocks(pool, cache, far, near)


def _pool(cache: Tensor, ptr: int, blocks: int) -> Tensor:
    """The host buffer at `ptr` as blocks of the cache's shape; its owner keeps it alive."""
    shape = (blocks, *cache.shape[1:])
    return Tensor(ptr, shape, cache.dtype, Storage(ptr, prod(shape) * cache.dtype.itemsize, HOST))


@form("swap_cache_all_layers")
def swap_cache_all_layers(
    cache_gpu_tensors: Sequence[Any], cache_cpu_ptrs: Sequence[int], max_block_num_cpu: int,
    swap_block_ids_gpu: Sequence[int], swap_block_ids_cpu: Sequence[int], rank: int, mode: int,
) -> None:  # fmt: skip
    ids = (swap_block_ids_gpu, swap_block_ids_cpu)
    for cache, ptr in zip(cache_gpu_tensors, cache_cpu_ptrs, strict=True):
        swap_cache(cache, ptr, max_block_num_cpu, *ids, rank, mode)
