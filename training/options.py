"""The options of commands that take no configuration: parsed, bounded, refused in a sentence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from diffusiongpt.training.config import ConfigError


class OptionParser(argparse.ArgumentParser):
    """argparse whose refusals are ours: one sentence, and the caller's exit status."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"diffusiongpt {command}", allow_abbrev=False)

    def parse_args(self, arguments: list[str]) -> argparse.Namespace:  # type: ignore[override]
        """The options; `--max-tokens` is `--max_tokens`, as in a configuration."""
        return super().parse_args([self._known(each) for each in arguments])

    def _known(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        other = f"--{flag.removeprefix('--').replace('-', '_')}"
        is_flag = flag.startswith("--") and flag not in self._option_string_actions
        return f"{other}{equals}{value}" if is_flag else word

    def error(self, message: str) -> NoReturn:
        """Refuse, in place of argparse's usage and exit."""
        raise ConfigError(f"{self.prog}: {message}; --help lists what it takes")


def data_parser(command: str) -> OptionParser:
    """The parser of a command that reads files."""
    parser = OptionParser(command)
    parser.add_argument("--data_dir", default=".")
    parser.add_argument("--cache_dir", default="runs/cache")
    return parser


def whole_number(least: int, most: int = 1 << 32) -> Callable[[str], int]:
    """A type of argparse: whole numbers from `least` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number in {least}..{most}, got {text!r}"
            )
        return value

    return parse


def json_mapping(text: str) -> Mapping[str, Any]:
    """A type of argparse: a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, got {text!r}: {error.msg}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def eval_options(arguments: list[str]) -> argparse.Namespace:
    """The options of `eval`; those of which one would be left unheard are refused."""
    parser = data_parser("eval")
    parser.add_argument("folder")
    parser.add_argument("files", nargs="+", help="held-out names, as in data.mix")
    parser.add_argument(
        "--draws", type=whole_number(1), default=16, help="noise levels of each row (16)"
    )
    parser.add_argument("--max_rows", type=whole_number(1), help="only the first rows")
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        help="of the noise levels and of what is written (0)",
    )
    parser.add_argument(
        "--block_length",
        type=whole_number(0),
        help="one that the model was trained with; 0 is the whole canvas",
    )
    parser.add_argument(
        "--against", nargs="+", default=[], help="other folders, for a table on the same rows"
    )
    parser.add_argument("--record", action="store_true", help="into the model card")
    for wish in ("endings", "infill", "curve"):
        parser.add_argument(f"--{wish}", action="append_const", dest="wishes", const=wish)
    parser.add_argument(
        "--fit", nargs="+", default=[], help="what the judging n-gram learns, for --curve"
    )
    parser.add_argument("--plot", help="a PNG of --curve")
    parser.add_argument(
        "--max_tokens", type=whole_number(1), default=128, help="canvas of what is written (128)"
    )
    parser.add_argument(
        "--count", type=whole_number(1), default=64, help="how many texts are written (64)"
    )
    options = parser.parse_args(arguments)
    _check_eval(options)
    return options


def _check_eval(options: argparse.Namespace) -> None:
    """Refuse options of which one would be left unheard."""
    wishes = [f"--{wish}" for wish in options.wishes or []]
    modes = [*wishes, *(["--against"] if options.against else [])]
    given = {"--record": options.record, "--fit": options.fit, "--plot": options.plot is not None}
    given["--block_length"] = options.block_length is not None
    if options.against and wishes:
        raise ConfigError(f"--against compares bounds, and cannot be given with {wishes[0]}")
    if given["--record"] and modes:
        raise ConfigError(f"--record is of a bound, and cannot be given with {modes[0]}")
    for name in ("--fit", "--plot"):
        if given[name] and "--curve" not in wishes:
            raise ConfigError(f"{name} is of --curve, which is not given")
    for mode in modes:
        if given["--block_length"] and mode != "--endings":
            raise ConfigError(f"--block_length cannot be given with {mode}")
