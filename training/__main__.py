"""`python -m diffusiongpt.training COMMAND ...`: the commands of the package.

tokenizer  FILE...          --data_dir D --output_dir OUT [--vocab_size N]
           --source FOLDER  another tokenizer with our special tokens, instead of FILE...
train      CONFIG.yaml      --key value ...   (also `sft`: the stage is in the configuration)
           --dry-run        says what the run costs; --explain-batch[=STEP] shows one batch
eval       FOLDER FILE...   --data_dir D [--draws N] [--max_rows N] [--block_length N]
           --record             into the folder's figures and model card
           --against FOLDER...  a table of several models on the same rows
           --endings --infill --curve --fit FILE... --plot PNG   [--max_tokens N] [--count N]
harness    FOLDER TASK...   [--include_path D] [--limit N] [--num_fewshot N] [--chat] [--draws N]
ngram      FOLDER FILE...   --data_dir D --fit FILE... [--order N]
export     SOURCE OUT       [--dtype bfloat16]
convert    SOURCE OUT       a pretrained encoder or decoder, made ready for `train`
push       FOLDER OWNER/NAME [--private] [--dry-run]   to the hub
sweep      SWEEP.yaml       --trials N --workers N --storage URL --key value ...
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from diffusiongpt.engine.errors import EngineError
from diffusiongpt.training.config import ConfigError, DataConfig, RunError, TrainingConfig
from diffusiongpt.training.config_file import describe_keys, load_config
from diffusiongpt.training.options import (
    OptionParser,
    data_parser,
    eval_options,
    json_mapping,
    whole_number,
)

HELP = ("-h", "--help")


def _train(arguments: list[str]) -> None:
    from diffusiongpt.training.run import train

    _run("train", arguments, train)


def _sft(arguments: list[str]) -> None:
    from diffusiongpt.training.run import sft

    _run("sft", arguments, sft)


def _run(command: str, arguments: list[str], train: Callable[[TrainingConfig], Path]) -> None:
    """Train, or with --dry-run or --explain-batch[=STEP] only say what would be done."""
    from diffusiongpt.training.preview import report_cost, show_batch

    if not arguments or arguments[0].startswith("--"):
        raise ConfigError(
            f"{command} needs a configuration file: {command} CONFIG.yaml --key value"
        )
    wishes, rest = _wishes(arguments[1:])
    config = load_config(arguments[0], rest)
    if "--explain-batch" in wishes:
        step = wishes["--explain-batch"] or "0"
        if not step.isdecimal():
            raise ConfigError(f"--explain-batch takes a step, got {step!r}")
        for line in show_batch(config, int(step)):
            _say(line)
    if "--dry-run" in wishes:
        if wishes["--dry-run"]:
            raise ConfigError(f"--dry-run takes no value, got {wishes['--dry-run']!r}")
        for line in report_cost(config):
            _say(line)
    if not wishes:
        _say(f"wrote {train(config)}")


def _wishes(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """What is to be said in place of training, with its values, and the other arguments."""
    wishes: dict[str, str] = {}
    rest: list[str] = []
    before = ""
    for each in arguments:
        flag, _, value = each.partition("=")
        if flag in ("--dry-run", "--explain-batch"):
            wishes[flag] = value
        elif before == "--explain-batch" and each.isdecimal():
            wishes[before] = each
        else:
            rest.append(each)
        before = each
    return wishes, rest


def _tokenizer(arguments: list[str]) -> None:
    from diffusiongpt.training.convert import adopt_tokenizer
    from diffusiongpt.training.run import make_tokenizer

    parser = data_parser("tokenizer")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--source")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--vocab_size", type=whole_number(1), default=4096)
    parser.add_argument("--max_length", type=whole_number(1), default=512)
    options = parser.parse_args(arguments)
    if bool(options.files) == bool(options.source):
        raise ConfigError(
            "tokenizer takes either names of files to learn from or --source with another "
            f"tokenizer, got the files {options.files} and the source {options.source!r}"
        )
    if options.source:
        _say(f"wrote {adopt_tokenizer(options.source, options.output_dir)}")
        return
    folder = make_tokenizer(
        options.files, options.data_dir, options.output_dir, options.vocab_size, options.max_length
    )
    _say(f"wrote {folder}")


def _eval(arguments: list[str]) -> None:
    from diffusiongpt.training.card import record_bound
    from diffusiongpt.training.judge import compare, evaluate, judge_generation

    options = eval_options(arguments)
    data = DataConfig(data_dir=options.data_dir, cache_dir=options.cache_dir)
    if options.wishes:
        for line in judge_generation(
            options.folder,
            options.files,
            data,
            options.wishes,
            options.fit,
            options.max_tokens,
            options.count,
            options.seed,
            options.plot,
            options.block_length,
        ):
            _say(line)
        return
    if options.against:
        folders = [options.folder, *options.against]
        for line in compare(
            folders, options.files, data, options.draws, options.max_rows, options.seed
        ):
            _say(line)
        return
    for name in options.files:
        bounds = evaluate(
            options.folder,
            [name],
            data,
            options.draws,
            options.max_rows,
            options.seed,
            options.block_length,
        )
        _say(f"{name}: {bounds[name]}")
        if options.record:
            record_bound(options.folder, name, bounds[name], options.block_length)


def _ngram(arguments: list[str]) -> None:
    from diffusiongpt.training.judge import ngram_baseline

    parser = data_parser("ngram")
    parser.add_argument("folder")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--fit", nargs="+", required=True)
    parser.add_argument("--order", type=whole_number(1, 64), default=5)
    parser.add_argument("--max_rows", type=whole_number(1))
    options = parser.parse_args(arguments)
    data = DataConfig(data_dir=options.data_dir, cache_dir=options.cache_dir)
    scores = ngram_baseline(
        options.folder, options.fit, options.files, data, options.order, options.max_rows
    )
    for name, score in scores.items():
        _say(f"{name}: {score}")


def _export(arguments: list[str]) -> None:
    from diffusiongpt.training.folders import export

    parser = data_parser("export")
    parser.add_argument("source")
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sampler", type=json_mapping, help="sampler defaults as JSON")
    options = parser.parse_args(arguments)
    _say(f"wrote {export(options.source, options.folder, options.dtype, options.sampler)}")


def _convert(arguments: list[str]) -> None:
    from diffusiongpt.training.convert import convert

    parser = OptionParser("convert")
    parser.add_argument("source")
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    _say(f"wrote {convert(options.source, options.folder)}")


def _sweep(arguments: list[str]) -> None:
    from diffusiongpt.training.space import load_sweep
    from diffusiongpt.training.sweep import sweep, work

    if not arguments or arguments[0].startswith("--"):
        raise ConfigError("sweep needs its file: sweep SWEEP.yaml --key value")
    is_worker = "--worker" in arguments  # how a sweep starts its other processes
    rest = [each for each in arguments if each != "--worker"]
    config = load_sweep(rest[0], rest[1:])
    if is_worker:
        work(config)
        return
    for line in sweep(config, rest):
        _say(line)


def _push(arguments: list[str]) -> None:
    from diffusiongpt.training.publish import push

    parser = OptionParser("push")
    parser.add_argument("folder")
    parser.add_argument("repo")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    for line in push(
        options.folder, options.repo, private=options.private, dry_run=options.dry_run
    ):
        _say(line)


def _harness(arguments: list[str]) -> None:
    from diffusiongpt.training.harness import run_tasks

    parser = OptionParser("harness")
    parser.add_argument("folder")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--include_path")
    parser.add_argument("--limit", type=whole_number(1))
    parser.add_argument("--num_fewshot", type=whole_number(0))
    for name, least, value in (("draws", 1, 32), ("max_tokens", 1, 128), ("seed", 0, 0)):
        parser.add_argument(f"--{name}", type=whole_number(least), default=value)
    parser.add_argument("--chat", action="store_true")
    options = parser.parse_args(arguments)
    _say(run_tasks(**vars(options)))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "tokenizer": _tokenizer,
    "train": _train,
    "sft": _sft,
    "eval": _eval,
    "ngram": _ngram,
    "export": _export,
    "convert": _convert,
    "sweep": _sweep,
    "push": _push,
    "harness": _harness,
}


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # the first of several processes speaks for all
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _quieten() -> None:
    """No bars of transformers' own, which write over ours; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    enable_progress_bars()


