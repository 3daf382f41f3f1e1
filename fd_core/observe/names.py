"""Metric names: ours, and those that dashboards for other servers read."""

from __future__ import annotations

# Bucket edges of vLLM; dashboards depend on `le`.
TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
SMALL = (1, 2, 5, 10, 20)


def one_two_five(most: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `most`."""
    found = [m * 10**e for e in range(len(str(most)) + 1) for m in (1, 2, 5)]
    return tuple(v for v in found if v <= most)


# Native family name -> names under `vllm:` and `fastdeploy:`. Counters without `_total`.
VLLM = {
    "fd_requests_running": ("num_requests_running",),
    "fd_requests_waiting": ("num_requests_waiting",),
    "fd_kv_cache_usage_ratio": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "fd_prefix_cache_queries": ("prefix_cache_queries",),
    "fd_prefix_cache_hits": ("prefix_cache_hits",),
    "fd_preemptions": ("num_preemptions",),
    "fd_prompt_tokens": ("prompt_tokens",),
    "fd_generation_tokens": ("generation_tokens",),
    "fd_request_success": ("request_success",),
    "fd_time_to_first_token_seconds": ("time_to_first_token_seconds",),
    "fd_inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "fd_e2e_request_latency_seconds": ("e2e_request_latency_seconds",),
    "fd_request_queue_time_seconds": ("request_queue_time_seconds",),
    "fd_request_prefill_time_seconds": ("request_prefill_time_seconds",),
    "fd_request_decode_time_seconds": ("request_decode_time_seconds",),
    "fd_request_inference_time_seconds": ("request_inference_time_seconds",),
    "fd_request_prompt_tokens": ("request_prompt_tokens",),
    "fd_request_generation_tokens": ("request_generation_tokens",),
    "fd_request_params_max_tokens": ("request_params_max_tokens",),
    "fd_request_params_n": ("request_params_n",),
    "fd_cache_config_info": ("cache_config_info",),
}
FASTDEPLOY = {
    "fd_requests_running": ("num_requests_running", "batch_size"),
    "fd_requests_waiting": ("num_requests_waiting",),
    "fd_max_batch_size": ("max_batch_size",),
    "fd_kv_cache_usage_ratio": ("gpu_cache_usage_perc",),
    "fd_kv_blocks_max": ("max_gpu_block_num",),
    "fd_kv_blocks_available": ("available_gpu_block_num", "free_gpu_block_num"),
    "fd_prefix_cache_hit_ratio": ("hit_token_rate", "gpu_hit_token_rate"),
    "fd_prefix_cache_hits": ("prefix_cache_token_num", "prefix_gpu_cache_token_num"),
    "fd_preemptions": ("request_preempted",),
    "fd_requests_accepted": ("requests_number",),
    "fd_prompt_tokens": ("prompt_tokens",),
    "fd_generation_tokens": ("generation_tokens",),
    "fd_request_success": ("request_success",),
    "fd_time_to_first_token_seconds": ("time_to_first_token_seconds",),
    "fd_inter_token_latency_seconds": ("time_per_output_token_seconds",),
    "fd_e2e_request_latency_seconds": ("e2e_request_latency_seconds",),
    "fd_request_queue_time_seconds": ("request_queue_time_seconds",),
    "fd_request_prefill_time_seconds": ("request_prefill_time_seconds",),
    "fd_request_decode_time_seconds": ("request_decode_time_seconds",),
    "fd_request_inference_time_seconds": ("request_inference_time_seconds",),
    "fd_request_prompt_tokens": ("request_prompt_tokens",),
    "fd_request_generation_tokens": ("request_generation_tokens",),
    "fd_request_params_max_tokens": ("request_params_max_tokens",),
    "fd_cache_config_info": ("cache_config_info",),
}
COMPAT = {"vllm": ("vllm:", VLLM), "fastdeploy": ("fastdeploy:", FASTDEPLOY)}
