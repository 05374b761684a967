"""Reads the tokenizer of a model's folder: tokenizer.json, its config and its chat template.

What does not fit the model, or has tokens whose text depends on their neighbours, is refused before
anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from diffusiongpt.engine.chat import visible_marks
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.token_bytes import spelling_of
from diffusiongpt.engine.tokenizer import Tokenizer


def load_tokenizer(
    folder: str | Path,
    *,
    vocab_size: int,
    mask_token_id: int,
    stop_token_ids: Collection[int],
    chat_template: str | None = None,
) -> Tokenizer | None:
    """Load the tokenizer of a model folder, or None when it has no tokenizer.json.

    Args:
        folder: holds tokenizer.json, and perhaps tokenizer_config.json, chat_template.jinja.
        vocab_size: rows of the model's embedding.
        mask_token_id: the model's mask token; it and `stop_token_ids` count as special tokens
            even where the folder does not say so.
        stop_token_ids: tokens that end a completion.
        chat_template: used in place of the folder's own.

    Raises:
        LoadError: a corrupt file, a tokenizer whose tokens have no bytes of their own, or one that
            belongs to another model.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return None
    layout = _read_json(path)
    config_path = Path(folder) / "tokenizer_config.json"
    config = _read_json(config_path) if config_path.exists() else {}
    spell = spelling_of(layout, path)
    backend = _build(layout, path, special_ids={mask_token_id, *stop_token_ids})
    _check_fits(backend, config, vocab_size=vocab_size, mask_token_id=mask_token_id, path=path)
    added = backend.get_added_tokens_decoder()
    special_tokens = {token.content: i for i, token in added.items() if token.special}
    if short := [token for token in special_tokens if len(token) < 2]:
        raise LoadError(
            f"{path} has the special token {short[0]!r}, which cannot be told from text; "
            "special tokens must have at least 2 characters"
        )
    return Tokenizer(
        backend,
        token_bytes=_bytes_by_id(
            backend, spell, vocab_size, hidden={mask_token_id, *stop_token_ids}, path=path
        ),
        special_tokens=special_tokens,
        chat_template=chat_template or _find_chat_template(Path(folder), config),
        template_names=_template_names(config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _build(
    layout: dict[str, Any], path: Path, special_ids: Collection[int]
) -> tokenizers.Tokenizer:
    tokens = layout.get("added_tokens") or []
    try:
        marked = [
            {**token, "special": token["special"] or token["id"] in special_ids} for token in tokens
        ]
        return tokenizers.Tokenizer.from_str(json.dumps({**layout, "added_tokens": marked}))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise LoadError(f"{path} is not a tokenizer that can be built: {error}") from error


def _check_fits(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    mask_token_id: int,
    path: Path,
) -> None:
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise LoadError(
            f"{path} is the wrong tokenizer: it has token id {largest}, but the model's "
            f"vocabulary takes 0..{vocab_size - 1}"
        )
    mask_token = _spelling(config.get("mask_token"))
    if mask_token is None:
        return
    found = backend.token_to_id(mask_token)
    if found != mask_token_id:
        raise LoadError(
            f"{path} gives its mask token {mask_token!r} the id {found}, but the model's mask "
            f"token id is {mask_token_id}"
        )


def _bytes_by_id(
    backend: tokenizers.Tokenizer,
    spell: Callable[[str], bytes],
    vocab_size: int,
    hidden: Collection[int],
    path: Path,
) -> list[bytes]:
    """The bytes of every token, b"" for special tokens and for rows without a token."""
    table = [b""] * vocab_size
    added = backend.get_added_tokens_decoder()
    for token, token_id in backend.get_vocab(with_added_tokens=False).items():
        if token_id in hidden or token_id in added:
            continue
        try:
            table[token_id] = spell(token)
        except KeyError as error:
            raise LoadError(
                f"{path} is not byte-level: token {token_id} is {token!r}, and {error} "
                "stands for no byte"
            ) from error
    visible = visible_marks()
    for token_id, entry in added.items():
        is_hidden = token_id in hidden or (entry.special and entry.content not in visible)
        table[token_id] = b"" if is_hidden else entry.content.encode("utf-8")
    return table


def _spelling(token: object) -> str | None:
    """A token of tokenizer_config.json, which is text or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template_names(config: Mapping[str, Any]) -> dict[str, str]:
    """What a chat template may call by name: bos_token, eos_token and the like."""
    spellings = {name: _spelling(value) for name, value in config.items()}
    return {
        name: spelling
        for name, spelling in spellings.items()
        if spelling is not None and name.endswith("_token")
    }


def _find_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
