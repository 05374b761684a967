"""The law of forming text: whatever the order of the commits, the same text comes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.replay import Replay
from diffusiongpt.engine.stop import StopSearch
from diffusiongpt.engine.text import TextCanvas, TextUpdate

# Whole characters, halves of characters, bytes that are never valid, specials (no bytes).
PIECES = [
    *[b"", b"", b"a", b"b", b"ab", b"aba", b"c ", b" ", b"b\xe2", b"\x82\xac", b"\xe2\x82"],
    *["é".encode(), "€".encode(), "😀".encode(), b"\xf0\x9f", b"\x98\x80", b"\xf0", b"\x9f"],
    *[b"\x80", b"\x80\x80", b"\x82\xaca", b"\xaca\xf0", b"\xc3", b"\xa9", b"\xff", b"\xed\xa0"],
    *[b"\xe0", b"\xc0", b"\xf4\x90", b"\xf0\x9f\x98", b"\x80\x80\x80\x80", b"\xacb\xe2\x82"],
]
# What masks may turn out to be, chosen to complete or to break any character around them.
FILLINGS = [
    *[b"", b"x", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\x80x", b"\x9f", b"\xbf"],
    *[b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80", b"\xa0\x80"],
    *[b"\x90\x80\x80", b"\x80\xf1", b"\x80\xf1\x80", b"\x80\x80\xf1", b"\xf1\x80\x80\x80"],
]
tokens_of = st.lists(
    st.one_of(st.integers(0, len(PIECES) - 1), st.integers(0, 9)), min_size=1, max_size=14
)
stops_of = st.lists(st.text("ab€�c ", min_size=1, max_size=4), max_size=3)


def reference(tokens: Sequence[bytes], stop: Sequence[str]) -> str:
    text = b"".join(tokens).decode("utf-8", errors="replace")
    starts = [text.find(string) for string in stop if string in text]
    return text[: min(starts, default=len(text))]


class Watched:
    """Feeds a canvas and checks the laws that hold at every moment."""

    def __init__(self, canvas: TextCanvas, final: str) -> None:
        self.canvas, self.final = canvas, final
        self.replay, self.content, self.committed = Replay(), "", set[int]()
        self.settled = 0

    def take(self, update: TextUpdate, committed: Sequence[int] = ()) -> None:
        self.content += update.content
        assert self.final.startswith(self.content)
        assert update.settled >= self.settled
        for change in update.set:
            assert change.position in {*self.committed, *committed}
            assert self.replay.texts.get(change.position) != change.text
            assert change.position >= self.settled
        assert set(update.unset) <= self.replay.texts.keys()
        self.settled = update.settled
        self.committed.update(committed)
        self.replay.apply(update.set, update.unset)


def batches_of(data: st.DataObject, length: int) -> list[list[int]]:
    order = data.draw(st.permutations(range(length)))
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=length))})
    return [list(order[low:high]) for low, high in pairwise(cuts)]


def piece(token_id: int) -> bytes:
    return PIECES[token_id]


@settings(max_examples=1500, deadline=None)
@given(tokens_of, stops_of, st.data())
def test_content_and_replay_are_the_reference_in_any_order_and_batch_size(tokens, stop, data):
    length = len(tokens)
    end = data.draw(st.one_of(st.just(length), st.integers(0, length)))
    ends = end < length
    ids = [*tokens[:end], len(PIECES), *tokens[end + 1 :]] if ends else tokens
    final = reference([PIECES[token] for token in tokens[:end]], stop)
    canvas = TextCanvas(
        lambda token: b"" if token == len(PIECES) else PIECES[token],
        length,
        stop,
        True,
        end_token_ids=[len(PIECES)],
    )
    watched = Watched(canvas, final)
    stopped = False
    for batch in batches_of(data, length):
        update = canvas.commit((position, ids[position], 0.5) for position in batch)
        watched.take(update, batch)
        stopped = update.stopped
        if stopped:
            assert watched.replay.text == watched.content == final
        if canvas.end is not None:
            break
    assert stopped or canvas.end == (end if ends else None)
    watched.take(canvas.finish(end if canvas.end is None else canvas.end))
    assert watched.content == final
    assert watched.replay.text == final
    assert watched.settled == canvas.end


@settings(max_examples=500, deadline=None)
@given(tokens_of, st.data())
def test_a_share_appears_as_soon_as_the_masks_cannot_change_it(tokens, data):
    """Compares with what comes out for many bytes that the masks could stand for."""
    canvas = TextCanvas(piece, len(tokens), watch=True)
    replay = Replay()
    filled: set[int] = set()
    for batch in batches_of(data, len(tokens)):
        update = canvas.commit((position, tokens[position], 1.0) for position in batch)
        replay.apply(update.set, update.unset)
        filled.update(batch)
        for position in filled:
            outcomes = {
                shares(
                    [
                        PIECES[token] if index in filled else filling
                        for index, token in enumerate(tokens)
                    ]
                )[position]
                for filling in FILLINGS
            }
            shown = replay.texts[position]
            assert all(shown in outcome for outcome in outcomes)
            if len(outcomes) == 1:
                assert shown == outcomes.pop()
    assert [replay.texts[position] for position in range(len(tokens))] == shares(
        [PIECES[token] for token in tokens]
    )


def shares(tokens: Sequence[bytes]) -> list[str]:
    """The plain definition: a character belongs to the token of its first byte."""
    data = b"".join(tokens)
    texts, opened = [], 0
    end = 0
    for token in tokens:
        end += len(token)
        num_opened = len(data[:end].decode("utf-8", errors="replace"))
        texts.append(data.decode("utf-8", errors="replace")[opened:num_opened])
        opened = num_opened
    return texts


@settings(max_examples=500, deadline=None)
@given(tokens_of, stops_of)
def test_a_filled_prefix_holds_back_only_what_it_must(tokens, stop):
    canvas = TextCanvas(piece, len(tokens) + 1, stop)
    content, data = "", b""
    for position, token in enumerate(tokens):
        update = canvas.commit([(position, token, 1.0)])
        content, data = content + update.content, data + PIECES[token]
        decoded = decided_text(data)
        if update.stopped:
            assert content == reference([decoded.encode()], stop)
            return
        assert decoded.startswith(content)
        assert decoded[len(content) :] in may_take_back(decoded, stop)


def decided_text(data: bytes) -> str:
    """The text on which all continuations of the bytes agree."""
    texts = [(data + more).decode("utf-8", errors="replace") for more in FILLINGS]
    agreed = [len(set(characters)) == 1 for characters in zip(*texts, strict=False)]
    return texts[0][: (*agreed, False).index(False)]


def may_take_back(text: str, stop: Sequence[str]) -> set[str]:
    """Ends of the text that begin with a stop string's beginning which may still come true."""
    starts = [
        start
        for start in range(len(text))
        if any(string.startswith(text[start:]) or text.startswith(string, start) for string in stop)
    ]
    return {text[start:] for start in [*starts, len(text)][:1]}


