"""The Dockerfile and docker-compose.yml: what they copy exists, and they are safe by default."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from diffusiongpt.server.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICE = COMPOSE["services"]["diffusiongpt"]
PORT = Settings.model_fields["port"].default


def lines_of(name):
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.*)$", joined, flags=re.MULTILINE)


def test_everything_that_is_copied_exists_and_every_layer_is_copied():
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [
        word
        for line in lines_of("COPY")
        if not line.startswith("--from")
        for word in line.split()[:-1]
    ]
    assert all((ROOT / name).exists() for name in copied)
    assert not set(copied) & set(ignored)
    assert {"cli", "engine", "server", "training", "constraints.txt"} <= set(copied)


def test_the_process_is_the_command_itself_and_not_root():
    assert json.loads(lines_of("ENTRYPOINT")[-1]) == ["diffusiongpt"]
    assert json.loads(lines_of("CMD")[-1]) == ["serve"]
    assert lines_of("USER")[-1] == "diffusiongpt"
    last_stage = DOCKERFILE.split("\nFROM ")[-1]
    assert last_stage.index("USER ") > last_stage.index("COPY --from")


def test_port_and_health_check_agree_with_the_server():
    assert lines_of("EXPOSE") == [str(PORT)]
    assert f":{PORT}/health" in lines_of("HEALTHCHECK")[0]
    assert f"DIFFUSIONGPT_PORT={PORT}" in DOCKERFILE
    assert SERVICE["ports"] == [f"{PORT}:{PORT}"]


def test_versions_come_from_the_constraints():
    installs = [line for line in lines_of("RUN") if "pip install" in line]
    assert installs
    assert all("constraints.txt" in line for line in installs)


@pytest.mark.parametrize("name", [".git", ".venv", "runs", "tests", "build"])
def test_what_the_image_does_not_need_is_not_sent(name):
    assert name in (ROOT / ".dockerignore").read_text().split()


def test_the_service_has_no_rights_it_does_not_need_and_time_to_finish():
    assert SERVICE["read_only"] is True
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVICE["security_opt"]
    grace = int(SERVICE["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_seconds"].default
