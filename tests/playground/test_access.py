"""The page for everybody: keyboard, screen reader, phone, less motion."""

from __future__ import annotations

import pytest

from scripted import serving

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_the_keyboard_is_enough(stage):
    page = stage.page
    page.locator("#scroller").focus()
    page.keyboard.press(",")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#open-settings")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    stage.generator.hold_at = 3
    page.keyboard.press("Enter")
    expect(page.locator(".asked-text")).to_have_text("one\ntwo")
    page.keyboard.press("Escape")
    stage.done()
    expect(page.locator(".trouble")).to_contain_text("You stopped it here.")


@pytest.mark.parametrize("is_phone", [False, True])
def test_a_page_at_a_desk_is_ready_to_be_typed_into(make_stage, generator, is_phone):
    with serving(generator) as url:
        page = make_stage(url, is_mobile=is_phone, has_touch=is_phone).page
        expect(page.locator("#model strong")).to_be_visible()
        assert page.locator("#question").evaluate("e => e === document.activeElement") != is_phone


def test_only_settled_text_is_read_aloud(stage):
    stage.generator.frames = None
    stage.generator.texts, stage.generator.hold_at = ["Well, hello there"], 15
    stage.ask("hi")
    page = stage.page
    expect(page.locator(".word").nth(9)).to_be_visible()
    live = page.locator(".answer [aria-live=polite]")
    settled = live.text_content()
    assert "Well, hello there".startswith(settled)
    assert page.locator(".canvas").get_attribute("aria-hidden") == "true"
    assert page.locator("[aria-live] .canvas").count() == 0
    stage.generator.gate.set()
    stage.done()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_room_for_all_of_it(make_stage, generator, scheme):
    with serving(generator) as url:
        view = {"width": 390, "height": 844}
        stage = make_stage(url, viewport=view, color_scheme=scheme, has_touch=True)
        page = stage.page
        expect(page.locator("#model strong")).to_be_visible()
        stage.ask("Tell me a story about a cat that sat on a warm wall")
        stage.done()
        widths = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(20, 21, 23)") == (scheme == "dark")
        page.get_by_role("button", name="Chats", exact=True).click()
        expect(page.get_by_role("button", name="New chat")).to_be_visible()
        page.get_by_label("Close the list of chats").click()
        stage.shoot(f"phone_{scheme}")
        page.get_by_role("button", name="Settings", exact=True).click()
        expect(page.get_by_label("Policy", exact=True)).to_be_visible()


def test_nothing_moves_for_those_who_want_less_motion(make_stage, generator):
    generator.hold_at = 4
    with serving(generator) as url:
        stage = make_stage(url, reduced_motion="reduce")
        expect(stage.page.locator("#model strong")).to_be_visible()
        stage.ask("hi")
        expect(stage.page.locator(".mask").first).to_be_visible()
        assert stage.page.evaluate("() => document.getAnimations().length") == 0
        generator.gate.set()
        stage.done()


def test_no_serious_violation_of_accessibility(stage, axe):
    page = stage.page
    page.emulate_media(reduced_motion="reduce")
    stage.ask("Tell me about the cat.")
    stage.done()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Side by side").click()
    stage.ask("And again?")
    stage.done(3)
    page.get_by_label("Show how sure each word was").first.click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        stage.expect_accessible(axe)
