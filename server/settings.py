"""The server's settings: flags of `diffusiongpt serve` or DIFFUSIONGPT_* variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """How the server listens, and what it refuses."""

    model_config = SettingsConfigDict(env_prefix="DIFFUSIONGPT_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    max_body_bytes: int = Field(1_000_000, ge=1, description="largest request body")
    drain_seconds: int = Field(
        30, ge=0, description="how long running answers may go on after a stop signal"
    )
    keep_alive_seconds: int = Field(
        15, ge=1, description="pause after which a silent stream sends a comment"
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="least level that is logged"
    )
