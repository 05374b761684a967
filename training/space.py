"""What a sweep searches: a base configuration, and for some of its keys a range or choices."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffusiongpt.training.config import ConfigError, TrainingConfig
from diffusiongpt.training.config_file import (
    TYPE_NAMES,
    from_mapping,
    load_config,
    parse_yaml,
    read_yaml,
    to_mapping,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly or (`log`) evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """A study: its name and storage, the base, the space, and how trials are judged.

    Attributes:
        base: the configuration of every trial, but for the keys of `space`.
        space: by `section.key`, a Range or a tuple of choices.
        trials: how many the study shall have in all, earlier ones included.
        workers: processes; 0 is one for each GPU, or one on the CPU.
        eval_files: held-out names as in `data.mix`; eval_draws, eval_max_rows: as of `eval`.
        eval_every_steps: how often a trial's bound is reported, and may be its end.
        startup_trials: random ones that are never pruned. warmup_steps: nothing is pruned before.
    """

    base: TrainingConfig
    space: Mapping[str, Range | tuple[Any, ...]]
    eval_files: tuple[str, ...]
    study: str = "diffusiongpt"
    storage: str = "sqlite:///runs/sweep/study.db"
    output_dir: str = "runs/sweep"
    trials: int = 20
    workers: int = 0
    eval_draws: int = 8
    eval_max_rows: int | None = None
    eval_every_steps: int = 250
    startup_trials: int = 5
    warmup_steps: int = 0


# Keys of the file that are fields of SweepConfig, with the type and the least value of each.
_PLAIN: Mapping[str, tuple[type, int | None]] = {
    "study": (str, None),
    "storage": (str, None),
    "output_dir": (str, None),
    "trials": (int, 1),
    "workers": (int, 0),
    "eval_draws": (int, 1),
    "eval_max_rows": (int, 1),
    "eval_every_steps": (int, 1),
    "startup_trials": (int, 0),
    "warmup_steps": (int, 0),
}
_KEYS = ("base", "set", "space", "eval_files", *_PLAIN)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep's file; `--key value` changes the sweep's own keys, or the base's.

    Every value of the space is put into the base once, so that a wrong name, type or bound is
    refused before anything runs.

    Raises:
        ConfigError: one sentence with the name and value.
    """
    if not Path(path).is_file():
        raise ConfigError(f"the sweep's file {str(path)!r} does not exist")
    raw = read_yaml(path)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} must hold a mapping, got {raw!r}")
    for key in raw:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r} in {path}; accepted are {', '.join(_KEYS)}")
    own, rest = _split(overrides)
    values = {key: raw[key] for key in _PLAIN if key in raw} | own
    eval_files = values.pop("eval_files", raw.get("eval_files"))
    plain = {key: _checked(key, value) for key, value in values.items()}
    base = _base(raw, Path(path), rest)
    return SweepConfig(
        base=base,
        space=_space(raw.get("space"), base),
        eval_files=_files(eval_files),
        **plain,
    )


def describe_sweep() -> Iterator[str]:
    """The keys of a sweep's own, with what they take and their defaults."""
    defaults = {each.name: each.default for each in fields(SweepConfig)}
    for key, (kind, _) in _PLAIN.items():
        yield f"{key}: {TYPE_NAMES[kind]} ({'nothing' if defaults[key] is None else defaults[key]})"
    yield "eval_files: held-out names, as in data.mix"


def with_values(base: TrainingConfig, values: Mapping[str, Any]) -> TrainingConfig:
    """`base` with the values of `section.key` names; refused like those of a file."""
    plain = copy.deepcopy(to_mapping(base))
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if not dot or section not in plain or not isinstance(plain[section], dict):
            sections = ", ".join(k for k, v in plain.items() if isinstance(v, dict))
            raise ConfigError(f"{name!r} must be named section.key; the sections are {sections}")
        plain[section][key] = value
    return from_mapping(plain)


def _base(raw: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> TrainingConfig:
    name = raw.get("base")
    if not isinstance(name, str):
        raise ConfigError(f"base in {path} must name a training configuration, got {name!r}")
    fixed = raw.get("set") or {}
    if not isinstance(fixed, Mapping) or not all("." in str(key) for key in fixed):
        raise ConfigError(f"set in {path} must be a mapping of section.key names, got {fixed!r}")
    # What is said last counts: the base, then `set`, then the command line.
    pairs = [f"--{key}={json.dumps(value)}" for key, value in fixed.items()]
    return load_config(path.parent / name, [*pairs, *overrides])


def _split(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The sweep's own keys, and the arguments that are left for the base."""
    own: dict[str, Any] = {}
    rest: list[str] = []
    words = list(overrides)
    while words:
        flag = words.pop(0)
        key, equals, inline = flag.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if flag.startswith("--") and key in ("eval_files", *_PLAIN) and (equals or words):
            own[key] = parse_yaml(f"--{key}", inline if equals else words.pop(0))
        else:
            rest.append(flag)
    return own, rest


def _checked(key: str, value: Any) -> Any:
    kind, least = _PLAIN[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{key} must be {TYPE_NAMES[kind]}, got {value!r}")
    if isinstance(value, int) and least is not None and value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")
    return value


def _files(given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"eval_files must name at least one held-out file, got {names!r}")
    return tuple(names)


def _space(raw: Any, base: TrainingConfig) -> dict[str, Range | tuple[Any, ...]]:
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(
            f"space must name at least one section.key with low and high, or choices, got {raw!r}"
        )
    space = {str(name): _choice_of(str(name), each) for name, each in raw.items()}
    for name, choice in space.items():
        ends = choice if isinstance(choice, tuple) else (choice.low, choice.high)
        for value in ends:
            with_values(base, {name: value})
    return space


def _choice_of(name: str, raw: Any) -> Range | tuple[Any, ...]:
    accepted = "low and high (and log), or choices"
    if not isinstance(raw, Mapping) or not raw.keys() <= {"low", "high", "log", "choices"}:
        raise ConfigError(f"{name} must be a mapping of {accepted}, got {raw!r}")
    if "choices" in raw:
        choices = raw["choices"]
        if len(raw) > 1 or not isinstance(choices, list) or not choices:
            raise ConfigError(f"{name} must have at least one of choices and no more, got {raw!r}")
        return tuple(choices)
    low, high = _number(raw.get("low")), _number(raw.get("high"))
    log = raw.get("log", False)
    if low is None or high is None or not isinstance(log, bool):
        raise ConfigError(f"{name} must be a mapping of {accepted}, got {raw!r}")
    if low > high or (log and low <= 0):
        raise ConfigError(f"{name} must have 0 < low with log, and low <= high, got {raw!r}")
    return Range(low=low, high=high, log=log)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-3 as a string
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None
