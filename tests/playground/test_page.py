"""The playground in a real browser: ask, watch, replay, stop, edit, compare, export, look away."""

from __future__ import annotations

import re

import pytest

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.replay import Replay

from scripted import ORDER, SCREENSHOTS, TEXT, WORDS, serving, words_in_order, write_frames

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


def test_words_are_tinted_by_how_unsure_the_model_was(stage):
    stage.ask("hi")
    stage.done()
    stage.page.get_by_label("Show how sure each word was").click()
    tints = [
        int(re.search(r"tint-(\d+)", name)[1])
        for name in stage.page.locator(".word").evaluate_all("all => all.map(n => n.className)")
    ]
    by_order = [tints[position] for position in ORDER]
    assert by_order == sorted(by_order, reverse=True)
    assert by_order[0] == 9
    assert by_order[-1] <= 2
    stage.shoot("confidence")


# Fills, an edit, a position masked again, filled otherwise, and a tail that is no part of it.
RESTLESS = [
    ([(0, "One", 0.9, "unmask"), (3, " four", 0.4, "unmask")], ()),
    ([(1, " too", 0.3, "unmask"), (5, "", 0.9, "unmask"), (6, "", 0.8, "unmask")], ()),
    ([(1, " two", 0.8, "edit")], (3,)),
    ([(2, "\n\nthree", 0.7, "unmask"), (3, " vier", 0.6, "unmask")], ()),
    ([(4, " ü", 0.7, "unmask")], (5, 6)),
]


def test_every_moment_of_a_replay_shows_what_the_engines_own_replay_shows(stage):
    frames = stage.generator.frames = write_frames(RESTLESS, 7)
    stage.ask("hi")
    stage.done()
    replay = Replay()
    expected = [replay.apply(frame.set, frame.unset) for frame in frames]
    slider = stage.page.get_by_label("Step", exact=True)
    assert slider.get_attribute("max") == str(len(RESTLESS))
    moments = [0, 1, 2, 3, 4, 5, 2, 5, 0, 4]
    for moment in moments:
        slider.fill(str(moment))
        expect(stage.page.locator(".player-step")).to_have_text(f"{moment} / 5")
        assert stage.filled_text(expected[moment]) == expected[moment], moment
    slider.fill("3")
    expect(stage.page.locator(".word.edited")).to_have_text("two")


def test_an_answer_plays_again_and_can_be_paused(stage):
    stage.ask("hi")
    stage.done()
    page = stage.page
    page.get_by_label("Speed").select_option("0.25")
    page.get_by_label("Play this answer again").click()
    expect(page.locator(".mask").first).to_be_visible()
    page.get_by_label("Pause").click()
    moment = page.locator(".player-step").text_content()
    assert moment != "12 / 12"
    page.get_by_label("Speed").select_option("4")
    page.get_by_label("Play this answer again").click()
    expect(page.locator(".player-step")).to_have_text("12 / 12")
    expect(page.locator(".prose")).to_be_visible()
    expect(page.locator(".prose")).to_have_text(TEXT)


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
    stage.generator.frames = write_frames(words_in_order(["dog", " ran"], [1, 0]), 2)
    stage.generator.hold_at = 2
    page.keyboard.press("Enter")
    expect(page.locator(".word")).to_have_text("ran")
    stage.shoot("filling")
    stage.generator.gate.set()
    stage.done()
    assert stage.generator.prompts == [Infill("Once a ", Hole(2), " on the wall.")]
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


def test_a_run_is_saved_as_a_page_that_replays_it_alone(stage, browser):
    frames = [*words_in_order(WORDS[:-1], list(range(len(WORDS) - 1)), 4)]
    frames.append(([(len(WORDS) - 1, "</script><img src=x onerror=alert(1)>", 0.5, "unmask")], ()))
    stage.generator.frames = write_frames(frames, len(WORDS))
    stage.ask("<b>Tell</b> me")
    stage.done()
    with stage.page.expect_download() as download:
        stage.page.get_by_label("Save as a page that replays it").click()
    assert download.value.suggested_filename == "diffusiongpt-7.html"
    path = SCREENSHOTS.parent / "replay.html"
    download.value.save_as(path)
    context = browser.new_context(offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append("dialog"), dialog.dismiss()))
    page.goto(path.as_uri())
    expect(page.locator("h1")).to_have_text("<b>Tell</b> me")
    content = "".join(WORDS[:-1]) + "</script><img src=x onerror=alert(1)>"
    expect(page.locator(".canvas")).to_have_text(content)
    page.get_by_label("Step", exact=True).fill("1")
    expect(page.locator(".word")).to_have_count(4)
    page.get_by_label("Play this answer again").click()
    expect(page.locator(".player-step")).to_have_text("4 / 4")
    page.screenshot(path=SCREENSHOTS / "replay.png")
    context.close()
    assert not problems


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> [a](javascript:alert(3)) `<b>`"


def test_what_looks_like_html_stays_text(stage):
    stage.generator.frames = None
    stage.generator.texts = [HOSTILE]
    stage.ask(f"{HOSTILE} ?")
    stage.done()
    page = stage.page
    shown = page.locator(".prose")
    expect(shown).to_contain_text("<img src=x onerror=alert(1)><script>alert(2)</script>")
    expect(shown).to_contain_text("a (javascript:alert(3)")
    expect(page.locator(".asked-text")).to_have_text(f"{HOSTILE} ?")
    assert page.locator("#turns img, #turns script, #turns a, #turns b").count() == 0
    page.get_by_label("Show how sure each word was").click()
    assert stage.filled_text(HOSTILE) == HOSTILE


def test_markdown_is_laid_out(stage):
    stage.generator.frames = None
    stage.generator.texts = [
        "# Title\n\nA *soft* **strong** `x<y` ~~no~~.\n\n1. one\n2. two\n   - deep\n\n> said\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n---\n\n```py\nif a < b:\n    pass\n```\n"
    ]
    stage.ask("hi")
    stage.done()
    prose = stage.page.locator(".prose")
    for selector, text in {
        "h3": "Title",
        "em": "soft",
        "strong": "strong",
        "p code": "x<y",
        "s": "no",
        "ol > li:first-child": "one",
        "ol ul li": "deep",
        "blockquote": "said",
        "th:last-child": "b",
        "td:first-child": "1",
        "pre code": "if a < b:\n    pass",
    }.items():
        expect(prose.locator(selector)).to_have_text(text)
    expect(prose.locator("hr")).to_have_count(1)
    stage.shoot("markdown")


# Each made for a search that would try everything at every place.
TEDIOUS = [
    "*",
    "a`",
    "[",
    "_",
    " ",
    "* a",
    "**a ",
    "` a",
    "[a](",
    "#  ",
    "| ",
    "|-",
    "- ",
    "> ",
    "~~a",
]


def test_tedious_texts_are_laid_out_at_once_and_whole(stage):
    counts = stage.page.evaluate(
        """async (parts) => {
            const { renderMarkdown } = await import("./static/markdown.js");
            const start = performance.now();
            const whole = parts.map((part) => part.repeat(20000 / part.length) + "x")
                .filter((text) => renderMarkdown(text).textContent.endsWith("x"));
            return [performance.now() - start, whole.length];
        }""",
        TEDIOUS,
    )
    assert counts[1] == len(TEDIOUS)
    # A tenth of a second on a quiet machine; hours, if one were quadratic twice over.
    assert counts[0] < 30_000


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


def test_the_theme_can_be_chosen_and_is_kept(stage):
    page = stage.page
    page.get_by_label("Theme: system").click()
    page.get_by_label("Theme: light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    stage.shoot("welcome_dark")


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
