"""Reads a configuration from a YAML file and `--key value` overrides, and writes it as values."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diffusiongpt.training.config import (
    CHOICES,
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
        raw = read_yaml(path) or {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(raw).__name__}")
    values: dict[str, Any] = {key: _copy(value) for key, value in raw.items()}
    for key, value in _pairs(overrides):
        _set(values, key, value)
    return from_mapping(values)


def read_yaml(path: str | Path) -> Any:
    """The value that a YAML file stands for."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, and is not: {error.reason}") from error
    return parse_yaml(str(path), text)


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
        given = values.get(name)
        built[name] = _build(name, section, {} if given is None else given)
    if "stage" in values:
        built["stage"] = values["stage"]
    return TrainingConfig(**built)


def to_mapping(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain values, for a YAML file beside the weights."""
    plain = dataclasses.asdict(config)
    plain["data"]["mix"] = dict(plain["data"]["mix"])
    return plain


def describe_keys() -> Iterator[str]:
    """Every key of a configuration, by section, with what it takes and its default."""
    yield f"stage: {', '.join(CHOICES['stage'])} (pretrain)"
    for name, section in _SECTIONS.items():
        yield f"{name}:"
        hints = typing.get_type_hints(section)
        for each in dataclasses.fields(section):
            unset = each.default is dataclasses.MISSING
            default = "nothing" if unset or each.default in (None, "") else _plain(each.default)
            accepted = ", ".join(CHOICES.get(each.name, ())) or _accepted(hints[each.name])
            yield f"  {each.name}: {accepted} ({default})"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _accepted(hint: Any) -> str:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(TYPE_NAMES[typing.get_origin(option) or option] for option in options)


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
            return {key: _number(item) for key, item in value.items()}
    raise ConfigError(f"{name} must be {_accepted(hint)}, got {value!r}")


def _number(value: Any) -> Any:
    """A number where YAML 1.1 reads 1e-3 as a string; anything else stays what it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


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
        pairs.append((_underscored(key), value))
    return pairs


def _underscored(key: str) -> str:
    """`--batch-size` is `--batch_size`; a name in the mix stays what it is."""
    return key if key.startswith("data.mix.") else key.replace("-", "_")


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.key`, or a bare `key` in the one section that has it."""
    section, dot, name = key.partition(".")
    if not dot:
        if key == "stage":
            values[key] = value
            return
        owners = [s for s, cls in _SECTIONS.items() if key in typing.get_type_hints(cls)]
        if not owners:
            raise ConfigError(f"unknown option --{key}; {_meant(key)}")
        section, name = owners[0], key
    if section not in _SECTIONS:
        raise ConfigError(f"unknown option --{key}; sections are {', '.join(_SECTIONS)}")
    parent = _mapping_in(values, section)
    if section == "data" and name.startswith("mix."):
        parent, name = _mapping_in(parent, "mix"), name.removeprefix("mix.")
    parent[name] = value


def _mapping_in(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key; an empty one where there is nothing."""
    if values.get(key) is None:
        values[key] = {}
    if not isinstance(values[key], dict):
        raise ConfigError(f"{key!r} must be a mapping, got {values[key]!r}")
    found: dict[str, Any] = values[key]
    return found


def _meant(key: str) -> str:
    """What somebody who wrote an unknown key may have meant."""
    keys = [name for section in _SECTIONS.values() for name in typing.get_type_hints(section)]
    near = difflib.get_close_matches(key, keys, n=1)
    return f"did you mean --{near[0]}?" if near else "no section has this key"


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value
