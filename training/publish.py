"""An exported folder to the hub: checked first, and only what belongs to the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusiongpt.training.card import CARD_FILE, FIGURES_FILE, write_card
from diffusiongpt.training.config import ConfigError, RunError
from diffusiongpt.training.folders import load_denoiser

NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
ALSO = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "pipeline.py",
    CARD_FILE,
    FIGURES_FILE,
)


def push(
    folder: str | Path, repo: str, *, private: bool = False, dry_run: bool = False
) -> Iterator[str]:
    """Upload a folder as `owner/name`; lines on what is sent. A dry run sends nothing.

    A folder without a card gets one. Nothing but the files of a model is sent.

    Raises:
        ConfigError: the folder cannot be served, the name is not one, or there is no token.
        RunError: the hub refuses.
    """
    path = Path(folder)
    _check(path, repo)
    token = _token()
    if token is None and not dry_run:
        raise ConfigError(
            "push needs a token of the hub that may write; set HF_TOKEN or run `hf auth login`"
        )
    if not (path / CARD_FILE).is_file():
        if dry_run:
            yield f"{CARD_FILE} would be written"
        else:
            write_card(path, repo)
    files = [name for name in (*NEEDED, *ALSO) if (path / name).is_file()]
    for name in files:
        yield f"{name}: {(path / name).stat().st_size:,} bytes"
    if dry_run:
        yield f"would be sent to {repo}; there is {'a' if token else 'no'} token"
        return
    yield f"sent to {_upload(path, repo, files, token, private)}"


def _check(path: Path, repo: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"the repository must be named owner/name, got {repo!r}")
    for name in NEEDED:
        if not (path / name).is_file():
            raise ConfigError(f"{path} is no exported folder: it has no {name}")
    denoiser, _ = load_denoiser(path)
    if denoiser.objective == "causal":
        raise ConfigError(f"{path} is a next-token model, which nobody could serve")


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _upload(path: Path, repo: str, files: list[str], token: Any, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=path,
            allow_patterns=files,
            commit_message="Upload a model trained with diffusiongpt",
        )
    except (HfHubHTTPError, OSError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"{repo} could not be sent: {said[0]}") from error
    return str(url)
