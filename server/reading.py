"""Reads one choice: from its frames to the parts of its answer. One way for streams and whole
answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diffusiongpt.engine.chat import Thinking
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.tool_formats import HERMES, ToolFormat
from diffusiongpt.server.call_bodies import Functions
from diffusiongpt.server.calls import CallSplitter
from diffusiongpt.server.logprobs import Ledger, SettledToken
from diffusiongpt.server.parts import AllContent, CallBegin, Chain, Part, Splitter
from diffusiongpt.server.thinking import ThinkingSplitter, count_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a request's answers are to be read.

    Attributes:
        thinking: the model's, if its template knows some. is_open: the prompt has opened it.
        form: how calls are written.
        functions: on offer, by name: the schema of their arguments; none where none may be called.
        is_certain: the model can write no invalid call.
        is_single: the closing mark of a call is a stop string.
    """

    thinking: Thinking | None = None
    is_open: bool = False
    form: ToolFormat = HERMES
    functions: Functions = field(default_factory=dict)
    is_certain: bool = False
    is_single: bool = False

    def reader(self, decode: Callable[[Sequence[int]], str] | None = None) -> ChoiceReader:
        """The reader of one choice; `decode` gives the text of token ids."""
        if not self.functions:
            return self._reader_of(AllContent(), None, decode)
        calls = CallSplitter(self.form, self.functions, is_certain=self.is_certain)
        return self._reader_of(calls, calls.close if self.is_single else None, decode)

    def _reader_of(
        self,
        calls: Splitter,
        close: Callable[[], None] | None,
        decode: Callable[[Sequence[int]], str] | None,
    ) -> ChoiceReader:
        if self.thinking is None:
            return ChoiceReader(calls, close=close)
        thinking = ThinkingSplitter(self.thinking, is_open=self.is_open)
        return ChoiceReader(Chain(thinking, calls), thinking, decode, close)


class ChoiceReader:
    """Turns a choice's frames into parts.

    Args:
        close: says that a stop string ended the text, which may be a call's closing mark.

    Attributes:
        has_called: a call has begun.
    """

    def __init__(
        self,
        splitter: Splitter | None = None,
        thinking: ThinkingSplitter | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.has_called = False
        self._splitter = splitter or AllContent()
        self._thinking = thinking
        self._decode = decode
        self._close = close
        self._ledger = Ledger()
        self._tokens: dict[int, int] = {}

    def read(self, frame: Frame) -> tuple[list[Part], list[SettledToken]]:
        """The parts that a frame completes, and the log-probabilities that settle with it."""
        if self._thinking is not None:
            self._tokens |= dict(frame.tokens)
        parts = self._splitter.feed(frame.content)
        if frame.finish_reason is FinishReason.STOP and self._close is not None:
            self._close()
        if frame.finish_reason is not None:
            parts += self._splitter.finish()
        self.has_called |= any(isinstance(part, CallBegin) for part in parts)
        return parts, self._ledger.take(frame)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thinking so far, its marks included."""
        if self._thinking is None or self._decode is None:
            return 0
        return count_tokens(self._tokens, self._decode, self._thinking.num_thought)
