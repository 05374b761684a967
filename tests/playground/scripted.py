"""A server whose every frame is written down by hand, for the page in a browser to show."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from sse_starlette.sse import AppStatus

from diffusiongpt.engine.frame import Change, FinishReason, Frame, Usage
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.app import create_app
from diffusiongpt.server.run import DrainingServer
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState

from fakes import INFO, FakeGeneration, FakeGenerator

ROOT = Path(__file__).parent.parent.parent
# Ignored by git, like everything below runs/.
SCREENSHOTS = ROOT / "runs" / "screenshots"
WORDS = [
    "The",
    " small",
    " cat",
    " sat",
    " on",
    " the",
    " warm",
    " wall",
    ",",
    " and",
    " slept",
    ".",
]
ORDER = [2, 7, 0, 11, 5, 3, 9, 1, 4, 8, 10, 6]
TEXT = "".join(WORDS)
DRAFT = "The small cat sat on the warm wall, and slept."
# (step's changes, positions that are masked again); all positions unset at first.
Step = tuple[Sequence[tuple[int, str, float, str]], Sequence[int]]


def write_frames(steps: Sequence[Step], length: int, block_length: int = 0) -> list[Frame]:
    """The frames of an answer from what each step sets and unsets; text settles at the end."""
    common = {"request_id": "r", "steps": len(steps), "length": length}
    common["block_length"] = block_length or length
    frames = [Frame(step=0, block=0, masked=length, **common)]  # type: ignore[arg-type]
    shown: dict[int, str] = {}
    for step, (changes, unset) in enumerate(steps, 1):
        shown.update({position: text for position, text, *_ in changes})
        for position in unset:
            shown.pop(position, None)
        is_last = step == len(steps)
        frames.append(
            Frame(
                step=step,
                block=max(shown, default=0) // common["block_length"],  # type: ignore[operator]
                masked=length - len(shown),
                set=tuple(Change(*change) for change in changes),  # type: ignore[arg-type]
                unset=tuple(unset),
                content="".join(shown[p] for p in sorted(shown)) if is_last else "",
                settled=len(shown) if is_last else 0,
                finish_reason=FinishReason.STOP if is_last else None,
                usage=Usage(prompt_tokens=3, completion_tokens=len(shown), steps=step, nfe=step)
                if is_last
                else None,
                **common,  # type: ignore[arg-type]
            )
        )
    return frames


def words_in_order(words: Sequence[str], order: Sequence[int], batch: int = 1) -> list[Step]:
    """Steps that commit `batch` words at a time, in an order, ever surer."""
    return [
        ([(p, words[p], 0.1 + 0.9 * start / len(order), "unmask") for p in some], ())
        for start in range(0, len(order), batch)
        for some in [order[start : start + batch]]
    ]


def draft_frames() -> list[Frame]:
    """`DRAFT` word by word; the third and the fourth are redone, and the third is another then."""
    whole = [(position, word, 0.9, "unmask") for position, word in enumerate(WORDS)]
    steps = [(whole, ()), ([], (2, 3)), ([(3, " sat", 0.8, "unmask")], ())]
    steps += [([(2, " dog", 0.6, "unmask")], ())]
    _, first, second, *rest = write_frames(steps, len(WORDS))
    frames = [
        dataclasses.replace(first, step=0),
        dataclasses.replace(second, step=0),
        *(dataclasses.replace(each, step=index) for index, each in enumerate(rest, 1)),
    ]
    usage = dataclasses.replace(frames[-1].usage, accepted_tokens=11, rejected_tokens=1)
    return [*frames[:-1], dataclasses.replace(frames[-1], usage=usage)]


class HeldGeneration(FakeGeneration):
    """Waits before frame `hold_at` until the gate is opened."""

    def __init__(
        self,
        frames: Sequence[Frame],
        params: GenerationParams,
        pause: float,
        hold_at: int | None,
        gate: threading.Event,
    ) -> None:
        super().__init__(frames, params, pause)
        self._hold_at, self._gate = hold_at, gate

    async def __aiter__(self) -> AsyncIterator[Frame]:
        for index, frame in enumerate(self._frames):
            while index == self._hold_at and not self._gate.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(self._pause)
            yield frame
        self.has_finished = True


class ScriptedGenerator(FakeGenerator):
    """Answers with given frames, and can be held in the middle of them."""

    def __init__(self, **fields: object) -> None:
        super().__init__(**fields)  # type: ignore[arg-type]
        self.info = dataclasses.replace(INFO, name="scripted", context_length=50_000)
        self.info = dataclasses.replace(self.info, num_parameters=4_900_000, max_tokens=4096)
        self.hold_at: int | None = None
        self.gate = threading.Event()

    def submit(self, prompt: Sequence[int], params: GenerationParams) -> FakeGeneration:
        plain = super().submit(prompt, params)
        self.generations.pop()
        held = HeldGeneration(plain._frames, plain.params, self.pause, self.hold_at, self.gate)
        self.generations.append(held)
        return held


class WantsKey:
    """ASGI: 401 without the right key, except for the page itself and the health check."""

    def __init__(self, app: object, key: str) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
        is_api = scope["type"] == "http" and scope["path"].startswith("/v1")
        given = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if not is_api or given == f"Bearer {self._key}":
            await self._app(scope, receive, send)
            return
        body = b'{"error": {"message": "an API key is wanted", "type": "authentication_error"}}'
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(generator: FakeGenerator, *, port: int = 0, key: str | None = None):
    """The URL of the real application over a generator, on loopback."""
    AppStatus.disable_automatic_graceful_drain()
    state = ServerState()
    app = create_app(generator, Settings(), state)
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        WantsKey(app, key) if key else app,  # type: ignore[arg-type]
        log_level="error",
        timeout_graceful_shutdown=1,
        lifespan="off",
    )
    server = DrainingServer(config, state)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
