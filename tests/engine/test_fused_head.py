"""The fused head in its place: when it is used, how it is tried at loading, what it refuses.

Without a device Triton's interpreter runs the kernels: see `test_head_devices.py`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from diffusiongpt import engine
from diffusiongpt.engine.bias import BiasList, RowBias
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.fused_head import FusedHead, cut_vocabulary, rows_of_a_program
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.rows import DrawParams
from diffusiongpt.engine.sampling import Head

from paired_heads import (
    BANNED,
    DEVICE,
    IS_INTERPRETED,
    by_kernels,
    new_heads,
    new_product,
)
from tiny_models import write_modernbert, write_qwen3


@pytest.fixture
def no_triton(monkeypatch):
    """As where Triton is not installed."""
    monkeypatch.setitem(sys.modules, "diffusiongpt.engine.head_kernels", None)
    monkeypatch.delattr(engine, "head_kernels", raising=False)


@pytest.mark.gpu
@by_kernels
def test_a_kernel_that_gives_something_else_is_found_at_loading():
    product, other = (new_product(300, size, torch.float32, bias=False) for size in (24, 25))
    fused, chunked = new_heads(product)
    fused.check_against(chunked)
    wrong = Head(
        lambda rows: rows @ other.weight.T[:24],
        torch.tensor(BANNED, device=DEVICE),
        chunk=50,
        pad=False,
    )
    with pytest.raises(LoadError, match=r"in chunks in \d\d of 66 random rows"):
        fused.check_against(wrong)


@pytest.mark.gpu
@by_kernels
def test_a_product_that_the_kernel_does_not_know_is_refused_in_a_sentence():
    banned = torch.tensor(BANNED, device=DEVICE)
    with pytest.raises(LoadError, match="needs a plain linear layer, got a Bilinear"):
        FusedHead(torch.clone, nn.Bilinear(3, 3, 20), banned)
    with pytest.raises(LoadError, match=r"needs weights in 16 or 32 bits, got torch\.float64"):
        FusedHead(torch.clone, nn.Linear(3, 20, dtype=torch.float64), banned)


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("write", [write_modernbert, write_qwen3])
def test_an_engine_gives_the_same_tokens_with_either_head(tmp_path, write):
    folder = write(tmp_path, block_length=8)
    settings = {"dtype": "float32", "device": DEVICE, "max_tokens": 32, "ticks_per_round": 3}
    chunked = Engine.from_pretrained(folder, fused_head=False, **settings)
    fused = Engine.from_pretrained(folder, fused_head=True, **settings)
    assert "one Triton kernel" in fused.head_runs
    assert fused.head_runs.endswith(chunked.head_runs)
    asked = [
        ([7, 8, 9], {"policy": "ancestral"}),
        (list(range(10, 30)), {"policy": "entropy_bound", "temperature": 0.8}),
        (
            [11],
            {"policy": "margin", "max_tokens": 4, "logit_bias": ((9, 3.0),)},
        ),
    ]
    for num_asked in (2, 3):  # with the third one the batch has a bias, and then has none again
        mix = [
            (prompt, GenerationParams(**{"max_tokens": 8, "ignore_eos": True, "seed": 3} | params))
            for prompt, params in asked[:num_asked]
        ]
        # On CUDA often enough that whole steps are recorded, the kernels within them.
        for _ in range(1 if IS_INTERPRETED else 8):
            assert answers_of(fused, mix) == answers_of(chunked, mix)
    assert IS_INTERPRETED or fused.forwards["captured_step"] > 0


def answers_of(served: Engine, mix: Sequence[tuple[list[int], GenerationParams]]) -> Any:
    requests = [served.prepare(*each) for each in mix]
    frames = served._run(requests)
    return [[frame.tokens for frame in frames[request.request_id]] for request in requests]


def test_shares_cover_the_vocabulary_and_each_has_a_token():
    sizes = itertools.product((1, 128, 129, 4096, 151_936), (1, 3, 500), (1, 2, 7, 264, 100_000))
    for vocab_size, num_row_blocks, num_programs in sizes:
        num_shares, num_tiles = cut_vocabulary(vocab_size, num_row_blocks, num_programs)
        length = 128 * num_tiles
        assert length * (num_shares - 1) < vocab_size <= length * num_shares
        assert num_row_blocks * num_shares <= max(num_programs, num_row_blocks)


def test_programs_have_as_many_rows_as_tensor_cores_take():
    for least, most, rows in ((1, 16, 16), (17, 32, 32), (33, 4096, 64)):
        assert rows_of_a_program(least) == rows_of_a_program(most) == rows


class Recorder:
    """Stands in for a fused head, and says whether it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *unused: self.asked.append(name)


def test_batches_that_need_logits_go_in_chunks_and_all_others_are_fused():
    banned = torch.tensor(BANNED)
    head = Head(lambda rows: rows.new_zeros(len(rows), 20), banned, chunk=50, pad=False)
    assert not head.is_fused
    recorder = Recorder()
    head._fused = recorder
    assert head.is_fused
    hidden, held = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    ones = torch.ones(2)
    params = DrawParams(held, ones, ones, held, ones)
    lists = (BiasList(held[:, None], ones[:, None]),)
    bias = RowBias(held, held, lists, None)
    draw = partial(head.draw, hidden, params)
    assert head.statistics(hidden, held, bias).log_top is not None
    assert draw(truncate=True).token_id is not None
    assert draw(truncate=False, bias=bias).token_id is not None
    assert draw(truncate=False, num_top=2).top_id is not None
    assert recorder.asked == []
    head.statistics(hidden, held)
    draw(truncate=False)
    head.log_prob(hidden, held)
    assert recorder.asked == ["statistics", "draw", "log_prob"]


def test_without_triton_a_fused_head_is_refused_in_a_sentence(tmp_path, no_triton):
    with pytest.raises(LoadError, match=r"^fused_head is on, but the fused head needs Triton, "):
        Engine.from_pretrained(write_modernbert(tmp_path), fused_head=True)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted kernels run on the CPU")
def test_on_the_cpu_a_fused_head_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(LoadError, match="needs a CUDA device, got cpu"):
        Engine.from_pretrained(write_modernbert(tmp_path), fused_head=True)


def test_a_head_that_cannot_be_fused_on_cuda_is_served_in_chunks_with_a_warning(
    tmp_path, no_triton, monkeypatch
):
    monkeypatch.setattr("diffusiongpt.engine.assembly.fuses_head", lambda model, config: True)
    with pytest.warns(RuntimeWarning, match="the head runs in chunks: the fused head needs Triton"):
        served = Engine.from_pretrained(write_modernbert(tmp_path))
    assert served.head_runs == "in chunks of 512 rows"


def test_a_deterministic_engine_refuses_a_fused_head():
    with pytest.raises(LoadError, match="fused_head must be off or absent when deterministic"):
        Engine.from_pretrained(fused_head=True, deterministic=True)
