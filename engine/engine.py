"""The engine: prompts in, frames out, many requests at different steps in one batch.

Knows text, token ids and tensors; knows no HTTP. Not thread-safe: one caller turns `step`
(see `worker.py` for serving from asyncio).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusiongpt.engine.assembly import load_parts, new_head, new_scheduler
from diffusiongpt.engine.canvas import Infill
from diffusiongpt.engine.chat import Message
from diffusiongpt.engine.completion import Completion, Prompt, as_prompts, complete
from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.describe import describe_model, token_budget_of
from diffusiongpt.engine.errors import EngineFailure
from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.intake import Intake
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.lengths import best_length
from diffusiongpt.engine.loader import LoadedModel
from diffusiongpt.engine.params import GenerationParams, seeds_of
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.score import Score, ScoreMethod, score_tokens
from diffusiongpt.engine.tick import Ticker
from diffusiongpt.engine.tokenizer import Tokenizer

BUNDLED_MODEL = Path(__file__).parent / "bundled"
BUNDLED_NAME = "diffusiongpt-bundled"


class Engine:
    """Serves one model; build it with `Engine.from_pretrained`."""

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer | None, config: EngineConfig
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._model = model
        self.info = describe_model(model, config)
        if tokenizer is not None:
            self.info = replace(self.info, chat=tokenizer.chat_style)
        self._token_budget = token_budget_of(config, self.info)
        self._head = new_head(model, config)
        self._scheduler = new_scheduler(model, self.info, config)
        self._intake = Intake(model, tokenizer, self.info, config, self._scheduler)
        self._ticker = Ticker(
            model,
            self._head,
            self._scheduler,
            tokenizer,
            padded_to=self._token_budget if config.deterministic else 0,
            ticks_per_round=config.ticks_per_round,
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
        loaded, tokenizer = load_parts(model, config)
        return cls(loaded, tokenizer, config)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens spelled out in it are ordinary text."""
        return self._intake.encode(text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat, ready for the assistant's answer; see `Tokenizer.encode_chat`."""
        return self._intake.encode_chat(
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            chat_template_kwargs=chat_template_kwargs,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""
        return self._intake.text_side().decode(token_ids)

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
        given = self._intake.as_ids(prompt)
        return [
            score_tokens(
                self._model,
                self._head,
                given,
                self._intake.as_ids(text),
                method=method,
                draws=draws,
                seed=seed,
                token_budget=self._token_budget,
                num_bytes=len(text.encode()) if isinstance(text, str) else None,
            )
            for text in ([texts] if isinstance(texts, str) else texts)
        ]

    def prepare(self, prompt: Prompt, params: GenerationParams | None = None) -> Request:
        """Check a request and fill in its defaults, without starting it; raises InvalidRequest."""
        return self._intake.prepare(prompt, params or GenerationParams())

    def compile(self, constraint: Constraint) -> Language:
        """The language of a constraint, which is kept for the requests that have it; see
        `Intake.compile`."""
        return self._intake.compile(constraint)

    def add(self, request: Request) -> None:
        """Queue a prepared request; raises QueueFull or EngineFailure."""
        if self.failure is not None:
            raise EngineFailure(self.failure)
        self._scheduler.enqueue(request)

    def abort(self, request_id: str) -> None:
        """End a request; its slot is free at once. Unknown and finished ids are fine: the
        caller cannot know that the last frame is on its way."""
        self._ticker.abort(request_id)

    @property
    def failure(self) -> str | None:
        """Why the engine cannot serve any more; None while it can."""
        return self._ticker.failure

    @property
    def model(self) -> LoadedModel:
        """The model, for those who measure it."""
        return self._model

    @property
    def forwards(self) -> dict[str, int]:
        """Forwards so far by how they ran; see `captured.WAYS`."""
        return dict(self._model.ways)

    @property
    def head_runs(self) -> str:
        """How the head runs, in words for a log."""
        in_chunks = f"in chunks of {self.config.head_chunk} rows"
        if not self._head.is_fused:
            return in_chunks
        return f"as one Triton kernel with its draws where a batch permits, else {in_chunks}"

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
        return not (self.num_running or self.num_waiting or self._ticker.has_aborted)

    def step(self) -> list[Frame]:
        """One tick: admit, denoise every running request one step, send what changed."""
        return self._ticker.run()

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
            self._intake.prepare_lengths(prompt, params.replace(seed=seed))
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
