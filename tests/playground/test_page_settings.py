"""What may be set on the page: settings, the model, the theme; and what is refused."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_settings_reach_the_engine_and_refused_ones_say_why(stage):
    page = stage.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Policy", exact=True).select_option("confidence")
    expect(page.get_by_label("Threshold")).to_be_disabled()
    expect(page.locator("#option-threshold-about")).to_contain_text("confidence fills a share")
    page.get_by_label("Policy", exact=True).select_option("threshold")
    values = {"Steps": "9", "Threshold": "0.8", "Temperature": "0.5", "Top-p": "0.9"}
    values |= {"Top-k": "40"}
    values |= {"Max tokens": "12", "Seed": "-9223372036854775808", "System prompt": "Be brief."}
    for label, value in values.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Mode", exact=True).select_option("semi-autoregressive")
    page.get_by_label("Block length").fill("6")
    stage.shoot("settings")
    page.get_by_role("button", name="Close settings").click()
    expect(page.locator("#settings")).to_be_hidden()
    stage.ask("hi")
    stage.done()
    params = stage.generator.generations[0].params
    assert (params.policy, params.steps, params.threshold) == ("threshold", 9, 0.8)
    assert (params.temperature, params.top_p, params.max_tokens) == (0.5, 0.9, 12)
    assert params.top_k == 40
    assert (params.seed, params.block_length) == (-(2**63), 6)
    assert stage.generator.messages[0] == {"role": "system", "content": "Be brief."}
    expect(page.locator(".meter")).to_contain_text("seed -9223372036854775808")
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("9")


def test_a_value_that_is_no_value_is_said_before_anything_is_sent(stage):
    page = stage.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("hot")
    expect(page.locator("#option-temperature-about")).to_have_text("Temperature is a number.")
    stage.ask("hi")
    expect(page.locator("#hint")).to_have_text("Temperature is a number.")
    assert not stage.generator.generations


def test_of_several_models_one_is_chosen(stage):
    page = stage.page
    described = page.evaluate("async () => (await (await fetch('v1/models')).json()).data[0]")
    other = described | {"id": "other", "diffusion": described["diffusion"] | {"block_length": 8}}
    other["diffusion"]["attention"] = "block_causal"
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [described, other]}))
    page.reload()
    page.get_by_label("Model", exact=True).select_option("other")
    expect(page.locator("#model")).to_contain_text("blocks of 8")
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Mode", exact=True)).to_be_disabled()
    expect(page.get_by_role("button", name="Fill holes")).to_be_hidden()
    expect(page.get_by_label("Block length")).to_be_disabled()
    expect(page.locator("#option-block_length-about")).to_contain_text("trained in blocks of 8")
    page.reload()
    expect(page.get_by_label("Model", exact=True)).to_have_value("other")


def test_blocks_whose_model_knows_the_whole_canvas_fill_holes_and_write_in_one_piece(stage):
    page = stage.page
    described = page.evaluate("async () => (await (await fetch('v1/models')).json()).data[0]")
    described["diffusion"] |= {
        "attention": "block_causal",
        "block_length": 8,
        "block_lengths": [8, 4, 0],
    }
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [described]}))
    page.reload()
    expect(page.get_by_role("button", name="Fill holes")).to_be_visible()
    stage.ask("hi")
    stage.done()
    assert stage.generator.generations[0].params.block_length is None
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Mode", exact=True).select_option("standard")
    page.get_by_role("button", name="Close settings").click()
    stage.ask("hi again")
    stage.done(2)
    assert stage.generator.generations[1].params.block_length == 0


def test_the_theme_can_be_chosen_and_is_kept(stage):
    page = stage.page
    page.get_by_label("Theme: system").click()
    page.get_by_label("Theme: light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    stage.shoot("welcome_dark")
