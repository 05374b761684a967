"""How long the playground works on one refresh while a long answer forms, in a headless Chromium.

Drives the page's own replay and canvas modules: a canvas of masks, so many words a refresh at
scattered positions, the worst case. `cpu_ms` is the processor time of one refresh, which a busy
machine changes little: script, style, layout, and all of the main thread's. 60 refreshes a second
leave 16.7. `interval_ms` is the time between refreshes, and needs a quiet machine.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import CDPSession, Page, sync_playwright

from diffusiongpt.server.playground import playground_routes

from measure import parse_arguments, report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FORM = """async ({ length, words }) => {
    const { CanvasView } = await import("./static/canvas.js");
    const { CanvasState } = await import("./static/replay.js");
    const state = new CanvasState();
    const view = new CanvasView();
    document.getElementById("turns").replaceChildren(view.root);
    const common = { kind: "frame", block: 0, step: 0, steps: length, masked: length };
    state.apply({ ...common, kind: "begin", length, block_length: length });
    view.show(state);
    view.paint();
    const refresh = () => new Promise(requestAnimationFrame);
    const intervals = [];
    // A step that is prime to every length used, so that all positions come up once.
    const stride = 1201;
    let before = await refresh();
    for (let done = 0; done < length; done += words) {
        const now = await refresh();
        const set = Array.from({ length: Math.min(words, length - done) }, (_, k) => {
            const position = ((done + k) * stride) % length;
            return [position, ` word${position}`, (position % 100) / 100, "unmask"];
        });
        state.apply({ ...common, masked: length - done, set });
        view.paint();
        view.root.offsetHeight;
        intervals.push(now - before);
        before = now;
    }
    return intervals;
}"""


def main() -> None:
    """Measure canvases of two lengths and report."""
    options = parse_arguments(__doc__, length=2000, words=4)
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        sys.stderr.write("no Chromium is installed (Debian: apt-get install chromium)\n")
        return
    lengths = (32, 64) if options.quick else (512, options.length)
    with serve_page() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 820})
        page.goto(url)
        forms = {f"canvas_{n}": form(page, n, options.words, options.repeats) for n in lengths}
        version = browser.version
        browser.close()
    result = {"words_each_refresh": options.words, "chromium": version, "canvases": forms}
    report(options, "page", "cpu_ms below 16.7 on 512 tokens", result)


def form(page: Page, length: int, words: int, repeats: int) -> dict[str, Any]:
    """Let a canvas form a few times; milliseconds of a refresh."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before, intervals = read_cpu_seconds(session), []
    for _ in range(repeats):
        intervals += page.evaluate(FORM, {"length": length, "words": words})
    spent = {name: after - before[name] for name, after in read_cpu_seconds(session).items()}
    each = {name: round(1000 * value / len(intervals), 2) for name, value in spent.items()}
    return {"cpu_ms": each, "interval_ms": spread(intervals)}


def read_cpu_seconds(session: CDPSession) -> dict[str, float]:
    """What the page's main thread has spent so far, by kind."""
    kinds = {"script": "Script", "style": "RecalcStyle", "layout": "Layout", "all": "Task"}
    metrics = session.send("Performance.getMetrics")["metrics"]
    values = {each["name"]: each["value"] for each in metrics}
    return {name: values[f"{kind}Duration"] for name, kind in kinds.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    ranked = sorted(values)
    p95 = ranked[min(int(0.95 * len(ranked)), len(ranked) - 1)]
    numbers = {"median": statistics.median(ranked), "p95": p95, "max": ranked[-1]}
    return {name: round(value, 2) for name, value in numbers.items()}


@contextmanager
def serve_page() -> Iterator[str]:
    """The page alone, on a free loopback port."""
    app = FastAPI()
    app.include_router(playground_routes())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


if __name__ == "__main__":
    main()
