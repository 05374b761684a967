"""Records the playground as a GIF: a question answered, and a draft refined, step by step.

diffusiongpt serve                                     # in another terminal
python docs/record_page.py --out docs/page.gif

Drives a headless Chromium (Debian: apt-get install chromium). Every step of a replay is one
picture, so that the speed of the machine does not show.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 960, "height": 540}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUESTION = "Tell me a story about a cat."
DRAFT = "Once upon a time there was a cat how liked the sun."
STEP_MS, READ_MS, LOOK_MS = 130, 2200, 1100
COLOURS = 48


class Picture(NamedTuple):
    """A PNG, and how long it is shown."""

    png: bytes
    milliseconds: int


def parse_arguments() -> argparse.Namespace:
    """The flags; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Record the playground as a GIF.")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--draft", default=DRAFT)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max_tokens", type=int, default=72)
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--out", type=Path, default=Path("docs/page.gif"))
    return parser.parse_args()


def record(
    page: Page, question: str, draft: str, *, seed: int, max_tokens: int
) -> Iterator[Picture]:
    """The pictures of a page that has just been opened."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_label("Max tokens", exact=True).fill(str(max_tokens))
    page.get_by_role("button", name="Close settings").click()
    yield from _watch(page, question)
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="Refine a draft").click()
    page.get_by_label("Strength").fill("25")
    yield from _watch(page, draft)


def _watch(page: Page, text: str) -> Iterator[Picture]:
    """Send a text, and show every step of what becomes of it."""
    page.get_by_label("Message", exact=True).fill(text)
    yield Picture(page.screenshot(), LOOK_MS)
    page.keyboard.press("Enter")
    slider = page.get_by_label("Step", exact=True)
    slider.wait_for(timeout=120_000)
    page.locator(".answer.running").wait_for(state="detached", timeout=120_000)
    last = int(slider.get_attribute("max") or 0)
    for moment in range(1, last + 1):
        slider.fill(str(moment))
        slider.blur()
        page.wait_for_timeout(60)
        is_draft = moment == 1 and page.locator("#draft").is_visible()
        yield Picture(page.screenshot(), LOOK_MS if is_draft else STEP_MS)
    yield Picture(page.screenshot(), READ_MS)


def write_gif(pictures: Iterator[Picture], out: Path) -> None:
    """Write the pictures with one palette: that of one in the middle, full of words and masks."""
    images, durations = [], []
    for png, milliseconds in pictures:
        images.append(Image.open(io.BytesIO(png)).convert("RGB"))
        durations.append(milliseconds)
    palette = images[len(images) // 2].quantize(COLOURS, dither=Image.Dither.NONE)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    rest = {"append_images": flat[1:], "duration": durations, "loop": 0, "optimize": True}
    flat[0].save(out, save_all=True, **rest)


def main() -> None:
    """Record a server's page."""
    options = parse_arguments()
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        sys.exit("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        looks = {"color_scheme": options.scheme, "reduced_motion": "reduce"}
        page = browser.new_page(viewport=SIZE, **looks)
        page.goto(options.url)
        page.locator("#model strong").wait_for()
        numbers = {"seed": options.seed, "max_tokens": options.max_tokens}
        write_gif(record(page, options.question, options.draft, **numbers), options.out)
        browser.close()


if __name__ == "__main__":
    main()