@settings(max_examples=500, deadline=None)
@given(tokens_of, st.data())
def test_edits_of_unsettled_positions_end_in_the_text_of_the_last_tokens(tokens, data):
    length = len(tokens)
    canvas = TextCanvas(piece, length, watch=True)
    drafts = data.draw(st.lists(st.integers(0, len(PIECES) - 1), min_size=length, max_size=length))
    watched = Watched(canvas, reference([PIECES[token] for token in tokens], ()))
    for batch in batches_of(data, length):
        watched.take(canvas.commit([(p, drafts[p], 0.1) for p in batch], editable_from=0), batch)
    assert watched.content == ""
    assert [watched.replay.texts[position] for position in range(length)] == shares(
        [PIECES[token] for token in drafts]
    )
    for batch in batches_of(data, length):
        watched.take(canvas.commit([(p, tokens[p], 0.2) for p in batch], editable_from=0), batch)
    watched.take(canvas.finish(length))
    assert watched.replay.text == watched.content == watched.final


@settings(max_examples=300, deadline=None)
@given(tokens_of, stops_of, st.data())
def test_an_unwatched_canvas_gives_the_same_content_and_nothing_else(tokens, stop, data):
    watched, plain = (TextCanvas(piece, len(tokens), stop, watch) for watch in (True, False))
    for batch in batches_of(data, len(tokens)):
        commits = [(position, tokens[position], 1.0) for position in batch]
        first, second = watched.commit(commits), plain.commit(commits)
        assert (second.set, second.unset) == ((), ())
        assert (first.content, first.settled) == (second.content, second.settled)
    assert watched.end == plain.end
    assert watched.finish(len(tokens)).content == plain.finish(len(tokens)).content


@settings(max_examples=300, deadline=None)
@given(tokens_of, stops_of, st.data())
def test_an_update_followed_by_another_replays_like_both(tokens, stop, data):
    canvas = TextCanvas(piece, len(tokens), stop, True)
    one_by_one, joined, updates = Replay(), Replay(), TextUpdate()
    for batch in batches_of(data, len(tokens)):
        update = canvas.commit((position, tokens[position], 1.0) for position in batch)
        one_by_one.apply(update.set, update.unset)
        updates = updates.followed_by(update)
    update = canvas.finish(data.draw(st.integers(canvas._read, len(tokens))))
    one_by_one.apply(update.set, update.unset)
    updates = updates.followed_by(update)
    joined.apply(updates.set, updates.unset)
    assert joined.texts == one_by_one.texts
    assert joined.text == updates.content


