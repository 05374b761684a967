"""The playground in a real browser: ask, watch, stop, edit, compare, look away."""

from __future__ import annotations

import pytest

from scripted import TEXT, WORDS, words_in_order, write_frames

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_masks_turn_into_words_and_the_text_is_the_apis(stage):
    stage.generator.hold_at = 6
    stage.ask("Tell me about the cat.")
    page = stage.page
    expect(page.locator(".word")).to_have_count(5)
    expect(page.locator(".mask")).to_have_count(len(WORDS) - 5)
    expect(page.locator(".mask.breathing").first).to_be_visible()
    expect(page.locator(".meter")).to_contain_text(f"5 of {len(WORDS)} filled")
    stage.shoot("denoising")
    stage.generator.gate.set()
    stage.done()
    expect(page.locator(".prose")).to_have_text(TEXT)
    expect(page.locator(".mask")).to_have_count(0)
    for part in ("tokens/s", "12 NFE", "1.00 tokens per forward", "seed 7"):
        expect(page.locator(".meter")).to_contain_text(part)
    stage.shoot("answer")


def test_stop_keeps_what_had_settled_and_ends_the_request(stage):
    stage.generator.frames = None
    stage.generator.texts, stage.generator.hold_at = ["A long story"], 8
    stage.ask("hi")
    expect(stage.page.locator(".word").nth(3)).to_be_visible()
    stage.page.get_by_label("Stop", exact=True).click()
    stage.done()
    expect(stage.page.locator(".trouble")).to_contain_text("You stopped it here.")
    for _ in range(400):
        if stage.generator.generations[0].was_aborted:
            break
        stage.page.wait_for_timeout(25)
    assert stage.generator.generations[0].was_aborted
    stage.generator.gate.set()
    stage.page.get_by_role("button", name="Start over").click()
    stage.done()
    expect(stage.page.locator(".prose")).to_have_text("A long story")


def test_the_chat_so_far_is_told_and_a_question_can_be_edited(stage):
    stage.ask("first")
    stage.done()
    stage.ask("second")
    stage.done(2)
    told = [(m["role"], m["content"]) for m in stage.generator.messages]
    assert told == [("user", "first"), ("assistant", TEXT), ("user", "second")]
    stage.page.locator(".asked").first.hover()
    stage.page.get_by_label("Edit and send again").first.click()
    stage.page.get_by_label("Edit the question").fill("third")
    stage.page.locator(".editor").get_by_role("button", name="Send").click()
    stage.done(1)
    assert [m["content"] for m in stage.generator.messages] == ["third"]
    stage.generator.texts, stage.generator.frames = ["Another"], None
    stage.page.get_by_label("Write it again").click()
    expect(stage.page.locator(".prose")).to_have_text("Another")


def test_copy_takes_the_text_as_the_api_sent_it(stage):
    stage.generator.frames = write_frames(words_in_order(["**bold**", "\n\n* one"], [1, 0]), 2)
    stage.ask("hi")
    stage.done()
    expect(stage.page.locator(".prose strong")).to_have_text("bold")
    stage.page.get_by_label("Copy the answer").click()
    expect(stage.page.get_by_label("Copied")).to_be_visible()
    assert stage.page.evaluate("() => navigator.clipboard.readText()") == "**bold**\n\n* one"


def test_side_by_side_asks_twice_with_one_seed(stage):
    page = stage.page
    page.get_by_role("button", name="Side by side").click()
    page.get_by_label("Policy of B").select_option("confidence")
    page.get_by_label("Steps of B").fill("4")
    stage.ask("hi")
    stage.done(2)
    one, two = (generation.params for generation in stage.generator.generations)
    assert {one.policy, two.policy} == {"entropy_bound", "confidence"}
    assert {one.steps, two.steps} == {None, 4}
    assert one.seed == two.seed
    expect(page.locator(".answer-label")).to_have_text(
        ["A · entropy_bound", "B · confidence · 4 steps"]
    )
    for meter in page.locator(".meter").all():
        for part in ("tokens/s", "NFE", f"seed {one.seed}"):
            expect(meter).to_contain_text(part)
    page.get_by_role("button", name="Go on with this").nth(1).click()
    expect(page.locator(".answer.chosen .answer-label")).to_have_text("B · confidence · 4 steps")
    stage.shoot("side_by_side")


def test_chats_are_kept_and_come_back_with_their_replays(stage):
    stage.ask("Tell me about the cat.")
    stage.done()
    page = stage.page
    expect(page.locator("#chat-list .entry")).to_have_text("Tell me about the cat.")
    stage.kept()
    page.reload()
    page.locator("#chat-list .entry").click()
    expect(page.locator(".prose")).to_have_text(TEXT)
    page.get_by_label("Step", exact=True).fill("3")
    expect(page.locator(".word")).to_have_count(3)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".answer")).to_have_count(0)
    page.locator("#chat-list li").hover()
    page.get_by_label("Delete the chat").click()
    expect(page.locator("#chat-list .entry")).to_have_count(0)


def test_a_long_canvas_is_touched_only_where_it_changes(stage):
    words = [f" w{position}" for position in range(2000)]
    order = [(position * 1201) % 2000 for position in range(2000)]
    stage.generator.frames = write_frames(words_in_order(words, order, 4), 2000)
    stage.generator.hold_at = 1
    stage.page.get_by_role("button", name="Settings").click()
    stage.page.get_by_label("Max tokens").fill("2000")
    stage.ask("hi")
    expect(stage.page.locator(".mask").nth(1999)).to_be_attached()
    expect(stage.page.locator(".canvas.in-pieces .piece")).to_have_count(16)
    stage.page.evaluate(
        """() => {
            window.touched = 0;
            new MutationObserver((all) => {
                window.touched += all.filter((each) => each.attributeName === "class").length;
            }).observe(document.querySelector(".canvas"), { attributes: true, subtree: true });
        }"""
    )
    stage.generator.gate.set()
    stage.done()
    assert stage.page.evaluate("() => window.touched") <= 2 * len(words)
    expect(stage.page.locator(".canvas.in-pieces")).to_have_count(0)
    expect(stage.page.locator(".prose")).to_have_text("".join(words).strip())
