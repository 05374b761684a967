"""Pages shared across requests: cached is recomputed, in bounded memory that is all given back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.pages import Page, PageStore
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from toy_models import CausalHashModel, toy_engine

BLOCK_LENGTH = 4
PAGE_BYTES = 2 * BLOCK_LENGTH * 8  # keys and values of one layer, one head of one int64


def engine_of(num_pages: int, **settings: object) -> Engine:
    model = CausalHashModel(vocab_size=40, context_length=64, block_length=BLOCK_LENGTH)
    return toy_engine(model, prefix_cache_bytes=num_pages * PAGE_BYTES, **settings)


def pages_of(engine: Engine) -> PageStore:
    store = engine._scheduler.pages
    assert store is not None
    return store


def all_pages(page: Page) -> list[Page]:
    return [each for child in page.children.values() for each in (child, *all_pages(child))]


def check_store(store: PageStore, *, num_running: int) -> None:
    """Counts, bounds and references of a store are those of its tree."""
    pages = all_pages(store._root)
    assert store.num_pages == len(pages)
    assert store.num_bytes == sum(page.data.nbytes for page in pages) <= store._max_bytes
    held = sum(page.num_references - len(page.children) for page in [store._root, *pages])
    assert 0 <= held <= num_running
    assert set(store._idle) == {page for page in pages if page.num_references == 0}


def texts(max_size: int = 30) -> st.SearchStrategy[list[int]]:
    """Texts of which many begin alike, and some differ within a block only."""
    stem = st.builds(lambda kind, size: [kind] * size, st.integers(0, 1), st.integers(0, max_size))
    return st.builds(lambda a, b: a + b, stem, st.lists(st.integers(0, 2), max_size=4))


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, the tick that it comes in, and the tick that it is aborted in."""

    prompt: list[int]
    params: GenerationParams
    start: int
    abort: int | None


asks = st.builds(
    Ask,
    prompt=texts(),
    params=st.builds(
        GenerationParams,
        max_tokens=st.integers(1, 20),
        # What tosses must have a budget, and what looks back a model that was trained for it.
        policy=st.sampled_from(
            sorted(name for name, preset in PRESETS.items() if not preset.revises)
        ),
        temperature=st.sampled_from([0.0, 0.8]),
        seed=st.integers(0, 3),
    ),
    start=st.integers(0, 40),
    abort=st.none() | st.integers(1, 40),
)


def serve(engine: Engine, mix: list[Ask]) -> list[list[Frame]]:
    """The frames of each ask; the engine's pages are checked after every tick."""
    prepared = [engine.prepare(ask.prompt, ask.params) for ask in mix]
    frames: dict[str, list[Frame]] = {request.request_id: [] for request in prepared}
    for tick in range(1000):
        for ask, request in zip(mix, prepared, strict=True):
            if tick == ask.start:
                engine.add(request)
            if ask.abort is not None and tick == ask.start + ask.abort:
                engine.abort(request.request_id)
        for frame in engine.step():
            frames[frame.request_id].append(frame)
        check_store(pages_of(engine), num_running=engine.num_running)
        if tick > 40 and engine.is_idle:
            break
    return list(frames.values())


def tokens_of(frames: list[Frame]) -> dict[int, int]:
    return {position: token for frame in frames for position, token in frame.tokens}


@settings(max_examples=60, deadline=None)
@given(mix=st.lists(asks, min_size=2, max_size=10), num_pages=st.sampled_from([1, 3, 8, 1000]))
def test_shared_pages_give_the_tokens_of_a_recomputed_canvas(mix: list[Ask], num_pages: int):
    engine = engine_of(num_pages, num_slots=4)
    plain_model = CausalHashModel(vocab_size=40, context_length=64, block_length=BLOCK_LENGTH)
    plain = toy_engine(plain_model, cache_blocks=False)
    for ask, frames in zip(mix, serve(engine, mix), strict=True):
        expected = plain.generate([ask.prompt], ask.params)[0]
        tokens = tokens_of(frames)
        if frames[-1].finish_reason is FinishReason.ABORT:
            assert all(expected.token_ids[position] == tokens[position] for position in tokens)
        else:
            assert [tokens[position] for position in sorted(tokens)] == list(expected.token_ids)
    assert engine._scheduler.table.num_free == 4
    check_store(pages_of(engine), num_running=0)


