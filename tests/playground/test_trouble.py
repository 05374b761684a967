"""What the page says when something goes wrong, and that one can go on afterwards."""

from __future__ import annotations

import dataclasses
import socket

import httpx
import pytest

from diffusiongpt.engine.errors import QueueFull
from diffusiongpt.engine.frame import FinishReason

from scripted import TEXT, serving

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_a_key_is_asked_for_once_and_kept_in_the_tab_only(make_stage, generator):
    with serving(generator, key="sesame") as url:
        stage = make_stage(url)
        stage.expects_refusals = True
        page = stage.page
        page.get_by_label("API key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#key-reason")).to_have_text("The key that was given was refused.")
        stage.shoot("key")
        page.get_by_label("API key", exact=True).fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#model strong")).to_have_text("scripted")
        stage.ask("hi")
        stage.done()
        expect(page.locator(".prose")).to_have_text(TEXT)
        page.reload()
        expect(page.locator("#model strong")).to_have_text("scripted")
        expect(page.locator("#key")).to_be_hidden()
        # Declined, it is asked for again when there is something to ask.
        page.evaluate("() => sessionStorage.clear()")
        page.reload()
        page.get_by_role("button", name="Not now").click()
        stage.ask("hi")
        expect(page.locator("#key")).to_be_visible()
        expect(page.get_by_label("Message", exact=True)).to_have_value("hi")
        assert "sesame" not in page.evaluate("() => JSON.stringify({ ...localStorage })")


def test_a_server_that_is_gone_and_comes_back(make_stage, generator):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    generator.hold_at = 5
    with serving(generator, port=port) as url:
        stage = make_stage(url)
        stage.expects_refusals = True
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        stage.ask("hi")
        expect(page.locator(".word")).to_have_count(4)
    stage.done()
    expect(page.locator(".trouble")).to_contain_text("What had settled by then is kept.")
    stage.ask("still there?")
    stage.done(2)
    expect(page.locator("#notice")).to_contain_text("The server does not answer.")
    stage.shoot("server_gone")
    page.get_by_label("Save as a page that replays it").first.click()
    expect(page.locator(".trouble").first).to_contain_text("The page was not saved")
    generator.gate.set()
    with serving(generator, port=port):
        expect(page.locator("#notice")).to_contain_text("The server is back.")
        page.get_by_role("button", name="Try again").last.click()
        stage.done(2)
        expect(page.locator(".prose").last).to_have_text(TEXT)


def test_a_page_opened_before_its_server_connects_by_itself(make_stage, generator):
    with serving(generator) as url:
        stage = make_stage(url)
        stage.expects_refusals = True
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        page.route("**/v1/models", lambda route: route.abort("connectionrefused"), times=1)
        page.reload()
        expect(page.locator("#model strong")).to_have_text("scripted")
        stage.ask("hi")
        stage.done()


def test_a_server_that_takes_no_requests_yet(make_stage, generator):
    with serving(generator) as url:
        stage = make_stage(url)
        stage.expects_refusals = True
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        loading = '{"status": "loading"}'
        page.route("**/ready", lambda route: route.fulfill(status=503, body=loading), times=1)
        page.route("**/v1/models", lambda route: route.fulfill(json={"data": []}), times=1)
        page.reload()
        expect(page.locator("#notice")).to_contain_text("takes no requests (loading).")
        expect(page.locator("#model strong")).to_have_text("scripted")


def test_a_page_that_is_opened_while_the_model_is_loaded(make_stage, generator):
    with serving(generator) as url:
        stage = make_stage(url)
        stage.expects_refusals = True
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        refusal = {"error": {"message": "the model is being loaded", "type": "server_error"}}
        page.route("**/v1/models", lambda route: route.fulfill(status=503, json=refusal), times=1)
        page.reload()
        expect(page.locator("#notice")).to_contain_text("(the model is being loaded)")
        expect(page.locator("#model strong")).to_have_text("scripted")
        stage.ask("hi")
        stage.done()


def test_a_stream_that_breaks_in_the_middle(stage):
    ask = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    whole = httpx.post(
        f"{stage.url}/v1/chat/completions", json=ask | {"diffusion": {"frames": "delta"}}
    ).text
    lines = whole.split("\n\n")
    headers = {"content-type": "text/event-stream"}
    body = "\n\n".join(lines[: len(lines) // 2])
    stage.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, headers=headers), times=1
    )
    stage.ask("hi")
    stage.done()
    expect(stage.page.locator(".trouble")).to_contain_text(
        "The stream broke off before the answer was complete."
    )
    expect(stage.page.locator(".canvas")).to_be_visible()
    stage.shoot("broken")
    stage.page.get_by_role("button", name="Try again").click()
    stage.done()
    expect(stage.page.locator(".prose")).to_have_text(TEXT)


def test_an_engine_that_fails_in_the_middle(stage):
    frames = stage.generator.frames
    failed = dataclasses.replace(frames[5], finish_reason=FinishReason.ERROR, error="out of memory")
    stage.generator.frames = [*frames[:5], failed]
    stage.ask("hi")
    stage.done()
    expect(stage.page.locator(".trouble")).to_contain_text("Out of memory.")
    stage.generator.frames = frames
    stage.ask("again")
    stage.done(2)
    expect(stage.page.locator(".prose").last).to_have_text(TEXT)


def test_a_prompt_of_a_hundred_thousand_characters_is_refused_in_a_sentence(stage):
    stage.expects_refusals = True
    stage.ask("hello " * 17_000)
    stage.done()
    expect(stage.page.locator(".trouble")).to_contain_text("The prompt has")
    stage.ask("hi")
    stage.done(2)
    expect(stage.page.locator(".prose").last).to_have_text(TEXT)
    # What got no answer is no part of the chat that the model is told.
    assert [m["content"] for m in stage.generator.messages] == ["hi"]


def test_a_full_queue_is_said_and_can_be_tried_again(stage):
    stage.expects_refusals = True
    stage.generator.error = QueueFull("256 requests wait already")
    stage.ask("hi")
    stage.done()
    expect(stage.page.locator(".trouble")).to_contain_text("256 requests wait already.")
    stage.generator.error = None
    stage.page.get_by_role("button", name="Try again").click()
    expect(stage.page.locator(".prose")).to_have_text(TEXT)


def test_a_refused_setting_leads_to_its_field(stage):
    stage.expects_refusals = True
    page = stage.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("5000")
    page.get_by_role("button", name="Close settings").click()
    stage.ask("hi")
    stage.done()
    expect(page.locator(".trouble")).to_contain_text("Max_tokens must be in 1..4096, got 5000.")
    page.get_by_role("button", name="Open settings").click()
    expect(page.get_by_label("Max tokens")).to_be_focused()
