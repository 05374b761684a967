"""Text to token ids and back, with the tokenizer.json of the model's folder and no remote code.

Special tokens (the mask, ends of text, chat marks) come from the chat template only. What users
write never becomes one, whatever it spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import tokenizers
from jinja2 import TemplateError

from diffusiongpt.engine.chat import (
    PLAIN_CHAT,
    ChatStyle,
    Message,
    Thinking,
    check_template_values,
    is_open,
    marks_of_template,
    tell_tools,
)
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.tool_formats import tools_of_template

_FIRST_PRIVATE_CHARACTER: Final = 0xE000
_NUM_PRIVATE_CHARACTERS: Final = 6400
# What a template may raise over values that it does not expect.
_TEMPLATE_FAILURES: Final = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, MemoryError),
)


class Tokenizer:
    """The tokenizer of one model.

    Built by `load_tokenizer`. All methods may be called from several threads.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        token_bytes: Sequence[bytes],
        special_tokens: Mapping[str, int],
        chat_template: str | None,
        template_names: Mapping[str, str],
    ) -> None:
        backend.encode_special_tokens = True  # spelled-out special tokens stay ordinary text
        self._backend = backend
        self._token_bytes = token_bytes
        self._special_tokens = special_tokens
        self._special_names = {token_id: name for name, token_id in special_tokens.items()}
        self._chat_template = chat_template
        self._template_names = template_names
        longest_first = sorted(special_tokens, key=len, reverse=True)
        spelled = "|".join(re.escape(token) for token in longest_first)
        self._special_pattern = re.compile(f"({spelled})" if spelled else "(?!)()")
        self._special_start = re.compile(f"(?s)(?={spelled})(.)" if spelled else "(?!)()")

    def encode(self, text: str, *, room: int | None = None) -> list[int]:
        """Token ids of a text; nothing is added, and no special token can come of it.

        Args:
            room: tokens that there is room for. A text that is longer by far is refused as it
                is: to count its tokens may take seconds.

        Raises:
            ContextLengthExceeded: the text has more characters than so many tokens can.
        """
        self._check_length(text, room)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _check_length(self, text: str, room: int | None) -> None:
        # Normalizers may take characters away; none that is known leaves less than a quarter.
        if room is not None and len(text) > 4 * room * self._longest_token:
            raise ContextLengthExceeded(
                f"a text of {len(text)} characters does not fit a context of {room} tokens",
                "prompt",
            )

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of the longest token, and so at least its characters."""
        return max(map(len, self._token_bytes), default=1)

    @cached_property
    def chat_style(self) -> ChatStyle:
        """What the folder's chat template can do."""
        template = self._chat_template
        if template is None:
            return PLAIN_CHAT
        knows_tools, tool_format = tools_of_template(template)
        marks = marks_of_template(template)
        return ChatStyle(
            knows_tools=knows_tools,
            tool_format=tool_format,
            thinking=None if marks is None else self._find_thinking(template, *marks),
        )

    def _find_thinking(self, template: str, opening: str, closing: str) -> Thinking:
        can_switch = "enable_thinking" in template
        opened = set()
        for switch in (None, False, True) if can_switch else (None,):
            try:
                text = self._render([{"role": "user", "content": "?"}], enable_thinking=switch)
            except InvalidRequest:  # it wants another kind of chat; then it says nothing
                continue
            if is_open(text, opening, closing):
                opened.add(switch)
        return Thinking(
            opening=opening, closing=closing, can_switch=can_switch, opened=frozenset(opened)
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        room: int | None = None,
    ) -> list[int]:
        """Token ids of a chat through the folder's template, ready for the assistant's answer.

        The template sees the messages as they are, except that a character of private use,
        which occurs nowhere else, breaks every special token that a message or a tool spells or
        could complete at its ends. So each special token in the rendered text is the template's
        own. The text between them loses the breaks again and is encoded as ordinary text.

        Args:
            messages: in OpenAI's form, but with the arguments of calls as objects.
            tools: in OpenAI's form; told in words of ours (`chat.py`) where the template knows
                none.
            enable_thinking: for templates that can switch it.
            chat_template_kwargs: further variables of the template; text in them is treated as
                a message's is.
            room: as `encode` has it.

        Raises:
            ContextLengthExceeded: the chat has more characters than so many tokens can.
            InvalidRequest: there is no chat template, it refuses the messages, or it cannot be
                given the variables.
        """
        if self._chat_template is None:
            raise InvalidRequest(
                "this model has no chat template, so it takes plain prompts only", "prompt"
            )
        _check_texts(messages)
        if not self.chat_style.knows_tools and _uses_tools(messages, tools):
            messages, tools = tell_tools(messages, tools), ()
        given = dict(chat_template_kwargs or {})
        if given:
            taken = {"enable_thinking", *self._template_names}
            check_template_values(given, self._chat_template, taken)
        mark = self._unused_character([*messages, *tools, given])
        rendered = self._render(
            [self._break_special_tokens(each, mark) for each in messages],
            tools=[self._break_special_tokens(each, mark) for each in tools],
            enable_thinking=enable_thinking,
            values=self._break_special_tokens(given, mark),
        )
        self._check_length(rendered, room)
        token_ids: list[int] = []
        for piece in self._special_pattern.split(rendered):
            special_id = self._special_tokens.get(piece)
            if special_id is not None:
                token_ids.append(special_id)
            elif text := piece.replace(mark, ""):
                token_ids += self.encode(text)
        return token_ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids; special tokens have none, broken characters become U+FFFD."""
        data = b"".join(map(self.token_bytes, token_ids))
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: b"" for special tokens and rows without a token.

        Raises:
            InvalidRequest: the id is outside the vocabulary.
        """
        if not 0 <= token_id < len(self._token_bytes):
            raise InvalidRequest(
                f"token ids must be in 0..{len(self._token_bytes) - 1}, got {token_id}", "prompt"
            )
        return self._token_bytes[token_id]

    def spell(self, token_id: int) -> tuple[str, bytes | None]:
        """A token's text and bytes; a special token's name and None."""
        data = self.token_bytes(token_id)
        if not data:
            return self._special_names.get(token_id, ""), None
        return data.decode("utf-8", errors="replace"), data

    def _render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> str:
        # Imported here: transformers takes seconds, and plain prompts need none of it.
        from transformers.utils.chat_template_utils import render_jinja_template

        names: dict[str, Any] = {**(values or {}), **self._template_names}
        if enable_thinking is not None:
            names["enable_thinking"] = enable_thinking
        try:
            # Annotated as text, in truth (one text per conversation, spans of the assistant).
            rendered: Any = render_jinja_template(
                conversations=[[dict(each) for each in messages]],
                tools=[dict(each) for each in tools] or None,
                chat_template=self._chat_template,
                add_generation_prompt=True,
                **names,
            )
        except _TEMPLATE_FAILURES as error:
            what = "chat_template_kwargs with these messages" if values else "the messages"
            raise InvalidRequest(
                f"the chat template refuses {what}: {error}",
                "chat_template_kwargs" if values else "prompt",
            ) from error
        text: str = rendered[0][0]
        return text

    def _unused_character(self, values: Sequence[Mapping[str, Any]]) -> str:
        """A private-use character that neither the values nor the template contain."""
        used = {*(self._chat_template or ""), *json.dumps(values, ensure_ascii=False)}
        for code in range(_NUM_PRIVATE_CHARACTERS):
            mark = chr(_FIRST_PRIVATE_CHARACTER + code)
            if mark not in used:
                return mark
        raise InvalidRequest("the messages use every private-use character of Unicode", "prompt")

    def _break_special_tokens(self, value: Any, mark: str) -> Any:
        """The same value with `mark` in every text that needs one."""
        if isinstance(value, str):
            return self._break(value, mark)
        if isinstance(value, Mapping):
            return {
                self._break_key(name, mark): self._break_special_tokens(each, mark)
                for name, each in value.items()
            }
        if isinstance(value, Sequence):
            return [self._break_special_tokens(each, mark) for each in value]
        return value

    def _break_key(self, name: str, mark: str) -> str:
        # A word stays as it is: templates look fields up by name.
        if name.isidentifier() and not self._special_pattern.search(name):
            return name
        return self._break(name, mark)

    def _break(self, text: str, mark: str) -> str:
        """Put `mark` into every special token in the text, and where an end could join one."""
        text = self._special_start.sub(lambda match: match[0] + mark, text)
        # Inside of the surrounding white space, so that a template can still trim it.
        core = text.strip()
        if not core:
            return text
        first = text.index(core)
        head, tail = text[:first], text[first + len(core) :]
        if any(_overlaps(token, core) for token in self._special_tokens):
            head += mark
        if any(_overlaps(core, token) for token in self._special_tokens):
            tail = mark + tail
        return head + core + tail


def _check_texts(messages: Sequence[Message]) -> None:
    for message in messages:
        for name, value in message.items():
            if not isinstance(value, str) and name != "tool_calls":
                raise InvalidRequest(
                    f"a message's {name} must be text, got {type(value).__name__}", "prompt"
                )


def _uses_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
    return bool(tools) or any(
        message.get("role") == "tool" or message.get("tool_calls") for message in messages
    )


def _overlaps(first: str, second: str) -> bool:
    """Whether a proper end of one string is a beginning of the other: ("ab<|", "<|x|>")."""
    return any(
        first.endswith(second[:length]) for length in range(1, min(len(first), len(second)) + 1)
    )
