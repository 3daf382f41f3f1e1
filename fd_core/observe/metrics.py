"""Figures of one server: its own registry, no globals; rendered under our names and others'."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from fd_core.engine.request import EngineStats, FinishReason, ModelInfo
from fd_core.observe.aliases import Renamed
from fd_core.observe.names import ITL, LATENCY, SMALL, TTFT, one_two_five

LABELS = ["model_name", "engine"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class EngineFigures:
    """Engine totals as the last `EngineStats` had them; nothing is added up here."""

    def __init__(self, labels: tuple[str, str]) -> None:
        self._labels = labels
        self.stats = EngineStats()
        self.info: ModelInfo | None = None
        self.up = False

    def collect(self) -> Iterator[Metric]:
        s = self.stats
        used = s.blocks_total - s.blocks_free - s.blocks_cached
        yield self._gauge("fd_engine_up", "1 while the engine answers and makes progress", float(self.up))
        yield self._gauge("fd_engine_last_step_seconds", "Duration of the latest step", s.last_step_seconds)
        yield self._gauge("fd_requests_running", "Requests in the running batch", s.running)
        yield self._gauge("fd_requests_waiting", "Requests waiting for the engine", s.waiting)
        yield self._gauge("fd_kv_cache_usage_ratio", "KV blocks in use, 0..1", _ratio(used, s.blocks_total))
        yield self._gauge("fd_kv_blocks_max", "KV blocks in all", s.blocks_total)
        yield self._gauge(
            "fd_kv_blocks_available", "KV blocks free or evictable", s.blocks_free + s.blocks_cached
        )
        yield self._blocks(used)
        yield self._gauge(
            "fd_prefix_cache_hit_ratio",
            "Prefix-cache hits per query",
            _ratio(s.prefix_hits, s.prefix_queries),
        )
        yield self._counter("fd_engine_steps", "Steps since start", s.steps)
        yield self._counter("fd_preemptions", "Requests preempted", s.preemptions)
        yield self._counter("fd_prefix_cache_queries", "Prompt tokens looked up", s.prefix_queries)
        yield self._counter("fd_prefix_cache_hits", "Prompt tokens found in the cache", s.prefix_hits)
        yield from self._constants()

    def _constants(self) -> Iterator[Metric]:
        if self.info is None:
            return
        yield self._gauge("fd_max_batch_size", "Most sequences in one batch", self.info.max_num_seqs)
        names = ["max_model_len", "platform", "dtype", "num_blocks"]
        family = GaugeMetricFamily("fd_cache_config_info", "Configuration, value 1", labels=LABELS + names)
        values = [self.info.max_model_len, self.info.platform, self.info.dtype, self.stats.blocks_total]
        family.add_metric([*self._labels, *map(str, values)], 1)
        yield family

    def _blocks(self, used: int) -> Metric:
        family = GaugeMetricFamily("fd_kv_blocks", "KV blocks by state", labels=[*LABELS, "state"])
        for state, value in (
            ("free", self.stats.blocks_free),
            ("cached", self.stats.blocks_cached),
            ("used", used),
        ):
            family.add_metric([*self._labels, state], value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


class Metrics:
    """What a server counts. One instance per server; `engine` is the label of a replica."""

    def __init__(
        self,
        model_name: str,
        *,
        engine: str = "0",
        compat: Sequence[str] = ("vllm",),
        max_model_len: int = 32768,
    ) -> None:
        self.registry = CollectorRegistry()
        labels = (model_name, engine)
        self.engine = EngineFigures(labels)
        self.registry.register(self.engine)
        ProcessCollector(registry=self.registry)
        self._rendered = CollectorRegistry()
        self._rendered.register(Renamed(self.registry, compat))
        self._make_server(labels)
        self._make_requests(labels, one_two_five(max_model_len))

    def _make_server(self, labels: tuple[str, str]) -> None:
        new = self.registry
        self.http = Counter(
            "fd_requests", "HTTP requests by route and status", ["route", "code"], registry=new
        )
        self.rejected = Counter("fd_requests_rejected", "Requests refused", ["reason"], registry=new)
        self.aborted = Counter(
            "fd_requests_aborted", "Accepted requests that were stopped", ["reason"], registry=new
        )
        self.unknown_fields = Counter("fd_unknown_fields", "Unknown top-level request fields", registry=new)
        self.loop_lag = Gauge("fd_event_loop_lag_seconds", "Delay of the server's event loop", registry=new)
        accepted = Counter("fd_requests_accepted", "Requests given to the engine", LABELS, registry=new)
        self.accepted = accepted.labels(*labels)

    def _make_requests(self, labels: tuple[str, str], sizes: Sequence[float]) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, LABELS, buckets=buckets, registry=self.registry).labels(*labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, LABELS, registry=self.registry).labels(*labels)

        success = Counter(
            "fd_request_success",
            "Completions by reason",
            [*LABELS, "finished_reason"],
            registry=self.registry,
        )
        self.success = {r: success.labels(*labels, r.value) for r in FinishReason}
        self.prompt_tokens = counter("fd_prompt_tokens", "Prompt tokens of accepted requests")
        self.generation_tokens = counter("fd_generation_tokens", "Tokens given to clients")
        self.ttft = histogram("fd_time_to_first_token_seconds", "Arrival to first token", TTFT)
        self.itl = histogram("fd_inter_token_latency_seconds", "Time between tokens", ITL)
        self.e2e = histogram("fd_e2e_request_latency_seconds", "Arrival to end", LATENCY)
        self.queue = histogram("fd_request_queue_time_seconds", "Waiting in the engine", LATENCY)
        self.prefill = histogram("fd_request_prefill_time_seconds", "Admission to first token", LATENCY)
        self.decode = histogram("fd_request_decode_time_seconds", "First to last token", LATENCY)
        self.inference = histogram("fd_request_inference_time_seconds", "Admission to end", LATENCY)
        self.prompt_size = histogram("fd_request_prompt_tokens", "Prompt tokens a request", sizes)
        self.output_size = histogram("fd_request_generation_tokens", "Generated tokens a request", sizes)
        self.max_tokens = histogram("fd_request_params_max_tokens", "max_tokens a request", sizes)
        self.n = histogram("fd_request_params_n", "n a request", SMALL)

    def render(self) -> bytes:
        return generate_latest(self._rendered)


class RequestMeter:
    """Times and counts one engine request; `now` values are `time.time()` seconds."""

    def __init__(
        self, metrics: Metrics, arrival: float, prompt_tokens: int, max_tokens: int, n: int
    ) -> None:
        self._m = metrics
        self._arrival = arrival
        self._last: dict[int, float] = {}
        self._queue = 0.0
        self._first = 0.0
        self._tokens = 0
        self._asked: tuple[int, int, int] | None = (prompt_tokens, max_tokens, n)

    @property
    def ttft(self) -> float:
        """Seconds to the first token; 0 before it."""
        return self._first - self._arrival if self._first else 0.0

    def accepted(self) -> None:
        """The engine took the request (a refused one is counted nowhere here); once is enough."""
        if self._asked is None:
            return
        (prompt_tokens, max_tokens, n), self._asked = self._asked, None
        self._m.accepted.inc()
        self._m.prompt_tokens.inc(prompt_tokens)
        self._m.prompt_size.observe(prompt_tokens)
        self._m.max_tokens.observe(max_tokens)
        self._m.n.observe(n)

    def tokens(self, index: int, count: int, queue_time: float) -> None:
        """`count` new tokens of completion `index` have arrived."""
        if not count:
            return
        now = time.time()
        self._tokens += count
        self._m.generation_tokens.inc(count)
        self._queue = max(self._queue, queue_time)
        if not self._first:
            self._first = now
            self._m.ttft.observe(now - self._arrival)
        last = self._last.get(index)
        gaps = count if last is not None else count - 1
        for _ in range(gaps):
            self._m.itl.observe((now - (last or now)) / count)
        self._last[index] = now

    def completed(self, reason: FinishReason) -> None:
        """One completion is over."""
        self._m.success[reason].inc()

    def finished(self) -> None:
        """All completions are over, normally."""
        now = time.time()
        m, first = self._m, self._first or now
        m.e2e.observe(now - self._arrival)
        m.queue.observe(self._queue)
        m.prefill.observe(max(0.0, first - self._arrival - self._queue))
        m.decode.observe(now - first)
        m.inference.observe(max(0.0, now - self._arrival - self._queue))
        m.output_size.observe(self._tokens)
