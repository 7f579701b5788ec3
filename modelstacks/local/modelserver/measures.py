"""What the imitated server measures, under the very names of its engine."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from modelstacks.local.imitation import Imitation

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (1, 10, 50, 100, 500, 1000, 5000, 10000, 50000)
_BLOCK_TOKENS = 16


class Measures:
    """One registry for one server; `token` and `done` are called as an answer goes on."""

    def __init__(self, engine: str, core: Imitation) -> None:
        self._core = core
        # TGI exports what has been set once, which takes a request.
        self._silent = engine == "tgi"
        self._registry = CollectorRegistry()
        # Each engine has some of these.
        self._prompt: Counter | None = None
        self._output: Counter | None = None
        self._first: Histogram | None = None
        self._input_length: Histogram | None = None
        self._answer_length: Histogram | None = None
        self._success: Counter | Gauge
        self._next: Histogram
        self._whole: Histogram
        (self._vllm if engine == "vllm" else self._tgi)()

    def _vllm(self) -> None:
        labels = ["model_name", "engine"]
        values = (self._core.settings.model, "0")

        def gauge(name: str) -> None:
            made = Gauge(f"vllm:{name}", name, labels, registry=self._registry).labels(*values)
            made.set_function(lambda: self._core.gauges()[name])

        for name in self._core.gauges():
            gauge(name)

        def counter(name: str) -> Counter:
            return Counter(f"vllm:{name}", name, labels, registry=self._registry).labels(*values)

        def histogram(name: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"vllm:{name}", name, labels, buckets=buckets, registry=self._registry).labels(*values)

        self._prompt, self._output = counter("prompt_tokens"), counter("generation_tokens")
        counter("num_preemptions")
        success = Counter("vllm:request_success", "requests", [*labels, "finished_reason"], registry=self._registry)
        self._success = success.labels(*values, "length")
        self._first, self._next = histogram("time_to_first_token_seconds"), histogram("inter_token_latency_seconds")
        self._whole = histogram("e2e_request_latency_seconds")
        blocks = str((self._core.settings.kv_tokens or 0) // _BLOCK_TOKENS)
        info = Gauge("vllm:cache_config_info", "cache", ["block_size", "num_gpu_blocks"], registry=self._registry)
        info.labels(str(_BLOCK_TOKENS), blocks).set(1)

    def _tgi(self) -> None:
        def histogram(name: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"tgi_{name}", name, buckets=buckets, registry=self._registry)

        Gauge("tgi_batch_current_size", "running", registry=self._registry).set_function(lambda: self._core.running)
        Gauge("tgi_queue_size", "waiting", registry=self._registry).set_function(lambda: self._core.waiting)
        # TGI's counters have no suffix, which this client gives to every counter.
        self._success = Gauge("tgi_request_success", "requests", registry=self._registry)
        self._next = histogram("request_mean_time_per_token_duration")
        self._whole = histogram("request_duration")
        self._input_length = histogram("request_input_length", _TOKENS)
        self._answer_length = histogram("request_generated_tokens", _TOKENS)

    def begin(self, prompt_tokens: int) -> Answer:
        """A request that was let in."""
        self._silent = False
        return Answer(self, prompt_tokens)

    def text(self) -> bytes:
        """Prometheus' exposition."""
        if self._silent:
            return b""
        return generate_latest(self._registry)


class Answer:
    """One request as it is measured."""

    def __init__(self, measures: Measures, prompt_tokens: int) -> None:
        self._to, self._prompt_tokens = measures, prompt_tokens
        self._began = self._last = time.monotonic()
        self._tokens = 0

    def token(self) -> None:
        """A token went out."""
        now = time.monotonic()
        to = self._to
        if self._tokens == 0:
            if to._prompt is not None:
                to._prompt.inc(self._prompt_tokens)
            if to._first is not None:
                to._first.observe(now - self._began)
        elif to._first is not None:
            to._next.observe(now - self._last)
        if to._output is not None:
            to._output.inc()
        self._tokens += 1
        self._last = now

    def done(self) -> None:
        """The last token went out."""
        to, took = self._to, time.monotonic() - self._began
        to._success.inc()
        to._whole.observe(took)
        if to._input_length is not None and to._answer_length is not None:
            to._input_length.observe(self._prompt_tokens)
            to._answer_length.observe(self._tokens)
            to._next.observe(took / max(1, self._tokens))
