"""Packed segments must give what transformers' own attention gives for each segment alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import ModernBertForMaskedLM, Qwen3ForCausalLM

from diffusiongpt.engine.attention import packed_attention
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.loader import LoadedModel, load_model

from tiny_models import LOCAL_ATTENTION, VOCAB_SIZE, write_modernbert, write_qwen3

TOLERANCE = 1e-5
BLOCK_LENGTH = 4


def attend(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, window: int | None = None
) -> Tensor:
    scaling = query.shape[-1] ** -0.5
    layer = torch.nn.Identity()
    layer.layer_idx = 0
    output, _ = packed_attention(
        layer,
        query,
        key,
        value,
        None,
        attention_plan=plan,
        scaling=scaling,
        sliding_window=window,
    )
    return output


def attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """One query of one head at a time, over the keys that it sees."""
    _, heads, tokens, size = query.shape
    group = heads // key.shape[1]
    output = torch.zeros(1, tokens, heads, size, dtype=query.dtype)
    start = 0
    for length in plan.lengths:
        for i in range(length):
            seen = [start + j for j in range(length) if sees(i, j, plan.block_length, window)]
            for head in range(heads):
                keys, values = key[0, head // group, seen], value[0, head // group, seen]
                scores = keys @ query[0, head, start + i] * size**-0.5
                output[0, start + i, head] = scores.softmax(0) @ values
        start += length
    return output


def sees(i: int, j: int, block_length: int | None, window: int | None) -> bool:
    if window is not None and abs(i - j) > window - 1:
        return False
    return block_length is None or j // block_length <= i // block_length


def random_heads(tokens: int, heads: int, key_heads: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(1, count, tokens, 8, generator=generator)
        for count in (heads, key_heads, key_heads)
    )


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=5),
    block_length=st.none() | st.integers(1, 6),
    window=st.none() | st.integers(1, 7),
    key_heads=st.sampled_from([1, 2, 4]),
)
def test_packed_attention_is_the_plain_loop(
    lengths: list[int], block_length: int | None, window: int | None, key_heads: int
) -> None:
    plan = AttentionPlan(lengths=tuple(lengths), block_length=block_length)
    heads = random_heads(sum(lengths), 4, key_heads)
    expected = attend_plainly(*heads, plan, window)
    torch.testing.assert_close(attend(*heads, plan, window), expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shadows_see_all_but_their_place_and_nothing_sees_them(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=4))
    block_length = data.draw(st.none() | st.integers(1, 6))
    window = data.draw(st.none() | st.integers(1, 7))
    all_lengths: list[int] = []
    shadows: list[int | None] = []
    for length in lengths:
        all_lengths.append(length)
        shadows.append(None)
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, length - 1))
            all_lengths.append(data.draw(st.integers(1, length - place)))
            shadows.append(place)
    plan = AttentionPlan(
        lengths=tuple(all_lengths), block_length=block_length, shadows=tuple(shadows)
    )
    query, key, value = random_heads(plan.num_tokens, 2, 1)
    together = attend(query, key, value, plan, window)
    start = stop = 0
    for length, place in zip(all_lengths, shadows, strict=True):
        if place is None:
            start, stop = stop, stop + length
            heads = (each[:, :, start:stop] for each in (query, key, value))
            alone = AttentionPlan(lengths=(length,), block_length=block_length)
            assert attend(*heads, alone, window).equal(together[:, start:stop])
            seen_length = length
            continue
        for index in range(length):
            own, i = stop + index, place + index
            seen = [j for j in range(seen_length) if j != i and sees(i, j, block_length, window)]
            tokens = [*(start + j for j in seen), own]
            for head in range(2):
                scores = key[0, 0, tokens] @ query[0, head, own] * query.shape[-1] ** -0.5
                expected = scores.softmax(0) @ value[0, 0, tokens]
                torch.testing.assert_close(together[0, own, head], expected, atol=1e-6, rtol=1e-5)
        stop += length


@pytest.mark.parametrize(
    ("lengths", "shadows"), [((4, 4), (0, None)), ((4, 4), (None,)), ((4,), (None, 0))]
)
def test_shadows_of_nothing_are_refused(
    lengths: tuple[int, ...], shadows: tuple[int | None, ...]
) -> None:
    with pytest.raises(ValueError, match="shadow"):
        AttentionPlan(lengths=lengths, shadows=shadows)


@pytest.mark.parametrize(("block_length", "window"), [(None, 9), (24, None), (24, 9), (160, 40)])
def test_segments_longer_than_a_tile_are_the_plain_loop(
    block_length: int | None, window: int | None
) -> None:
    plan = AttentionPlan(lengths=(150, 260, 260), block_length=block_length)
    heads = random_heads(plan.num_tokens, 1, 1)
    expected = attend_plainly(*heads, plan, window)
    torch.testing.assert_close(attend(*heads, plan, window), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("block_length", "window"), [(None, None), (None, 5), (4, None), (4, 5)])
def test_a_segment_is_the_same_bit_for_bit_alone_and_in_any_company(
    dtype: torch.dtype, block_length: int | None, window: int | None
) -> None:
    lengths = (7, 16, 16, 16, 7, 150, 3)
    query, key, value = (each.to(dtype) for each in random_heads(sum(lengths), 4, 2))
    plan = AttentionPlan(lengths=lengths, block_length=block_length)
    together = attend(query, key, value, plan, window)
    start = 0
    for length in lengths:
        tokens = slice(start, start + length)
        alone = attend(
            query[:, :, tokens],
            key[:, :, tokens],
            value[:, :, tokens],
            AttentionPlan(lengths=(length,), block_length=block_length),
            window,
        )
        assert alone.equal(together[:, tokens])
        start += length


def test_a_plan_joins_equally_long_neighbours() -> None:
    runs = AttentionPlan(lengths=(5, 5, 3, 5)).runs
    assert [(run.start, run.count, run.length) for run in runs] == [
        (0, 2, 5),
        (10, 1, 3),
        (13, 1, 5),
    ]


@pytest.mark.parametrize("lengths", [(), (3, 0)])
def test_a_plan_has_segments_of_at_least_one_token(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lengths must be"):
        AttentionPlan(lengths=lengths)


def test_a_plan_refuses_a_block_length_of_zero() -> None:
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        AttentionPlan(lengths=(3,), block_length=0)


def test_a_row_that_is_not_the_plans_is_refused() -> None:
    with pytest.raises(ValueError, match="one row of 4 tokens"):
        attend(*random_heads(5, 2, 2), AttentionPlan(lengths=(4,)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "modernbert": write_modernbert(root / "modernbert"),
        "modernbert_blocks": write_modernbert(root / "mb", block_length=BLOCK_LENGTH),
        "qwen3": write_qwen3(root / "qwen3"),
        "qwen3_blocks": write_qwen3(root / "qb", block_length=BLOCK_LENGTH),
    }


def canvases(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


def packed_logits(model: LoadedModel, rows: list[list[int]]) -> list[Tensor]:
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row])
    positions = torch.cat([torch.arange(n) for n in lengths])
    logits = model.head(model.backbone(ids[None], positions[None], model.plan(*lengths)))
    return list(logits.split(lengths))


def load_reference(folder: Path, name: str) -> ModernBertForMaskedLM | Qwen3ForCausalLM:
    """The same weights under transformers' own sdpa attention."""
    native = ModernBertForMaskedLM if name.startswith("modernbert") else Qwen3ForCausalLM
    return native.from_pretrained(folder, attn_implementation="sdpa").eval()


