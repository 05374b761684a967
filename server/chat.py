"""POST /v1/chat/completions: the OpenAI chat API over a denoising engine."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.answering import read_ask, refusing, respond, start
from diffusiongpt.server.edits import make_draft
from diffusiongpt.server.errors import invalid
from diffusiongpt.server.models import Models
from diffusiongpt.server.protocol import ChatRequest
from diffusiongpt.server.reading import Reading
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import ChatShape
from diffusiongpt.server.tool_grammar import calls_or_answer, forced_calls, strict_calls


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
            calls = language_of_calls(ask, info, switch)
            if calls is not None:
                # It may take a moment, and other requests go on meanwhile.
                await asyncio.to_thread(generator.compile, calls)
            prompt = generator.encode_chat(
                [message.for_template() for message in ask.messages],
                tools=[tool.for_template() for tool in ask.offered],
                enable_thinking=switch,
            )
            params = with_calls(ask.to_params(info), ask, info, calls)
            if ask.prediction is not None:
                params = params.replace(draft=make_draft(ask.prediction.text, ask.diffusion))
            generations = start(generator.submit, [prompt], params, ask.num_choices)
        reading = reading_of(ask, info, switch, is_certain=calls is not None)
        shape = ChatShape(reading, generator.decode)
        return await respond(request, ask, generations, shape, info, settings)

    return router


def thinking_switch(ask: ChatRequest, info: ModelInfo) -> bool | None:
    """What the template is told about thinking: None is its own default.

    Raises:
        ApiError: no thinking is asked for, and the model cannot be told so.
    """
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


def language_of_calls(ask: ChatRequest, info: ModelInfo, switch: bool | None) -> Constraint | None:
    """What the answer must be a word of, as far as its calls go."""
    functions = [tool.definition for tool in ask.callable_tools]
    style = info.chat
    if ask.must_call:
        lead = ""
        if style.thinking is not None and switch in style.thinking.opened:
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
    if any(function.strict for function in functions):
        return strict_calls(functions, style.tool_format, several=ask.several_calls)
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


def reading_of(
    ask: ChatRequest, info: ModelInfo, switch: bool | None, *, is_certain: bool
) -> Reading:
    """How the answers are read."""
    style = info.chat
    # A text that must be of a format is all there is: no thought comes before it.
    thinking = style.thinking if ask.must_call or not ask.is_bound else None
    return Reading(
        thinking=thinking,
        is_open=thinking is not None and switch in thinking.opened,
        form=style.tool_format,
        names=frozenset(tool.definition.name for tool in ask.callable_tools),
        is_certain=is_certain,
    )
