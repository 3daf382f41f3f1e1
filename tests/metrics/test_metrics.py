"""Names, values and costs of the figures."""

from __future__ import annotations

import re
import time

import pytest

from fd_core.engine.request import EngineStats, FinishReason
from fd_core.observe.metrics import Metrics, RequestMeter
from fd_core.observe.names import COMPAT, TTFT, one_two_five
from fd_core.testkit.echo import toy_info


def samples(metrics: Metrics) -> dict[str, float]:
    """Rendered samples by name and labels."""
    lines = [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def made(**options) -> Metrics:
    metrics = Metrics("m", **options)
    metrics.engine.info = toy_info()
    metrics.engine.stats = EngineStats(
        steps=7,
        running=3,
        waiting=2,
        blocks_total=100,
        blocks_free=50,
        blocks_cached=30,
        preemptions=4,
        prefix_queries=40,
        prefix_hits=10,
    )
    metrics.engine.up = True
    return metrics


L = '{engine="0",model_name="m"}'


def test_engine_figures():
    found = samples(made())
    assert found[f"fd_requests_running{L}"] == 3
    assert found[f"vllm:num_requests_running{L}"] == 3
    assert found[f"vllm:num_requests_waiting{L}"] == 2
    assert found[f"vllm:kv_cache_usage_perc{L}"] == pytest.approx(0.2)
    assert found[f"vllm:gpu_cache_usage_perc{L}"] == pytest.approx(0.2)
    assert found[f"vllm:num_preemptions_total{L}"] == 4
    assert found[f"vllm:prefix_cache_hits_total{L}"] == 10
    assert found['fd_kv_blocks{engine="0",model_name="m",state="used"}'] == 20
    assert found[f"fd_engine_up{L}"] == 1
    assert any(name.startswith("process_") for name in found)


def test_totals_are_not_added_up_twice():
    """Rendering again does not count again."""
    metrics = made()
    assert samples(metrics)[f"fd_preemptions_total{L}"] == samples(metrics)[f"fd_preemptions_total{L}"] == 4


def test_fastdeploy_names():
    found = samples(made(compat=("fastdeploy",)))
    assert found[f"fastdeploy:num_requests_running{L}"] == 3
    assert found[f"fastdeploy:gpu_cache_usage_perc{L}"] == pytest.approx(0.2)
    assert found[f"fastdeploy:max_gpu_block_num{L}"] == 100
    assert found[f"fastdeploy:available_gpu_block_num{L}"] == 80
    assert found[f"fastdeploy:hit_token_rate{L}"] == pytest.approx(0.25)
    assert found[f"fastdeploy:request_preempted_total{L}"] == 4
    assert not any(name.startswith("vllm:") for name in found)


def test_unknown_compat():
    with pytest.raises(ValueError, match="nope"):
        Metrics("m", compat=("nope",))


@pytest.mark.parametrize("compat", COMPAT)
def test_every_alias_is_rendered(compat):
    """A table entry whose native family does not exist would be a silent hole in a dashboard."""
    metrics = made(compat=(compat,))
    text = metrics.render().decode()
    prefix, table = COMPAT[compat]
    for native, names in table.items():
        assert re.search(rf"^# TYPE {native}(_total)? ", text, re.MULTILINE), native
        for name in names:
            assert re.search(rf"^# TYPE {prefix}{name}(_total)? ", text, re.MULTILINE), name


def test_no_created_series():
    assert "_created" not in made(compat=tuple(COMPAT)).render().decode()


def test_exposition_is_well_formed():
    """Each family once, its samples below it, no sample twice."""
    text = made(compat=tuple(COMPAT)).render().decode()
    families = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
    assert len(families) == len(set(families))
    lines = [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


def test_instances_are_apart():
    first, second = made(), Metrics("m")
    first.prompt_tokens.inc(5)
    assert samples(second)[f"fd_prompt_tokens_total{L}"] == 0


def test_buckets():
    text = made().render().decode()
    edges = re.findall(r'vllm:time_to_first_token_seconds_bucket\{engine="0",le="([^"]+)"', text)
    assert edges == [*map(str, TTFT), "+Inf"]
    assert one_two_five(32768)[-4:] == (2000, 5000, 10000, 20000)


def test_request_meter():
    metrics = made()
    meter = RequestMeter(metrics, time.time() - 1.0, prompt_tokens=7, max_tokens=10, n=2)
    assert samples(metrics)[f"fd_prompt_tokens_total{L}"] == 0
    meter.accepted()
    meter.accepted()
    meter.tokens(0, 1, 0.25)
    meter.tokens(1, 1, 0.25)
    meter.tokens(0, 3, 0.25)
    meter.tokens(0, 0, 0.25)
    meter.completed(FinishReason.STOP)
    meter.completed(FinishReason.LENGTH)
    meter.finished()
    found = samples(metrics)
    assert found[f"fd_prompt_tokens_total{L}"] == 7
    assert found[f"fd_generation_tokens_total{L}"] == 5 == found[f"vllm:generation_tokens_total{L}"]
    assert found[f"fd_time_to_first_token_seconds_count{L}"] == 1
    assert found[f"fd_inter_token_latency_seconds_count{L}"] == 3
    assert found[f"fd_e2e_request_latency_seconds_sum{L}"] >= 1.0
    assert found[f"fd_request_queue_time_seconds_sum{L}"] == 0.25
    assert found[f"fd_request_generation_tokens_sum{L}"] == 5
    assert found[f"fd_request_params_n_sum{L}"] == 2
    assert found['fd_request_success_total{engine="0",finished_reason="stop",model_name="m"}'] == 1
    assert meter.ttft >= 1.0


def test_rendering_is_cheap():
    metrics = made(compat=tuple(COMPAT))
    metrics.render()
    started = time.process_time()
    for _ in range(10):
        metrics.render()
    assert time.process_time() - started < 1.0
