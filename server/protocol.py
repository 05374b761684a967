"""The wire: what a request may hold, strictly typed, our extension in one place.

A field that OpenAI defines and this server cannot honour is refused by name when its value
would change the answer, and accepted when it would not.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.draft import Pick
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.engine.params import MAX_BIASED, CacheName, EditParams, GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.server.formats import OLDER_NAMES, ResponseFormat, StructuredOutputs
from diffusiongpt.server.messages import Message, Prediction, check_results
from diffusiongpt.server.tools import (
    NamedTool,
    Tool,
    ToolChoice,
    check_choice_form,
    check_tools,
)
from diffusiongpt.server.wire import FieldError, Quickly, Wire, show

FrameMode = Literal["off", "delta", "full"]
FrameLocation = Literal["chunk", "delta"]
Effort = Literal["none", "instant", "low", "medium", "high"]
# Denoising steps for each token of the answer's canvas; "none" is about thinking alone.
EFFORTS: dict[Effort, float] = {"instant": 0.125, "low": 0.25, "medium": 0.5, "high": 1.0}
MAX_MESSAGES = 1024
MAX_CHOICES = 128
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool = False


class EditOptions(Wire):
    """When a filled position gets another token."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    threshold: float = Field(0.9, description="another token is more probable than this")
    margin: float = Field(1.0, description="and so many times as probable as the one it replaces")
    doubt: float = Field(0.0, description="mask again what a look at the full block doubts so much")
    max_rounds: int = Field(16, description="looks at a full block")

    def to_params(self) -> EditParams:
        """What the engine is asked for; raises InvalidRequest."""
        return EditParams(
            threshold=self.threshold,
            margin=self.margin,
            doubt=self.doubt,
            max_rounds=self.max_rounds,
        )


class DiffusionOptions(Wire):
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
    stable: int | None = Field(None, description="gate of stability: steps with the same top token")
    credit: float | None = Field(None, description="what credit adds, in its own policy")
    position_bias: float | None = Field(None, description="preference for positions on the left")
    remask: float | None = Field(None, description="how much the remdm policies mask again")
    gap: int | None = Field(None, description="least distance of one step's commits")
    edits: bool | EditOptions | None = Field(
        None, description="replace filled tokens, where the model can", union_mode="left_to_right"
    )
    cache: CacheName = Field("off", description="an approximation, for bidirectional models")
    strength: float | None = Field(
        None, description="share of a draft's tokens that is masked and denoised again, 0 to 1"
    )
    pick: Pick | None = Field(None, description="which tokens of a draft are masked again")
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


def check_logprobs(logprobs: bool | None, top_logprobs: int | None) -> None:
    """Refuse `top_logprobs` out of range or without `logprobs`; raises FieldError."""
    if top_logprobs is None:
        return
    if not 0 <= top_logprobs <= MAX_LOGPROBS:
        raise FieldError(
            "top_logprobs", f"top_logprobs must be in 0..{MAX_LOGPROBS}, got {top_logprobs}"
        )
    if top_logprobs and not logprobs:
        raise FieldError(
            "top_logprobs",
            f"top_logprobs needs logprobs to be true, got top_logprobs={top_logprobs}",
        )


