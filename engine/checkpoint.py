"""A checkpoint on disk: its folder, JSON files and safetensors, read with checks.

Nothing in a checkpoint is ever executed: weights are safetensors only, and `auto_map` in a
config.json is not followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusiongpt.engine.errors import LoadError

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def find_folder(model: str | Path) -> Path:
    """The folder of a checkpoint; a hub id is downloaded first, and only then.

    Raises:
        LoadError: there is no such folder, or the hub did not give the model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LoadError(f"model must be a folder or a hub id, got the file {str(model)!r}")
    # "runs/mine" beside an existing "runs" is a misspelt folder and not somebody's hub id.
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model) or path.parent.is_dir():
        raise LoadError(f"there is no model folder {str(model)!r}")
    return _download(model)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LoadError(
            f"there is no model folder {hub_id!r}, and the hub did not give a model of that id: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        LoadError: the file is missing, is not JSON, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{path.parent} has no {path.name}, so it is not a model folder") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's model.safetensors, or of the shards that its index names.

    Raises:
        LoadError: there are no safetensors, a shard is missing, or a file is damaged.
    """
    if (folder / _INDEX).is_file():
        return _read_shards(folder)
    if (folder / _WEIGHTS).is_file():
        return _read_tensors(folder / _WEIGHTS)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise LoadError(
            f"{folder} has its weights only in {pickled[0]}, a format that can run code when it "
            f"is read; convert it to {_WEIGHTS}"
        )
    raise LoadError(f"{folder} has neither {_WEIGHTS} nor {_INDEX}")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise LoadError(f"{folder / _INDEX} must have a weight_map of tensor names to files")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise LoadError(f"{folder / _INDEX} names the file {name!r}, not a .safetensors here")
        weights.update(_read_tensors(folder / name))
    absent = [name for name in weight_map if name not in weights]
    if absent:
        raise LoadError(f"the shards of {folder} lack {some(absent)}, which {_INDEX} promises")
    return weights


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise LoadError(f"{path.parent} lacks {path.name}, which {_INDEX} names") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise LoadError(f"{path} is damaged or not a safetensors file: {error}") from error


def find_token_id(folder: Path, text: str) -> int | None:
    """The id of a token spelled `text` in the folder's tokenizer.json, None if it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = read_json(path)
    for token in tokenizer.get("added_tokens") or ():
        if token["content"] == text:
            return int(token["id"])
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(vocabulary, Mapping) and text in vocabulary:
        return int(vocabulary[text])
    return None


def some(names: list[str], most: int = 3) -> str:
    """The first few of many names, for a sentence."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
