"""From a prompt to a request that can be started, or a refusal; starts nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from diffusiongpt.engine.canvas import Canvas, Hole, Infill, constraints_of
from diffusiongpt.engine.chat import Message
from diffusiongpt.engine.completion import Prompt
from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.languages import Language, Languages
from diffusiongpt.engine.lengths import limit_steps, with_lengths
from diffusiongpt.engine.loader import LoadedModel
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.prepare import prepare_infill, prepare_request, prepare_scaffold
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.scaffold import place_scaffold
from diffusiongpt.engine.scheduler import Scheduler
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary


class Intake:
    """Checks prompts against the model, the tokenizer and the scheduler's budgets.

    Attributes:
        languages: constraints that were compiled, where the model can keep them.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer | None,
        info: ModelInfo,
        config: EngineConfig,
        scheduler: Scheduler,
    ) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._scheduler = scheduler
        # What prompts, and texts of any use, may have at most; finer checks follow.
        self._room = max(info.context_length, config.max_tokens)
        self._ids = itertools.count()
        self.languages = _new_languages(model, tokenizer, longest=config.max_tokens)

    def as_ids(self, text: str | Sequence[int]) -> Sequence[int]:
        """Token ids of a text, or those given."""
        return self.encode(text) if isinstance(text, str) else text

    def encode(self, text: str, *, room: int | None = None) -> list[int]:
        """Token ids of a text for which there is so much room, or the most that there ever is."""
        return self.text_side().encode(text, room=room or self._room)

    def encode_chat(self, messages: Sequence[Message], **fields: Any) -> list[int]:
        """Token ids of a chat; the fields are those of `Tokenizer.encode_chat`."""
        return self.text_side().encode_chat(messages, room=self._info.context_length, **fields)

    def text_side(self) -> Tokenizer:
        """The tokenizer; raises InvalidRequest where there is none."""
        if self._tokenizer is None:
            raise InvalidRequest(
                f"{self._info.name} has no tokenizer.json, so it takes and gives token ids only",
                "prompt",
            )
        return self._tokenizer

    def prepare(self, prompt: Prompt, params: GenerationParams) -> Request:
        """Check a request and fill in its defaults, without starting it; raises InvalidRequest."""
        if params.stop and self._tokenizer is None:
            raise InvalidRequest("stop strings need a model folder with a tokenizer", "stop")
        language = self._language_of(params.constraint)
        name = f"request-{next(self._ids)}"
        if isinstance(prompt, Infill):
            for field, value in (("draft", params.draft), ("scaffold", params.scaffold)):
                if value is not None:
                    raise InvalidRequest(f"a {field} cannot come with holes, got both", field)
            parts = [self._as_part(each, params.constraint) for each in prompt.parts]
            canvas = Canvas.of_parts(parts)
            languages = [self._language_of(each) for each in constraints_of(parts)]
            request = prepare_infill(name, canvas, params, self._info, languages)
        elif params.scaffold is not None and language is not None:
            room, encode = min(params.scaffold, params.max_tokens), self.text_side().encode
            ids = self.as_ids(prompt)
            canvas, values = place_scaffold(ids, language, room, encode, self.compile)
            request = prepare_scaffold(name, canvas, values, params, self._info)
        else:
            draft_ids = () if params.draft is None else self.as_ids(params.draft.text)
            if isinstance(prompt, str):
                prompt = self.encode(prompt, room=self._info.context_length)
            request = prepare_request(name, prompt, params, self._info, draft_ids, language)
        self._check_budgets(request)
        return request

    def prepare_lengths(self, prompt: Prompt, params: GenerationParams) -> list[Request]:
        """A request for each length that a hole may have: one, if none is automatic."""
        if not isinstance(prompt, Infill):
            return [self.prepare(prompt, params)]
        return [
            self.prepare(each, limit_steps(params, each) if prompt.is_automatic else params)
            for each in with_lengths(prompt)
        ]

    def compile(self, constraint: Constraint) -> Language:
        """The language of a constraint, which is kept for the requests that have it.

        May be called from any thread; it takes a moment where a language is new.

        Raises:
            InvalidRequest: it is not supported, too large, or has no text.
        """
        if self.languages is None:
            raise InvalidRequest(
                f"a constraint needs a tokenizer and an end-of-text token, and {self._info.name} "
                "has not both",
                "constraint",
            )
        return self.languages.compile(constraint)

    def _as_part(
        self, part: str | Sequence[int] | Hole, constraint: Constraint | None
    ) -> Sequence[int] | Hole:
        """A part of an infill in token ids; a hole without a constraint has the request's."""
        if isinstance(part, Hole):
            return replace(part, constraint=part.constraint or constraint)
        return self.as_ids(part)

    def _language_of(self, constraint: Constraint | None) -> Language | None:
        return None if constraint is None else self.compile(constraint)

    def _check_budgets(self, request: Request) -> None:
        """Refuse what could never be admitted."""
        tokens, kept = self._scheduler.max_tokens(request), self._scheduler.num_kept(request)
        if tokens > self._scheduler.token_budget:
            raise InvalidRequest(
                f"prompt and max_tokens need {tokens} tokens in one forward, "
                f"more than this engine's token budget of {self._scheduler.token_budget}",
                "max_tokens",
            )
        if kept > self._scheduler.cache_budget:
            raise InvalidRequest(
                f"prompt and max_tokens need {kept} positions in the cache, "
                f"more than this engine's cache budget of {self._scheduler.cache_budget}",
                "max_tokens",
            )
        if request.blocks.max_rows > self._scheduler.row_budget:
            raise InvalidRequest(
                f"a block of {request.blocks.max_rows} positions is more than one step of this "
                f"engine may look at: its row budget is {self._scheduler.row_budget}",
                "block_length",
            )


def _new_languages(
    model: LoadedModel, tokenizer: Tokenizer | None, *, longest: int
) -> Languages | None:
    if tokenizer is None or not model.stop_token_ids:
        return None
    vocabulary = Vocabulary(
        tokenizer,
        size=model.vocab_size,
        stop_ids=frozenset(model.stop_token_ids),
        banned_ids=model.never_emit_token_ids,
    )
    return Languages(vocabulary, longest=longest)
