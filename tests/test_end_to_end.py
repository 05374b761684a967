"""The whole way, as a user goes it: text, training, export, `serve`, the openai client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

SENTENCES = (
    "The cat sat on the mat and the dog ran home.",
    "One day a little girl found a big red ball.",
    "The old man was very happy with his friend.",
)
SERVE = [sys.executable, "-m", "diffusiongpt.cli", "serve"]
ASK = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24}


def run_training(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "diffusiongpt.training", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A folder made by the commands of the training package and nothing else."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data"
    data.mkdir()
    texts = [{"text": " ".join(SENTENCES) * 3, "source": "a"} for _ in range(20)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": "Tell me a story."},
                {"role": "assistant", "content": SENTENCES[index % 3]},
            ],
            "source": "chat",
        }
        for index in range(30)
    ]
    for name, records in (("texts", texts), ("chats", chats)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (data / f"{name}.jsonl").write_text(lines)
    tokenizer = folder / "tokenizer"
    common = ("--data_dir", data, "--tokenizer", tokenizer, "--cache_dir", folder / "cache")
    small = ("--log_steps", 5, "--progress_bar", "false", "--precision", "float32")
    model = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "model": {**model, "intermediate_size": 48, "local_attention": 16},
        "data": {"data_dir": "???", "tokenizer": "???", "max_seq_length": 64},
        "diffusion": {"objective": "block", "block_length": 4},
        "run": {"batch_size": 8, "max_steps": 10},
    }
    stages = {
        "train": {**config, "stage": "pretrain", "data": {**config["data"], "mix": {"texts": 1}}},
        "sft": {**config, "stage": "sft", "data": {**config["data"], "mix": {"chats": 1}}},
    }
    for name, stage in stages.items():
        (folder / f"{name}.yaml").write_text(json.dumps(stage))  # JSON is YAML
    from_one = ("--init_from", folder / "one" / "final")
    steps = (
        ("tokenizer", "texts", "--vocab_size", 300, "--data_dir", data, "--output_dir", tokenizer),
        ("train", folder / "train.yaml", *common, *small, "--output_dir", folder / "one"),
        ("sft", folder / "sft.yaml", *common, *small, *from_one, "--output_dir", folder / "two"),
        ("export", folder / "two" / "final", folder / "exported", "--dtype", "float32"),
    )
    for step in steps:
        done = run_training(*step)
        assert done.returncode == 0, done.stderr
    return folder / "exported"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Served:
    """`diffusiongpt serve` as a process of its own."""

    def __init__(self, model_dir, *flags):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [*SERVE, "--model", str(model_dir), "--port", str(self.port), "--name", "tiny", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # other tests share the cores
        )

    def wait_until_ready(self, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", timeout=1).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(f"not ready: {self.process.stderr.read()}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.process.stderr.close()


@pytest.fixture
def served(model_dir):
    server = Served(model_dir).wait_until_ready()
    yield server
    server.stop()


def test_what_was_trained_is_served_to_the_openai_client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.chat.completions.create(model="tiny", seed=3, **ASK)
        parts = client.chat.completions.create(
            model="tiny", seed=3, stream=True, extra_body={"diffusion": {"frames": "full"}}, **ASK
        )
        streamed = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert whole.choices[0].message.content == streamed
    assert whole.usage.completion_tokens > 0


def test_a_stop_signal_lets_sixteen_streams_finish(served):
    endings = []
    begun = threading.Semaphore(0)
    ask = {**ASK, "model": "tiny", "stream": True, "max_tokens": 400}
    ask["diffusion"] = {"policy": "random"}

    def read(seed):
        lines = []
        body = {**ask, "seed": seed}
        url = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if not lines:
                    begun.release()
                lines.append(line)
        endings.append([line for line in lines if line.startswith("data:")][-1])

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(16)]
    for reader in readers:
        reader.start()
    assert all(begun.acquire(timeout=30) for _ in readers)
    assert len(endings) < 16  # or there would be nothing to finish
    served.process.send_signal(signal.SIGTERM)
    for reader in readers:
        reader.join(60)
    assert endings == ["data: [DONE]"] * 16
    assert served.process.wait(30) == 0
    log = served.process.stderr.read()
    assert "Traceback" not in log
    assert '"head_runs": "in chunks of 512 rows"' in log


def test_a_port_that_is_taken_is_one_sentence(model_dir):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = subprocess.run(
            [*SERVE, "--model", str(model_dir), "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