def _help(command: str) -> None:
    """What a command takes: of those with a configuration, every key of it."""
    usages = {
        "train": "diffusiongpt train CONFIG.yaml [--dry-run] [--explain-batch[=STEP]] --key value",
        "sft": "diffusiongpt sft CONFIG.yaml [--dry-run] [--explain-batch[=STEP]] --key value",
        "sweep": "diffusiongpt sweep SWEEP.yaml --key value",
    }
    if command not in usages:
        with suppress(SystemExit):
            COMMANDS[command](["--help"])
        return
    _say(usages[command])
    if command == "sweep":
        from diffusiongpt.training.space import describe_sweep

        _say("\n".join(describe_sweep()))
    _say("\n".join(describe_keys()))


def main(arguments: list[str]) -> int:
    """Run one command; a refusal is one sentence and status 2, a run that ends early 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if arguments and arguments[0] in HELP:
        _say(__doc__ or "")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        sys.stderr.write(f"the command must be one of {', '.join(COMMANDS)}\n")
        return 2
    try:
        return _run_command(arguments[0], arguments[1:])
    except (ConfigError, EngineError, *REFUSED) as error:
        sys.stderr.write(f"{_sentence(error)}\n")
        return 2
    except (RunError, OSError, SafetensorError) as error:
        sys.stderr.write(f"{_sentence(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


REFUSED = (
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
)


def _run_command(command: str, arguments: list[str]) -> int:
    if any(each in HELP for each in arguments):
        _help(command)
        return 0
    _quieten()
    COMMANDS[command](arguments)
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
