"""POST /v1/completions and /v1/fim/completions: a text goes on, or fills what is between two."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, field_validator, model_validator

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.server.answering import read_ask, refusing, require_text, respond, start
from diffusiongpt.server.generator import Generator, Prompt
from diffusiongpt.server.models import Models
from diffusiongpt.server.protocol import MAX_CHOICES, GenerationRequest
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import TextShape
from diffusiongpt.server.wire import FieldError, Quickly, show

# OpenAI's, and what its clients count on.
DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        str | Quickly[str] | Quickly[int] | Quickly[Quickly[int]],
        Field(union_mode="left_to_right"),
    ] = Field(description="a text, token ids, or a list of one or the other")
    suffix: str | None = Field(None, description="a text after the answer (bidirectional models)")
    max_tokens: int | None = Field(None, description="length of the answer's canvas")
    echo: bool | None = Field(None, description="begin the answer with the prompt")
    logprobs: int | None = Field(
        None,
        description=f"log-probabilities, with those of 0 to {MAX_LOGPROBS} likely tokens",
    )
    best_of: int | None = Field(None, description="nothing but n")

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, prompt: Any) -> Any:
        """Say what a prompt may be, and not what each variant of it misses."""
        if isinstance(prompt, list) and len(prompt) > MAX_CHOICES and not is_token_ids(prompt):
            raise ValueError(f"prompt takes at most {MAX_CHOICES} prompts, got {len(prompt)}")
        if not _is_prompt(prompt):
            raise ValueError(
                "prompt must be a text, a list of texts, token ids or a list of lists of token "
                f"ids, got {show(prompt)}"
            )
        return prompt

    @model_validator(mode="after")
    def _honourable(self) -> CompletionRequest:
        if self.best_of not in (None, self.num_choices):
            raise FieldError(
                "best_of",
                f"best_of is not supported yet, got {self.best_of}; {self.num_choices}, which n "
                "says, is accepted",
            )
        if self.logprobs is not None and self.echo:
            raise FieldError(
                "logprobs",
                "logprobs cannot come with echo, because the model commits no token of the "
                f"prompt, got logprobs={self.logprobs}",
            )
        num_answers = len(self.prompts) * self.num_choices
        if not 1 <= num_answers <= MAX_CHOICES:
            raise FieldError(
                "prompt",
                f"prompt and n must ask for 1 to {MAX_CHOICES} answers, got {len(self.prompts)} "
                f"prompts and n={self.num_choices}",
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]

    @property
    def told(self) -> list[dict[str, Any]]:
        """Each prompt, and what comes after its answer."""
        after = [] if self.suffix is None else [self.suffix]
        return [{"role": "user", "content": [prompt, *after]} for prompt in self.prompts]

    @property
    def asked_tokens(self) -> int | None:
        """Length of the answer's canvas; None is the model's own."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Most likely tokens to tell with each token; None tells no log-probabilities."""
        return self.logprobs


class FimRequest(CompletionRequest):
    """The body of POST /v1/fim/completions, as Mercury has it."""

    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"repetition_penalty": (None, 1)}

    prompt: str = Field(description="the text before the answer")

    @property
    def asked_tokens(self) -> int | None:
        """Length of the answer's canvas; None is the model's own."""
        return self.max_tokens


def is_token_ids(value: Any) -> bool:
    """Whether a value is a list of integers."""
    return isinstance(value, list) and all(type(each) is int for each in value)


def _is_prompt(value: Any) -> bool:
    """Whether a value is one prompt, or several of a kind."""
    if isinstance(value, str) or is_token_ids(value):
        return True
    if not isinstance(value, list):
        return False
    return all(isinstance(each, str) for each in value) or all(map(is_token_ids, value))


def completion_routes(models: Models, settings: Settings) -> APIRouter:
    """The routes of text completions over all models."""
    router = APIRouter()

    async def complete(request: Request, kind: type[CompletionRequest]) -> Response:
        ask, generator = await read_ask(request, kind, models, settings)
        with refusing({}):
            require_text(generator)
            params = ask.to_params(generator.info)
            prompts = [_with_suffix(each, ask.suffix, params.max_tokens) for each in ask.prompts]
            echoes = _echoes(ask, generator)
            generations = start(generator.submit, prompts, params, ask.num_choices)
        shape = TextShape(echoes)
        return await respond(request, ask, generations, shape, generator.info, settings)

    @router.post("/v1/completions")
    async def create_completion(request: Request) -> Response:
        return await complete(request, CompletionRequest)

    @router.post("/v1/fim/completions")
    async def create_fim_completion(request: Request) -> Response:
        return await complete(request, FimRequest)

    return router


def _with_suffix(prompt: str | list[int], suffix: str | None, length: int) -> Prompt:
    return Infill(prompt, Hole(length), suffix) if suffix else prompt


def _echoes(ask: CompletionRequest, generator: Generator) -> list[str]:
    """The prompt of each choice as text, if it is to be echoed."""
    if not ask.echo:
        return []
    texts = [each if isinstance(each, str) else generator.decode(each) for each in ask.prompts]
    return [text for text in texts for _ in range(ask.num_choices)]
