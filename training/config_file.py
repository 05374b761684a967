"""Reads a configuration from a YAML file and `--key value` overrides, and writes it as values."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diffusiongpt.training.config import (
    ConfigError,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)

_SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "diffusion": DiffusionConfig,
    "run": RunConfig,
}


TYPE_NAMES: dict[Any, str] = {
    type(None): "nothing",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of whole numbers",
    Mapping: "a mapping",
}


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read the YAML file at `path` and apply `--key value` (or `--section.key value`) overrides."""
    raw: Any = {}
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"the configuration file {str(path)!r} does not exist")
        raw = parse_yaml(str(path), Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(raw).__name__}")
    values: dict[str, Any] = {key: _copy(value) for key, value in raw.items()}
    for key, value in _pairs(overrides):
        _set(values, key, value)
    return from_mapping(values)


def parse_yaml(name: str, text: str) -> Any:
    """The value that a YAML text stands for; `name` says in a refusal where it is from."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} must be YAML, and cannot be read: {reason}") from error


def from_mapping(values: Mapping[str, Any]) -> TrainingConfig:
    """Build the configuration from nested mappings; unknown keys and bad types are refused."""
    known = {"stage", *_SECTIONS}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}; accepted are {', '.join(sorted(known))}")
    built: dict[str, Any] = {}
    for name, section in _SECTIONS.items():
        built[name] = _build(name, section, values.get(name) or {})
    if "stage" in values:
        built["stage"] = values["stage"]
    return TrainingConfig(**built)


def to_mapping(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain values, for a YAML file beside the weights."""
    plain = dataclasses.asdict(config)
    plain["data"]["mix"] = dict(plain["data"]["mix"])
    return plain


def _build(name: str, section: type[Any], values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"section {name!r} must be a mapping, got {values!r}")
    hints = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in hints:
            accepted = ", ".join(sorted(hints))
            raise ConfigError(f"unknown key {name}.{key}; accepted are {accepted}")
        if value == "???":
            raise ConfigError(f"{name}.{key} has no value; pass --{key} VALUE")
    return section(
        **{key: _convert(f"{name}.{key}", value, hints[key]) for key, value in values.items()}
    )


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type the field asks for: strings from the command line are parsed."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is float and isinstance(value, str):
            try:  # YAML 1.1 reads 1e-3 as a string
                return float(value)
            except ValueError:
                continue
        if option is str and isinstance(value, str | int | float):
            return str(value)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
                return tuple(value)
            continue
        if typing.get_origin(option) is not None and isinstance(value, Mapping):
            return dict(value)
    accepted = " or ".join(TYPE_NAMES[typing.get_origin(option) or option] for option in options)
    raise ConfigError(f"{name} must be {accepted}, got {value!r}")


def _pairs(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"expected --key value, got {flag!r}")
        key, equals, inline = flag[2:].partition("=")
        if not equals and not rest:
            raise ConfigError(f"--{key} needs a value")
        value = parse_yaml(f"--{key}", inline if equals else rest.pop(0))
        pairs.append((key.replace("-", "_"), value))
    return pairs


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.key`, or a bare `key` in the one section that has it."""
    section, dot, name = key.partition(".")
    if not dot:
        if key == "stage":
            values[key] = value
            return
        owners = [s for s, cls in _SECTIONS.items() if key in typing.get_type_hints(cls)]
        if not owners:
            raise ConfigError(f"unknown option --{key}; no section has this key")
        section, name = owners[0], key
    parent = values.setdefault(section, {})
    while "." in name and section in _SECTIONS and name.split(".")[0] == "mix":
        first, _, name = name.partition(".")
        parent = parent.setdefault(first, {})
    parent[name] = value


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value
