"""What /metrics says of requests and of an engine's generations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.frame import FinishReason, Frame, Usage
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.metrics import GenerationMeter, Metrics
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

URL = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "the cat"}]}
SECTION = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [0, 2, MASK]}


def read(client: TestClient) -> dict[tuple[str, ...], float]:
    """Every sample: its name and the values of its labels, to its value."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=4, section=SECTION)
    write_tiny_tokenizer(folder)
    worker = EngineWorker(Engine.from_pretrained(folder, name="tiny", num_slots=3))
    worker.start()
    with TestClient(create_app(worker, Settings())) as client:
        yield client
    worker.stop()


def test_the_meters_agree_with_the_answers_usage(client: TestClient):
    totals = {"steps": 0, "nfe": 0, "prompt": 0, "completion": 0}
    for seed in range(3):
        body = client.post(
            URL, json=ASK | {"model": "tiny", "seed": seed, "max_tokens": 8 + seed}
        ).json()
        totals["steps"] += body["diffusion"]["denoising_steps"]
        totals["nfe"] += body["diffusion"]["nfe"]
        totals["prompt"] += body["usage"]["prompt_tokens"]
        totals["completion"] += body["usage"]["completion_tokens"]
    samples = read(client)
    assert totals["nfe"] > 0
    assert samples["diffusiongpt_denoising_steps_total", "tiny"] == totals["steps"]
    assert samples["diffusiongpt_nfe_total", "tiny"] == totals["nfe"]
    assert samples["diffusiongpt_prompt_tokens_total", "tiny"] == totals["prompt"]
    assert samples["diffusiongpt_completion_tokens_total", "tiny"] == totals["completion"]
    assert samples["diffusiongpt_tokens_per_forward_count", "tiny"] == 3
    assert samples["diffusiongpt_queue_seconds_count", "tiny"] == 3
    assert samples["diffusiongpt_time_to_first_frame_seconds_count", "tiny"] == 3
    assert samples["diffusiongpt_generation_duration_seconds_count", "tiny"] == 3
    assert samples["diffusiongpt_slots", "tiny"] == 3
    assert samples["diffusiongpt_slots_running", "tiny"] == 0
    assert samples["diffusiongpt_forwards_total", "tiny", "eager"] > 0
    assert samples["diffusiongpt_forwards_total", "tiny", "captured"] == 0
    assert samples["diffusiongpt_queue_requests", "tiny"] == 0
    assert samples["diffusiongpt_requests_total", URL, "200"] == 3
    assert samples["diffusiongpt_request_duration_seconds_count", URL] == 3


def test_a_stream_that_ends_is_counted_once(client: TestClient):
    before = read(client)
    client.post(URL, json=ASK | {"model": "tiny", "stream": True, "max_tokens": 8})
    after = read(client)
    key = ("diffusiongpt_requests_total", URL, "200")
    assert after[key] - before[key] == 1


def test_errors_are_counted_by_kind_and_paths_do_not_multiply(client: TestClient):
    client.post(URL, json=ASK | {"model": "other"})
    client.post(URL, json=ASK | {"model": "tiny", "max_tokens": 0})
    client.post(URL, content=b"x" * 2_000_000, headers={"content-type": "application/json"})
    for index in range(5):
        client.get(f"/nowhere/{index}")
    samples = read(client)
    assert samples["diffusiongpt_errors_total", "model_not_found"] == 1
    assert samples["diffusiongpt_errors_total", "body_too_large"] == 1
    assert samples["diffusiongpt_errors_total", "invalid_request_error"] == 1
    assert samples["diffusiongpt_errors_total", "not_found"] == 5
    assert samples["diffusiongpt_requests_total", "unknown", "404"] == 5
    assert samples["diffusiongpt_requests_total", URL, "404"] == 1


