"""OpenTelemetry: a span for every generating request, named by its conventions for GenAI.

Off, and neither SDK nor exporter imported, unless OpenTelemetry's own variables ask for traces.
No prompt and no answer is in a span unless the operator asks for them (`log_prompts`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.errors import ERROR_KIND
from diffusiongpt.server.generator import Generation
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.protocol import GenerationRequest
from diffusiongpt.server.reading import ChoiceReader
from diffusiongpt.server.settings import SettingsError
from diffusiongpt.server.told import spell_answers, spell_prompts
from diffusiongpt.server.usage import sum_usage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

# Where a request's scope keeps its span, in its "state".
_SPAN = "request_span"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/fim/completions": "text_completion",
    "/v1/infill": "text_completion",
    "/v1/edits": "text_completion",
}
_REQUEST_FIELDS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "seed",
)


def make_tracer(variables: Mapping[str, str]) -> Tracer | None:
    """A tracer as OpenTelemetry's variables say, or None where they ask for no traces.

    Raises:
        SettingsError: they ask for what is not there.
    """
    name = variables.get("OTEL_TRACES_EXPORTER", "")
    name = name or ("otlp" if any(variables.get(each) for each in _ENDPOINTS) else "none")
    if name == "none" or variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _make_exporter(name, variables)
    except ImportError as error:
        raise SettingsError(
            f"OTEL_ variables ask for traces ({name}), which need pip install 'diffusiongpt[otel]'"
        ) from error
    # Its own variables, OTEL_SERVICE_NAME among them, come before what is said here.
    given = Resource.create()
    if not variables.get("OTEL_SERVICE_NAME") and "service.name" not in variables.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        given = given.merge(Resource({"service.name": "diffusiongpt"}))
    provider = TracerProvider(resource=given)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("diffusiongpt")


def _make_exporter(name: str, variables: Mapping[str, str]) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise SettingsError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, got {name!r}")
    for each in _PROTOCOLS:
        if variables.get(each, "http/protobuf") != "http/protobuf":
            raise SettingsError(f"{each} must be http/protobuf, got {variables[each]!r}")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Traces:
    """Opens a span around every generating request; plain ASGI, so that nothing is buffered."""

    def __init__(self, app: ASGIApp, tracer: Tracer, *, keeps_text: bool = False) -> None:
        self._app = app
        self._tracer = tracer
        self._keeps_text = keeps_text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope.get("path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or operation is None:
            await self._app(scope, receive, send)
            return
        span = RequestSpan(self._tracer, scope, operation, keeps_text=self._keeps_text)
        scope.setdefault("state", {})[_SPAN] = span

        async def note_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.note_status(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note_and_send)
        finally:
            span.end(scope["state"].get(ERROR_KIND))


class RequestSpan:
    """The span of one request, and what is written into it while it is answered.

    Attributes:
        keeps_text: prompts and answers are written into it, too.
    """

    def __init__(
        self, tracer: Tracer, scope: Scope, operation: str, *, keeps_text: bool = False
    ) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.keeps_text = keeps_text
        self._operation = operation
        self._answers: dict[int, tuple[Collected, Frame]] = {}
        self._started = time.monotonic()
        self._last: dict[int, Frame] = {}
        self._num_choices = 1
        self._has_text = False
        self._status = 0
        self._span: Span = tracer.start_span(
            operation,
            # A caller's span, where it sends one, is the parent.
            context=TraceContextTextMapPropagator().extract(dict(Headers(scope=scope))),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "diffusiongpt",
                "http.request.method": "POST",
                "http.route": scope["path"],
            },
        )

    def note_status(self, status: int) -> None:
        """The answer begins."""
        self._status = status
        self._span.set_attribute("http.response.status_code", status)

    def note_request(self, ask: GenerationRequest, model: str, params: GenerationParams) -> None:
        """The request as it runs: what was asked, and what the engine made of it."""
        self._span.update_name(f"{self._operation} {model}")
        attributes: dict[str, Any] = {
            f"gen_ai.request.{name}": getattr(params, name)
            for name in _REQUEST_FIELDS
            if getattr(params, name) is not None
        }
        attributes |= {
            "gen_ai.request.model": ask.model,
            "gen_ai.response.model": model,
            "gen_ai.request.stream": bool(ask.stream),
            "gen_ai.request.stop_sequences": list(params.stop),
            "diffusiongpt.policy": params.policy or "",
        }
        if self.keeps_text:
            attributes["gen_ai.input.messages"] = spell_prompts(ask.told)
        self._num_choices = ask.num_choices
        if ask.num_choices > 1:
            attributes["gen_ai.request.choice.count"] = ask.num_choices
        self._span.set_attributes(attributes)

    def note_event(self, name: str, index: int, **attributes: str) -> None:
        """A milestone of one choice."""
        self._span.add_event(f"diffusiongpt.{name}", {"index": index, **attributes})
        if name == "first_token" and not self._has_text:
            self._has_text = True
            seconds = time.monotonic() - self._started
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def note_end(self, index: int, last: Frame) -> None:
        """A choice has come to its end: why, and what all that ended have cost."""
        self._last[index] = last
        frames = [self._last[each] for each in sorted(self._last)]
        reasons = [frame.finish_reason.value for frame in frames if frame.finish_reason]
        self.note_event("finish", index, finish_reason=reasons[sorted(self._last).index(index)])
        usage = sum_usage(frames, self._num_choices)
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": reasons,
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "diffusiongpt.denoising_steps": usage.steps,
                "diffusiongpt.nfe": usage.nfe,
            }
        )

    def note_answer(self, index: int, answer: Collected, last: Frame) -> None:
        """The text of a choice that has come to its end."""
        self._answers[index] = answer, last
        answers = [self._answers[each] for each in sorted(self._answers)]
        self._span.set_attribute("gen_ai.output.messages", spell_answers(answers))

    def end(self, error_kind: str | None) -> None:
        """The answer is complete, or there will be none."""
        from opentelemetry.trace import Status, StatusCode

        failed = any(last.finish_reason is FinishReason.ERROR for last in self._last.values())
        kind = error_kind or ("engine_error" if failed else None)
        kind = kind or ("client_left" if self._status in (0, 499) else None)
        if kind is not None:
            self._span.set_attribute("error.type", kind)
        if self._status >= 500 or (self._status == 200 and kind is not None):
            self._span.set_status(Status(StatusCode.ERROR, kind))
        self._span.end()


class WatchedGeneration:
    """A generation whose milestones go into its request's span as they are read.

    Args:
        reader: reads the choice's text, where the span keeps it.
    """

    def __init__(
        self, generation: Generation, span: RequestSpan, index: int, reader: ChoiceReader | None
    ) -> None:
        self._generation = generation
        self._span = span
        self._index = index
        self._reader = reader
        self._answer = Collected()

    @property
    def params(self) -> GenerationParams:
        """As the engine has them."""
        return self._generation.params

    @property
    def num_pending(self) -> int:
        """Frames that wait to be read."""
        return self._generation.num_pending

    def abort(self) -> None:
        """End the request."""
        self._generation.abort()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        passed: set[str] = set()
        async for frame in self._generation:
            reached = {"first_frame": frame.step > 0, "first_token": bool(frame.content)}
            for name in [each for each in reached if reached[each] and each not in passed]:
                passed.add(name)
                self._span.note_event(name, self._index)
            if self._reader is not None:
                self._answer.add(self._reader.read(frame)[0])
            if frame.finish_reason is not None:
                self._span.note_end(self._index, frame)
                if self._reader is not None:
                    self._span.note_answer(self._index, self._answer, frame)
            yield frame


def watch(
    scope: Scope,
    ask: GenerationRequest,
    model: str,
    generations: Sequence[Generation],
    make_reader: Callable[[], ChoiceReader],
) -> Sequence[Generation]:
    """The generations of a request, told to its span if it has one.

    Args:
        make_reader: of what reads a choice's text; called only where the span keeps it.
    """
    span: RequestSpan | None = scope["state"].get(_SPAN)
    if span is None:
        return generations
    span.note_request(ask, model, generations[0].params)
    return [
        WatchedGeneration(generation, span, index, make_reader() if span.keeps_text else None)
        for index, generation in enumerate(generations)
    ]
