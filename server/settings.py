"""The settings of `diffusiongpt serve`: flags, DIFFUSIONGPT_* variables, a TOML file, defaults.

The first of these that names a setting decides. What nobody knows, and what has a bad value,
stops the start with one sentence.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

PREFIX = "DIFFUSIONGPT_"
# Names the file itself, so it cannot be in it.
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
_ORIGIN = re.compile(r"\*|https?://[^/\s,]+")
_MODEL_NAME = re.compile(r"[\w.-]+")


class SettingsError(ValueError):
    """Settings that the server cannot start with, in one sentence."""


class ModelSource(NamedTuple):
    """A model to serve: its public name, if given, and its folder or hub id, if not bundled."""

    name: str | None
    path: str | None


def _split(value: object) -> object:
    """Variables and plain strings list several values with commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """What is served, how the server listens, and what it refuses. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=False
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    api_keys: Secrets = Field((), description="keys that may use the API; none: everybody may")
    api_key_file: Path | None = Field(None, description="a file with one such key a line")
    cors_origins: Texts = Field((), description='origins whose pages may call, or "*"')
    max_body_bytes: int = Field(1_000_000, ge=1, description="largest request body")
    max_choices: int = Field(128, ge=1, description="answers that one request may ask for by n")
    max_concurrent_per_key: int | None = Field(
        None, ge=1, description="requests that one key may have at once"
    )
    body_timeout_seconds: float = Field(
        20.0, gt=0, description="how long a request body may take to arrive"
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="how long a request may take in all"
    )
    slow_reader_seconds: float = Field(
        30.0, gt=0, description="how long a reader may take nothing before it is cut off"
    )
    drain_seconds: int = Field(
        30, ge=0, description="how long running answers may go on after a stop signal"
    )
    keep_alive_seconds: int = Field(
        15, ge=1, description="pause after which a silent stream sends a comment"
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="least level that is logged"
    )
    log_prompts: bool = Field(
        False,
        description="log the bodies of requests, prompts included, and keep prompts and answers "
        "in traces",
    )

    model: Texts = Field((), description="folders or hub ids, NAME=PATH to name them")
    name: str | None = Field(None, description="public name of the model, if there is one")
    family: str | None = Field(None, description="model family, where the folder does not say")
    dtype: str = Field(
        "auto", pattern="^(auto|bfloat16|float32)$", description="of weights and activations"
    )
    device: str = Field("cpu", description="cpu or cuda")
    num_slots: int = Field(32, ge=1, description="requests that may run at once, for each model")
    max_tokens: int = Field(4096, ge=1, description="longest answer")
    max_waiting: int = Field(256, ge=1, description="requests that may wait for a slot")
    token_budget: int | None = Field(None, ge=1, description="most tokens of one packed forward")
    cache_budget: int | None = Field(None, ge=1, description="most positions kept in caches")
    compile: bool = Field(False, description="compile the model at the start")
    capture: bool | None = Field(None, description="replay recorded forwards (CUDA graphs)")
    fused_head: bool | None = Field(None, description="the head as one Triton kernel (CUDA)")
    ticks_per_round: int = Field(1, ge=1, description="most steps until the host looks")
    quantize: str | None = Field(
        None, pattern="^(int8|int4)$", description="weights of the layers in so few bits"
    )
    deterministic: bool = Field(False, description="the same bits in any company")

    @field_validator("api_keys")
    @classmethod
    def _some_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        # An empty list would open the server to everybody, against what was meant.
        if not keys:
            raise ValueError("needs at least one key, or must be left out")
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _only_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"takes * or origins such as https://example.org, got {origin!r}")
        return origins

    @property
    def models(self) -> list[ModelSource]:
        """The models to serve; raises SettingsError where their names cannot be told apart."""
        sources = [_read_source(text) for text in self.model] or [ModelSource(None, None)]
        if self.name is not None:
            if len(sources) > 1 or sources[0].name is not None:
                raise SettingsError(
                    f"name={self.name!r} is for one model; write NAME=PATH for each instead"
                )
            return [ModelSource(self.name, sources[0].path)]
        names = [source.name for source in sources]
        if len(sources) > 1 and (None in names or len(set(names)) < len(names)):
            raise SettingsError(
                f"several models need names of their own, NAME=PATH, got {', '.join(self.model)}"
            )
        return sources

    @property
    def engine_fields(self) -> dict[str, Any]:
        """The fields of `EngineConfig`, the model and its name left out."""
        names = (
            "family",
            "dtype",
            "device",
            "num_slots",
            "max_tokens",
            "max_waiting",
            "token_budget",
            "cache_budget",
            "deterministic",
            "compile",
            "capture",
            "fused_head",
            "ticks_per_round",
            "quantize",
        )
        return {name: getattr(self, name) for name in names}


def _read_source(text: str) -> ModelSource:
    """NAME=PATH or PATH; a folder whose own name has an equals sign stays a path."""
    name, equals, path = text.partition("=")
    if equals and path and _MODEL_NAME.fullmatch(name) and not Path(text).exists():
        return ModelSource(name, path)
    return ModelSource(None, text)


def read_settings(flags: Mapping[str, Any], file: str | Path | None = None) -> Settings:
    """Settings from flags, then variables, then the file, then defaults.

    Args:
        flags: what was given on the command line, and only that.
        file: a TOML file; None takes the one that DIFFUSIONGPT_CONFIG names, if any.

    Raises:
        SettingsError: an unknown key, a bad value, or a file that cannot be read.
    """
    file = file or os.environ.get(CONFIG_VARIABLE)
    written = {} if file is None else _read_file(Path(file))
    _refuse_unknown_variables()

    class FromAll(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, written)

    try:
        settings = FromAll(**flags)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error
    _ = settings.models  # refuses what cannot be served together
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read the settings in {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    for key in values:
        if key not in Settings.model_fields:
            raise SettingsError(
                f"{path} has an unknown setting {key!r}; it takes "
                f"{', '.join(Settings.model_fields)}"
            )
    return values


def _refuse_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {CONFIG_VARIABLE}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            raise SettingsError(
                f"the environment has an unknown setting {variable}; known are "
                f"{', '.join(sorted(known))}"
            )


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's errors; a key that was given is never part of it."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    if first["type"] == "value_error" or name == "api_keys":
        return f"{name} {message}"
    return f"{name}: {message[:1].lower()}{message[1:]}, got {first['input']!r}"
