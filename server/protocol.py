"""The wire: what every generating route's request may hold, strictly typed.

A field that OpenAI defines and this server cannot honour is refused by name when its value
would change the answer, and accepted when it would not.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.engine.params import MAX_BIASED, GenerationParams
from diffusiongpt.engine.scaffold import values_of_scaffold
from diffusiongpt.server.formats import OLDER_NAMES, ResponseFormat, StructuredOutputs
from diffusiongpt.server.options import DiffusionOptions, EditOptions, FrameMode, StreamOptions
from diffusiongpt.server.wire import FieldError, Quickly, show

MAX_CHOICES = 128
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


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
        if (constraint := self.constraint) is None:
            return []
        values = values_of_scaffold(constraint) if self.diffusion.scaffold else []
        return [constraint, *values]

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
            max_per_step=options.max_per_step,
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
            scaffold=options.scaffold,
            logprobs=self.num_logprobs,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            watch=self.frames != "off",
        )
