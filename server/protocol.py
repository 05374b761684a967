"""The wire: what a request may hold, strictly typed, our extension in one place.

A field that OpenAI defines and this server cannot honour is refused by name when its value
would change the answer, and accepted when it would not.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FrameMode = Literal["off", "delta", "full"]
FrameLocation = Literal["chunk", "delta"]
MAX_MESSAGES = 1024


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class TextPart(_Wire):
    """A content part; only text can be read."""

    type: str
    text: str = ""

    @model_validator(mode="after")
    def _only_text(self) -> TextPart:
        if self.type != "text":
            raise ValueError(f"content parts must have type 'text', got {self.type!r}")
        return self


class Message(_Wire):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], Field(union_mode="left_to_right")]

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_Wire):
    """Options of a streamed answer."""

    include_usage: bool = False


class DiffusionOptions(_Wire):
    """How the answer is denoised; the extension object `diffusion`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    policy: str | None = Field(None, description="which masked positions are committed in a step")
    steps: int | None = Field(None, description="budget of denoising steps")
    block_length: int | None = Field(
        None, description="positions denoised at a time, 0 for the whole canvas"
    )
    threshold: float | None = Field(None, description="gate of the policy threshold")
    factor: float | None = Field(None, description="gate of the policy factor")
    entropy_bound: float | None = Field(None, description="gate of entropy_bound, in nats")
    gap: int | None = Field(None, description="least distance of one step's commits")
    edits: bool | dict[str, Any] = Field(False, description="only false, for now")
    cache: str = Field("off", description='only "off", for now')
    frames: FrameMode = Field("off", description="changes only, or the whole canvas each time")
    frame_interval: int = Field(1, ge=1, description="send every so many frames")
    frame_location: FrameLocation = Field("chunk", description="where a frame is in its chunk")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(
                        f"diffusion has no key {key!r}; it takes {', '.join(cls.model_fields)}"
                    )
        return data

    @model_validator(mode="after")
    def _only_what_works(self) -> DiffusionOptions:
        if self.edits is not False:
            raise ValueError(
                f"diffusion.edits must be false, as edits are not served yet, got {self.edits!r}"
            )
        if self.cache != "off":
            raise ValueError(
                f'diffusion.cache must be "off", as caches are not served yet, got {self.cache!r}'
            )
        return self


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    # What each of these must be while we cannot honour anything else.
    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "n": (None, 1),
        "logprobs": (None, False),
        "top_logprobs": (None, 0),
        "logit_bias": (None, {}),
        "frequency_penalty": (None, 0),
        "presence_penalty": (None, 0),
        "tools": (None, []),
        "functions": (None, []),
        "tool_choice": (None, "none", "auto"),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "web_search_options": (None,),
        "store": (None, False),
        "reasoning_effort": (None,),
    }
    # What changes nothing about an answer, here or at OpenAI's.
    _HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {
            "user",
            "metadata",
            "safety_identifier",
            "service_tier",
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
            "verbosity",
        }
    )

    model: str = Field(description="name of the served model")
    messages: list[Message] = Field(description="the chat so far")
    max_tokens: int | None = Field(None, description="length of the answer's canvas")
    max_completion_tokens: int | None = Field(None, description="the same, by its newer name")
    temperature: float | None = Field(None, description="of the token draw, 0 to 2")
    top_p: float | None = Field(None, description="truncation of the token draw")
    top_k: int | None = Field(None, description="truncation of the token draw, 0 is off")
    seed: int | None = Field(None, description="the same seed gives the same answer")
    stop: str | list[str] | None = Field(None, description="strings that end the answer")
    stream: bool | None = Field(None, description="send the answer as it settles")
    stream_options: StreamOptions | None = None
    diffusion: DiffusionOptions = Field(default_factory=lambda: DiffusionOptions())
    diffusing: bool = Field(False, description='the same as diffusion.frames "full"')

    @field_validator("messages")
    @classmethod
    def _some_messages(cls, messages: list[Message]) -> list[Message]:
        if not 1 <= len(messages) <= MAX_MESSAGES:
            raise ValueError(
                f"messages must hold 1 to {MAX_MESSAGES} messages, got {len(messages)}"
            )
        return messages

    @model_validator(mode="after")
    def _only_what_works(self) -> ChatRequest:
        for name, accepted in self._UNSUPPORTED.items():
            value = self.extras.get(name)
            if value not in accepted or (isinstance(value, bool) and False not in accepted):
                shown = " or ".join(repr(each) for each in accepted if each is not None)
                raise ValueError(
                    f"{name} is not supported yet, got {value!r}"
                    + (f"; {shown} is accepted" if shown else "")
                )
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError(
                f"max_tokens={self.max_tokens} and max_completion_tokens="
                f"{self.max_completion_tokens} contradict each other; give one"
            )
        return self

    @property
    def extras(self) -> dict[str, Any]:
        """Fields that are not declared above."""
        return self.model_extra or {}

    @property
    def ignored(self) -> list[str]:
        """Names of fields that neither we nor OpenAI know."""
        known = self._UNSUPPORTED.keys() | self._HARMLESS
        return sorted(name for name in self.extras if name not in known)

    @property
    def frames(self) -> FrameMode:
        """Which frames the answer carries."""
        if self.diffusing and self.diffusion.frames == "off":
            return "full"
        return self.diffusion.frames
