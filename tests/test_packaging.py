"""The packaging has four traps; each has its guard here or in pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = ("cli", "engine", "server", "training")


def test_every_package_on_disk_is_listed():
    found = {
        "diffusiongpt." + ".".join(path.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_no_second_copy_of_a_module_can_be_loaded():
    lint = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]
    assert lint["ban-relative-imports"] == "all"
    assert set(LAYERS) <= set(lint["banned-api"])
    assert "--import-mode=importlib" in PROJECT["tool"]["pytest"]["ini_options"]["addopts"]


def test_type_checkers_are_shown_the_way():
    assert PROJECT["tool"]["mypy"]["mypy_path"] == ".typing"
    assert "ln -sfn .. .typing/diffusiongpt" in (ROOT / "Makefile").read_text()


def test_a_stale_build_folder_is_neither_committed_nor_sent_to_docker():
    for name in (".gitignore", ".dockerignore"):
        lines = (ROOT / name).read_text().split()
        assert {"build", "build/"} & set(lines), name


def test_outside_the_repository_the_bare_names_do_not_exist(tmp_path):
    code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *LAYERS], cwd=tmp_path, check=False, timeout=60
    )
    assert done.returncode == 0


def test_what_was_tested_is_pinned_and_within_the_ranges_we_state():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    pins = {normal(name): version.split(";")[0].strip() for name, version in pins.items()}
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(r for e in extras for r in e)]:
        name, lowest = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement).groups()
        assert normal(name) in pins, requirement
        assert as_numbers(pins[normal(name)]) >= as_numbers(lowest), requirement


def test_the_version_has_one_home():
    assert importlib.metadata.version("diffusiongpt") == PROJECT["project"]["version"]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def as_numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
