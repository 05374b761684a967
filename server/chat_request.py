"""What the request of a chat holds beside what every route takes: messages, tools, effort."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.server.messages import Message, Prediction, check_results
from diffusiongpt.server.protocol import GenerationRequest, check_logprobs
from diffusiongpt.server.tools import NamedTool, Tool, ToolChoice, check_choice_form, check_tools
from diffusiongpt.server.wire import FieldError, Quickly

Effort = Literal["none", "instant", "low", "medium", "high"]
# Denoising steps for each token of the answer's canvas; "none" is about thinking alone.
EFFORTS: dict[Effort, float] = {"instant": 0.125, "low": 0.25, "medium": 0.5, "high": 1.0}
MAX_MESSAGES = 1024


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