def test_an_aborted_completion_ends_at_its_first_mask():
    canvas = TextCanvas(piece, 4, watch=True)
    euro = PIECES.index(b"\xe2\x82")
    replay = Replay()
    for update in (canvas.commit([(0, 2, 1.0), (1, euro, 1.0), (3, 2, 1.0)]), canvas.finish(4)):
        replay.apply(update.set, update.unset)
    assert replay.texts == {0: "a", 1: "�"}
    assert canvas.end == 2


def test_the_token_that_a_stop_string_splits_keeps_its_beginning():
    words = [b"one. ", b"two STO", b"P three", b" four"]
    canvas = TextCanvas(words.__getitem__, 4, ["STOP"], True)
    first = canvas.commit([(0, 0, 0.9), (1, 1, 0.8), (3, 3, 0.7)])
    assert first.content == "one. two "
    assert first.settled == 1
    second = canvas.commit([(2, 2, 0.6)])
    assert second.stopped
    assert second.set == ((1, "two ", 0.8, "unmask"),)
    assert second.unset == (3,)
    assert (second.content, second.settled, canvas.end) == ("", 2, 2)
    assert canvas.commit([(3, 0, 1.0)]) == TextUpdate(settled=2, stopped=True)
    assert canvas.finish(4) == TextUpdate(settled=2, stopped=True)


def test_a_character_shows_at_its_first_token_once_it_is_complete():
    pieces = [b"\xf0\x9f", b"\x98", b"\x80!"]
    canvas = TextCanvas(pieces.__getitem__, 3, watch=True)
    assert canvas.commit([(2, 2, 0.3)]).set == ((2, "!", 0.3, "unmask"),)
    assert canvas.commit([(0, 0, 0.1)]).set == ((0, "", 0.1, "unmask"),)
    last = canvas.commit([(1, 1, 0.2)])
    assert last.set == ((0, "😀", 0.1, "unmask"), (1, "", 0.2, "unmask"))
    assert last.content == "😀!"


def test_an_edit_is_told_from_an_unmasking():
    canvas = TextCanvas(piece, 2, watch=True)
    canvas.commit([(1, 2, 0.5)])
    assert canvas.commit([(1, 3, 0.6)]).set == ((1, "b", 0.6, "edit"),)


def test_the_earliest_start_wins_even_when_a_later_one_completes_first():
    for text, start in (("abcd", 0), ("abcx", 1), ("abc", 1), ("xyz", None)):
        search = StopSearch(["abcd", "bc"])
        search.feed(text)
        search.finish()
        assert search.found == start
    search = StopSearch(["abcd", "bc"])
    search.feed("abc")
    assert (search.found, search.num_safe) == (None, 0)


def test_what_cannot_be_done_is_refused_in_a_sentence():
    canvas = TextCanvas(piece, 2)
    canvas.commit([(0, 2, 1.0)])
    with pytest.raises(ValueError, match=r"position must be in 0\.\.1, got 2"):
        canvas.commit([(2, 2, 1.0)])
    with pytest.raises(ValueError, match="position 0 is read into the content"):
        canvas.commit([(0, 3, 1.0)])
    with pytest.raises(ValueError, match=r"end must be in 1\.\.2, got 0"):
        canvas.finish(0)


@pytest.mark.parametrize("order", ["forwards", "backwards", "inwards"])
@pytest.mark.parametrize("pattern", [[2], [0], [8, 9], [18], [0, 0, 0, 8, 0, 0, 0, 9]])
def test_a_long_canvas_looks_at_few_bytes_per_commit(order, pattern):
    length = 4000
    num_lookups = 0

    def count(token: int) -> bytes:
        nonlocal num_lookups
        num_lookups += 1
        return PIECES[token]

    forwards = list(range(length))
    halves = zip(forwards[: length // 2], reversed(forwards[length // 2 :]), strict=True)
    positions = {
        "forwards": forwards,
        "backwards": forwards[::-1],
        "inwards": [position for pair in halves for position in pair],
    }[order]
    canvas = TextCanvas(count, length, ["never"], True)
    for position in positions:
        canvas.commit([(position, pattern[position % len(pattern)], 1.0)])
    canvas.finish(length)
    assert num_lookups <= 40 * length
