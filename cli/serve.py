"""The command `serve`: its flags, and the settings that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusiongpt.cli.options import (
    Capture,
    Compile,
    Device,
    DType,
    Family,
    FusedHead,
    NumSlots,
    Quantize,
    TicksPerRound,
    TokenBudget,
)
from diffusiongpt.cli.refusal import fail


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Folder or hub id; NAME=PATH names it, and several may be given."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Public name of the model.")] = None,
    family: Family = None,
    dtype: DType = None,
    device: Device = None,
    num_slots: NumSlots = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    max_waiting: Annotated[
        int | None, typer.Option(help="Requests that may wait for a slot.")
    ] = None,
    token_budget: TokenBudget = None,
    cache_budget: Annotated[
        int | None, typer.Option(help="Most positions kept in caches, over all requests.")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Pad every forward alike: bit for bit the same in any company.",
        ),
    ] = None,
    quantize: Quantize = None,
    compile: Compile = None,
    capture: Capture = None,
    fused_head: FusedHead = None,
    ticks_per_round: TicksPerRound = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="A key that may use the API; repeatable.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with one such key a line.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may call; repeatable.")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request body.")] = None,
    max_choices: Annotated[
        int | None, typer.Option(help="Answers that one request may ask for by n.")
    ] = None,
    max_concurrent_per_key: Annotated[
        int | None, typer.Option(help="Requests that one key may have at once.")
    ] = None,
    body_timeout_seconds: Annotated[
        float | None, typer.Option(help="How long a request body may take to arrive.")
    ] = None,
    request_timeout_seconds: Annotated[
        float | None, typer.Option(help="How long a request may take in all.")
    ] = None,
    slow_reader_seconds: Annotated[
        float | None, typer.Option(help="How long a reader may take nothing.")
    ] = None,
    drain_seconds: Annotated[
        int | None, typer.Option(help="How long answers may go on after a stop signal.")
    ] = None,
    keep_alive_seconds: Annotated[
        int | None, typer.Option(help="Pause after which a silent stream sends a comment.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_prompts: Annotated[
        bool | None,
        typer.Option(
            "--log-prompts/--no-log-prompts",
            help="Log request bodies, prompts too, and keep prompts and answers in traces.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags and variables come first.")
    ] = None,
) -> None:
    """Serve models over the OpenAI API."""
    given = {name: value for name, value in locals().items() if value is not None}
    from diffusiongpt.cli.serving import serve_models
    from diffusiongpt.server.log import configure_logging
    from diffusiongpt.server.run import bind
    from diffusiongpt.server.settings import SettingsError, read_settings

    file = given.pop("config", None)
    # Repeatable flags are named for one of their values, settings for all.
    for flag, setting in (("api_key", "api_keys"), ("cors_origin", "cors_origins")):
        if flag in given:
            given[setting] = given.pop(flag)
    try:
        settings = read_settings(given, file)
        configure_logging(settings.log_level)
        # Before the models: a port that is taken is known in a moment.
        listener = bind(settings)
    except SettingsError as error:
        fail(str(error), code=2)
    except OSError as error:
        fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    with listener:
        serve_models(settings, listener)
