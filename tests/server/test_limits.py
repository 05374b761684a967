"""Bodies that never end, answers that take too long, readers that read nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from diffusiongpt.server.log import configure_logging

from fakes import FakeGenerator, shuffled_frames
from live import Live, head, open_request, read_all, read_answer, serving_live, wait_for

URL = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "Hello world, this takes a while."
WATCH = {"stream": True, "diffusion": {"frames": "full"}}


def connect(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=10)


def meters(live: Live) -> str:
    return httpx.get(f"{live.url}/metrics").text


def events_of(text: str) -> list[str]:
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


@pytest.mark.parametrize("drip", [b"", b"1\r\n \r\n"], ids=["stalls", "drips"])
def test_a_chunked_body_that_never_ends_is_a_408_and_others_are_served(drip: bytes):
    with serving_live(FakeGenerator(), body_timeout_seconds=0.5) as live, connect(live) as client:
        client.sendall(head("transfer-encoding: chunked") + b"5\r\n{    \r\n")
        for _ in range(3):
            client.sendall(drip)
            time.sleep(0.1)
        assert httpx.post(live.url + URL, json=ASK).status_code == 200
        status, body = read_answer(client)
        assert status == 408
        assert body["error"]["code"] == "body_timeout"
        assert read_all(client) == b""


def test_a_body_shorter_than_it_said_is_a_408():
    with serving_live(FakeGenerator(), body_timeout_seconds=0.3) as live, connect(live) as client:
        client.sendall(head("content-length: 500") + b"{")
        assert read_answer(client)[0] == 408


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_defect(
    capsys: pytest.CaptureFixture[str],
):
    configure_logging("info")
    with serving_live(FakeGenerator()) as live:
        with connect(live) as client:
            client.sendall(head("content-length: 500") + b"{")
            time.sleep(0.1)
        assert wait_for(lambda: f'requests_total{{route="{URL}",status="0"}} 1.0' in meters(live))
    assert "request failed" not in capsys.readouterr().err


def test_an_answer_that_takes_too_long_is_a_504_and_its_generation_ends():
    generator = FakeGenerator(TEXT, pause=0.1)
    with serving_live(generator, request_timeout_seconds=0.5) as live:
        answer = httpx.post(live.url + URL, json=ASK)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "request_timeout"
        assert answer.headers["x-should-retry"] == "false"
        assert "x-request-id" in answer.headers
        assert generator.generations[0].was_aborted
        metrics = meters(live)
    assert 'diffusiongpt_errors_total{kind="request_timeout"} 1.0' in metrics


def test_a_stream_that_takes_too_long_ends_with_an_error_event():
    generator = FakeGenerator(TEXT, pause=0.1)
    with serving_live(generator, request_timeout_seconds=0.5) as live:
        answer = httpx.post(live.url + URL, json=ASK | WATCH)
        events = events_of(answer.text)
        assert answer.status_code == 200
        assert len(events) > 2
        assert json.loads(events[-1])["error"]["code"] == "request_timeout"
        assert "[DONE]" not in events
        assert generator.generations[0].was_aborted
        assert not generator.generations[0].has_finished


def test_a_reader_that_reads_nothing_loses_its_connection_and_its_generation():
    text = "x" * 400
    generator = FakeGenerator(frames=shuffled_frames(text), pause=0.001)
    with serving_live(generator, send_buffer=4096, slow_reader_seconds=0.5) as live:
        client = open_request(live.port, ASK | WATCH, receive_buffer=4096)
        with client:
            assert wait_for(lambda: generator.generations)
            assert wait_for(lambda: generator.generations[0].was_aborted)
            assert not generator.generations[0].has_finished
            # The connection has ended, and in the middle: what was left in it is all there is.
            assert b"[DONE]" not in read_all(client)
        assert httpx.get(f"{live.url}/health").status_code == 200
        metrics = meters(live)
    assert 'diffusiongpt_errors_total{kind="slow_reader"} 1.0' in metrics


def test_a_reader_that_is_slow_but_reads_gets_everything():
    text = "slowly " * 20
    generator = FakeGenerator(text, pause=0.001)
    with serving_live(generator, send_buffer=4096, slow_reader_seconds=2) as live:
        client = open_request(live.port, ASK | WATCH, receive_buffer=4096)
        data = b""
        with client:
            while b"[DONE]" not in data:
                data += client.recv(8192)
                time.sleep(0.01)
    chunks = [json.loads(each) for each in events_of(data.decode(errors="ignore"))[:-1] if each]
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert content == text


def test_what_still_runs_after_the_drain_is_told_so_and_ended():
    generator = FakeGenerator(TEXT, pause=0.5)
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, body: dict[str, Any]) -> None:
        answers[name] = httpx.post(live.url + URL, json=body, timeout=20)

    with serving_live(generator, drain_seconds=1) as live:
        bodies = {"stream": ASK | WATCH, "whole": ASK}
        threads = [threading.Thread(target=ask, args=each) for each in bodies.items()]
        for thread in threads:
            thread.start()
        assert wait_for(lambda: len(generator.generations) == 2)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 6
    for thread in threads:
        thread.join(5)
    assert answers["whole"].status_code == 503
    assert "stopped" in answers["whole"].json()["error"]["message"]
    assert json.loads(events_of(answers["stream"].text)[-1])["error"]["code"] == "unavailable"
    assert all(each.was_aborted for each in generator.generations)


def test_a_client_that_reads_nothing_does_not_keep_the_server_from_ending():
    generator = FakeGenerator(frames=shuffled_frames("x" * 400), pause=0.001)
    with serving_live(generator, send_buffer=4096, drain_seconds=0) as live:
        client = open_request(live.port, ASK | WATCH, receive_buffer=4096)
        assert wait_for(lambda: generator.generations)
        time.sleep(0.5)
        stopped = time.monotonic()
    client.close()
    assert time.monotonic() - stopped < 6
    assert generator.generations[0].was_aborted
