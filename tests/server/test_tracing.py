"""A span for every generating request: what it says, when there is one, and what it never says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.chat import ChatStyle, Thinking
from diffusiongpt.engine.errors import QueueFull
from diffusiongpt.server.app import create_app
from diffusiongpt.server.openapi import ROUTES
from diffusiongpt.server.settings import Settings, SettingsError
from diffusiongpt.server.tracing import _OPERATIONS, make_tracer

from fakes import FakeGenerator

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "a secret question"}],
    "temperature": 0.5,
    "seed": 3,
    "stop": ["never"],
}


class Traced:
    """An application whose spans stay in memory."""

    def __init__(self, generator: FakeGenerator, **settings: Any) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        app = create_app(generator, Settings(**settings), tracer=provider.get_tracer("test"))
        self.client = TestClient(app, raise_server_exceptions=False)

    def post(self, path: str = CHAT, **fields: Any) -> ReadableSpan:
        """The span of one request."""
        self._exporter.clear()
        headers = fields.pop("headers", None)
        self.client.post(path, json=fields, headers=headers)
        (span,) = self._exporter.get_finished_spans()
        return span

    @property
    def num_spans(self) -> int:
        return len(self._exporter.get_finished_spans())


@pytest.fixture
def traced() -> Traced:
    return Traced(FakeGenerator("a hidden answer"))


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def events_of(span: ReadableSpan) -> list[tuple[str, Any]]:
    return [(event.name, (event.attributes or {})["index"]) for event in span.events]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_span_with_its_milestones_in_order(traced: Traced, stream: bool):
    span = traced.post(**ASK, stream=stream)
    assert (span.name, span.kind) == ("chat fake", SpanKind.SERVER)
    assert events_of(span) == [
        ("diffusiongpt.first_frame", 0),
        ("diffusiongpt.first_token", 0),
        ("diffusiongpt.finish", 0),
    ]
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert times == sorted(times)
    said = attributes_of(span)
    assert 0 <= said.pop("gen_ai.response.time_to_first_chunk") < 60
    assert said.pop("diffusiongpt.nfe") == said.pop("diffusiongpt.denoising_steps") > 0
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "diffusiongpt",
        "gen_ai.request.model": "fake",
        "gen_ai.request.stream": stream,
        "gen_ai.request.max_tokens": said["gen_ai.request.max_tokens"],
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ("never",),
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 15,
        "diffusiongpt.policy": said["diffusiongpt.policy"],
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_names_are_those_of_the_conventions(traced: Traced):
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    said = attributes_of(traced.post(**ASK, n=2, top_k=5, top_p=0.9))
    assert {name for name in said if name.startswith("gen_ai.")} <= known


def test_choices_share_a_span_and_the_prompt_counts_once(traced: Traced):
    span = traced.post(**ASK, n=3)
    said = attributes_of(span)
    assert said["gen_ai.request.choice.count"] == 3
    assert said["gen_ai.response.finish_reasons"] == ("stop",) * 3
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (3, 45)
    assert {index for name, index in events_of(span) if name.endswith("finish")} == {0, 1, 2}
    two = traced.post("/v1/completions", model="fake", prompt=["a", "b"])
    assert attributes_of(two)["gen_ai.usage.input_tokens"] == 6
    assert two.name == "text_completion fake"


def test_no_text_is_in_a_span(traced: Traced):
    for path, ask in ((CHAT, ASK), ("/v1/completions", {"model": "fake", "prompt": "secret"})):
        shown = traced.post(path, **ask).to_json()
        assert "secret" not in shown
        assert "hidden" not in shown


ASKS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    CHAT: (ASK, ["a secret question"]),
    "/v1/completions": ({"prompt": ["secret", "b"], "suffix": "z"}, ["secret", "z", "b", "z"]),
    "/v1/fim/completions": ({"prompt": "secret"}, ["secret"]),
    "/v1/infill": ({"segments": ["secret", {"mask": 3}, [7]]}, ["secret", '{"mask": 3}', "[7]"]),
    "/v1/edits": ({"input": "secret", "instruction": "mend"}, ["mend", "secret"]),
}


def messages_of(span: ReadableSpan, name: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(attributes_of(span)[f"gen_ai.{name}.messages"])
    return messages


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", _OPERATIONS)
def test_prompts_and_answers_are_in_a_span_only_where_they_are_asked_for(path: str, stream: bool):
    ask, prompts = ASKS[path]
    ask = {"model": "fake", "stream": stream, **ask}
    silent = Traced(FakeGenerator("a hidden answer")).post(path, **ask)
    assert not {name for name in attributes_of(silent) if "messages" in name}
    assert "secret" not in silent.to_json()
    assert "hidden" not in silent.to_json()
    span = Traced(FakeGenerator("a hidden answer"), log_prompts=True).post(path, **ask)
    told = messages_of(span, "input")
    parts = [part for message in told for part in message["parts"]]
    assert parts == [{"type": "text", "content": each} for each in prompts]
    answer = {
        "role": "assistant",
        "parts": [{"type": "text", "content": "a hidden answer"}],
        "finish_reason": "stop",
    }
    assert messages_of(span, "output") == [answer] * len(told)


def test_thoughts_and_calls_are_parts_of_their_own():
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
    style = ChatStyle(thinking=Thinking(opening="<think>", closing="</think>"))
    traced = Traced(FakeGenerator(f"<think>hm</think>well {call}", chat=style), log_prompts=True)
    made = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": "secret"},
        {"role": "assistant", "content": "", "reasoning_content": "so", "tool_calls": [made]},
        {"role": "tool", "content": "blue", "tool_call_id": "c1"},
    ]
    tool = {"type": "function", "function": {"name": "look"}}
    span = traced.post(**{**ASK, "messages": chat, "tools": [tool]})
    assert [(each["role"], each["parts"]) for each in messages_of(span, "input")] == [
        ("user", [{"type": "text", "content": "secret"}]),
        (
            "assistant",
            [
                {"type": "reasoning", "content": "so"},
                {"type": "tool_call", "id": "c1", "name": "look", "arguments": {}},
            ],
        ),
        ("tool", [{"type": "tool_call_response", "id": "c1", "response": "blue"}]),
    ]
    (answer,) = messages_of(span, "output")
    thought, text, called = answer["parts"]
    assert (thought, text["content"]) == ({"type": "reasoning", "content": "hm"}, "well")
    assert called["name"] == "look"
    assert json.loads(called["arguments"]) == {"at": "sky"}
    assert answer["finish_reason"] == "tool_call"


def test_a_callers_span_is_the_parent(traced: Traced):
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    span = traced.post(**ASK, headers={"traceparent": f"00-{trace_id}-{span_id}-01"})
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == f"{span.context.trace_id:032x}" == trace_id
    assert f"{span.parent.span_id:016x}" == span_id


def test_a_refusal_and_a_failure_say_their_kind(traced: Traced):
    refused = traced.post(**{**ASK, "temperature": 9})
    assert attributes_of(refused)["error.type"] == "invalid_request_error"
    assert attributes_of(refused)["http.response.status_code"] == 400
    assert refused.status.status_code is StatusCode.UNSET
    full = Traced(FakeGenerator(error=QueueFull("full"))).post(**ASK)
    assert attributes_of(full)["error.type"] == "queue_full"
    broken = Traced(FakeGenerator(error=RuntimeError("a defect"))).post(**ASK)
    assert attributes_of(broken)["http.response.status_code"] == 500
    assert broken.status.status_code is StatusCode.ERROR


def test_every_generating_route_has_its_operation():
    assert _OPERATIONS.keys() == ROUTES.keys()


def test_what_generates_nothing_is_no_span(traced: Traced):
    for path in ("/health", "/v1/models", "/metrics"):
        traced.client.get(path)
    assert traced.num_spans == 0


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp, console or none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_a_sentence(variables: dict[str, str], words: str):
    with pytest.raises(SettingsError, match=words):
        make_tracer(variables)


def test_traces_are_off_unless_asked_for():
    address = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert make_tracer({}) is None
    assert make_tracer({"OTEL_TRACES_EXPORTER": "none", **address}) is None
    assert make_tracer({"OTEL_SDK_DISABLED": "true", **address}) is None


def test_without_variables_neither_sdk_nor_exporter_is_imported():
    code = (
        "import sys; from diffusiongpt.server.app import create_app; "
        "from diffusiongpt.server.tracing import make_tracer; assert make_tracer({}) is None; "
        # FastAPI imports the interface by itself, which does nothing without the rest.
        "rest = ('opentelemetry.sdk', 'opentelemetry.exporter'); "
        "sys.exit(any(name.startswith(rest) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'diffusiongpt\[otel\]'"):
        make_tracer({"OTEL_TRACES_EXPORTER": "otlp"})
