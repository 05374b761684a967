"""The engine: prompts in, frames out, many requests at different steps in one batch.

Knows text, token ids and tensors; knows no HTTP. Not thread-safe: one caller turns `step`
(see `worker.py` for serving from asyncio).
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.engine.canvas import Canvas, Hole, Infill
from diffusiongpt.engine.captured import LARGEST_BUCKET
from diffusiongpt.engine.chat import Message
from diffusiongpt.engine.completion import Completion, Prompt, as_prompts, complete
from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.describe import (
    caches_blocks,
    captures_forwards,
    describe_model,
    prefix_cache_bytes_of,
    token_budget_of,
)
from diffusiongpt.engine.doubt import open_draft
from diffusiongpt.engine.draft import OpenedDraft
from diffusiongpt.engine.errors import EngineFailure, InvalidRequest, LoadError
from diffusiongpt.engine.frame import FinishReason, Frame, TokenChange
from diffusiongpt.engine.frontier import Frontier
from diffusiongpt.engine.holes import HoledText
from diffusiongpt.engine.languages import Language, Languages
from diffusiongpt.engine.lengths import best_length, limit_steps, with_lengths
from diffusiongpt.engine.loader import LoadedModel, load_model
from diffusiongpt.engine.pages import PageStore
from diffusiongpt.engine.params import GenerationParams, seeds_of
from diffusiongpt.engine.report import (
    changes_of,
    frame_of,
    last_frame,
    note_certain,
    note_logprobs,
)
from diffusiongpt.engine.request import Request, prepare_infill, prepare_request
from diffusiongpt.engine.running import Running
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.scheduler import Scheduler, describe_batch
from diffusiongpt.engine.score import Score, ScoreMethod, score_tokens
from diffusiongpt.engine.slots import SlotTable
from diffusiongpt.engine.step import denoise
from diffusiongpt.engine.text import TextCanvas, TextUpdate
from diffusiongpt.engine.tokenizer import Tokenizer, load_tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary

BUNDLED_MODEL = Path(__file__).parent / "bundled"
BUNDLED_NAME = "diffusiongpt-bundled"
# Ticks that may fail in a row before the engine says that it cannot serve.
_MAX_FAILURES = 3


class Engine:
    """Serves one model; build it with `Engine.from_pretrained`."""

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer | None, config: EngineConfig
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.failure: str | None = None
        self._model = model
        self._failures = 0
        self._ids = itertools.count()
        self._aborted: list[Request] = []
        self.info = describe_model(model, config)
        if tokenizer is not None:
            self.info = replace(self.info, chat=tokenizer.chat_style)
        self._token_budget = token_budget_of(config, self.info)
        self._row_budget = config.row_budget or self._token_budget
        self._stop_ids = frozenset(model.stop_token_ids)
        self._languages = self._new_languages()
        banned = torch.tensor(sorted(model.never_emit_token_ids), device=config.device)
        self._head = Head(
            model.head,
            banned,
            chunk=config.head_chunk,
            pad=config.deterministic,
            delete_token_id=model.delete_token_id,
        )
        if config.compile:
            self._head.compile(model.vocab_size)
        longest_block = max(self.info.block_length or 0, *self.info.block_lengths, 0)
        capacity = self.info.context_length + config.max_tokens + longest_block
        table = SlotTable(
            config.num_slots,
            capacity,
            mask_token_id=model.mask_token_id,
            device=config.device,
        )
        self._scheduler = Scheduler(
            table=table,
            token_budget=self._token_budget,
            cache_budget=config.cache_budget or 4 * self._token_budget,
            row_budget=self._row_budget,
            max_waiting=config.max_waiting,
            uses_cache=caches_blocks(model, config),
            pages=self._new_pages(),
            logit_shift=model.logit_shift,
        )

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **settings: Any) -> Engine:
        """Load a model folder, a hub id, or (None) the bundled model.

        Args:
            settings: fields of `EngineConfig`.

        Raises:
            LoadError: one sentence on what does not fit.
        """
        name = settings.pop("name", None)
        if model is None:
            model, name = BUNDLED_MODEL, name or BUNDLED_NAME
        config = EngineConfig(model=str(model), name=name, **settings)
        loaded = load_model(
            model, family=config.family, dtype=config.dtype, device=config.device, name=name
        )
        if config.quantize is not None:
            loaded.quantize(config.quantize)
        if config.compile:
            loaded.compile()
        if captures_forwards(loaded, config):
            _capture(loaded, config)
        tokenizer = load_tokenizer(
            loaded.folder,
            vocab_size=loaded.vocab_size,
            mask_token_id=loaded.mask_token_id,
            stop_token_ids=loaded.stop_token_ids,
            chat_template=loaded.chat_template,
        )
        return cls(loaded, tokenizer, config)

    def _new_pages(self) -> PageStore | None:
        num_bytes = prefix_cache_bytes_of(self.config)
        if not num_bytes or not caches_blocks(self._model, self.config):
            return None
        return PageStore(self.info.block_length or 0, num_bytes)

    def _new_languages(self) -> Languages | None:
        if self.tokenizer is None or not self._stop_ids:
            return None
        vocabulary = Vocabulary(
            self.tokenizer,
            size=self._model.vocab_size,
            stop_ids=self._stop_ids,
            banned_ids=self._model.never_emit_token_ids,
        )
        return Languages(vocabulary, longest=self.config.max_tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens spelled out in it are ordinary text."""
        return self._text_side().encode(text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat, ready for the assistant's answer; see `Tokenizer.encode_chat`."""
        return self._text_side().encode_chat(
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            chat_template_kwargs=chat_template_kwargs,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""
        return self._text_side().decode(token_ids)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits (T, V) float32 of one canvas, before any shift or ban."""
        return self._model.logits(token_ids)

    def score(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        prompt: str | Sequence[int] = (),
        method: ScoreMethod = "bound",
        draws: int = 16,
        seed: int = 0,
    ) -> list[Score]:
        """How likely the model finds each text (or token ids) after the prompt.

        Args:
            method: "bound" estimates the evidence lower bound with `draws` noise levels,
                "leave_one_out" sums each token's NLL given all the others.

        Raises:
            InvalidRequest: a text is empty or longer than the context.
        """
        given = self._as_ids(prompt)
        return [
            score_tokens(
                self._model,
                self._head,
                given,
                self._as_ids(text),
                method=method,
                draws=draws,
                seed=seed,
                token_budget=self._token_budget,
                num_bytes=len(text.encode()) if isinstance(text, str) else None,
            )
            for text in ([texts] if isinstance(texts, str) else texts)
        ]

    def _as_ids(self, text: str | Sequence[int]) -> Sequence[int]:
        return self.encode(text) if isinstance(text, str) else text

    def prepare(self, prompt: Prompt, params: GenerationParams | None = None) -> Request:
        """Check a request and fill in its defaults, without starting it; raises InvalidRequest."""
        params = params or GenerationParams()
        if params.stop and self.tokenizer is None:
            raise InvalidRequest("stop strings need a model folder with a tokenizer", "stop")
        language = self._language_of(params.constraint)
        name = f"request-{next(self._ids)}"
        if isinstance(prompt, Infill):
            if params.draft is not None:
                raise InvalidRequest("a draft cannot come with holes, got both", "draft")
            parts = [p if isinstance(p, Hole) else self._as_ids(p) for p in prompt.parts]
            languages = [self._language_of(hole.constraint) or language for hole in prompt.holes]
            canvas = Canvas.of_parts(parts)
            request = prepare_infill(name, canvas, params, self.info, languages)
        else:
            draft_ids = () if params.draft is None else self._as_ids(params.draft.text)
            ids = self._as_ids(prompt)
            request = prepare_request(name, ids, params, self.info, draft_ids, language)
        self._check_budgets(request)
        return request

    def _check_budgets(self, request: Request) -> None:
        """Refuse what could never be admitted."""
        tokens, kept = self._scheduler.max_tokens(request), self._scheduler.num_kept(request)
        if tokens > self._token_budget:
            raise InvalidRequest(
                f"prompt and max_tokens need {tokens} tokens in one forward, "
                f"more than this engine's token budget of {self._token_budget}",
                "max_tokens",
            )
        if kept > self._scheduler.cache_budget:
            raise InvalidRequest(
                f"prompt and max_tokens need {kept} positions in the cache, "
                f"more than this engine's cache budget of {self._scheduler.cache_budget}",
                "max_tokens",
            )
        if request.blocks.max_rows > self._row_budget:
            raise InvalidRequest(
                f"a block of {request.blocks.max_rows} positions is more than one step of this "
                f"engine may look at: its row budget is {self._row_budget}",
                "block_length",
            )

    def _language_of(self, constraint: Constraint | None) -> Language | None:
        return None if constraint is None else self.compile(constraint)

    def compile(self, constraint: Constraint) -> Language:
        """The language of a constraint, which is kept for the requests that have it.

        May be called from any thread; it takes a moment where a language is new.

        Raises:
            InvalidRequest: it is not supported, too large, or has no text.
        """
        if self._languages is None:
            raise InvalidRequest(
                f"a constraint needs a tokenizer and an end-of-text token, and {self.info.name} "
                "has not both",
                "constraint",
            )
        return self._languages.compile(constraint)

    def add(self, request: Request) -> None:
        """Queue a prepared request; raises QueueFull or EngineFailure."""
        if self.failure is not None:
            raise EngineFailure(self.failure)
        self._scheduler.enqueue(request)

    def abort(self, request_id: str) -> None:
        """End a request; its slot is free at once. Unknown and finished ids are fine: the
        caller cannot know that the last frame is on its way."""
        waiting = self._scheduler.drop_waiting(request_id)
        if waiting is not None:
            self._aborted.append(waiting)
        running = self._scheduler.running.get(request_id)
        if running is not None:
            self._scheduler.remove(request_id)
            self._aborted.append(running.request)

    @property
    def model(self) -> LoadedModel:
        """The model, for those who measure it."""
        return self._model

    @property
    def forwards(self) -> dict[str, int]:
        """Forwards so far by how they ran; see `captured.WAYS`."""
        return dict(self._model.ways)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._scheduler.waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.num_running or self.num_waiting or self._aborted)

    def step(self) -> list[Frame]:
        """One tick: admit, denoise every running request one step, send what changed."""
        frames = self._farewell()
        frames += self._admit()
        frames += self._write_forced()
        batch = list(self._scheduler.running.values())
        if not batch:
            return frames
        try:
            updates = self._denoise(batch)
        except Exception as error:
            # Whatever it was (memory, a device fault), it ends the requests in the batch only.
            return frames + self._fail(batch, error)
        self._failures = 0
        for running, changes in zip(batch, updates, strict=True):
            running.num_commit_steps += bool(changes)
            frame = self._commit(running, changes)
            if frame is not None:
                frames.append(frame)
        return frames

    def stream(self, prompt: Prompt, params: GenerationParams | None = None) -> Iterator[Frame]:
        """The frames of one request, as they form."""
        request = self.prepare(prompt, params)
        self.add(request)
        try:
            for frame in self._turn():
                if frame.request_id == request.request_id:
                    yield frame
                    if frame.finish_reason is not None:
                        return
        finally:
            self.abort(request.request_id)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: GenerationParams | None = None
    ) -> list[Completion]:
        """Complete prompts together in one batch, in the order given.

        Args:
            prompts: one prompt or several; a prompt is text, token ids or an Infill. A hole of
                automatic length is tried at each of its candidates, in slots of their own.
            params: for all of them; prompt i draws with the seed plus i.

        Raises:
            EngineFailure: a tick failed.
        """
        params = params or GenerationParams()
        batch = as_prompts(prompts)
        seeds = seeds_of(params.seed, len(batch))
        groups = [
            self._prepare_lengths(prompt, params.replace(seed=seed))
            for prompt, seed in zip(batch, seeds, strict=True)
        ]
        frames = self._run([request for group in groups for request in group])
        completions = []
        for prompt, group in zip(batch, groups, strict=True):
            tried = [complete(frames[each.request_id], each.canvas) for each in group]
            completions.append(
                best_length(prompt, tried) if isinstance(prompt, Infill) else tried[0]
            )
        return completions

    def _prepare_lengths(self, prompt: Prompt, params: GenerationParams) -> list[Request]:
        """A request for each length that a hole may have: one, if none is automatic."""
        if not isinstance(prompt, Infill):
            return [self.prepare(prompt, params)]
        return [
            self.prepare(each, limit_steps(params, each) if prompt.is_automatic else params)
            for each in with_lengths(prompt)
        ]

    def _run(self, requests: Sequence[Request]) -> dict[str, list[Frame]]:
        """The frames of each request, all of them done together."""
        collected: dict[str, list[Frame]] = {request.request_id: [] for request in requests}
        backlog = list(reversed(requests))
        while backlog or not self.is_idle:
            while backlog and self.num_waiting < self.config.max_waiting:
                self.add(backlog.pop())
            for frame in self.step():
                collected.setdefault(frame.request_id, []).append(frame)
        return collected

    def _turn(self) -> Iterator[Frame]:
        while not self.is_idle:
            yield from self.step()

    def _text_side(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                f"{self.info.name} has no tokenizer.json, so it takes and gives token ids only",
                "prompt",
            )
        return self.tokenizer

    def _farewell(self) -> list[Frame]:
        """The last frames of what was aborted since the tick before."""
        frames = [last_frame(request) for request in self._aborted]
        self._aborted.clear()
        return frames

    def _admit(self) -> list[Frame]:
        frames = []
        while (request := self._scheduler.next_admissible()) is not None:
            try:
                frames += self._seat(request)
            except Exception as error:
                # Whatever it was, it ends this request only, and its slot is free again.
                self._scheduler.remove(request.request_id)
                message = f"the engine could not start this: {type(error).__name__}: {error}"
                frames.append(last_frame(request, message))
        return frames

    def _seat(self, request: Request) -> list[Frame]:
        """Give a request its slot; its first frames."""
        if request.draft is not None:
            parts = (self._model, self._head, request, request.draft, self._token_budget)
            return self._seat_draft(request, open_draft(*parts))
        running = self._scheduler.seat(request, self._new_text(request))
        update = None
        if running.text is not None and request.canvas.given:
            given = (TokenChange(*each, 1.0) for each in request.canvas.given)
            update = running.text.commit(given)
        return [frame_of(running, update=update)]

    def _seat_draft(self, request: Request, draft: OpenedDraft) -> list[Frame]:
        """Give a request its slot: a frame with its draft, and one that masks what is redone and
        settles what that leaves at the beginning. Some need nothing more."""
        running = self._scheduler.seat(request, self._new_text(request), draft)
        update = TextUpdate(settled=0)
        if running.text is not None:
            tokens = enumerate(zip(draft.token_ids, draft.confidence, strict=True))
            whole = [TokenChange(position, *token) for position, token in tokens]
            update = running.text.commit(whole, editable_from=0)
        running.unsent = dict(enumerate(draft.token_ids))
        first = frame_of(running, update=update)
        first = dataclasses.replace(first, masked=running.masked - len(draft.masked))
        running.begin_with(draft, self._stop_ids)
        update = TextUpdate(settled=running.settled)
        if running.text is not None:
            masks = [TokenChange(position, None, 0.0) for position in draft.masked]
            update = running.text.commit(masks, editable_from=running.editable_from)
        reason = self._finish_reason(running, update)
        if reason is not None:
            return [first, self._finish(running, reason, update)]
        return [first, frame_of(running, update=update)]

    def _new_text(self, request: Request) -> TextCanvas | HoledText | None:
        if self.tokenizer is None:
            return None
        params, canvas = request.params, request.canvas
        if request.has_holes:
            return HoledText.of_region(
                self.tokenizer.token_bytes,
                canvas.region,
                canvas.holes,
                stop=params.stop,
                watch=params.watch,
            )
        return TextCanvas(
            self.tokenizer.token_bytes,
            params.max_tokens,
            stop=params.stop,
            watch=params.watch,
            end_token_ids=() if params.ignore_eos else self._stop_ids,
        )

    def _denoise(self, batch: Sequence[Running]) -> list[list[TokenChange]]:
        """One forward for the batch; what changed in each request, in completion positions."""
        facts = describe_batch(
            batch, num_tokens=self._token_budget if self.config.deterministic else 0
        )
        windows = [running.window() for running in batch]
        frontier = self._frontier(batch, facts.width)
        commits = denoise(self._model, self._head, self._scheduler.table, windows, facts, frontier)
        for running, step, is_open in zip(
            batch, commits.step.tolist(), commits.is_open.tolist(), strict=True
        ):
            self._scheduler.note_forward(running, step, is_open)
        note_logprobs(batch, commits, self.tokenizer)
        return changes_of(batch, commits)

    def _commit(self, running: Running, changes: Sequence[TokenChange]) -> Frame | None:
        """Take note of a request's changes; its frame, or None when nobody needs one."""
        running.fill(changes, self._stop_ids)
        update = TextUpdate(settled=running.settled)
        if running.text is not None:
            update = running.text.commit(changes, editable_from=running.editable_from)
        reason = self._finish_reason(running, update)
        running.record(changes)
        if reason is not None:
            return self._finish(running, reason, update)
        watched = running.request.params.watch or running.text is None
        frame = frame_of(running, update=update) if watched or update.content else None
        self._scheduler.advance(running)
        return frame

    def _write_forced(self) -> list[Frame]:
        """Commit what constraints leave no choice about; it needs no forward."""
        frames: list[Frame | None] = []
        for running in list(self._scheduler.running.values()):
            if running.guide is None:
                continue
            try:
                changes = self._scheduler.write_forced(running)
            except Exception as error:
                # Whatever it was, it ends this request only, and says nothing of the engine.
                frames.append(self._end(running, _describe(error)))
                continue
            if changes:
                note_certain(running, changes, self.tokenizer)
                frames.append(self._commit(running, changes))
        return [frame for frame in frames if frame is not None]

    def _frontier(self, batch: Sequence[Running], width: int) -> Frontier | None:
        """Where constraints guide the coming step, if any do."""
        guides = [running.guide for running in batch]
        if not any(guides):
            return None
        return Frontier(
            guides,
            [running.block_span for running in batch],
            width=width,
            vocab_size=self._model.vocab_size,
            device=self.config.device,
        )

    def _finish_reason(self, running: Running, update: TextUpdate) -> FinishReason | None:
        is_whole = running.guide is not None and running.guide.is_complete
        if update.stopped or running.has_ended or is_whole:
            return FinishReason.STOP
        if running.masked or running.is_open or running.has_blocks_left:
            return None
        return FinishReason.STOP if running.request.canvas.is_infill else FinishReason.LENGTH

    def _finish(
        self,
        running: Running,
        reason: FinishReason,
        update: TextUpdate,
    ) -> Frame:
        if running.text is not None:
            end = running.settled if running.stopped_at is None else running.stopped_at
            update = update.followed_by(running.text.finish(end))
        self._scheduler.remove(running.request.request_id)
        return frame_of(running, update=update, reason=reason)

    def _fail(self, batch: Sequence[Running], error: Exception) -> list[Frame]:
        """End the requests of a failed tick and free their slots."""
        message = _describe(error)
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            self.failure = f"{self._failures} steps in a row failed, the last one so: {message}"
        return [self._end(running, message) for running in batch]

    def _end(self, running: Running, message: str) -> Frame:
        """End a request that failed and free its slot."""
        self._scheduler.remove(running.request.request_id)
        return last_frame(running.request, message)


def _capture(model: LoadedModel, config: EngineConfig) -> None:
    """Record the model's forwards; where nobody asked for that, one that cannot be is served
    eagerly, and said to be."""
    try:
        model.capture(largest=config.token_budget or LARGEST_BUCKET, max_canvases=config.num_slots)
    except LoadError as error:
        if config.capture:
            raise
        warnings.warn(f"every forward runs eagerly: {error}", RuntimeWarning, stacklevel=3)


def _describe(error: Exception) -> str:
    return f"the engine failed in this step: {type(error).__name__}: {error}"
