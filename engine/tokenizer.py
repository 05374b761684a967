"""Text to token ids and back, with the tokenizer.json of the model's folder and no remote code.

Special tokens (the mask, ends of text, chat marks) come from the chat template only. What users
write never becomes one, whatever it spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
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
    visible_marks,
)
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest, LoadError
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


def load_tokenizer(
    folder: str | Path,
    *,
    vocab_size: int,
    mask_token_id: int,
    stop_token_ids: Collection[int],
    chat_template: str | None = None,
) -> Tokenizer | None:
    """Load the tokenizer of a model folder, or None when it has no tokenizer.json.

    Args:
        folder: holds tokenizer.json, and perhaps tokenizer_config.json, chat_template.jinja.
        vocab_size: rows of the model's embedding.
        mask_token_id: the model's mask token; it and `stop_token_ids` count as special tokens
            even where the folder does not say so.
        stop_token_ids: tokens that end a completion.
        chat_template: used in place of the folder's own.

    Raises:
        LoadError: a corrupt file, a tokenizer that is not byte-level, or one that belongs to
            another model.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return None
    layout = _read_json(path)
    config_path = Path(folder) / "tokenizer_config.json"
    config = _read_json(config_path) if config_path.exists() else {}
    _check_byte_level(layout, path)
    backend = _build(layout, path, special_ids={mask_token_id, *stop_token_ids})
    _check_fits(backend, config, vocab_size=vocab_size, mask_token_id=mask_token_id, path=path)
    added = backend.get_added_tokens_decoder()
    special_tokens = {token.content: i for i, token in added.items() if token.special}
    if short := [token for token in special_tokens if len(token) < 2]:
        raise LoadError(
            f"{path} has the special token {short[0]!r}, which cannot be told from text; "
            "special tokens must have at least 2 characters"
        )
    return Tokenizer(
        backend,
        token_bytes=_bytes_by_id(
            backend, vocab_size, hidden={mask_token_id, *stop_token_ids}, path=path
        ),
        special_tokens=special_tokens,
        chat_template=chat_template or _find_chat_template(Path(folder), config),
        template_names=_template_names(config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _check_byte_level(layout: Mapping[str, Any], path: Path) -> None:
    decoder = layout.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = [step.get("type") for step in steps]
    if kinds != ["ByteLevel"]:
        found = ", ".join(map(str, kinds)) or "none"
        raise LoadError(
            f"{path} must have a ByteLevel decoder (as Qwen, Llama 3, LLaDA, Dream and "
            f"ModernBERT have), got {found}"
        )


def _build(
    layout: dict[str, Any], path: Path, special_ids: Collection[int]
) -> tokenizers.Tokenizer:
    tokens = layout.get("added_tokens") or []
    try:
        marked = [
            {**token, "special": token["special"] or token["id"] in special_ids} for token in tokens
        ]
        return tokenizers.Tokenizer.from_str(json.dumps({**layout, "added_tokens": marked}))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise LoadError(f"{path} is not a tokenizer that can be built: {error}") from error


def _check_fits(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    mask_token_id: int,
    path: Path,
) -> None:
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise LoadError(
            f"{path} is the wrong tokenizer: it has token id {largest}, but the model's "
            f"vocabulary takes 0..{vocab_size - 1}"
        )
    mask_token = _spelling(config.get("mask_token"))
    if mask_token is None:
        return
    found = backend.token_to_id(mask_token)
    if found != mask_token_id:
        raise LoadError(
            f"{path} gives its mask token {mask_token!r} the id {found}, but the model's mask "
            f"token id is {mask_token_id}"
        )


def _bytes_by_id(
    backend: tokenizers.Tokenizer, vocab_size: int, hidden: Collection[int], path: Path
) -> list[bytes]:
    """The bytes of every token, b"" for special tokens and for rows without a token."""
    table = [b""] * vocab_size
    byte_of = _byte_of_character()
    added = backend.get_added_tokens_decoder()
    for token, token_id in backend.get_vocab(with_added_tokens=False).items():
        if token_id in hidden or token_id in added:
            continue
        try:
            table[token_id] = bytes([byte_of[character] for character in token])
        except KeyError as error:
            raise LoadError(
                f"{path} is not byte-level: token {token_id} is {token!r}, and {error} "
                "stands for no byte"
            ) from error
    visible = visible_marks()
    for token_id, entry in added.items():
        is_hidden = token_id in hidden or (entry.special and entry.content not in visible)
        table[token_id] = b"" if is_hidden else entry.content.encode("utf-8")
    return table


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def _spelling(token: object) -> str | None:
    """A token of tokenizer_config.json, which is text or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template_names(config: Mapping[str, Any]) -> dict[str, str]:
    """What a chat template may call by name: bos_token, eos_token and the like."""
    spellings = {name: _spelling(value) for name, value in config.items()}
    return {
        name: spelling
        for name, spelling in spellings.items()
        if spelling is not None and name.endswith("_token")
    }


def _find_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
