"""Options that several commands have: each is said once, and where it is absent the engine's
own default holds."""

from __future__ import annotations

from typing import Annotated

import typer

# How an engine is set up: fields of `EngineConfig`.
Model = Annotated[
    str | None,
    typer.Option(
        help="Model folder or hub id; the bundled model by default.", envvar="DIFFUSIONGPT_MODEL"
    ),
]
Family = Annotated[str | None, typer.Option(help="Model family, where the folder does not say.")]
DType = Annotated[str | None, typer.Option(help="auto, bfloat16 or float32; auto by default.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; cpu by default.")]
NumSlots = Annotated[int | None, typer.Option(help="Requests that may run at once; 32 by default.")]
TokenBudget = Annotated[int | None, typer.Option(help="Most tokens of one packed forward.")]
Quantize = Annotated[
    str | None, typer.Option(help="int8 or int4 weights, by torchao: less memory, not less time.")
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the model at the start: slower to start, then faster.",
    ),
]
Capture = Annotated[
    bool | None,
    typer.Option(
        "--capture/--no-capture",
        help="Replay recorded forwards (CUDA graphs); on CUDA by default.",
    ),
]
FusedHead = Annotated[
    bool | None,
    typer.Option(
        "--fused-head/--no-fused-head",
        help="Run the head and its draws as one Triton kernel; on CUDA by default.",
    ),
]
TicksPerRound = Annotated[
    int | None, typer.Option(help="Most denoising steps until the host looks; 1 by default.")
]

# How an answer is denoised: fields of `GenerationParams`.
Policy = Annotated[
    str | None, typer.Option(help="Commit policy: which masked positions are committed.")
]
Steps = Annotated[int | None, typer.Option(help="Budget of denoising steps.")]
BlockLength = Annotated[
    int | None, typer.Option(help="Positions denoised at a time; 0 is the whole canvas.")
]
Threshold = Annotated[float | None, typer.Option(help="Gate of the policy threshold.")]
Factor = Annotated[float | None, typer.Option(help="Gate of the policy factor.")]
EntropyBound = Annotated[float | None, typer.Option(help="Gate of entropy_bound, in nats.")]
Gap = Annotated[int | None, typer.Option(help="Least distance of one step's commits.")]
Temperature = Annotated[float | None, typer.Option(help="Of the token draw; 0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Truncation of the token draw.")]
TopK = Annotated[int | None, typer.Option(help="Truncation of the token draw; 0 is off.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
MaxTokens = Annotated[int | None, typer.Option(help="Length of the answer's canvas.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends the answer; repeatable.")]

Pace = Annotated[
    float, typer.Option(min=0.0, max=10.0, help="Seconds that a watched frame stays at least.")
]
