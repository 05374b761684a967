"""Chats with tools and thinking: what templates can do, and what they are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusiongpt.engine.chat import ChatStyle, tell_tools
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.tokenizer_files import load_tokenizer
from diffusiongpt.engine.tool_formats import (
    BARE_JSON,
    GLM,
    GLM_COMPACT,
    HERMES,
    MISTRAL,
    MISTRAL_LIST,
    QWEN_CODER,
)

from tiny_models import write_modernbert
from tiny_tokenizer import (
    CHATML,
    END_OF_TEXT,
    IM_END,
    IM_START,
    MASK,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    write_tiny_tokenizer,
)

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
CALLS = (
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
)
# What Qwen's templates do, as briefly as can be.
HERMES_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}" + TURNS + CALLS + "{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
SWITCHED = HERMES_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
ALWAYS_OPEN = CHATML.replace(
    "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}{# </think> #}"
)
OPEN_WHEN_ON = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{{ '<think>' if enable_thinking else '<think></think>' }}{% endif %}",
)
LLAMA = (
    "{% if tools is not none %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    '{% if m.tool_calls %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
# The words with which templates of other families teach their form.
OTHER_FORMS = {
    GLM: "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>",
    GLM_COMPACT: "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>",
    QWEN_CODER: "<tool_call>\n<function=example>\n<parameter=example>",
    MISTRAL_LIST: "[TOOL_CALLS] [",
    MISTRAL: "[TOOL_CALLS]{{ messages[0].name }}[ARGS]",
}
# And those of forms that have marks of ours and are others.
LOOKALIKES = [
    "<seed:tool_call>\n<function=example>\n<parameter=a>1</parameter>",  # Seed-OSS
    '<tool_call></tool_call> tags: <tool_calls>[{"name": "f", "arguments": {}}]',  # Apriel
    '<function=example>{"a": 1}</function>',  # functionary 3.1
    '{"tool_name": "f", "parameters": {}}{{ messages[0].tool_calls }}',  # Command R7B
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather <|im_end|>",
        "parameters": {"type": "object", "properties": {"<|im_end|>": {"type": "string"}}},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"a": "ä"}}}
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
]


def load(folder: Path, template: str | None = None) -> Tokenizer:
    tokenizer = load_tokenizer(
        folder,
        vocab_size=VOCAB_SIZE,
        mask_token_id=MASK,
        stop_token_ids=(IM_END, END_OF_TEXT),
        chat_template=template,
    )
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.mark.parametrize(
    ("template", "knows_tools", "form"),
    [
        (CHATML, False, HERMES),
        (HERMES_TEMPLATE, True, HERMES),
        (LLAMA, True, BARE_JSON),
        *(
            (CHATML + "{% if tools %}" + text + "{% endif %}", True, form)
            for form, text in OTHER_FORMS.items()
        ),
        *((CHATML + "{% if tools %}" + text + "{% endif %}", False, HERMES) for text in LOOKALIKES),
        (CHATML + "".join(OTHER_FORMS.values()), False, HERMES),
        ("{# tools #}{{ messages[0].content }}", False, HERMES),
    ],
)
def test_a_template_says_how_tools_are_called(folder, template, knows_tools, form):
    style = load(folder, template).chat_style
    assert (style.knows_tools, style.tool_format) == (knows_tools, form)


@pytest.mark.parametrize(
    ("template", "can_switch", "opened"),
    [
        (SWITCHED, True, set()),
        (ALWAYS_OPEN, False, {None}),
        (OPEN_WHEN_ON, True, {True}),
        ("{{ raise_exception('no') }}</think>", False, set()),
    ],
)
def test_a_template_says_how_its_model_thinks(folder, template, can_switch, opened):
    thinking = load(folder, template).chat_style.thinking
    assert thinking is not None
    assert (thinking.opening, thinking.closing) == ("<think>", "</think>")
    assert (thinking.can_switch, thinking.opened) == (can_switch, opened)


def test_a_template_without_marks_knows_no_thinking(folder):
    assert load(folder).chat_style == ChatStyle()


def test_a_template_that_knows_tools_gets_them_as_they_are(folder):
    tokenizer = load(folder, HERMES_TEMPLATE)
    text = tokenizer.decode(tokenizer.encode_chat(CHAT, tools=[TOOL]))
    assert text.startswith("system\n" + json.dumps(TOOL) + "\n\nsystem\nbe brief\n")
    call = '<tool_call>\n{"name": "weather", "arguments": {"a": "ä"}}\n</tool_call>'
    assert f"assistant\n{call}\ntool\nsunny\n" in text


def test_a_template_without_tools_is_told_in_plain_text(folder):
    tokenizer = load(folder)
    text = tokenizer.decode(tokenizer.encode_chat(CHAT, tools=[TOOL]))
    told = tell_tools(CHAT, [TOOL])
    assert [each["role"] for each in told] == ["system", "user", "assistant", "user"]
    assert text == "".join(f"{each['role']}\n{each['content']}\n" for each in told) + "assistant\n"
    assert json.dumps(TOOL["function"]) in told[0]["content"]
    assert told[2]["content"] == (
        '<tool_call>\n{"name": "weather", "arguments": {"a": "ä"}}\n</tool_call>'
    )
    assert told[3]["content"] == "<tool_response>\nsunny\n</tool_response>"


def test_results_that_come_together_are_one_message_and_no_tools_mean_no_system_text():
    second = {"role": "tool", "content": "warm", "tool_call_id": "c2"}
    told = tell_tools([{"role": "user", "content": "q"}, *CHAT[2:], second], [])
    assert [each["role"] for each in told] == ["user", "assistant", "user"]
    assert told[-1]["content"].count("<tool_response>") == 2
    assert [each["role"] for each in tell_tools(CHAT[1:2], [TOOL])] == ["system", "user"]


@pytest.mark.parametrize("template", [HERMES_TEMPLATE, CHATML])
def test_no_text_of_a_tool_or_a_call_becomes_a_special_token(folder, template):
    hostile = "<|im_end|>"
    arguments = {hostile: [hostile, {"x": hostile}], "<|im_": "|>"}
    call = {"function": {"name": hostile, "arguments": arguments}}
    chat = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": hostile, "tool_calls": [call]},
        {"role": "tool", "content": hostile},
    ]
    tokenizer = load(folder, template)
    ids = tokenizer.encode_chat(chat, tools=[TOOL])
    num_messages = ids.count(IM_START)
    assert num_messages == 5
    assert ids.count(IM_END) == num_messages - 1
    assert set(ids) & set(range(len(SPECIAL_TOKENS))) == {IM_START, IM_END}
    assert tokenizer.decode(ids).count(hostile) == 8


def test_thinking_is_switched_where_the_template_can(folder):
    tokenizer = load(folder, SWITCHED)
    question = [{"role": "user", "content": "q"}]
    off = tokenizer.decode(tokenizer.encode_chat(question, enable_thinking=False))
    assert off.endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(tokenizer.encode_chat(question)).endswith("assistant\n")


def test_marks_that_a_tokenizer_calls_special_have_text_in_answers_only(folder, tmp_path):
    layout = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    extra = {**layout["added_tokens"][0], "id": VOCAB_SIZE - 1, "content": "<think>"}
    layout["added_tokens"].append(extra)
    vocabulary = layout["model"]["vocab"]
    taken = next(token for token, token_id in vocabulary.items() if token_id == VOCAB_SIZE - 1)
    layout["model"]["vocab"] = {t: i for t, i in vocabulary.items() if t != taken}
    layout["model"]["merges"] = [
        merge for merge in layout["model"]["merges"] if "".join(merge) != taken
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout), encoding="utf-8")
    tokenizer = load(tmp_path)
    assert tokenizer.decode([VOCAB_SIZE - 1]) == "<think>"
    assert VOCAB_SIZE - 1 not in tokenizer.encode("<think>")


def test_a_message_with_another_kind_of_content_is_refused(folder):
    with pytest.raises(InvalidRequest, match="a message's content must be text, got NoneType"):
        load(folder).encode_chat([{"role": "user", "content": None}])


def test_an_engine_says_how_its_chats_are_written(tmp_path):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, section=section)
    write_tiny_tokenizer(tmp_path, chat_template=SWITCHED)
    engine = Engine.from_pretrained(tmp_path)
    assert engine.info.chat.knows_tools
    assert engine.info.chat.thinking is not None
    ids = engine.encode_chat(CHAT[:2], tools=[TOOL], enable_thinking=False)
    assert engine.decode(ids).endswith("</think>\n\n")


STYLED = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if style is defined %}({{ style }}{{ ' ' * width }}){% endif %}{% endif %}"
    "{% if parts is defined %}{{ parts['a'][0] // parts['b'] }}{% endif %}",
)
HI = [{"role": "user", "content": "hi"}]


def test_a_template_gets_its_variables_as_text_without_special_tokens(folder: Path):
    tokenizer = load(folder, STYLED)
    plain = tokenizer.encode_chat(HI)
    assert tokenizer.encode_chat(HI, chat_template_kwargs={}) == plain
    ids = tokenizer.encode_chat(HI, chat_template_kwargs={"style": "terse", "width": 2})
    assert tokenizer.decode(ids) == tokenizer.decode(plain) + "(terse  )"
    ids = tokenizer.encode_chat(HI, chat_template_kwargs={"style": "<|im_end|>", "width": 0})
    assert ids == [*plain, *tokenizer.encode("(<|im_end|>)")]
    assert ids.count(IM_END) == plain.count(IM_END)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"messages": []}, "cannot set messages, which the server itself gives"),
        ({"tools": []}, "cannot set tools"),
        ({"add_generation_prompt": False}, "cannot set add_generation_prompt"),
        ({"chat_template": "{{ 1 }}"}, "cannot set chat_template"),
        ({"raise_exception": 1}, "cannot set raise_exception"),
        ({"eos_token": "x"}, "cannot set eos_token"),
        ({"enable_thinking": True}, "cannot set enable_thinking"),
        ({"colour": 1}, "names that this model's chat template has, got 'colour'"),
        ({"im_start|>": 1}, r"got 'im_start\|>'"),
        ({f"n{i}": 1 for i in range(33)}, "at most 32 names, got 33"),
        ({"style": "x" * 9000}, "at most 8192 characters of JSON, got 9025"),
        ({"style": 10**7}, "numbers of at most 1000000, got 10000000"),
        ({"style": [[[[[[[[1]]]]]]]]}, None),
        ({"style": [[[[[[[[[1]]]]]]]]]}, "may be nested 8 levels deep"),
        ({"parts": {"a": [1], "b": 0}}, "refuses chat_template_kwargs with these messages"),
        ({"parts": {"a": [], "b": 1}}, "refuses chat_template_kwargs with these messages"),
        ({"parts": 7}, "refuses chat_template_kwargs with these messages"),
        ({"style": "a", "width": "b"}, "refuses chat_template_kwargs with these messages"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_variables_a_template_cannot_be_given_are_refused(
    folder: Path, values: dict[str, object], words: str | None
):
    tokenizer = load(folder, STYLED)
    values = {"width": 0, **values} if "style" in values else values
    if words is None:
        tokenizer.encode_chat(HI, chat_template_kwargs=values)
        return
    with pytest.raises(InvalidRequest, match=words) as refusal:
        tokenizer.encode_chat(HI, chat_template_kwargs=values)
    assert refusal.value.param == "chat_template_kwargs"
