"""What is counted and measured, in the text format of Prometheus. One registry for one app."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from diffusiongpt.engine.constraint import ConstraintKind
from diffusiongpt.engine.frame import FinishReason, Frame, Usage
from diffusiongpt.engine.observer import CompiledOrder
from diffusiongpt.server.generator import Generator

# OpenTelemetry's buckets for generative servers, in seconds.
_LONG = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_SHORT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_TOKENS_PER_FORWARD = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_UNFINISHED = frozenset({FinishReason.ABORT, FinishReason.ERROR})


class Metrics:
    """All meters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._build_request_meters()
        self._build_engine_meters()
        self._build_generation_meters()
        self._build_grammar_meters()

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"diffusiongpt_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(f"diffusiongpt_{name}", help, ("model",), registry=self.registry)

    def _histogram(
        self, name: str, help: str, buckets: tuple[float, ...], label: str = "model"
    ) -> Histogram:
        return Histogram(
            f"diffusiongpt_{name}", help, (label,), buckets=buckets, registry=self.registry
        )

    def _build_request_meters(self) -> None:
        self._requests = self._counter(
            "requests_total", "HTTP requests answered; status 0: the client left", "route", "status"
        )
        self._errors = self._counter("errors_total", "Errors told to clients", "kind")
        self._request_seconds = self._histogram(
            "request_duration_seconds", "From a request to the end of its answer", _LONG, "route"
        )

    def _build_engine_meters(self) -> None:
        self._queue = self._gauge("queue_requests", "Requests that wait for a slot")
        self._running = self._gauge("slots_running", "Slots that hold a request")
        self._slots = self._gauge("slots", "Slots there are")
        self._ways = ForwardCollector()
        self.registry.register(self._ways)

    def _build_generation_meters(self) -> None:
        self.generations = self._counter(
            "generations_total", "Generations that ended", "model", "finish_reason"
        )
        self.steps = self._counter("denoising_steps_total", "Steps with commits", "model")
        self.forwards = self._counter("nfe_total", "Forwards, once for each request", "model")
        self.prompt_tokens = self._counter("prompt_tokens_total", "Tokens of prompts", "model")
        self.completion_tokens = self._counter(
            "completion_tokens_total", "Tokens of answers", "model"
        )
        self.tokens_per_forward = self._histogram(
            "tokens_per_forward", "Answer tokens divided by NFE", _TOKENS_PER_FORWARD
        )
        self.queue_seconds = self._histogram("queue_seconds", "Wait for a slot", _SHORT)
        self.first_frame_seconds = self._histogram(
            "time_to_first_frame_seconds", "To the first frame after a denoising step", _SHORT
        )
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "To the first settled text", _SHORT
        )
        self.generation_seconds = self._histogram(
            "generation_duration_seconds", "From submitting a generation to its end", _LONG
        )

    def _build_grammar_meters(self) -> None:
        self.grammar_compile_seconds = self._histogram(
            "grammar_compile_seconds", "Getting a constraint ready, known ones included", _SHORT
        )
        self.grammar_guide_seconds = self._counter(
            "grammar_guide_seconds_total", "Time in which generations kept constraints", "model"
        )
        self.grammars = self._counter(
            "grammars_total",
            "Constraints of requests by the order in which their texts are written",
            *("model", "kind", "order"),
        )
        self.grammar_refusals = self._counter(
            "grammar_refusals_total", "Constraints that cannot be kept", "model", "kind"
        )

    def note_request(
        self, *, route: str, status: int, seconds: float, error_kind: str | None
    ) -> None:
        """Count an HTTP request that has been answered; status 0 is a client that left."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if error_kind is not None:
            self._errors.labels(error_kind).inc()

    def watch(self, generator: Generator) -> None:
        """Show a model's queue and slots, and measure its generations."""
        name = generator.info.name
        self._queue.labels(name).set_function(lambda: generator.num_waiting)
        self._running.labels(name).set_function(lambda: generator.num_running)
        self._slots.labels(name).set(generator.num_slots)
        self._ways.generators.append(generator)
        generator.observe(GenerationMeter(self, name))

    def render(self) -> bytes:
        """All of it, as /metrics shows it."""
        return generate_latest(self.registry)


class ForwardCollector(Collector):
    """Counts of forwards, which the engines keep themselves."""

    def __init__(self) -> None:
        self.generators: list[Generator] = []

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Forwards of each model by how they ran."""
        family = CounterMetricFamily(
            "diffusiongpt_forwards", "Forwards by how they ran", labels=("model", "way")
        )
        for generator in self.generators:
            for way, count in generator.forwards.items():
                family.add_metric((generator.info.name, way), count)
        yield family


class GenerationMeter:
    """Measures one model's generations; an `Observer` of its engine."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        # Generations under way, and which of their milestones have been passed.
        self._passed: dict[str, set[str]] = {}

    def note_frame(self, frame: Frame, seconds: float) -> None:
        """Take one frame into account, `seconds` after its request was submitted."""
        passed = self._passed.setdefault(frame.request_id, set())
        if frame.finish_reason not in _UNFINISHED:
            self._note_milestones(frame, seconds, passed)
        if frame.finish_reason is not None:
            del self._passed[frame.request_id]
            self._note_end(frame.finish_reason, frame.usage, seconds)

    def note_compile(
        self, kind: ConstraintKind, seconds: float, order: CompiledOrder | None
    ) -> None:
        """Count a constraint that was got ready or refused."""
        self._metrics.grammar_compile_seconds.labels(self._model).observe(seconds)
        if order is None:
            self._metrics.grammar_refusals.labels(self._model, kind).inc()
        else:
            self._metrics.grammars.labels(self._model, kind, order).inc()

    def _note_milestones(self, frame: Frame, seconds: float, passed: set[str]) -> None:
        metrics = self._metrics
        milestones = (
            ("slot", True, metrics.queue_seconds),
            ("frame", frame.step > 0, metrics.first_frame_seconds),
            ("token", bool(frame.content), metrics.first_token_seconds),
        )
        for name, is_reached, histogram in milestones:
            if is_reached and name not in passed:
                passed.add(name)
                histogram.labels(self._model).observe(seconds)

    def _note_end(self, reason: FinishReason, usage: Usage | None, seconds: float) -> None:
        metrics, model = self._metrics, self._model
        metrics.generations.labels(model, reason.value).inc()
        metrics.generation_seconds.labels(model).observe(seconds)
        if usage is None:
            return
        metrics.steps.labels(model).inc(usage.steps)
        metrics.forwards.labels(model).inc(usage.nfe)
        metrics.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.completion_tokens.labels(model).inc(usage.completion_tokens)
        metrics.grammar_guide_seconds.labels(model).inc(usage.grammar_seconds)
        if usage.nfe:
            metrics.tokens_per_forward.labels(model).observe(usage.completion_tokens / usage.nfe)


def metrics_routes(metrics: Metrics) -> APIRouter:
    """GET /metrics."""
    router = APIRouter()

    @router.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
