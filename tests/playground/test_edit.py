"""The playground fills holes, finds their lengths, and refines drafts."""

from __future__ import annotations

import httpx
import pytest

from diffusiongpt.engine import Draft, Engine
from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.worker import EngineWorker

from scripted import DRAFT, WORDS, draft_frames, serving, words_in_order, write_frames
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_holes_are_filled_between_given_texts(stage):
    page = stage.page
    page.get_by_role("button", name="Fill holes").click()
    stage.ask("no hole here")
    expect(page.locator("#hint")).to_contain_text("There is no hole to fill")
    area = page.get_by_label("Message", exact=True)
    area.fill("Once a cat sat on the wall.")
    area.evaluate("area => area.setSelectionRange(7, 14)")
    page.get_by_role("button", name="Make a hole").click()
    expect(area).to_have_value("Once a ⟦2⟧ on the wall.")
    stage.generator.frames = write_frames(words_in_order([" dog", " ran"], [1, 0]), 2)
    stage.generator.hold_at = 2
    page.keyboard.press("Enter")
    expect(page.locator(".word")).to_have_text("ran")
    stage.shoot("filling")
    stage.generator.gate.set()
    stage.done()
    assert stage.generator.prompts == [Infill("Once a", Hole(2), " on the wall.")]
    expect(page.locator(".passage")).to_have_text("Once a dog ran on the wall.")
    expect(page.locator(".hole")).to_have_text("2")
    page.get_by_label("Copy the answer").click()
    expect(page.get_by_label("Copied")).to_be_visible()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "Once a dog ran on the wall."
    page.get_by_label("Write it again").click()
    stage.done()
    assert stage.generator.prompts[0] == stage.generator.prompts[1]
    page.get_by_label("Step", exact=True).fill("1")
    expect(page.locator(".mask")).to_have_count(1)
    # A text with holes is no part of the chat.
    page.get_by_role("button", name="Fill holes").click()
    stage.ask("hi")
    stage.done(2)
    assert [m["content"] for m in stage.generator.messages] == ["hi"]


@pytest.mark.parametrize("hole", ["⟦2⟧", "⟦auto⟧"])
def test_what_was_given_between_holes_is_told_from_what_fills_them(stage, browser, tmp_path, hole):
    page = stage.page
    page.get_by_role("button", name="Fill holes").click()
    # An "é" of two tokens; and before it a word that was filled as surely as that is given.
    given = [(2, " é", 1.0, "unmask"), (3, "", 1.0, "unmask"), (4, " sat", 1.0, "unmask")]
    steps = [([*given, (1, " cat", 1.0, "unmask")], ())]
    steps += [
        ([(0, " a", 0.5, "unmask"), (5, " é", 1.0, "unmask"), (6, " wall", 0.4, "unmask")], ())
    ]
    stage.generator.frames = write_frames(steps, 7)
    stage.ask(f"So {hole} é sat ⟦2⟧.")
    stage.done()
    expect(page.locator(".passage")).to_have_text("So a cat é sat é wall.")
    expect(page.locator(".word.given")).to_have_text(["é", "sat"])
    expect(page.locator(".word.given").first).to_have_attribute("title", "given")
    assert "tint" not in page.locator(".word.given").first.get_attribute("class")
    expect(page.locator(".key")).to_contain_text("What was given is grey")
    stage.shoot("filled-between")
    page.get_by_label("Step", exact=True).fill("0")
    expect(page.locator(".word")).to_have_count(0)
    page.get_by_label("Step", exact=True).fill("1")
    expect(page.locator(".word.given")).to_have_text(["é", "sat"])
    expect(page.locator(".word:not(.given)")).to_have_text("cat")
    stage.shoot("filling-between")
    with page.expect_download() as download:
        page.get_by_label("Save as a page that replays it").click()
    download.value.save_as(tmp_path / "replay.html")
    context = browser.new_context(offline=True)
    saved = context.new_page()
    saved.goto((tmp_path / "replay.html").as_uri())
    expect(saved.locator(".word.given")).to_have_text(["é", "sat"])
    context.close()


def test_a_draft_is_refined_and_what_changed_is_marked(stage):
    page = stage.page
    stage.generator.frames = draft_frames()
    stage.generator.hold_at = 3
    page.get_by_role("button", name="Refine a draft").click()
    page.get_by_label("Strength").fill("25")
    expect(page.locator(".share")).to_have_text("25 %")
    page.get_by_label("Which words").select_option("random")
    stage.ask(DRAFT)
    expect(page.locator(".mask")).to_have_count(1)
    expect(page.locator(".word")).to_have_count(len(WORDS) - 1)
    stage.shoot("refining")
    stage.generator.gate.set()
    stage.done()
    params = stage.generator.generations[0].params
    assert params.draft == Draft(DRAFT, 0.25, "random")
    assert params.max_tokens == len(DRAFT)
    expect(page.locator(".word.changed")).to_have_text("dog")
    expect(page.locator(".word.changed")).to_have_attribute("title", "was “cat”")
    expect(page.locator(".meter")).to_contain_text("11 of 12 tokens kept")
    expect(page.locator(".asked-text")).to_contain_text("25 % anew, random words")
    stage.shoot("refined")
    slider = page.get_by_label("Step", exact=True)
    slider.fill("1")
    assert stage.filled_text(DRAFT) == DRAFT
    expect(page.locator(".word.changed")).to_have_count(0)
    slider.fill("2")
    expect(page.locator(".mask")).to_have_count(2)
    # What came of it is the next draft, and none of it is part of a chat.
    page.get_by_label("Refine this text").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value(DRAFT.replace("cat", "dog"))
    page.get_by_role("button", name="Refine a draft").click()
    stage.generator.frames = None
    stage.ask("hi")
    stage.done(2)
    assert [m["content"] for m in stage.generator.messages] == ["hi"]