class GenerationRequest(BaseModel):
    """What every generating route takes; each adds its own prompt.

    A route's `_UNSUPPORTED` names fields that we understand and cannot honour, with the values
    that ask for nothing; `_HARMLESS` ones that change nothing about an answer; `_HAS_DELTAS`
    says whether a frame can be inside of a delta.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    _HARMLESS: ClassVar[frozenset[str]] = frozenset({"user", "metadata", "safety_identifier"})
    _HAS_DELTAS: ClassVar[bool] = False

    model: str = Field(description="name of the served model")
    temperature: float | None = Field(None, description="of the token draw, 0 to 2")
    top_p: float | None = Field(None, description="truncation of the token draw")
    top_k: int | None = Field(None, description="truncation of the token draw, 0 is off")
    min_p: float | None = Field(None, description="truncation of the token draw, 0 is off")
    logit_bias: dict[str, float] | None = Field(
        None, description="addends of token ids' logits, -100 to 100"
    )
    frequency_penalty: float | None = Field(
        None, description="what a token's logit loses for each time the answer holds it already"
    )
    presence_penalty: float | None = Field(
        None, description="what it loses if the answer holds it already"
    )
    seed: int | None = Field(None, description="the same seed gives the same answer")
    stop: str | Quickly[str] | None = Field(None, description="strings that end the answer")
    n: int | None = Field(None, description="answers to give; answer i draws with the seed plus i")
    stream: bool | None = Field(None, description="send the answer as it settles")
    stream_options: StreamOptions | None = None
    diffusion: DiffusionOptions = Field(default_factory=lambda: DiffusionOptions())
    diffusing: bool = Field(False, description='the same as diffusion.frames "full"')
    response_format: ResponseFormat | None = Field(
        None, description="a JSON object, or what a JSON schema says"
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="what a schema, an expression, a list of texts or a grammar says"
    )

    @field_validator("n")
    @classmethod
    def _some_choices(cls, n: int | None) -> int | None:
        if n is not None and not 1 <= n <= MAX_CHOICES:
            raise ValueError(f"n must be in 1..{MAX_CHOICES}, got {n}")
        return n

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases_of_tokens(cls, bias: Any) -> Any:
        if not isinstance(bias, dict):
            return bias
        if len(bias) > MAX_BIASED:
            raise ValueError(f"logit_bias takes at most {MAX_BIASED} tokens, got {len(bias)}")
        for key in bias:
            if not _TOKEN_ID.fullmatch(key):
                raise ValueError(f"logit_bias must have token ids for keys, got {show(key)}")
        return bias

    @model_validator(mode="after")
    def _one_format(self) -> GenerationRequest:
        for name, now in OLDER_NAMES.items():
            if self.extras.get(name) is not None:
                instead = f"{now} is its name here" if now else "nothing can be chosen about it"
                raise FieldError(name, f"{name} is not supported; {instead}")
        if self.structured_outputs is None or self.response_format is None:
            return self
        if self.response_format.type != "text":
            raise FieldError(
                "structured_outputs",
                "response_format and structured_outputs contradict each other; give one",
            )
        return self

    @model_validator(mode="after")
    def _nothing_unsupported(self) -> GenerationRequest:
        for name, accepted in self._UNSUPPORTED.items():
            value = self.extras.get(name)
            if value not in accepted or (isinstance(value, bool) and False not in accepted):
                shown = " or ".join(repr(each) for each in accepted if each is not None)
                raise FieldError(
                    name,
                    f"{name} is not supported yet, got {show(value)}"
                    + (f"; {shown} is accepted" if shown else ""),
                )
        for name in ("strength", "pick"):
            value = getattr(self.diffusion, name)
            if value is not None and not self.has_draft:
                raise FieldError(
                    f"diffusion.{name}",
                    f"diffusion.{name} says how a draft is refined, the input of /v1/edits or the "
                    f"prediction of a chat, and there is none, got {value!r}",
                )
        if self.diffusion.frame_location == "delta" and not self._HAS_DELTAS:
            raise FieldError(
                "diffusion.frame_location",
                'diffusion.frame_location must be "chunk" on this route, which has no deltas, '
                'got "delta"',
            )
        return self

    @property
    def extras(self) -> dict[str, Any]:
        """Fields that are not declared."""
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

    @property
    def constraint(self) -> Constraint | None:
        """What the answer must be; raises InvalidRequest."""
        if self.structured_outputs is not None:
            return self.structured_outputs.constraint
        return None if self.response_format is None else self.response_format.constraint

    @property
    def constraints(self) -> list[Constraint]:
        """Every constraint of the request; raises InvalidRequest."""
        return [] if (constraint := self.constraint) is None else [constraint]

    @property
    def constraint_field(self) -> str:
        """The field that says so."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def asked_tokens(self) -> int | None:
        """Length of the answer's canvas; None is the model's own."""
        raise NotImplementedError

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the model is told, as messages whose `content` is a text or a list of what the
        request holds; for those who keep prompts."""
        raise NotImplementedError

    @property
    def has_draft(self) -> bool:
        """Whether the answer begins with a draft."""
        return False

    @property
    def num_logprobs(self) -> int | None:
        """Most likely tokens to tell with each token; None tells no log-probabilities."""
        return None

    def asked_steps(self, length: int, info: ModelInfo) -> int | None:
        """The budget of denoising steps for an answer of a length; None is the policy's own."""
        return self.diffusion.steps

    def to_params(self, info: ModelInfo, length: int | None = None) -> GenerationParams:
        """What the engine is asked for; raises InvalidRequest.

        Args:
            length: of the answer's canvas, where it is not what the request says or the model's.
        """
        options = self.diffusion
        if length is None:
            asked = self.asked_tokens
            length = info.defaults.max_tokens if asked is None else asked
        return GenerationParams(
            max_tokens=length,
            policy=options.policy,
            steps=self.asked_steps(length, info),
            block_length=options.block_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p or 0.0,
            logit_bias=tuple((int(key), value) for key, value in (self.logit_bias or {}).items()),
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            seed=self.seed,
            threshold=options.threshold,
            factor=options.factor,
            entropy_bound=options.entropy_bound,
            stable=options.stable,
            credit=options.credit,
            position_bias=options.position_bias,
            remask=options.remask,
            gap=options.gap,
            edits=(
                options.edits.to_params()
                if isinstance(options.edits, EditOptions)
                else options.edits
            ),
            cache=None if options.cache == "off" else options.cache,
            constraint=self.constraint,
            logprobs=self.num_logprobs,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            watch=self.frames != "off",
        )


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    _HAS_DELTAS: ClassVar[bool] = True
    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "web_search_options": (None,),
        "store": (None, False),
    }
    _HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {
            "user",
            "metadata",
            "safety_identifier",
            "service_tier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
            "verbosity",
        }
    )

    messages: Quickly[Message] = Field(description="the chat so far")
    tools: Quickly[Tool] | None = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(
        None, description="whether it may, must, or must not call one, or which one it must call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")
    max_tokens: int | None = Field(None, description="length of the answer's canvas")
    max_completion_tokens: int | None = Field(None, description="max_tokens by its newer name")
    logprobs: bool | None = Field(None, description="tell each token's log-probability")
    reasoning_effort: Effort | None = Field(
        None, description="how long it thinks, and how many denoising steps an answer may have"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="variables of the model's chat template, such as enable_thinking"
    )
    top_logprobs: int | None = Field(
        None, description=f"and those of so many likely tokens, 0 to {MAX_LOGPROBS}"
    )
    prediction: Prediction | None = Field(
        None, description="a draft that the answer begins with, in part masked again"
    )

    @field_validator("messages")
    @classmethod
    def _some_messages(cls, messages: list[Message]) -> list[Message]:
        if not 1 <= len(messages) <= MAX_MESSAGES:
            raise ValueError(
                f"messages must hold 1 to {MAX_MESSAGES} messages, got {len(messages)}"
            )
        check_results(messages)
        return messages

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _a_choice(cls, choice: Any) -> Any:
        check_choice_form(choice)
        return choice

    @model_validator(mode="after")
    def _tools_go_together(self) -> ChatRequest:
        check_tools(self.tools or [], self.tool_choice)
        return self

    @model_validator(mode="after")
    def _no_contradictions(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise FieldError(
                "max_tokens",
                f"max_tokens={self.max_tokens} and max_completion_tokens="
                f"{self.max_completion_tokens} contradict each other; give one",
            )
        if self.budget is not None and self.diffusion.steps is not None:
            raise FieldError(
                "reasoning_effort",
                f"reasoning_effort={self.reasoning_effort} and diffusion.steps="
                f"{self.diffusion.steps} contradict each other; give one",
            )
        policy = PRESETS.get(self.diffusion.policy or "")
        if self.budget is not None and policy is not None and policy.single:
            raise FieldError(
                "reasoning_effort",
                f"reasoning_effort must be absent, because {self.diffusion.policy} commits one "
                f"token a step; random takes a budget, got {self.reasoning_effort!r}",
            )
        if self.prediction is not None and self.logprobs:
            raise FieldError(
                "logprobs",
                "logprobs cannot come with prediction, because the model commits none of the "
                "tokens that are kept of it, got logprobs=True",
            )
        check_logprobs(self.logprobs, self.top_logprobs)
        return self

    @property
    def asked_tokens(self) -> int | None:
        """The length that was asked for, by whichever name."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def told(self) -> list[dict[str, Any]]:
        """The chat."""
        return [message.for_template() for message in self.messages]

    @property
    def has_draft(self) -> bool:
        """Whether a prediction is given."""
        return self.prediction is not None

    @property
    def budget(self) -> float | None:
        """Denoising steps for each token that the effort stands for, if it does."""
        return EFFORTS.get(self.reasoning_effort) if self.reasoning_effort else None

    @property
    def asked_thinking(self) -> object:
        """What the template is to be told about thinking, None where nothing is asked."""
        return (self.chat_template_kwargs or {}).get("enable_thinking")

    @property
    def template_values(self) -> dict[str, Any]:
        """The other variables of the chat template."""
        values = self.chat_template_kwargs or {}
        return {name: value for name, value in values.items() if name != "enable_thinking"}

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that it may call."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return [tool for tool in self.offered if tool.definition.name == choice.function.name]
        return self.offered

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def is_bound(self) -> bool:
        """Whether the answer is a call, or what a format says, from its first token on."""
        return self.must_call or self.constraint is not None

    @property
    def several_calls(self) -> bool:
        """Whether there may be more than one; a tool that is named is called once."""
        return self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedTool)

    def asked_steps(self, length: int, info: ModelInfo) -> int | None:
        """The budget of denoising steps; an effort is a share of the length."""
        if self.budget is None:
            return self.diffusion.steps
        share = math.ceil(length * self.budget)
        return min(max(share, self._most_blocks(length, info)), length)

    def _most_blocks(self, length: int, info: ModelInfo) -> int:
        """Blocks that an answer can have at most: each takes a step, whatever the effort."""
        block_length = self.diffusion.block_length
        if block_length is None:
            block_length = info.block_length or info.defaults.block_length
        # One more where the prompt ends within a block.
        return math.ceil(length / block_length) + 1 if block_length else 1

    @property
    def num_logprobs(self) -> int | None:
        """Most likely tokens to tell with each token; None tells no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
