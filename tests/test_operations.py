"""`diffusiongpt serve` as a process: loading, several models, keys, stop signals, bad settings."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from live import wait_for
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

SECTION = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [0, 2, MASK]}
KEY = {"authorization": "Bearer first"}
CHAT = "/v1/chat/completions"


def body(model: str, **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "the cat"}], **fields}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that answer differently."""
    made = []
    for seed in (4, 5):
        folder = tmp_path_factory.mktemp("tiny")
        write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=seed, section=SECTION)
        made.append(Path(write_tiny_tokenizer(folder)))
    return made


class Served:
    """`diffusiongpt serve` as a process of its own, on a free port."""

    def __init__(self, *flags: object, variables: dict[str, str] | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DIFFUSIONGPT_")}
        command = [sys.executable, "-m", "diffusiongpt.cli", "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, *map(str, flags)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, "OMP_NUM_THREADS": "1", **(variables or {})},
        )

    def status(self, path: str = "/ready") -> int | None:
        """Of the answer, or None where nothing answers."""
        try:
            return httpx.get(self.url + path, timeout=2).status_code
        except httpx.TransportError:
            return None

    def wait_until(self, status: int) -> Served:
        reached = wait_for(lambda: self.process.poll() is not None or self.status() == status, 60)
        assert reached
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        return self

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self) -> tuple[int, str]:
        """Exit status and what was written on standard error."""
        try:
            _, errors = self.process.communicate(timeout=20)
        finally:
            self.process.kill()
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def served(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    config = tmp_path_factory.mktemp("config")
    (config / "keys").write_text("first\nsecond\n")
    (config / "server.toml").write_text(
        f'api_key_file = "{config / "keys"}"\nbody_timeout_seconds = 0.7\nlog_level = "warning"\n'
    )
    flags = [flag for i, path in enumerate(folders) for flag in ("--model", f"m{i}={path}")]
    server = Served(
        *flags, "--config", config / "server.toml", variables={"DIFFUSIONGPT_MAX_TOKENS": "64"}
    )
    yield server.wait_until(200)
    server.process.send_signal(signal.SIGTERM)
    status, errors = server.end()
    assert status == 0
    assert "Traceback" not in errors
    assert "first" not in errors


def test_each_model_answers_under_its_name_and_by_itself(served: Served):
    answers = {}
    for name in ("m0", "m1"):
        ask = body(name, seed=1, max_tokens=16)
        answers[name] = httpx.post(served.url + CHAT, json=ask, headers=KEY, timeout=20).json()
        assert answers[name]["model"] == name
    texts = {each["choices"][0]["message"]["content"] for each in answers.values()}
    assert len(texts) == 2
    listed = httpx.get(f"{served.url}/v1/models", headers=KEY).json()["data"]
    assert [each["id"] for each in listed] == ["m0", "m1"]
    assert httpx.post(served.url + CHAT, json=body("m2"), headers=KEY).status_code == 404


def test_settings_come_from_flag_variable_and_file(served: Served):
    long = httpx.post(served.url + CHAT, json=body("m0", max_tokens=65), headers=KEY)
    assert long.status_code == 400
    assert "64" in long.json()["error"]["message"]
    assert served.status("/v1/models") == served.status("/metrics") == 401
    assert served.status("/health") == 200


def test_a_signal_while_loading_ends_a_server_that_said_so(folders: list[Path]):
    with Served("--model", folders[0]) as server:
        server.wait_until(503)
        answer = httpx.post(server.url + CHAT, json=body("tiny"))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status, errors = server.end()
    assert status == 0
    assert time.monotonic() - started < 10
    assert "Serving" not in errors
    assert "Traceback" not in errors


def test_a_second_signal_ends_the_server_at_once(folders: list[Path]):
    options = {"policy": "random", "block_length": 8}
    ask = body("tiny", stream=True, max_tokens=4000, diffusion=options)
    with Served("--model", f"tiny={folders[0]}") as server:
        server.wait_until(200)
        with httpx.stream("POST", server.url + CHAT, json=ask, timeout=20) as answer:
            assert answer.status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert wait_for(lambda: server.status() is None)  # it takes no new connection
            assert server.process.poll() is None
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == -signal.SIGTERM
            assert time.monotonic() - started < 2
        server.end()


BAD = {
    "variable": ((), {"DIFFUSIONGPT_PROT": "1"}, "unknown setting DIFFUSIONGPT_PROT"),
    "value": ((), {"DIFFUSIONGPT_MAX_WAITING": "some"}, "max_waiting"),
    "file": (("--config", "/nowhere.toml"), {}, "/nowhere.toml"),
    "keys": (("--api-key-file", "/nowhere.keys"), {}, "/nowhere.keys"),
    "models": (("--model", "/a", "--model", "/b"), {}, "NAME=PATH"),
}


def test_bad_settings_stop_the_start_with_one_sentence():
    results: dict[str, tuple[int, str]] = {}

    def run(name: str) -> None:
        flags, variables, _ = BAD[name]
        results[name] = Served(*flags, variables=variables).end()

    threads = [threading.Thread(target=run, args=(name,)) for name in BAD]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name, (_, _, words) in BAD.items():
        status, errors = results[name]
        assert status == 2, (name, errors)
        assert words in errors
        assert len(errors.strip().splitlines()) == 1