def test_grammars_are_timed_and_their_refusals_counted_by_kind(client: TestClient):
    before = read(client)
    guided = ("diffusiongpt_grammar_guide_seconds_total", "tiny")
    compiled = ("diffusiongpt_grammar_compile_seconds_count", "tiny")
    spent = ("diffusiongpt_grammar_compile_seconds_sum", "tiny")
    ask = ASK | {"model": "tiny", "max_tokens": 24}
    assert client.post(URL, json=ask).is_success
    plain = read(client)
    assert plain.get(guided, 0.0) == before.get(guided, 0.0)
    assert plain.get(compiled, 0) == before.get(compiled, 0)
    word = {"structured_outputs": {"regex": "(a|b|the cat)+"}}
    assert client.post(URL, json=ask | word).is_success
    after = read(client)
    assert after[guided] > plain.get(guided, 0.0)
    assert after[compiled] - plain.get(compiled, 0) == 1
    assert after[spent] > plain.get(spent, 0.0)
    for fields in ({"regex": "(?=a)b"}, {"regex": "[]"}, {"json": {"not": {}}}):
        refused = client.post(URL, json=ask | {"structured_outputs": fields})
        assert refused.status_code == 400
    samples = read(client)
    assert samples["diffusiongpt_grammar_refusals_total", "regex", "tiny"] == 2
    assert samples["diffusiongpt_grammar_refusals_total", "json_schema", "tiny"] == 1
    assert samples[compiled] - after[compiled] == 3
    assert samples["diffusiongpt_grammars_total", "regex", "tiny", "any"] == 1
    for name in ("any", "left_to_right"):
        fields = {"type": "object", "maxProperties": 1, "additionalProperties": name != "any"}
        if name == "any":
            del fields["maxProperties"]
        answer = client.post(URL, json=ask | {"structured_outputs": {"json": fields}})
        assert answer.is_success
        assert read(client)["diffusiongpt_grammars_total", "json_schema", "tiny", name] == 1


def test_every_application_has_a_registry_of_its_own():
    one, two = (TestClient(create_app(FakeGenerator(), Settings())) for _ in range(2))
    one.post(URL, json=ASK | {"model": "fake"})
    key = ("diffusiongpt_requests_total", URL, "200")
    assert read(one)[key] == 1
    assert key not in read(two)


def frame(name: str, step: int, **fields: Any) -> Frame:
    common: dict[str, Any] = {"steps": 4, "block": 0, "block_length": 4, "length": 4, "masked": 0}
    return Frame(request_id=name, step=step, **common | fields)


def sums(metrics: Metrics) -> dict[str, tuple[float, float]]:
    """Count and sum of every histogram of the model "m"."""
    labels = {"model": "m"}
    return {
        name: tuple(
            metrics.registry.get_sample_value(f"diffusiongpt_{name}_seconds_{part}", labels) or 0.0
            for part in ("count", "sum")
        )  # type: ignore[misc]
        for name in ("queue", "time_to_first_frame", "time_to_first_token", "generation_duration")
    }


def test_each_milestone_is_measured_at_its_first_frame():
    metrics = Metrics()
    meter = GenerationMeter(metrics, "m")
    meter.note_frame(frame("a", 0), 1.0)
    meter.note_frame(frame("a", 1), 2.0)
    meter.note_frame(frame("a", 2), 3.0)
    meter.note_frame(frame("a", 3, content="x"), 4.0)
    usage = Usage(prompt_tokens=1, completion_tokens=4, steps=4, nfe=2)
    last = frame("a", 4, content="y", finish_reason=FinishReason.STOP, usage=usage)
    meter.note_frame(last, 5.0)
    assert sums(metrics) == {
        "queue": (1, 1.0),
        "time_to_first_frame": (1, 2.0),
        "time_to_first_token": (1, 4.0),
        "generation_duration": (1, 5.0),
    }
    assert not meter._passed


def test_a_generation_that_never_ran_has_no_milestones():
    metrics = Metrics()
    meter = GenerationMeter(metrics, "m")
    meter.note_frame(frame("a", 0, finish_reason=FinishReason.ABORT), 9.0)
    assert sums(metrics)["queue"] == sums(metrics)["time_to_first_frame"] == (0, 0.0)
    value = metrics.registry.get_sample_value(
        "diffusiongpt_generations_total", {"model": "m", "finish_reason": "abort"}
    )
    assert value == 1
    assert not meter._passed
