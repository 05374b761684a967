import numpy as np
import pytest
import torch

from diffusiongpt.training.chats import generated_chats, story_requests, topic_of
from diffusiongpt.training.data import (
    RowBuilder,
    build_dataset,
    mixed_order,
    pack_answers,
    pack_texts,
)
from diffusiongpt.training.evaluate import token_byte_lengths
from diffusiongpt.training.pieces import Piece
from diffusiongpt.training.sources import find_file
from diffusiongpt.training.tokenizer import special_ids

EOT, END, PAD = 1, 3, 0


def ids(*values):
    return np.asarray(values, dtype=np.int32)


def text(start, length):
    return Piece(np.arange(start, start + length, dtype=np.int32))


def test_every_token_of_a_text_is_placed_once_and_in_order():
    builder = RowBuilder(16, 4, PAD, set())
    rows = list(pack_texts([text(100, 30), text(200, 5), text(300, 11)], builder, EOT, smallest=4))
    placed = np.concatenate([row[0][row[1] > 0] for row in rows])
    assert [t for t in placed if t >= 100] == [*range(100, 130), *range(200, 205), *range(300, 311)]


def test_segments_start_at_block_edges():
    builder = RowBuilder(32, 8, PAD, set())
    rows = list(pack_texts([text(100 * i, 5 + i) for i in range(1, 12)], builder, EOT, smallest=8))
    for _, segments, _ in rows:
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        assert not (starts % 8).any()


def test_an_answer_ends_with_im_end_to_the_block_edge_in_the_loss():
    builder = RowBuilder(32, 8, PAD, set())
    rows = list(pack_answers([Piece(ids(10, 11, 12, 20, 21, 22), fixed=3)], builder, END))
    tokens, segments, maskable = rows[0]
    assert tokens[:8].tolist() == [10, 11, 12, 20, 21, 22, END, END]
    assert maskable.tolist() == [False] * 3 + [True] * 5 + [False] * 24
    assert segments.tolist() == [1] * 8 + [0] * 24


def test_an_answer_that_fills_its_block_gets_a_block_of_endings():
    builder = RowBuilder(16, 4, PAD, set())
    rows = list(pack_answers([Piece(ids(10, 11, 20, 21), fixed=2)], builder, END))
    assert rows[0][0][:8].tolist() == [10, 11, 20, 21, END, END, END, END]


def test_a_truncated_answer_gets_no_ending():
    builder = RowBuilder(16, 4, PAD, set())
    rows = list(pack_answers([Piece(np.arange(10, 60, dtype=np.int32), fixed=3)], builder, END))
    tokens, _, maskable = rows[0]
    assert tokens.tolist() == list(range(10, 26))
    assert maskable[3:].all()


def test_without_blocks_the_ending_is_repeated_a_random_number_of_times():
    builder = RowBuilder(32, 1, PAD, set())
    pieces = [Piece(ids(10, 11, 20), fixed=2) for _ in range(200)]
    rows = list(pack_answers(pieces, builder, END, np.random.default_rng(0), max_trailing=5))
    counts = set()
    for tokens, segments, maskable in rows:
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            endings = inside & (tokens == END)
            assert maskable[endings].all()
            counts.add(int(endings.sum()))
    assert counts == {1, 2, 3, 4, 5}


def test_a_prompt_that_leaves_no_room_is_left_out():
    builder = RowBuilder(16, 4, PAD, set())
    rows = list(pack_answers([Piece(np.arange(40, dtype=np.int32), fixed=15)], builder, END))
    assert rows == []


def test_ids_that_are_never_emitted_are_never_masked(make_config, tokenizer):
    config = make_config("sft")
    special = special_ids(tokenizer)
    for stage in ("pretrain", "sft"):
        data = make_config(data={"mix": {"chats": 1.0}}).data
        rows = build_dataset(data, stage, "block", 4, tokenizer, 0)
        hidden = np.isin(rows.tokens, [special["<|im_start|>"], special["<|pad|>"]])
        assert not (rows.maskable & hidden).any()
    assert config.stage == "sft"


@pytest.mark.parametrize("objective", ["block", "masked"])
def test_another_document_in_the_row_changes_nothing(make_denoiser, objective):
    denoiser = make_denoiser(objective)
    segments = torch.tensor([[1] * 8 + [2] * 16 + [3] * 8])
    tokens = torch.randint(6, 250, (1, 32))
    masked = torch.rand(1, 32) < 0.5
    before = denoiser.hidden(tokens, segments, masked)[0, 8:24]
    changed = tokens.clone()
    changed[0, :8] = torch.randint(6, 250, (8,))
    changed[0, 24:] = torch.randint(6, 250, (8,))
    assert denoiser.hidden(changed, segments, masked)[0, 8:24].equal(before)


def test_the_cache_gives_the_same_rows(make_config, tokenizer):
    data = make_config().data
    first = build_dataset(data, "pretrain", "block", 4, tokenizer, 0)
    again = build_dataset(data, "pretrain", "block", 4, tokenizer, 0)
    assert np.array_equal(first.tokens, again.tokens)
    assert not np.array_equal(
        first.tokens, build_dataset(data, "pretrain", "block", 4, tokenizer, 1).tokens
    )


def test_one_source_of_a_file_can_be_weighed(make_config, tokenizer):
    sizes = [
        len(
            build_dataset(
                make_config("sft", data={"mix": mix}).data, "sft", "block", 4, tokenizer, 0
            )
        )
        for mix in ({"chats": 1.0}, {"chats/chat": 1.0}, {"chats/chat": 1.0, "chats/talk": 1.0})
    ]
    assert sizes[1] < sizes[0] <= sizes[2]


def test_weights_are_whole_passes_and_a_random_part():
    order = mixed_order({"a": 10, "b": 100}, {"a": 2.5, "b": 0.1}, seed=0)
    assert sum(name == "a" for name, _ in order) == 25
    assert sum(name == "b" for name, _ in order) == 10


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="stories"):
        find_file(str(tmp_path), "stories")


def test_the_tokenizer_is_read_by_auto_tokenizer(tokenizer):
    text = "the cat ran home"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.mask_token, tokenizer.pad_token) == ("<|mask|>", "<|pad|>")
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_token_bytes_add_up_to_the_text(tokenizer):
    text = "the cat — é 猫"
    lengths = token_byte_lengths(tokenizer)
    assert int(lengths[tokenizer(text)["input_ids"]].sum()) == len(text.encode())
    assert int(lengths[tokenizer.mask_token_id]) == 0


def test_story_requests_name_what_the_story_tells_of():
    story = "A fox ran by. " * 42
    chats = story_requests([{"text": story + "\n\n" + story}], 10, seed=0)
    assert chats
    assert all("a fox" in chat["messages"][0]["content"] for chat in chats)
    assert topic_of("One cat and one dog.") is None


def test_generated_chats_answer_sums_rightly():
    sums = [
        chat["messages"][1]["content"]
        for chat in generated_chats(200, 0)
        if " = " in chat["messages"][1]["content"]
    ]
    assert sums
    for answer in sums:
        first, sign, second, _, result = answer.rstrip(".").split()
        assert int(result) == (
            int(first) + int(second) if sign == "+" else int(first) - int(second)
        )
