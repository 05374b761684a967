"""A headless Chromium, a scripted server, and a page that must stay quiet and at home."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from scripted import (
    ORDER,
    ROOT,
    SCREENSHOTS,
    WORDS,
    ScriptedGenerator,
    serving,
    words_in_order,
    write_frames,
)

try:
    from playwright import sync_api
except ImportError:
    sync_api = None

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 30_000
ALL_KEPT = """() => new Promise((resolve, reject) => {
  const opening = indexedDB.open("diffusiongpt");
  opening.onerror = () => reject(opening.error);
  opening.onsuccess = () => {
    const chats = opening.result.transaction("chats").objectStore("chats").getAll();
    chats.onsuccess = () => {
      opening.result.close();
      resolve(chats.result.length > 0 && !JSON.stringify(chats.result).includes('"running"'));
    };
  };
})"""
FILLED = """root => [...root.querySelectorAll("span:not(.mask)")]
    .map((box) => box.previousSibling.data + box.textContent).join("")"""


# A module's and not longer: while it lives, its event loop is the main thread's, and tests that
# bring their own loop cannot run.
@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if sync_api is None:
        pytest.skip("playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@dataclass
class Stage:
    """A page over a scripted server, and what went wrong on it."""

    page: object
    generator: ScriptedGenerator
    url: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    # Chromium writes every refused request to the console; tests of refusals expect that.
    expects_refusals: bool = False

    def ask(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def done(self, count: int = 1) -> None:
        """Wait until so many answers stand, none of them running."""
        sync_api.expect(self.page.locator(".answer")).to_have_count(count)
        sync_api.expect(self.page.locator(".answer.running")).to_have_count(0)

    def kept(self) -> None:
        """Wait until the browser keeps every answer as it ended: it writes after it shows."""
        for _ in range(600):
            if self.page.evaluate(ALL_KEPT):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError("the browser did not keep what was answered")

    def filled_text(self, expected: str) -> str:
        """The text of all filled positions; waits for it to be what is expected."""
        for _ in range(600):
            text = self.page.locator(".canvas").first.evaluate(FILLED)
            if text == expected:
                break
            self.page.wait_for_timeout(20)
        return text

    def shoot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def expect_accessible(self, axe: str) -> None:
        """Let axe-core look at the page as it stands."""
        found = self.page.evaluate(f"() => {{ {axe}; return axe.run(document); }}")
        serious = [
            (
                each["id"],
                [node["target"] for node in each["nodes"]],
                each["nodes"][0]["failureSummary"],
            )
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious, json.dumps(serious, indent=1)

    def check(self) -> None:
        refusals = ("Failed to load resource", "net::ERR")
        loud = [
            p
            for p in self.problems
            if not (self.expects_refusals and any(r in p for r in refusals))
        ]
        assert not loud
        away = [url for url in self.requests if not url.startswith((self.url, "blob:"))]
        assert not away


@pytest.fixture
def generator() -> ScriptedGenerator:
    return ScriptedGenerator(frames=write_frames(words_in_order(WORDS, ORDER), len(WORDS)))


@pytest.fixture
def make_stage(browser, generator):
    """Opens pages over the generator; each is checked at the end of the test."""
    opened = []

    def open_stage(url: str, **options: object) -> Stage:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 820}, "color_scheme": "light"} | options
        )
        context.set_default_timeout(TIMEOUT_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        stage = Stage(page, generator, url)
        page.on(
            "console",
            lambda m: stage.problems.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: stage.problems.append(f"{error}"))
        page.on("dialog", lambda dialog: (stage.problems.append(dialog.message), dialog.dismiss()))
        context.on("request", lambda request: stage.requests.append(request.url))
        opened.append((context, stage))
        page.goto(url)
        return stage

    sync_api.expect.set_options(timeout=TIMEOUT_MS)
    yield open_stage
    for context, stage in opened:
        context.close()
        stage.check()


@pytest.fixture
def stage(make_stage, generator) -> Iterator[Stage]:
    with serving(generator) as url:
        stage = make_stage(url)
        sync_api.expect(stage.page.locator("#model strong")).to_have_text("scripted")
        yield stage


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source, which `npm install --prefix runs axe-core` fetched."""
    path = ROOT / "runs" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip("axe-core is not there (npm install --prefix runs axe-core)")
    return path.read_text()
