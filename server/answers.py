"""What the routes answer, as a schema: the OpenAPI document is made of it, and answers are tested
against it. Nothing here makes an answer; `shapes.py` and `streaming.py` do."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(_Answer):
    """One sentence, and which parameter it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(_Answer):
    """Every error of every route."""

    error: ErrorBody


class PromptDetails(_Answer):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class CompletionDetails(_Answer):
    """How the answer's tokens came about."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    denoising_steps: int
    nfe: int
    tokens_per_forward: float


class UsageBody(_Answer):
    """OpenAI's usage."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class DenoisingSummary(_Answer):
    """What it takes to repeat an answer, and what it cost."""

    seed: int
    policy: str | None
    denoising_steps: int
    nfe: int
    tokens_per_forward: float


class UsageNote(DenoisingSummary):
    """The same in the usage chunk of a stream."""

    kind: Literal["usage"]


class Timings(_Answer):
    """llama.cpp's timings, and the first text's."""

    prompt_n: int
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    first_text_ms: float


class ChatToken(_Answer):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprobs(ChatToken):
    """A committed token with the most likely ones."""

    top_logprobs: list[ChatToken]


class ChatLogprobs(_Answer):
    """Log-probabilities of a chat choice."""

    content: list[ChatTokenLogprobs]
    refusal: None


class InfillTokenLogprobs(ChatTokenLogprobs):
    """A token of a hole with the most likely ones; holes count from 0."""

    hole: int


class InfillLogprobs(_Answer):
    """Log-probabilities of an infill's choice: those of its holes' tokens."""

    content: list[InfillTokenLogprobs]


class TextLogprobs(_Answer):
    """Log-probabilities of a text choice, OpenAI's older shape."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


Ending = Literal["stop", "length"]


class FunctionCall(_Answer):
    """A function that is called; the arguments are the JSON text of an object."""

    name: str
    arguments: str


class ToolCall(_Answer):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(_Answer):
    """The assistant's message; content is null where there are calls only."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(_Answer):
    """A choice of a chat completion."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Ending | Literal["tool_calls"]


class TextChoice(_Answer):
    """A choice of a text completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Ending


class InfillChoice(_Answer):
    """A choice of an infill, with what fills each hole, and why that ends."""

    index: int
    text: str
    logprobs: InfillLogprobs | None
    finish_reason: Ending
    fills: list[str]
    fill_finish_reasons: list[Ending]


class _WholeAnswer(_Answer):
    id: str
    created: int
    model: str
    usage: UsageBody
    diffusion: DenoisingSummary
    timings: Timings


class ChatAnswer(_WholeAnswer):
    """A whole chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextAnswer(_WholeAnswer):
    """A whole text completion."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class InfillAnswer(_WholeAnswer):
    """A whole infill."""

    object: Literal["infill"]
    choices: list[InfillChoice]


class EditAnswer(_WholeAnswer):
    """A whole edit."""

    object: Literal["edit"]
    choices: list[TextChoice]


class DiffusionFrame(_Answer):
    """A frame of a choice's canvas; which fields it has is a matter of its kind."""

    v: Literal[1]
    kind: Literal["begin", "frame", "keyframe", "commit", "end"]
    seq: int
    block: int
    step: int
    steps: int
    masked: int
    length: int | None = None
    block_length: int | None = None
    set: list[tuple[int, str, float, Literal["unmask", "edit"]]] | None = None
    unset: list[int] | None = None
    settled: int | None = None
    seed: int | None = None
    policy: str | None = None
    denoising_steps: int | None = None
    nfe: int | None = None
    tokens_per_forward: float | None = None


class IndexedFrame(DiffusionFrame):
    """A frame that knows its place among the frames of its choice; the same as `seq`."""

    index: int


class FrameInDelta(_Answer):
    """Where `frame_location` "delta" puts a frame, alone in a list."""

    diffusion: list[IndexedFrame]


class FunctionDelta(_Answer):
    """The name comes with a call's first delta, then more and more of the arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(_Answer):
    """A piece of the call number `index`."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(_Answer):
    """A piece of a chat choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    provider_specific_fields: FrameInDelta | None = None


class ChatChunkChoice(_Answer):
    """A choice of a chat chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Ending | Literal["tool_calls"] | None


class TextChunkChoice(_Answer):
    """A choice of a text chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Ending | None


class InfillChunkChoice(_Answer):
    """A choice of an infill's chunk; the last one has the fills."""

    index: int
    text: str
    logprobs: InfillLogprobs | None
    finish_reason: Ending | None
    fills: list[str] | None = None
    fill_finish_reasons: list[Ending] | None = None


class _Chunk(_Answer):
    id: str
    created: int
    model: str
    usage: UsageBody | None = None
    diffusion: DiffusionFrame | UsageNote | None = None
    timings: Timings | None = None


class ChatChunk(_Chunk):
    """An event of a chat stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class TextChunk(_Chunk):
    """An event of a text stream."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]


class InfillChunk(_Chunk):
    """An event of an infill's stream."""

    object: Literal["infill.chunk"]
    choices: list[InfillChunkChoice]


class EditChunk(_Chunk):
    """An event of an edit's stream."""

    object: Literal["edit.chunk"]
    choices: list[TextChunkChoice]


class ModelBody(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    diffusion: dict[str, Any]


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelBody]


class Health(BaseModel):
    """Whether requests are served."""

    status: str
