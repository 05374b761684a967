"""What the pipeline's calls may ask, and what that means to the engine. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.resolve import original_parameters

DEFAULT_BLOCK_SIZE = 128
DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What a call may ask.

    Attributes:
        num_steps: denoising steps, per block in the semi-autoregressive methods. A step commits
            at least one position, so as many steps as positions, or more, mean one at a time.
        allow_edits: give filled positions another token; None does where the model was trained
            to edit, True is refused where it was not.
        use_confidence: commit the most confident positions first, not random ones (`ancestral`).
        stop_token: one token of the tokenizer; the text ends before it, as it ends before the
            model's own end-of-text tokens.
        max_length: tokens of prompt and answer together; None is the model's own answer length,
            or 2048 in the semi-autoregressive methods.
        block_size: tokens of a block in the semi-autoregressive methods; None is the model's own
            block, or 128.
        temperature, top_p: of the token draw. seed: None draws one; prompt i of a list has
            the seed plus i.
    """

    num_steps: int = 50
    allow_edits: bool | None = None
    use_confidence: bool = False
    stop_token: str | None = None
    max_length: int | None = None
    block_size: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "max_length", "block_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidRequest(
                    f"{name} must be an integer of at least 1, got {value!r}", name
                )


def params_of(
    options: PipelineOptions, prompt_length: int, info: ModelInfo, *, by_blocks: bool
) -> GenerationParams:
    """The engine's parameters of a call; raises InvalidRequest."""
    length = _answer_length(options, prompt_length, info, by_blocks=by_blocks)
    steps = options.num_steps
    block = None if info.block_length else 0
    if by_blocks:
        block = options.block_size or info.block_length or DEFAULT_BLOCK_SIZE
        # The engine shares a budget for the whole answer among the blocks by their tokens.
        steps = max(round(length * steps / block), -(-length // block))
    return GenerationParams(
        max_tokens=length,
        steps=steps if steps < length else None,
        block_length=block,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        **original_parameters(
            use_confidence=options.use_confidence,
            allow_edits=options.allow_edits,
            can_edit=info.can_edit,
        ),
    )


def _answer_length(
    options: PipelineOptions, prompt_length: int, info: ModelInfo, *, by_blocks: bool
) -> int:
    max_length = options.max_length
    if max_length is None and by_blocks:
        max_length = DEFAULT_MAX_LENGTH
    if max_length is None:
        max_length = min(prompt_length + info.defaults.max_tokens, info.context_length)
    if max_length <= prompt_length:
        raise InvalidRequest(
            f"max_length must be greater than the prompt's {prompt_length} tokens, "
            f"got {max_length}",
            "max_length",
        )
    return max_length - prompt_length