def test_an_instruction_goes_with_the_draft_and_is_kept_with_it(stage):
    page = stage.page
    stage.generator.frames = draft_frames()
    page.get_by_role("button", name="Refine a draft").click()
    page.get_by_label("Instruction").fill("Make it a dog.")
    stage.ask(DRAFT)
    stage.done()
    assert stage.generator.messages == [{"role": "user", "content": f"Make it a dog.\n\n{DRAFT}"}]
    page.get_by_label("Write it again").click()
    stage.done()
    assert [each.params.draft for each in stage.generator.generations] == [Draft(DRAFT)] * 2
    stage.kept()
    page.reload()
    page.locator("#chat-list .entry").click()
    expect(page.locator(".word.changed")).to_have_text("dog")
    expect(page.locator(".asked-text")).to_contain_text("Make it a dog. · 50 % anew")


def test_a_refusal_of_a_draft_is_said(stage):
    page = stage.page
    stage.expects_refusals = True
    page.get_by_role("button", name="Refine a draft").click()
    stage.ask("x" * 4200)
    expect(page.locator(".trouble")).to_contain_text("Max_tokens must be in 1..4096, got 4200.")


def test_holes_and_drafts_take_turns(stage):
    page = stage.page
    fill = page.get_by_role("button", name="Fill holes")
    refine = page.get_by_role("button", name="Refine a draft")
    fill.click()
    refine.click()
    expect(fill).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#holes")).to_be_hidden()
    expect(page.locator("#draft")).to_be_visible()
    fill.click()
    expect(refine).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#draft")).to_be_hidden()


def test_a_hole_finds_its_length(stage):
    page = stage.page
    page.get_by_role("button", name="Fill holes").click()
    area = page.get_by_label("Message", exact=True)
    area.fill("Once a cat sat on the wall.")
    area.evaluate("area => area.setSelectionRange(7, 14)")
    page.get_by_role("button", name="Find its length").click()
    expect(area).to_have_value("Once a ⟦auto⟧ on the wall.")
    stage.generator.frames = write_frames(words_in_order([" dog", " ran"], [1, 0]), 2)
    page.keyboard.press("Enter")
    stage.done()
    lengths = [prompt.parts[1] for prompt in stage.generator.prompts]
    assert stage.generator.prompts[0].parts[::2] == ("Once a", " on the wall.")
    assert lengths == [Hole(4), Hole(8), Hole(16), Hole(32)]
    assert isinstance(stage.generator.prompts[0], Infill)
    expect(page.locator(".hole")).to_have_text("auto")
    expect(page.locator(".passage")).to_have_text("Once a dog ran on the wall.")


def test_the_page_refines_as_the_api_does(make_stage, tmp_path):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(tmp_path, block_length=4, vocab_size=VOCAB_SIZE, section=section)
    worker = EngineWorker(
        Engine.from_pretrained(write_tiny_tokenizer(tmp_path), dtype="float32", name="tiny")
    )
    worker.start()
    with serving(worker) as url:
        stage = make_stage(url)
        expect(stage.page.locator("#model strong")).to_have_text("tiny")
        stage.page.get_by_role("button", name="Settings").click()
        stage.page.get_by_label("Seed", exact=True).fill("5")
        stage.page.get_by_role("button", name="Refine a draft").click()
        stage.ask("the cat sat on the mat")
        stage.done()
        ask = {"model": "tiny", "input": "the cat sat on the mat", "seed": 5}
        answer = httpx.post(f"{url}/v1/edits", json=ask, timeout=60).json()
        text = answer["choices"][0]["text"]
        assert stage.filled_text(text) == text
        kept = answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
        expect(stage.page.locator(".meter")).to_contain_text(f"{kept} of ")
    worker.stop()


def test_drafts_can_be_read_by_all(stage, axe):
    page = stage.page
    page.emulate_media(reduced_motion="reduce")
    stage.generator.frames = draft_frames()
    page.get_by_role("button", name="Refine a draft").click()
    page.get_by_label("Instruction").fill("Make it a dog.")
    stage.ask(DRAFT)
    stage.done()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        stage.expect_accessible(axe)