def test_cached_tokens_are_exactly_those_that_are_not_computed(monkeypatch):
    engine = engine_of(1000)
    computed = []
    backbone = engine._model.backbone

    def count(ids, position_ids, plan, wanted=None):
        computed.append(ids.shape[1])
        return backbone(ids, position_ids, plan, wanted)

    monkeypatch.setattr(engine._model, "backbone", count)
    for prompt, cached in (
        ([1] * 14, 0),
        ([1] * 14, 12),
        ([1] * 16, 12),
        ([1] * 11 + [2] * 5, 8),
        ([2] + [1] * 13, 0),
    ):
        computed.clear()
        usage = engine.generate([prompt], GenerationParams(max_tokens=4, seed=1))[0].usage
        assert (usage.prompt_tokens, usage.cached_tokens) == (len(prompt), cached)
        first_block_end = (len(prompt) // BLOCK_LENGTH + 1) * BLOCK_LENGTH
        assert computed[0] == first_block_end - cached


def test_the_next_turn_of_a_chat_reuses_the_answer_too():
    engine = engine_of(1000)
    params = GenerationParams(max_tokens=12, seed=1)
    first = engine.generate([[1] * 8], params)[0]
    # The answer's last block was never seen clean, so it is not known.
    second = engine.generate([[1] * 8 + list(first.token_ids) + [2] * 3], params)[0]
    assert second.usage.cached_tokens == 16


def page_data(pages: int = 1) -> torch.Tensor:
    return torch.zeros(2, 1, BLOCK_LENGTH * pages, 1, dtype=torch.int64)


def grow(store: PageStore, *blocks: int) -> Page:
    """The page at the end of a text whose blocks each repeat one id."""
    page: Page | None = store.take([])
    for block in blocks:
        assert page is not None
        page = store.put(page, (block,) * BLOCK_LENGTH, page_data())
    assert page is not None
    return page


def known(store: PageStore, *blocks: int) -> int:
    page = store.take([block for block in blocks for _ in range(BLOCK_LENGTH)])
    store.give_back(page)
    return page.depth


def test_the_least_recently_used_path_is_evicted_from_its_end():
    store = PageStore(BLOCK_LENGTH, 4 * PAGE_BYTES)
    for path in ((1, 2), (3, 4)):
        store.give_back(grow(store, *path))
    assert known(store, 1, 2) == 2  # a look at it makes it the more recent one
    store.give_back(grow(store, 5))
    assert (known(store, 3, 4), known(store, 5), known(store, 1, 2)) == (1, 1, 2)
    store.give_back(grow(store, 6))
    assert (known(store, 3), known(store, 5), known(store, 6), known(store, 1, 2)) == (0, 1, 1, 2)


def test_a_page_in_use_is_never_evicted_and_a_full_store_takes_nothing():
    store = PageStore(BLOCK_LENGTH, 2 * PAGE_BYTES)
    held = grow(store, 1, 2)
    root = store.take([])
    assert store.put(root, (9,) * BLOCK_LENGTH, page_data()) is None
    assert known(store, 1, 2) == 2
    store.give_back(held)
    store.give_back(grow(store, 9))
    assert (known(store, 1, 2), known(store, 9)) == (1, 1)
    check_store(store, num_running=0)


def test_a_page_larger_than_the_bound_is_not_kept():
    store = PageStore(BLOCK_LENGTH, PAGE_BYTES - 1)
    assert store.put(store.take([]), (1,) * BLOCK_LENGTH, page_data()) is None
    assert (store.num_pages, store.num_bytes, len(store._idle)) == (0, 0, 0)


class Alike(int):
    """An id whose hash is that of every other one."""

    def __hash__(self) -> int:
        return 0


def test_pages_are_told_apart_by_their_ids_and_not_by_a_hash():
    store = PageStore(1, 10**6)
    for ids in ((Alike(1),), (Alike(2),)):
        page = store.put(store.take([]), ids, page_data())
        assert page is not None
        store.give_back(page)
    assert store.take([Alike(1)]) is not store.take([Alike(2)])
    assert store.take([Alike(3)]).depth == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_cache_bytes": -1}, "must be at least 0, got -1"),
        ({"prefix_cache_bytes": 5, "deterministic": True}, "absent when deterministic"),
        ({"prefix_cache_bytes": 5, "cache_blocks": False}, "without cache_blocks, got 5"),
    ],
)
def test_a_prefix_cache_that_cannot_be_is_refused(fields: dict[str, object], message: str):
    with pytest.raises(LoadError, match=message):
        EngineConfig(**fields)  # type: ignore[arg-type]


def test_deterministic_engines_share_nothing():
    model = CausalHashModel(vocab_size=40, context_length=64, block_length=BLOCK_LENGTH)
    assert toy_engine(model, deterministic=True)._scheduler.pages is None
