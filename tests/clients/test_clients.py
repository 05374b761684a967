"""Other people's clients against a running server with the bundled model: the same text each.

`make clients` installs them into runs/clients; a client that is not there is skipped. Each is a
program of its own, because their packages exclude each other's versions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.frame import Change
from diffusiongpt.engine.replay import Replay
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.chat_request import ChatRequest

from live import serving_live

HERE = Path(__file__).parent
INSTALLED = HERE.parent.parent / "runs" / "clients"
NAME = "bundled"
ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "What is your name?"}],
    "max_tokens": 32,
    "seed": 1,
}
CALL: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "How is the weather in Bonn?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "the weather of a place",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "maxLength": 12},
                        "days": {"type": "integer", "minimum": 1, "maximum": 9},
                    },
                    "required": ["city", "days"],
                    "additionalProperties": False,
                },
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "max_tokens": 64,
    "seed": 3,
}
STYLES: dict[str, dict[str, Any]] = {
    "frames off": {},
    "frames on": {"frames": "delta"},
    "whole frames": {"frames": "full"},
    "frames in deltas": {"frames": "delta", "frame_location": "delta"},
}


@dataclass(frozen=True)
class Client:
    """How one client is run, and where its user finds frames: of which styles, if any."""

    program: tuple[str, ...]
    folder: str | None = None
    sees: tuple[str, ...] = ("frames on", "whole frames", "frames in deltas")

    @property
    def absence(self) -> str | None:
        """Why it cannot be run here, or None."""
        if self.folder is not None and not (INSTALLED / self.folder).is_dir():
            return f"runs/clients/{self.folder} is missing; `make clients` installs it"
        if self.program[0].endswith(".mjs") and shutil.which("node") is None:
            return "there is no node"
        return None

    def run(self, task: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """The finished process, which got its task on standard input."""
        script, *arguments = self.program
        is_python = script.endswith(".py")
        folder = INSTALLED / (self.folder or "")
        variables = {"PYTHONPATH": str(folder)} if is_python and self.folder else {}
        return subprocess.run(
            [sys.executable if is_python else "node", str(HERE / script), *arguments],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            cwd=HERE if is_python else folder,
            env={**os.environ, **variables},
            timeout=240,
            check=False,
        )


CLIENTS = {
    "openai-python": Client(("ask_openai.py",)),
    "openai-python, previous major": Client(("ask_openai.py",), "openai-previous"),
    "langchain": Client(("ask_langchain.py",), "langchain", sees=()),
    "litellm": Client(("ask_litellm.py",), "litellm", sees=("frames in deltas",)),
    "openai-node": Client(("ask_openai.mjs", "openai"), "node"),
    "openai-node, previous major": Client(("ask_openai.mjs", "openai-previous"), "node"),
    "ai-sdk": Client(("ask_ai_sdk.mjs",), "node"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # All clients ask at once; one slot and no shared pages make every forward the same to the bit.
    worker = EngineWorker(Engine.from_pretrained(name=NAME, num_slots=1, prefix_cache_bytes=0))
    worker.start()
    with serving_live(worker, log_level="warning") as live:
        yield live.url
    worker.stop()


@pytest.fixture(scope="module")
def expected(url: str) -> dict[str, Any]:
    """What the server says to bytes on a wire."""
    answer = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=60).json()
    choice = answer["choices"][0]
    assert len(choice["message"]["content"]) > 10
    # Helpers of some clients raise where an answer was cut off.
    assert choice["finish_reason"] == "stop"
    return {
        "text": choice["message"]["content"],
        "finish_reason": choice["finish_reason"],
        "completion_tokens": answer["usage"]["completion_tokens"],
    }


@pytest.fixture(scope="module")
def outcomes(url: str) -> dict[str, Any]:
    """What each client that is there got: all run beside each other."""
    task = {"base_url": f"{url}/v1", "ask": ASK, "styles": STYLES, "call": CALL}
    present = {name: each for name, each in CLIENTS.items() if each.absence is None}
    with ThreadPoolExecutor(len(present)) as pool:
        runs = list(pool.map(lambda client: client.run(task), present.values()))
    return {
        # Some packages print things of their own before it.
        name: json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else run.stderr
        for name, run in zip(present, runs, strict=True)
    }


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    absence = CLIENTS[request.param].absence
    if absence is not None:
        pytest.skip(absence)
    return str(request.param)


@pytest.fixture
def outcome(client: str, outcomes: dict[str, Any]) -> dict[str, Any]:
    """What the client said at its end."""
    assert isinstance(outcomes[client], dict), outcomes[client]
    return dict(outcomes[client])


def test_every_way_of_asking_gets_the_same_text(outcome: dict[str, Any], expected: dict[str, Any]):
    assert len(outcome["answers"]) >= 2 * len(STYLES)
    for way, answer in outcome["answers"].items():
        assert {name: answer[name] for name in expected} == expected, (outcome["version"], way)


def test_every_way_of_calling_gets_the_same_arguments(outcome: dict[str, Any], url: str):
    answer = httpx.post(f"{url}/v1/chat/completions", json=CALL, timeout=60).json()
    [call] = answer["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert arguments.keys() == {"city", "days"}
    expected = {"name": "weather", "arguments": arguments, "finish_reason": "tool_calls"}
    assert len(outcome["calls"]) >= 2
    for way, called in outcome["calls"].items():
        assert called == expected, (outcome["version"], way)


def test_frames_reach_who_can_see_them_and_add_up_to_the_text(
    client: str, outcome: dict[str, Any], expected: dict[str, Any]
):
    for way, answer in outcome["answers"].items():
        asked, style = way.split(", ")
        if not asked.endswith("loop") or style not in CLIENTS[client].sees:
            assert not answer["frames"], way
            continue
        assert answer["frames"][-1]["kind"] == "end"
        assert replay(answer["frames"]) == expected["text"], way


def replay(frames: list[dict[str, Any]]) -> str:
    """What a watcher shows in the end."""
    shown = Replay()
    for frame in frames:
        if frame["kind"] == "keyframe":
            shown = Replay()
        if "set" in frame:
            shown.apply((Change(*each) for each in frame["set"]), frame["unset"])
    return shown.text


def test_a_refusal_is_the_clients_own_error_with_our_sentence(outcome: dict[str, Any]):
    refusal = outcome["refusal"]
    assert refusal["status"] == 400
    assert "temperature must be in [0, 2], got 9" in refusal["message"]
    assert refusal.get("has_request_id", True)


@pytest.fixture(scope="module")
def canary(url: str) -> dict[str, Any]:
    """What compatcanary, a checker of servers that say they are compatible, finds."""
    program = INSTALLED / "node" / "node_modules" / "compatcanary" / "src" / "cli.js"
    if not program.is_file() or shutil.which("node") is None:
        pytest.skip("compatcanary is missing; `make clients` installs it")
    flags = ["--model", NAME, "--profile", "chat", "--format", "json", "--fail-on", "never"]
    run = subprocess.run(
        ["node", str(program), "scan", "--base-url", f"{url}/v1", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {result["id"]: result for result in json.loads(run.stdout)["results"]}


# What the server has to take before a check can pass.
CHECKS = {
    "models.list": None,
    "chat.basic": None,
    "chat.streaming": None,
    "chat.tool_call": "tools",
    "chat.structured_output": "response_format",
}


@pytest.mark.parametrize("check", CHECKS)
def test_compatcanary_finds_nothing(check: str, canary: dict[str, Any]):
    assert canary.keys() == CHECKS.keys()
    if CHECKS[check] in ChatRequest._UNSUPPORTED:
        pytest.skip(f"{CHECKS[check]} is refused by name")
    assert canary[check]["status"] == "pass", canary[check]


def test_the_document_names_the_versions_that_are_tested():
    text = (HERE.parent.parent / "docs" / "API.md").read_text()
    section = text.split("## Clients\n")[1].split("\n## ")[0]
    pins = "\n".join(path.read_text() for path in HERE.glob("*.txt"))
    pins += (HERE.parent.parent / "constraints.txt").read_text()
    named = re.findall(r"^\| .+? \| `([\w@/-]+)` \| ([\d., ]+) \|", section, re.MULTILINE)
    node = json.loads((HERE / "package.json").read_text())["dependencies"]
    for package, versions in named:
        for version in versions.split(", "):
            known = [f"{package}=={version}" in pins.split()]
            known += [spec.removeprefix(f"npm:{package}@") == version for spec in node.values()]
            assert any(known), (package, version)
    assert len(named) >= 7


def test_models_are_listed(outcome: dict[str, Any]):
    assert outcome.get("models", [NAME]) == [NAME]
