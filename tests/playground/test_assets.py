"""The page's files: what is sent, under which policy, and what they may not contain."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.server.app import create_app
from diffusiongpt.server.playground import CONTENT_SECURITY_POLICY

from fakes import FakeGenerator
from scripted import ROOT

STATIC = ROOT / "server" / "static"
FILES = sorted(STATIC.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_app(FakeGenerator()))


def test_the_page_is_sent_under_a_policy_that_lets_nothing_else_in(client: TestClient):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_sent_with_its_type_and_not_twice(client: TestClient, path: Path):
    url = "/" if path.name == "index.html" else f"/static/{path.name}"
    answer = client.get(url)
    assert answer.content == path.read_bytes()
    kinds = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg",
        ".html": "text/html",
    }
    assert answer.headers["content-type"].startswith(kinds[path.suffix])
    again = client.get(url, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(url).status_code == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fplayground.py", "%2e%2e/app.py", "../app.py", "playground.py"]
)
def test_nothing_else_is_sent(client: TestClient, name: str):
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 404
    assert "error" in answer.json()


def test_what_a_file_names_is_there():
    names = {path.name for path in FILES}
    for path in FILES:
        text = path.read_text()
        named = re.findall(r'"(?:static|\.)/([\w-]+\.\w+)"', text)
        assert set(named) <= names, path.name
    listed = re.findall(r'"([\w-]+\.(?:js|css))"', (STATIC / "export.js").read_text())
    assert set(listed) <= names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_begin_with_what_they_do_and_never_parse_html(path: Path):
    text = path.read_text()
    assert text.startswith("// ")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
    )
    assert not re.search(forbidden, text)
    # Addresses elsewhere; the name of a namespace is none.
    assert set(re.findall(r"https?://[^\"]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_every_policy_that_is_served_is_explained():
    text = (STATIC / "options.js").read_text()
    explained = set(re.findall(r"^  (\w+): \"", text, re.MULTILINE))
    assert set(PRESETS) <= explained
    served = TestClient(create_app(FakeGenerator())).get("/v1/models").json()["data"][0]
    policies = served["diffusion"]["policies"]
    assert policies == {name: {"adaptive": each.adaptive} for name, each in PRESETS.items()}


def test_the_files_are_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["diffusiongpt.server"] == ["static/*"]
    assert not [path for path in FILES if path.is_dir()]
