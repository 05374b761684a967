"""Every moment of an answer can be seen again: tinted, scrubbed, played, saved as a page."""

from __future__ import annotations

import re

import pytest

from diffusiongpt.engine.replay import Replay

from scripted import ORDER, SCREENSHOTS, TEXT, WORDS, words_in_order, write_frames

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


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
