"""The commands: serve, generate, chat, bench, and the doors to training."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongpt.cli.options import (
    BlockLength,
    Capture,
    Compile,
    Device,
    DType,
    EntropyBound,
    Factor,
    Family,
    FusedHead,
    Gap,
    MaxTokens,
    Model,
    NumSlots,
    Pace,
    Policy,
    Quantize,
    Seed,
    Steps,
    Stop,
    Temperature,
    Threshold,
    TicksPerRound,
    TokenBudget,
    TopK,
    TopP,
)
from diffusiongpt.cli.refusal import fail
from diffusiongpt.cli.serve import serve

if TYPE_CHECKING:
    from diffusiongpt.engine.engine import Engine
    from diffusiongpt.engine.params import GenerationParams

app = typer.Typer(
    help="Serve, watch and train diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(serve)

# Training has its own parser, and its own --help.
HANDED_OVER: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: Model = None,
    family: Family = None,
    dtype: DType = None,
    device: Device = None,
    quantize: Quantize = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the masks filling in.")] = False,
    pace: Pace = 0.05,
    policy: Policy = None,
    steps: Steps = None,
    block_length: BlockLength = None,
    threshold: Threshold = None,
    factor: Factor = None,
    entropy_bound: EntropyBound = None,
    gap: Gap = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
) -> None:
    """Complete one prompt and print the answer."""
    engine = load_engine(model, family=family, dtype=dtype, device=device, quantize=quantize)
    options = {
        "policy": policy,
        "steps": steps,
        "block_length": block_length,
        "threshold": threshold,
        "factor": factor,
        "entropy_bound": entropy_bound,
        "gap": gap,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": tuple(stop or ()),
    }
    from diffusiongpt.cli.watching import show
    from diffusiongpt.engine.errors import EngineError

    try:
        params = make_params(engine, options)
        ids = engine.encode(prompt) if raw else engine.encode_chat(as_chat(prompt))
        show(engine.stream(ids, params), live=watch and sys.stdout.isatty(), pace=pace)
    except EngineError as error:
        fail(str(error), code=2)


@app.command()
def chat(
    model: Model = None,
    family: Family = None,
    dtype: DType = None,
    device: Device = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    policy: Policy = None,
    steps: Steps = None,
    temperature: Temperature = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    pace: Pace = 0.03,
) -> None:
    """Talk to a model and watch its answers form; /help lists the commands."""
    engine = load_engine(model, family=family, dtype=dtype, device=device)
    options = {
        "policy": policy,
        "steps": steps,
        "temperature": temperature,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    from diffusiongpt.cli.conversation import Conversation
    from diffusiongpt.engine.errors import EngineError

    try:
        make_params(engine, options)
        Conversation(engine, options, system=system, live=sys.stdout.isatty(), pace=pace).run()
    except EngineError as error:
        fail(str(error), code=2)


@app.command()
def bench(
    model: Model = None,
    family: Family = None,
    dtype: DType = None,
    device: Device = None,
    num_slots: NumSlots = None,
    token_budget: TokenBudget = None,
    compile: Compile = None,
    capture: Capture = None,
    fused_head: FusedHead = None,
    ticks_per_round: TicksPerRound = None,
    quantize: Quantize = None,
    requests: Annotated[int, typer.Option(help="Requests, all handed over at once.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(help="Length of each prompt.")] = 64,
    max_tokens: Annotated[
        list[int] | None, typer.Option(help="Length of the answers, 128; repeatable, for a mix.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Commit policy; repeatable, for a mix.")
    ] = None,
    steps: Steps = None,
    block_length: BlockLength = None,
    temperature: Temperature = None,
    seed: Annotated[int, typer.Option(help="Of the prompts and of the answers.")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds that count; one more warms up.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of the table.")] = False,
) -> None:
    """Measure throughput and latency without a server, for a mix of policies and lengths."""
    engine = load_engine(
        model,
        family=family,
        dtype=dtype,
        device=device,
        num_slots=num_slots,
        token_budget=token_budget,
        compile=compile,
        capture=capture,
        fused_head=fused_head,
        ticks_per_round=ticks_per_round,
        quantize=quantize,
        prefix_cache_bytes=0,  # a round must not find the prompts of the one before
    )
    from diffusiongpt.cli.benching import show_result
    from diffusiongpt.engine.bench import Workload, run_benchmark
    from diffusiongpt.engine.errors import EngineError

    try:
        workload = Workload(
            requests=requests,
            prompt_tokens=prompt_tokens,
            max_tokens=tuple(max_tokens or (128,)),
            policies=tuple(policy or (None,)),
            steps=steps,
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            repeats=repeats,
        )
        show_result(run_benchmark(engine, workload), as_json=as_json)
    except EngineError as error:
        fail(str(error), code=2)


@app.command(context_settings=HANDED_OVER)
def train(context: typer.Context) -> None:
    """Pre-train a model: CONFIG --key value."""
    run_training("train", context.args)


@app.command(context_settings=HANDED_OVER)
def sft(context: typer.Context) -> None:
    """Fine-tune a model on chats: CONFIG --key value."""
    run_training("sft", context.args)


@app.command(context_settings=HANDED_OVER)
def tokenizer(context: typer.Context) -> None:
    """Train a byte-level BPE tokenizer, or take another's: FILES | --source S --output_dir DIR."""
    run_training("tokenizer", context.args)


