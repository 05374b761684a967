"""API keys: who may use the API. Keys are kept as digests and are in no log and no answer."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from diffusiongpt.server.errors import ApiError
from diffusiongpt.server.settings import Settings, SettingsError

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="diffusiongpt"'}


class ApiKeys:
    """Keys that open the API; without any, everybody may use it."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Digests have one length, so a comparison tells nothing about a key's.
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> int:
        """The number of the key in an `Authorization` header; raises a 401 without a good one.

        Without keys everybody is number 0.
        """
        if not self._digests:
            return 0
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(
                401,
                "an API key is needed, as the header 'Authorization: Bearer KEY'",
                headers=_CHALLENGE,
            )
        number = self._find(_digest(key.strip()))
        if number is None:
            raise ApiError(
                401,
                "the API key is not one of this server's",
                code="invalid_api_key",
                headers=_CHALLENGE,
            )
        return number

    def _find(self, digest: bytes) -> int | None:
        found = None
        # All of them, always: which one fits, or that none does, takes the same time.
        for number, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = number
        return found


def read_api_keys(settings: Settings) -> ApiKeys:
    """The keys that the settings give and those in their file; raises SettingsError."""
    keys = [key.get_secret_value() for key in settings.api_keys]
    if settings.api_key_file is not None:
        keys += _read_key_file(settings.api_key_file)
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(
                f"API key {number} of {len(keys)} must be printable ASCII without spaces"
            )
    return ApiKeys(keys)


def _read_key_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise SettingsError(f"cannot read the API keys in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"the API keys in {path} must be text") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path} holds no API key; write one on each line")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
