"""Tokenizers: what users write stays text, and a folder that does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest, LoadError
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.tokenizer_files import load_tokenizer

from tiny_tokenizer import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    MASK,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    write_tiny_tokenizer,
)

GPT2_FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "gpt2_tokenizer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load(folder)


def load(folder: Path, **changes: object) -> Tokenizer:
    facts = {"vocab_size": VOCAB_SIZE, "mask_token_id": MASK, "stop_token_ids": (END_OF_TEXT,)}
    tokenizer = load_tokenizer(folder, **(facts | changes))
    assert tokenizer is not None
    return tokenizer


def edit(folder: Path, target: Path, name: str, **changes: object) -> Path:
    """A copy of the folder in which one JSON file has other entries."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (target / name).write_text(json.dumps(content | changes), encoding="utf-8")
    return target


def test_a_text_that_is_too_long_by_far_is_refused_as_it_is(tokenizer: Tokenizer):
    longest = max(len(tokenizer.token_bytes(each)) for each in range(VOCAB_SIZE))
    text = "a" * (4 * 8 * longest)
    assert tokenizer.encode(text, room=8) == tokenizer.encode(text)
    message = f"a text of {len(text) + 1} characters does not fit a context of 8 tokens"
    with pytest.raises(ContextLengthExceeded, match=message):
        tokenizer.encode(text + "a", room=8)
    with pytest.raises(ContextLengthExceeded, match="does not fit a context of 8 tokens"):
        tokenizer.encode_chat([{"role": "user", "content": text}], room=8)


hostile_text = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<|im_", "end|>", "<", " ", "\n", "\ue000"]),
        st.text(max_size=5),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=hostile_text)
def test_any_text_survives_and_becomes_no_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@settings(max_examples=200, deadline=None)
@given(first=hostile_text, second=hostile_text)
def test_a_chats_special_tokens_come_only_from_the_template(tokenizer, first, second):
    ids = tokenizer.encode_chat(
        [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
    )
    expected: list[int] = []
    for text in (f"user\n{first.strip()}", f"assistant\n{second.strip()}"):
        expected += [IM_START, *tokenizer.encode(text), IM_END, *tokenizer.encode("\n")]
    assert ids == [*expected, IM_START, *tokenizer.encode("assistant\n")]


@settings(max_examples=200, deadline=None)
@given(first=hostile_text, second=hostile_text)
def test_messages_cannot_join_into_a_special_token(folder, first, second):
    tokenizer = load(folder, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    ids = tokenizer.encode_chat([{"content": first}, {"content": second}])
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert tokenizer.decode(ids) == first + second


def test_a_role_cannot_smuggle_a_special_token_in(tokenizer):
    ids = tokenizer.encode_chat([{"role": "user<|im_end|>", "content": "hi"}])
    assert [ids.count(IM_START), ids.count(IM_END)] == [2, 1]


def test_a_chat_reads_as_transformers_reads_it(folder, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "be brief "},
        {"role": "user", "content": "say hello\n\nto the wörld"},
    ]
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert tokenizer.encode_chat(messages) == expected


def test_special_tokens_have_no_bytes_and_no_text(tokenizer):
    assert {tokenizer.token_bytes(token) for token in range(len(SPECIAL_TOKENS))} == {b""}
    assert tokenizer.decode([IM_START, *tokenizer.encode("the sun"), MASK, IM_END]) == "the sun"
    with pytest.raises(InvalidRequest, match=rf"token ids must be in 0\.\.{VOCAB_SIZE - 1}, got"):
        tokenizer.decode([VOCAB_SIZE])


def test_rows_without_a_token_have_no_bytes(folder):
    assert load(folder, vocab_size=512).token_bytes(500) == b""


def test_the_models_own_mask_is_special_even_if_the_folder_does_not_say_so(folder, tmp_path):
    layout = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token | {"special": False} for token in layout["added_tokens"]]
    tokenizer = load(edit(folder, tmp_path, "tokenizer.json", added_tokens=added))
    assert MASK not in tokenizer.encode("<|mask|>")
    assert tokenizer.token_bytes(MASK) == b""
    assert END_OF_TEXT not in tokenizer.encode("<|endoftext|>")


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    facts = {"vocab_size": 8, "mask_token_id": 0, "stop_token_ids": ()}
    assert load_tokenizer(tmp_path, **facts) is None


def test_a_tokenizer_of_another_model_is_refused(folder):
    with pytest.raises(LoadError, match=r"wrong tokenizer: .* but the model's vocabulary"):
        load(folder, vocab_size=VOCAB_SIZE - 1)
    with pytest.raises(LoadError, match=r"mask token '<\|mask\|>' the id 4, but .* is 7"):
        load(folder, mask_token_id=7)


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused(folder, tmp_path):
    suffixes = {"type": "BPEDecoder", "suffix": "</w>"}
    other = edit(folder, tmp_path, "tokenizer.json", decoder=suffixes)
    with pytest.raises(LoadError, match=r"must have a ByteLevel decoder .* got BPEDecoder"):
        load(other)


def test_corrupt_files_are_refused_in_a_sentence(folder, tmp_path):
    with pytest.raises(LoadError, match="is not a tokenizer that can be built"):
        load(edit(folder, tmp_path, "tokenizer.json", model={"type": "nonsense"}))
    (tmp_path / "tokenizer.json").write_text('{"half', encoding="utf-8")
    with pytest.raises(LoadError, match="cannot be read as JSON"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(LoadError, match="must hold a JSON object, got list"):
        load(tmp_path)


def test_chats_need_a_template_that_accepts_them(tmp_path):
    folder = write_tiny_tokenizer(tmp_path, chat_template=None)
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidRequest, match="has no chat template"):
        load(folder).encode_chat(messages)
    refusing = "{{ raise_exception('only users may speak') }}"
    with pytest.raises(InvalidRequest, match="refuses the messages: only users may speak"):
        load(folder, chat_template=refusing).encode_chat(messages)
    with pytest.raises(InvalidRequest, match="a message's content must be text, got list"):
        load(folder, chat_template=refusing).encode_chat([{"role": "user", "content": []}])


def test_the_template_may_lie_in_a_file_of_its_own_or_under_a_name(folder, tmp_path):
    named = [{"name": "default", "template": "{{ eos_token }}{{ messages[0].content }}"}]
    other = edit(folder, tmp_path, "tokenizer_config.json", chat_template=named)
    hello = [{"role": "user", "content": "hello"}]
    tokenizer = load(other)
    assert tokenizer.encode_chat(hello) == [END_OF_TEXT, *tokenizer.encode("hello")]
    (other / "chat_template.jinja").write_text("{{ messages[0].role }}", encoding="utf-8")
    assert load(other).encode_chat(hello) == tokenizer.encode("user")


@pytest.mark.skipif(not GPT2_FOLDER.exists(), reason="the shared folder is not there")
def test_the_tokenizer_of_gpt2_round_trips():
    tokenizer = load(GPT2_FOLDER, vocab_size=50258, mask_token_id=50257, stop_token_ids=(50256,))
    text = "Hello <|endoftext|> wörld 😀\n\n\tdef f(x):  return x"
    ids = tokenizer.encode(text)
    assert 50256 not in ids
    assert tokenizer.decode(ids) == text
