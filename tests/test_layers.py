"""The rule of imports: server -> engine <- training; cli may import everything, lazily."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "engine": {"engine"},
    "server": {"server", "engine"},
    "training": {"training", "engine"},
    "cli": {"cli", "server", "engine", "training"},
}
HEAVY = {"torch", "transformers", "fastapi", "uvicorn", "pydantic"}


def imported(tree):
    """Dotted names that the statements under a node import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def sources(layer):
    return sorted((ROOT / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_imports_only_what_it_may(layer):
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in sources(layer)
        for name in imported(ast.parse(path.read_text()))
        if name.startswith("diffusiongpt.") and name.split(".")[1] not in MAY_IMPORT[layer]
    ]
    assert not wrong


def test_the_engine_knows_no_http_and_no_json_schema():
    names = {
        name.split(".")[0]
        for path in sources("engine")
        for name in imported(ast.parse(path.read_text()))
    }
    assert not names & {"fastapi", "starlette", "uvicorn", "pydantic", "typer", "rich"}


def test_the_server_knows_no_tensors():
    names = {
        name.split(".")[0]
        for path in sources("server")
        for name in imported(ast.parse(path.read_text()))
    }
    assert not names & {"torch", "transformers", "numpy", "tokenizers", "safetensors"}


@pytest.mark.parametrize(
    "module",
    [
        "diffusiongpt.cli.main",
        "diffusiongpt.engine",
        "diffusiongpt.engine.params",
        "diffusiongpt.engine.frame",
        "diffusiongpt.engine.families",
        "diffusiongpt.engine.pipeline_options",
    ],
)
def test_what_must_start_at_once_loads_nothing_heavy(module):
    code = f"import sys, {module}; sys.stdout.write(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("layer", ["engine", "training"])
def test_what_only_some_need_is_imported_where_it_is_needed(layer):
    optional = {"optuna", "peft", "lm_eval", "matplotlib", "datasets", "pyarrow", "torchao"}
    optional |= {"triton"}
    for path in sources(layer):
        if path.name == "head_kernels.py":  # is Triton's own language, and imported where needed
            continue
        tree = ast.parse(path.read_text())
        at_once = ast.Module([each for each in tree.body if not isinstance(each, ast.If)], [])
        inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        at_once.body = [each for each in at_once.body if not isinstance(each, inside)]
        assert not {name.split(".")[0] for name in imported(at_once)} & optional, path