@app.command("eval", context_settings=HANDED_OVER)
def evaluate(context: typer.Context) -> None:
    """Evaluate the ELBO of a model on a fixed grid."""
    run_training("eval", context.args)


@app.command(context_settings=HANDED_OVER)
def ngram(context: typer.Context) -> None:
    """Score an n-gram baseline on the same rows as `eval`."""
    run_training("ngram", context.args)


@app.command(context_settings=HANDED_OVER)
def export(context: typer.Context) -> None:
    """Write a checkpoint as a folder that `serve` takes."""
    run_training("export", context.args)


@app.command(context_settings=HANDED_OVER)
def convert(context: typer.Context) -> None:
    """Make a pretrained encoder or decoder ready for `train`: SOURCE OUT."""
    run_training("convert", context.args)


@app.command(context_settings=HANDED_OVER)
def sweep(context: typer.Context) -> None:
    """Search for the best configuration: SWEEP.yaml --trials N --workers N --storage URL."""
    run_training("sweep", context.args)


@app.command(context_settings=HANDED_OVER)
def push(context: typer.Context) -> None:
    """Send an exported folder to the hub: FOLDER OWNER/NAME --dry-run --private."""
    run_training("push", context.args)


@app.command(context_settings=HANDED_OVER)
def harness(context: typer.Context) -> None:
    """Run tasks of lm-evaluation-harness: FOLDER TASKS --limit N --include_path DIR."""
    run_training("harness", context.args)


def run_training(command: str, arguments: list[str]) -> None:
    """Hand a command over to the training package."""
    from diffusiongpt.training.__main__ import main

    raise typer.Exit(main([command, *arguments]))


def load_engine(model: str | None, **settings: Any) -> Engine:
    """The engine around a model, or one sentence and exit; a setting that is None is not given."""
    from diffusiongpt.engine import Engine, LoadError

    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return Engine.from_pretrained(model, **given)
    except LoadError as error:
        fail(str(error))


def make_params(engine: Engine, options: dict[str, Any]) -> GenerationParams:
    """What was asked for, watched; raises InvalidRequest."""
    from diffusiongpt.engine import GenerationParams

    asked = {key: value for key, value in options.items() if value is not None}
    asked.setdefault("max_tokens", engine.info.defaults.max_tokens)
    return GenerationParams(**asked, watch=True)


def as_chat(prompt: str) -> list[dict[str, str]]:
    """A chat of one question."""
    return [{"role": "user", "content": prompt}]
