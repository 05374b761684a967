"""The documents are checked: modules, dependencies, fields, flags, commands, links, examples."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
import typer

from diffusiongpt.cli.main import app
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.pipeline_options import PipelineOptions
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.server.app import create_app
from diffusiongpt.server.metrics import Metrics
from diffusiongpt.server.openapi import ROUTES
from diffusiongpt.server.settings import Settings
from diffusiongpt.training.__main__ import COMMANDS as TRAINING_COMMANDS

from fakes import FakeGenerator

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "engine").rglob("*.md")]
)
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
API = (ROOT / "docs" / "API.md").read_text()
EVERYTHING = "\n".join(path.read_text() for path in DOCUMENTS)


@pytest.mark.parametrize("layer", ["engine", "server", "cli", "training"])
def test_the_architecture_has_a_line_for_every_module(layer):
    section = ARCHITECTURE.split(f"### {layer}/")[1].split("\n## ")[0].split("\n### ")[0]
    described = set(re.findall(r"^\| `(\w+\.py)` \|", section, flags=re.MULTILINE))
    assert described == {path.name for path in (ROOT / layer).glob("*.py")} - {"__init__.py"}


def test_the_architecture_has_a_reason_for_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w.-]+", requirement)[0] for group in groups for requirement in group}
    section = ARCHITECTURE.split("## Dependencies")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| ([\w.-]+) \|", section, flags=re.MULTILINE)) == names | {"package"}


@pytest.fixture(scope="module")
def openapi():
    return create_app(FakeGenerator(), Settings()).openapi()


def fields_of(document, name):
    """The properties of a schema and of the schemas that it refers to."""
    text = json.dumps(document["components"]["schemas"][name])
    fields = set(document["components"]["schemas"][name]["properties"])
    for reference in set(re.findall(r"#/components/schemas/(\w+)", text)) - {name}:
        fields |= fields_of(document, reference)
    return fields


def is_named(name, text):
    return re.search(rf"[`\"]{name}[`\"]", text) is not None


def section_of(route):
    return API.split(f"## POST {route}\n")[1].split("\n## ")[0]


def test_every_route_of_the_openapi_document_is_documented(openapi):
    headings = re.findall(r"^## (.*)$", API, flags=re.MULTILINE)
    described = {path for heading in headings for path in re.findall(r"/[\w/{}]+", heading)}
    assert {path.replace("{model}", "{id}") for path in openapi["paths"]} <= described


def test_every_field_of_every_request_is_documented(openapi):
    chat = section_of("/v1/chat/completions")
    for path, route in ROUTES.items():
        own = fields_of(openapi, route.request.__name__)
        own |= {*route.request._UNSUPPORTED, *route.request._HARMLESS}
        known = section_of(path) + chat + section_of("/v1/completions")
        assert not {name for name in own if not is_named(name, known)}, path


def test_every_field_in_a_table_of_the_document_is_one_that_the_route_takes(openapi):
    for path, route in ROUTES.items():
        taken = fields_of(openapi, route.request.__name__)
        tables = section_of(path).split("### The answer")[0]
        rows = re.findall(r"^\| (`[^|]+`) \|", tables, flags=re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert named <= taken, path


def test_every_field_of_every_answer_is_documented(openapi):
    for route in ROUTES.values():
        for model in (route.answer, route.chunk):
            fields = fields_of(openapi, model.__name__)
            assert not {name for name in fields if not is_named(name, API)}


def test_every_policy_and_parameter_is_documented():
    assert not {name for name in PRESETS if f"`{name}`" not in API}
    names = {field.name for field in dataclasses.fields(GenerationParams)}
    assert not {name for name in names if f"`{name}`" not in EVERYTHING}


def test_every_argument_of_the_pipeline_is_documented():
    section = API.split("## The Hugging Face pipeline")[1]
    assert not {
        field.name
        for field in dataclasses.fields(PipelineOptions)
        if f"`{field.name}`" not in section
    }


def flags_of(command):
    click = typer.main.get_command(app).commands[command]
    return {flag for parameter in click.params for flag in parameter.opts if flag.startswith("--")}


def test_every_setting_and_flag_of_serve_is_documented():
    assert not {flag for flag in flags_of("serve") if f"`{flag}`" not in API}
    assert not {flag for flag in flags_of("bench") if f"`{flag}`" not in API}
    for name in Settings.model_fields:
        assert f"`DIFFUSIONGPT_{name.upper()}`" in API


def test_every_meter_is_documented():
    metrics = Metrics()
    names = {family.name for family in metrics.registry.collect()}
    shown = {name for name in names if name.startswith("diffusiongpt_")}
    operations = (ROOT / "docs" / "OPERATIONS.md").read_text()
    assert len(shown) > 10
    assert not {name for name in shown if f"`{name}" not in operations}


def quoted_commands():
    for path in DOCUMENTS:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.M)
        for block in (text for language, text in blocks if language in ("bash", "sh")):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                yield path.name, line.split("#")[0].strip()


def test_every_quoted_command_exists():
    commands = typer.main.get_command(app).commands
    make = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = 0
    for document, line in quoted_commands():
        words = line.split()
        if "diffusiongpt" in words[:1]:
            assert words[1] in commands, (document, line)
            if words[1] not in TRAINING_COMMANDS:
                flags = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
                assert flags <= flags_of(words[1]), (document, line)
            seen += 1
        elif words[:2] == ["python", "-m"] and words[2] == "diffusiongpt.training":
            assert words[3] in TRAINING_COMMANDS, (document, line)
            seen += 1
        elif words[:1] == ["make"]:
            assert words[1] in make, (document, line)
            seen += 1
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), (document, line)
            seen += 1
    assert seen > 10


# What runs a quoted command, or one like it on something small; or why nothing does.
RUN_BY = {
    "diffusiongpt serve": "test_operations.py::test_settings_come_from_flag_variable_and_file",
    "diffusiongpt chat": "cli/test_commands.py::test_chat_answers_and_obeys_slash_commands",
    "diffusiongpt generate": "cli/test_commands.py::test_generate_prints_the_same_answer",
    "diffusiongpt bench": "cli/test_commands.py::test_bench_prints_a_table_or_json",
    "TRAIN tokenizer": "test_end_to_end.py::test_what_was_trained_is_served_to_the_openai_client",
    "TRAIN train": "test_end_to_end.py::test_what_was_trained_is_served_to_the_openai_client",
    "TRAIN sft": "test_end_to_end.py::test_what_was_trained_is_served_to_the_openai_client",
    "TRAIN export": "test_end_to_end.py::test_what_was_trained_is_served_to_the_openai_client",
    "TRAIN eval": "training/test_compare.py::test_one_table_holds_every_block_length",
    "TRAIN ngram": "training/test_evaluate.py::test_the_ngram_matches_its_formula",
    "TRAIN sweep": "training/test_sweep.py::test_a_sweep_resumes_finds_the_best",
    "TRAIN push": "training/test_publish.py::test_",
    "TRAIN harness": "training/test_harness.py::test_",
    "TRAIN convert": "training/test_backbones.py::test_",
    "curl": "test_quickstart.py::test_what_is_sent_is_answered",
    "python examples/": "test_examples.py::test_every_example_is_run",
    "python benchmarks/": "test_benchmarks.py::test_every_benchmark_is_tested",
}
NOT_RUN = {
    "make": "it makes the environment that the tests run in; what it calls is tested",
    "source": "it only puts the environment's commands on the path",
    "torchrun": "tests/training/test_runs.py starts two processes by torch's own launcher",
    "pip install": "it installs what the tests have already",
    "apt-get": "it installs a browser",
}


def test_every_quoted_command_is_run_or_says_why_not():
    ways = ("diffusiongpt", "python -m diffusiongpt.training")
    unknown, continued = [], False
    for document, line in quoted_commands():
        is_body, quotes = continued, line.count("'") % 2
        continued = continued != bool(quotes)
        words = line.split()
        if is_body or not words:
            continue
        for way in ways:
            rest = line.removeprefix(f"{way} ")
            if rest != line and rest.split()[0] in TRAINING_COMMANDS:
                line = f"TRAIN {rest}"
        if not any(line.startswith(known) for known in (*RUN_BY, *NOT_RUN)):
            unknown.append((document, line))
    assert not unknown


@pytest.mark.parametrize("command", RUN_BY)
def test_what_runs_a_quoted_command_is_there(command):
    file, _, name = RUN_BY[command].partition("::")
    assert f"def {name}" in (ROOT / "tests" / file).read_text()


def test_every_link_leads_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), (path.name, target)


def test_every_json_example_is_json_and_frames_have_the_keys_we_send():
    kinds = set()
    for path in DOCUMENTS:
        for block in re.findall(r"^```json\n(.*?)^```", path.read_text(), re.DOTALL | re.M):
            text = block.strip()
            value = json.loads(text if text.startswith("{") else "{" + text + "}")
            if "kind" in value:
                kinds.add(value["kind"])
                assert {"v", "kind", "seq", "block", "step", "steps", "masked"} <= value.keys()
    assert kinds


def test_no_document_is_empty():
    assert all(len(path.read_text()) > 200 for path in DOCUMENTS)
