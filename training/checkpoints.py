"""Which checkpoint a run goes on from, and whether it is still the same run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from diffusiongpt.training.config import ConfigError, TrainingConfig
from diffusiongpt.training.config_file import from_mapping, read_yaml, to_mapping

CONFIG_FILE = "config.yaml"
ROWS_FILE = "rows.txt"
_STATE_FILE = "trainer_state.json"  # the Trainer writes it last

# What may change from one part of a run to the next: it moves no weight, or moves the run's end.
_FREE = {
    "model.init_from",  # the checkpoint's weights take its place
    *(f"data.{key}" for key in ("data_dir", "tokenizer", "cache_dir")),
    *(
        f"run.{key}"
        for key in (
            "output_dir",
            "max_steps",
            "max_minutes",
            "target_param_data_ratio",
            "compile",
            "fsdp",
            "gradient_checkpointing",
            "save_every_minutes",
            "save_steps",
            "log_steps",
            "sample_steps",
            "resume",
            "report_to",
            "progress_bar",
            "dataloader_workers",
        )
    ),
}

logger = logging.getLogger(__name__)


def last_checkpoint(folder: str | Path) -> str | None:
    """The checkpoint of the most steps that was written to its end, or None."""
    found = sorted(_numbered(Path(folder)), reverse=True)
    return next((str(path) for _, path in found if _is_whole(path)), None)


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            yield int(match[1]), path


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def forget_checkpoints(folder: str | Path) -> None:
    """Remove what an earlier run, or a save that was cut off, left where a new run begins."""
    for _, path in list(_numbered(Path(folder))):
        logger.info("removing %s: the run begins anew", path)
        shutil.rmtree(path)


def check_same(config: TrainingConfig, folder: str | Path) -> None:
    """Refuse to go on with a run whose configuration has changed in what it computes.

    Raises:
        ConfigError: names the keys that differ, with both values.
    """
    path = Path(folder, CONFIG_FILE)
    if not path.is_file():
        return
    before = to_mapping(from_mapping(read_yaml(path) or {}))
    changes = dict(_differences(before, to_mapping(config)))
    refused = {key: text for key, text in changes.items() if key not in _FREE}
    if refused:
        raise ConfigError(
            f"{folder} holds a run with another configuration: {', '.join(refused.values())}; "
            f"pass --resume false to begin anew, or another --output_dir"
        )
    for text in changes.values():
        logger.info("resuming with %s", text)


def check_same_rows(fingerprint: str, folder: str | Path) -> None:
    """Refuse to go on with a run on other rows than it began with.

    Raises:
        ConfigError: says what both are.
    """
    path = Path(folder, ROWS_FILE)
    before = path.read_text(encoding="utf-8") if path.is_file() else fingerprint
    if before != fingerprint:
        raise ConfigError(
            f"{folder} holds a run on other data: {before}, now {fingerprint}; the texts or the "
            "tokenizer have changed; pass --resume false to begin anew, or another --output_dir"
        )


def remember_run(config: TrainingConfig, fingerprint: str | None, folder: str | Path) -> None:
    """Write what a run computes, and on which rows, for those who resume it."""
    plain = yaml.safe_dump(to_mapping(config), sort_keys=False)
    for name, text in ((CONFIG_FILE, plain), (ROWS_FILE, fingerprint)):
        if text is not None:  # a stream has no rows before it is read
            partial = Path(folder, f"{name}.partial")  # a run may be killed at any time
            partial.write_text(text, encoding="utf-8")
            partial.rename(Path(folder, name))


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """(key, "key was a, is b") of each value that is not the same."""
    for key in {**before, **after}:
        old, new, name = before.get(key), after.get(key), f"{prefix}{key}"
        if name.count(".") < 1 and isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{name}.")
        elif _plain(old) != _plain(new):
            yield name, f"{name} was {_plain(old)}, is {_plain(new)}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
