"""What an answer holds beside its text is shown in the page: thinking, calls of tools, JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from diffusiongpt.engine.chat import ChatStyle, Thinking
from diffusiongpt.engine.constraint import Constraint

from scripted import serving

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

HOSTILE = "</think >\n<img src=x onerror=alert(1)>"
THOUGHT = f"It is <b>about</b> a cat.\nSo I write of one. {HOSTILE}"
ARGUMENTS = {
    "city": "Bonn <b>am</b> Rhein",
    "days": 3,
    "at": {"hours": [6, 18], "zone": "Europe/Berlin", "from": "tomorrow"},
    "sure": None,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "clock")
]
CALLS = "".join(
    f'\n<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    for name, arguments in (("weather", ARGUMENTS), ("clock", {}))
)


@pytest.fixture
def thinker(generator):
    chat = ChatStyle(thinking=Thinking(opening="<think>", closing="</think>"))
    generator.info = dataclasses.replace(generator.info, chat=chat)
    generator.frames = None
    return generator


def offer_tools(page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools", exact=True).fill(json.dumps(TOOLS))
    page.get_by_role("button", name="Close settings").click()


def test_thinking_is_folded_away_and_what_tools_are_asked_can_be_read(make_stage, thinker, axe):
    thinker.texts = [f"<think>{THOUGHT}</think>\n\nLet me **see**.{CALLS}"]
    with serving(thinker) as url:
        stage = make_stage(url, reduced_motion="reduce")
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        offer_tools(page)
        stage.ask("Tell me about the cat, and the weather.")
        stage.done()
        assert [tool["function"]["name"] for tool in thinker.tools] == ["weather", "clock"]
        expect(page.locator(".prose")).to_have_text("Let me see.")
        expect(page.locator(".thinking p")).to_be_hidden()
        stage.shoot("parts")
        page.get_by_text("Thinking", exact=True).click()
        expect(page.locator(".thinking p")).to_be_visible()
        assert page.locator(".thinking p").text_content() == THOUGHT
        call = page.get_by_role("region", name="Call of weather")
        expect(call.locator("dt")).to_have_text(list(ARGUMENTS))
        texts = [each if isinstance(each, str) else None for each in ARGUMENTS.values()]
        for term, text in zip(call.locator("dd").all(), texts, strict=True):
            if text is not None:
                assert term.text_content() == text
        nested = call.locator("dd code").nth(1).text_content()
        assert json.loads(nested) == ARGUMENTS["at"]
        expect(page.get_by_role("region", name="Call of clock")).to_contain_text("No arguments.")
        call.get_by_label("Copy the arguments").click()
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert json.loads(copied) == ARGUMENTS
        assert page.locator("#turns img, #turns b").count() == 0
        stage.shoot("parts_open")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            stage.expect_accessible(axe)
        stage.shoot("parts_dark")


def test_parts_are_kept_with_the_chat_and_thinking_is_no_part_of_what_is_told(make_stage, thinker):
    thinker.texts = [f"<think>{THOUGHT}</think>Yes.{CALLS}", "<think>Hm.</think>No."]
    with serving(thinker) as url:
        stage = make_stage(url, viewport={"width": 390, "height": 844})
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        offer_tools(page)
        stage.ask("first")
        stage.done()
        stage.ask("second")
        stage.done(2)
        told = [(each["role"], each["content"]) for each in thinker.messages]
        assert told == [("user", "first"), ("assistant", "Yes."), ("user", "second")]
        page.get_by_label("Show how sure each word was").first.click()
        expect(page.locator(".thinking").first).to_be_hidden()
        page.get_by_label("Show how sure each word was").first.click()
        stage.kept()
        page.reload()
        page.get_by_role("button", name="Chats", exact=True).click()
        page.locator("#chat-list .entry").click()
        expect(page.locator(".call h3")).to_have_text(["weather", "clock"])
        expect(page.locator(".thinking")).to_have_count(2)
        widths = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]
        page.locator(".call").first.scroll_into_view_if_needed()
        stage.shoot("parts_phone")


def test_an_answer_has_the_form_that_was_asked_for(stage):
    page = stage.page
    stage.generator.frames = None
    stage.generator.texts = ['{"name": "Mia", "age": 4}']
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Form of the answer").fill('{"type": "json_')
    expect(page.locator("#option-response_format-about")).to_contain_text("this is none yet")
    page.get_by_label("Form of the answer").fill('{"type": "json_object"}')
    page.get_by_label("Tools", exact=True).fill("{}")
    expect(page.locator("#option-tools-about")).to_have_text("Tools: a list in JSON.")
    page.get_by_label("Tools", exact=True).fill("")
    stage.ask("Who?")
    stage.done()
    expect(page.locator(".prose pre code")).to_have_text('{"name": "Mia", "age": 4}')
    expect(page.locator(".prose .code-number")).to_have_text("4")
    constraint = stage.generator.generations[0].params.constraint
    assert isinstance(constraint, Constraint)
    stage.shoot("structured")


def test_a_refused_tool_leads_to_its_field(stage):
    page = stage.page
    stage.expects_refusals = True
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools", exact=True).fill(
        '[{"type": "function", "function": {"name": "a b"}}]'
    )
    page.get_by_role("button", name="Close settings").click()
    stage.ask("hi")
    stage.done()
    expect(page.locator(".trouble")).to_contain_text("A function's name must have")
    page.get_by_role("button", name="Open settings").click()
    expect(page.get_by_label("Tools", exact=True)).to_be_focused()
