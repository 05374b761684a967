"""Runs the Dockerfile's own steps where no Docker daemon exists, in folders that serve as roots.

    sudo python3 .ci/docker_steps.py --base ROOTFS --work FOLDER [--bind PATH ...] [--model FOLDER]

`ROOTFS` is a Debian root with python3, python3-venv and pip (debootstrap makes one). Each stage
begins as a copy of it; RUN goes through chroot, COPY obeys .dockerignore, USER drops rights.
Then the entry point is started, the HEALTHCHECK is run until it passes, one chat request is
sent, and SIGTERM must end the process with status 0. Reads the steps from the Dockerfile, so
that the two cannot drift apart.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PASSED_ON = ("PIP_", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


@dataclass
class Stage:
    """One FROM: its root, its environment and what it says about running."""

    name: str
    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def read_steps(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    steps = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in steps]


def inside(stage: Stage, command: list[str]) -> list[str]:
    """The command line that runs a command in a stage, as its user."""
    environment = {**stage.environment, "HOME": f"/home/{stage.user}"}
    assigned = [f"{name}={value}" for name, value in environment.items()]
    change = f'cd {stage.folder} && exec "$@"'
    return [
        *("chroot", f"--userspec={stage.user}", str(stage.root), "/usr/bin/env", "-i", *assigned),
        *("/bin/sh", "-c", change, "sh", *command),
    ]


def run(stage: Stage, command: list[str]) -> None:
    """Run a command of the build; its failure ends everything."""
    subprocess.run(inside(stage, command), check=True)


def copy(stage: Stage, arguments: list[str], stages: dict[str, Stage]) -> None:
    """COPY, from the repository (less .dockerignore) or from an earlier stage."""
    source_root, ignored = REPOSITORY, ignore_rules()
    if arguments[0].startswith("--from="):
        source_root = stages[arguments.pop(0).removeprefix("--from=")].root
        ignored = []
    *sources, target = arguments
    goal = stage.root / str(Path(stage.folder) / target).lstrip("/")
    for name in sources:
        source = source_root / name.lstrip("/")
        if source.is_dir():
            shutil.copytree(
                source, goal, symlinks=True, dirs_exist_ok=True, ignore=skipper(ignored)
            )
        else:
            goal.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, goal / source.name)


def ignore_rules() -> list[str]:
    """The patterns of .dockerignore."""
    return [line for line in (REPOSITORY / ".dockerignore").read_text().split() if line]


def skipper(patterns: list[str]):
    """A copytree filter for patterns relative to the repository."""

    def skip(folder: str, names: list[str]) -> list[str]:
        relative = Path(folder).resolve().relative_to(REPOSITORY) if patterns else Path()
        paths = {name: str(relative / name) for name in names}
        return [
            name
            for name, path in paths.items()
            if any(fnmatch.fnmatch(path, rule.replace("**/", "*")) for rule in patterns)
        ]

    return skip


def build(base: Path, work: Path, binds: list[str]) -> Stage:
    """Take every step of the Dockerfile; the last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, arguments in read_steps((REPOSITORY / "Dockerfile").read_text()):
        sys.stdout.write(f"{name} {arguments}\n")
        sys.stdout.flush()
        if name == "FROM":
            stage = begin_stage(base, work, arguments, len(stages), binds)
            stages[stage.name] = stage
            continue
        if stage is None:
            raise ValueError("a Dockerfile begins with FROM")
        if name == "ARG":
            key, _, value = arguments.partition("=")
            stage.environment[key] = os.environ.get(key, value.strip('"'))
        elif name == "ENV":
            stage.environment |= dict(re.findall(r"(\w+)=(\S+)", arguments))
        elif name == "WORKDIR":
            stage.folder = arguments
            (stage.root / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "RUN":
            run(stage, ["/bin/sh", "-c", arguments])
        elif name == "COPY":
            copy(stage, arguments.split(), stages)
        elif name == "USER":
            stage.user = arguments
        elif name == "HEALTHCHECK":
            stage.healthcheck = json.loads(arguments[arguments.index("[") :])
        elif name == "ENTRYPOINT":
            stage.entrypoint = json.loads(arguments)
        elif name == "CMD":
            stage.command = json.loads(arguments)
        elif name != "EXPOSE":
            raise ValueError(f"no meaning here for {name}")
    if stage is None:
        raise ValueError("the Dockerfile is empty")
    return stage


def begin_stage(base: Path, work: Path, arguments: str, index: int, binds: list[str]) -> Stage:
    """A fresh copy of the base; what the network needs on this machine is handed in."""
    name = arguments.split(" AS ")[-1] if " AS " in arguments else str(index)
    root = work / name
    subprocess.run(["cp", "-a", str(base), str(root)], check=True)
    for path in ["/etc/resolv.conf", "/etc/hosts", *binds]:
        goal = root / path.lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_dir():
            shutil.copytree(path, goal, dirs_exist_ok=True)
        elif Path(path).is_file():
            shutil.copy2(path, goal)
    for device in ("null", "urandom", "random", "zero"):
        node = root / "dev" / device
        if not node.exists():
            subprocess.run(["cp", "-a", f"/dev/{device}", str(node)], check=True)
    given = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
    return Stage(name, root, {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", **given})


def try_out(stage: Stage, model: str | None) -> None:
    """Start the image's process, wait for its health, chat once, stop it gracefully."""
    stage.environment = {k: v for k, v in stage.environment.items() if not k.startswith(PASSED_ON)}
    if model:
        shutil.copytree(model, stage.root / "model", dirs_exist_ok=True)
        stage.environment["DIFFUSIONGPT_MODEL"] = "/model"
    started = time.monotonic()
    process = subprocess.Popen(inside(stage, [*stage.entrypoint, *stage.command]))
    try:
        while subprocess.run(inside(stage, stage.healthcheck), capture_output=True).returncode:
            if process.poll() is not None or time.monotonic() - started > 120:
                raise SystemExit("the process did not become healthy")
            time.sleep(1)
        sys.stdout.write(f"healthy after {time.monotonic() - started:.1f} s\n")
        owner = Path(f"/proc/{process.pid}").stat().st_uid
        sys.stdout.write(f"runs as uid {owner}\n")
        with urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=5) as health:
            name = json.load(health)["model"]
        messages = [{"role": "user", "content": "Hello!"}]
        ask = json.dumps({"model": name, "messages": messages, "max_tokens": 32})
        request = urllib.request.Request(
            "http://127.0.0.1:8000/v1/chat/completions",
            data=ask.encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            sys.stdout.write(json.dumps(json.load(answer)["choices"][0]) + "\n")
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    sys.stdout.write(f"stopped with status {status}\n")
    if status:
        raise SystemExit(1)


def main() -> None:
    """Build and try out."""
    parser = argparse.ArgumentParser(description="Run the Dockerfile's steps through chroot.")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bind", action="append", default=[], help="copied into every stage")
    parser.add_argument("--model", help="serve this folder in place of the bundled model")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    try_out(build(options.base, options.work, options.bind), options.model)


if __name__ == "__main__":
    main()
