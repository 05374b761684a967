"""POST /v1/chat/completions: the OpenAI chat API over a denoising engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.answering import read_ask, refusing, respond, start
from diffusiongpt.server.chat_request import ChatRequest
from diffusiongpt.server.edits import make_draft
from diffusiongpt.server.errors import ApiError, invalid
from diffusiongpt.server.generator import Generator
from diffusiongpt.server.models import Models
from diffusiongpt.server.reading import Reading
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import ChatShape
from diffusiongpt.server.tool_grammar import calls_or_answer, forced_calls, strict_calls
from diffusiongpt.server.wire import show

# Tokens at the end of a prompt that hold the mark of a thought, if it has just been opened.
_TAIL = 32


def chat_routes(models: Models, settings: Settings) -> APIRouter:
    """The chat route over all models."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        ask, generator = await read_ask(request, ChatRequest, models, settings)
        info = generator.info
        names = {"prompt": "messages", "logprobs": "top_logprobs", "draft": "prediction"}
        names["constraint"] = "tools" if ask.callable_tools else ask.constraint_field
        with refusing(names):
            switch = thinking_switch(ask, info)
            # It may take a moment, and other requests go on meanwhile.
            prompt = await asyncio.to_thread(
                generator.encode_chat,
                [message.for_template() for message in ask.messages],
                tools=[tool.for_template() for tool in ask.offered],
                enable_thinking=switch,
                chat_template_kwargs=ask.template_values,
            )
            opens = opens_thought(ask, generator, switch, prompt)
            calls = language_of_calls(ask, info, opens=opens)
            if calls is not None:
                await asyncio.to_thread(generator.compile, calls)
            params = with_calls(ask.to_params(info), ask, info, calls)
            if ask.prediction is not None:
                params = params.replace(draft=make_draft(ask.prediction.text, ask.diffusion))
            generations = start(generator.submit, [prompt], params, ask.num_choices)
        reading = reading_of(ask, info, opens=opens, is_certain=calls is not None)
        shape = ChatShape(reading, generator.decode)
        return await respond(request, ask, generations, shape, info, settings)

    return router


def thinking_switch(ask: ChatRequest, info: ModelInfo) -> bool | None:
    """What the template is told about thinking: None is its own default.

    Raises:
        ApiError: what is asked for contradicts itself, or the model cannot be told so.
    """
    derived, asked = _derived_switch(ask, info), ask.asked_thinking
    if asked is None:
        return derived
    if not isinstance(asked, bool):
        raise _wrong_thinking("must be true or false", asked)
    thinking = info.chat.thinking
    if thinking is None or not thinking.can_switch:
        if asked == (thinking is not None):
            return None
        does = "does not think" if thinking is None else "thinks before every answer"
        raise _wrong_thinking(f"must be absent, because {info.name} {does}", asked)
    if derived not in (None, asked):
        why = (
            "such an answer comes without a thought"
            if ask.is_bound
            else f"it contradicts reasoning_effort={ask.reasoning_effort}"
        )
        raise _wrong_thinking(f"must be {str(derived).lower()} here, because {why}", asked)
    return asked


def _wrong_thinking(sentence: str, value: object) -> ApiError:
    name = "chat_template_kwargs.enable_thinking"
    return invalid(f"{name} {sentence}, got {show(value)}", name)


def _derived_switch(ask: ChatRequest, info: ModelInfo) -> bool | None:
    """What the other fields say about thinking."""
    thinking = info.chat.thinking
    if thinking is None or (ask.reasoning_effort is None and not ask.is_bound):
        return None
    if thinking.can_switch:
        return not ask.is_bound and ask.reasoning_effort not in ("none", "instant")
    if ask.reasoning_effort == "none":
        raise invalid(
            f"reasoning_effort must be another one or absent, because {info.name} thinks before "
            "every answer, got 'none'",
            "reasoning_effort",
        )
    return None


def opens_thought(
    ask: ChatRequest, generator: Generator, switch: bool | None, prompt: Sequence[int]
) -> bool:
    """Whether the prompt ends within a thought that the template has opened."""
    thinking = generator.info.chat.thinking
    if thinking is None or not ask.template_values:
        return thinking is not None and switch in thinking.opened
    # Any of the template's variables may have opened it.
    return generator.decode(prompt[-_TAIL:]).rstrip().endswith(thinking.opening)


def language_of_calls(ask: ChatRequest, info: ModelInfo, *, opens: bool) -> Constraint | None:
    """What the answer must be a word of, as far as its calls go."""
    functions = [tool.definition for tool in ask.callable_tools]
    style = info.chat
    if ask.must_call:
        lead = ""
        if style.thinking is not None and opens:
            lead = style.thinking.closing + "\n\n"
        return forced_calls(functions, style.tool_format, several=ask.several_calls, lead=lead)
    if functions and ask.constraint is not None:
        if ask.structured_outputs is not None or not style.tool_format.opening:
            can = "; response_format can" if style.tool_format.opening else ""
            raise invalid(
                f"{ask.constraint_field} cannot go with tools that {info.name} may call{can}, "
                f"got {len(functions)} tools",
                ask.constraint_field,
            )
        several = ask.several_calls
        return calls_or_answer(functions, style.tool_format, ask.constraint, several=several)
    form = style.tool_format
    # Without a closing mark there is no stop string for one call at most.
    needs_limit = bool(functions) and not ask.several_calls and form.opening and not form.closing
    if needs_limit or any(function.strict for function in functions):
        return strict_calls(functions, form, several=ask.several_calls)
    return None


def with_calls(
    params: GenerationParams, ask: ChatRequest, info: ModelInfo, constraint: Constraint | None
) -> GenerationParams:
    """The parameters with what keeps calls as they must be."""
    if constraint is not None:
        return params.replace(constraint=constraint)
    closing = info.chat.tool_format.closing
    if ask.callable_tools and closing and not ask.several_calls:
        # Nothing comes after the first call.
        return params.replace(stop=(*params.stop, closing))
    return params


def reading_of(ask: ChatRequest, info: ModelInfo, *, opens: bool, is_certain: bool) -> Reading:
    """How the answers are read."""
    style = info.chat
    # A text that must be of a format is all there is: no thought comes before it.
    thinking = style.thinking if ask.must_call or not ask.is_bound else None
    return Reading(
        thinking=thinking,
        is_open=thinking is not None and opens,
        form=style.tool_format,
        functions={
            tool.definition.name: tool.definition.schema_of_arguments for tool in ask.callable_tools
        },
        is_certain=is_certain,
        is_single=not ask.several_calls,
    )