@torch.no_grad()
def reference_logits(
    network: ModernBertForMaskedLM | Qwen3ForCausalLM, row: list[int], block_length: int | None
) -> Tensor:
    """One canvas under dense masks that say for each pair whether it is visible."""
    position = range(len(row))

    def dense(window: int | None) -> Tensor:
        rows = [[sees(i, j, block_length, window) for j in position] for i in position]
        return torch.tensor(rows)[None, None]

    masks = {
        "full_attention": dense(None),
        "sliding_attention": dense(LOCAL_ATTENTION // 2 + 1),
    }
    return network(torch.tensor([row]), attention_mask=masks).logits[0]


@pytest.mark.parametrize("name", ["modernbert", "modernbert_blocks", "qwen3", "qwen3_blocks"])
def test_packed_segments_give_the_logits_of_the_dense_mask(
    folders: dict[str, Path], name: str
) -> None:
    model = load_model(folders[name], dtype="float32")
    network = load_reference(folders[name], name)
    rows = canvases(40, 3, 17, 17, 1, 29)
    for row, logits in zip(rows, packed_logits(model, rows), strict=True):
        expected = reference_logits(network, row, model.plan(1).block_length)
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(logits, model.logits(row), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_packed_segments_give_the_logits_of_a_padded_modernbert_batch(
    folders: dict[str, Path],
) -> None:
    folder = folders["modernbert"]
    rows = canvases(40, 9, 21)
    ids = torch.zeros(len(rows), 40, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, canvas in enumerate(rows):
        ids[row, : len(canvas)] = torch.tensor(canvas)
        mask[row, : len(canvas)] = 1
    network = load_reference(folder, "modernbert")
    padded = network(ids, attention_mask=mask).logits
    packed = packed_logits(load_model(folder, dtype="float32"), rows)
    for row, logits in enumerate(packed):
        expected = padded[row, : len(logits)]
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["modernbert", "qwen3_blocks"])
def test_order_and_company_of_segments_change_nothing(folders: dict[str, Path], name: str) -> None:
    model = load_model(folders[name], dtype="float32")
    rows = canvases(12, 31, 12, 5)
    forward = packed_logits(model, rows)
    backward = packed_logits(model, rows[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def test_bfloat16_stays_near_float32(folders: dict[str, Path]) -> None:
    (row,) = canvases(40)
    full = load_model(folders["modernbert"], dtype="float32").logits(row)
    half = load_model(folders["modernbert"], dtype="bfloat16").logits(row)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.15, rtol=0)
