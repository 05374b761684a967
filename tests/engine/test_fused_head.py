"""The fused head: its kernels against a plain loop, the softmax and the head in chunks.

Tests of kernels are marked `gpu`. Without a device `test_the_kernels_under_the_interpreter` runs
them in a process of its own by Triton's interpreter, if Triton is installed (`pip install triton`).
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusiongpt import engine
from diffusiongpt.engine.bias import BiasList, RowBias
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.fused_head import FusedHead, cut_vocabulary, options_of, rows_of_a_program
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.randomness import Purpose, counter_keys, gumbel
from diffusiongpt.engine.rows import DrawParams, Draws, RowStatistics
from diffusiongpt.engine.sampling import Head

from tiny_models import write_modernbert, write_qwen3

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_CUDA = torch.cuda.is_available()
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
# The interpreter multiplies the bits of bfloat16 numbers; 16 bits are those of float16 there.
TYPES = [torch.float32, torch.float16, *([] if IS_INTERPRETED else [torch.bfloat16])]
BANNED = [0, 4, 7]
DELETE = 4

by_kernels = pytest.mark.skipif(not (IS_INTERPRETED or HAS_CUDA), reason="no CUDA device")
on_cuda = pytest.mark.skipif(IS_INTERPRETED or not HAS_CUDA, reason="no CUDA device")


def interpreter_trouble() -> str | None:
    """Why Triton's interpreter cannot be used."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    installed = version("triton")
    if tuple(int(part) for part in installed.split(".")[:2]) < (3, 9):
        return f"the interpreter of Triton {installed} uses what NumPy has given up"
    return None


@pytest.fixture
def no_triton(monkeypatch):
    """As where Triton is not installed."""
    monkeypatch.setitem(sys.modules, "diffusiongpt.engine.head_kernels", None)
    monkeypatch.delattr(engine, "head_kernels", raising=False)


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the process of its own")
def test_the_kernels_under_the_interpreter():
    if trouble := interpreter_trouble():
        pytest.skip(trouble)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", __file__]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def new_product(vocab_size: int, hidden_size: int, dtype: torch.dtype, *, bias: bool) -> nn.Linear:
    """A last product whose logits are some units apart."""
    product = nn.Linear(hidden_size, vocab_size, bias=bias)
    generator = torch.Generator().manual_seed(vocab_size + hidden_size)
    for each in product.parameters():
        each.data = torch.randn(each.shape, generator=generator)
    product.weight.data *= 3 * hidden_size**-0.5
    return product.to(DEVICE, dtype).requires_grad_(False)


def new_heads(product: nn.Linear, **options: Any) -> tuple[FusedHead, Head]:
    banned = torch.tensor(BANNED, device=DEVICE)
    fused = FusedHead(torch.clone, product, banned, delete_token_id=DELETE, **options)
    chunked = Head(
        lambda rows: product(rows).float(), banned, chunk=50, pad=False, delete_token_id=DELETE
    )
    return fused, chunked


def draw_params(num_rows: int, seed: int = 5, temperature: float | None = None) -> DrawParams:
    row = torch.arange(num_rows, device=DEVICE)
    mixed = torch.tensor([1.0, 0.0, 0.3, 2.0], device=DEVICE)[row % 4]
    zeros = torch.zeros(num_rows, device=DEVICE)
    key = counter_keys(torch.tensor(seed, device=DEVICE), Purpose.DRAW, row)
    return DrawParams(
        key, mixed if temperature is None else zeros + temperature, zeros + 1, row * 0, zeros
    )


def new_rows(num_rows: int, product: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, tokens held, and whether rows may be deleted."""
    generator = torch.Generator().manual_seed(num_rows)
    hidden = torch.randn(num_rows, product.in_features, generator=generator)
    held = torch.randint(product.out_features, (num_rows,), generator=generator)
    may_delete = torch.rand(num_rows, generator=generator) < 0.5
    return hidden.to(product.weight), held.to(DEVICE), may_delete.to(DEVICE)


def plain_gumbel(key: int, lane: int) -> float:
    """The noise of `randomness.gumbel`, in integers of any size and 64-bit floats."""
    wrap = 2**32 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & wrap
        x = (x ^ (x >> 15)) * 0x846CA68B & wrap
        return x ^ (x >> 16)

    bits = mix((mix((lane * 0x9E3779B9 + (key & wrap)) & wrap) + (key >> 32 & wrap)) & wrap)
    return -math.log(-math.log1p(-min((bits + 0.5) * 2.0**-32, 1 - 2.0**-24)))


def plain_logits(product: nn.Linear, hidden: Tensor, may_delete: bool) -> list[float]:
    """Logits of one row in 64 bits, rounded once to the weights' type; -inf where banned."""
    bias = [0.0] * product.out_features if product.bias is None else product.bias.tolist()
    logits = []
    for token, (weights, addend) in enumerate(zip(product.weight.tolist(), bias, strict=True)):
        total = sum(w * h for w, h in zip(weights, hidden.tolist(), strict=True)) + addend
        rounded = torch.tensor(total, dtype=torch.float64).to(product.weight.dtype).item()
        is_banned = token in BANNED and not (token == DELETE and may_delete)
        logits.append(-math.inf if is_banned else rounded)
    return logits


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_loop_gives_the_same_statistics_and_draws(dtype, bias):
    product = new_product(150, 40, dtype, bias=bias)
    fused, _ = new_heads(product, num_programs=2)
    hidden, held, may_delete = new_rows(6, product)
    held[0] = 0  # a banned one
    params = draw_params(6, seed=2**63 - 1)
    seen, drawn = fused.statistics(hidden, held, may_delete), fused.draw(hidden, params, may_delete)
    for row in range(6):
        logits = plain_logits(product, hidden[row], bool(may_delete[row]))
        log_sum = math.log(sum(math.exp(z) for z in logits))
        log_p = [z - log_sum for z in logits]
        first, second = sorted(log_p, reverse=True)[:2]
        # One more or one less in the last of a logit's bits.
        near = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
        tolerance = {"rel": 1e-4, "abs": near}
        entropy = -sum(math.exp(each) * each for each in log_p if each > -math.inf)
        assert seen.log_top[row].item() == pytest.approx(first, **tolerance)
        assert seen.margin[row].item() == pytest.approx(
            math.exp(first) - math.exp(second), **tolerance
        )
        assert seen.entropy[row].item() == pytest.approx(entropy, **tolerance)
        if log_p[held[row]] == -math.inf:
            assert seen.log_held[row] < -1e29
        else:
            assert seen.log_held[row].item() == pytest.approx(log_p[held[row]], **tolerance)
        assert log_p[seen.top_id[row]] == pytest.approx(first, **tolerance)
        key, temperature = params.key[row].item(), params.temperature[row].item()
        noisy = [
            z + temperature * plain_gumbel(key, token) if z > -math.inf else z
            for token, z in enumerate(logits)
        ]
        token = drawn.token_id[row].item()
        assert noisy[token] == pytest.approx(max(noisy), **tolerance)
        assert drawn.log_prob[row].item() == pytest.approx(log_p[token], **tolerance)


# Rows, vocabulary, hidden size, programs: one of each, none a multiple of a tile; several blocks
# of rows; shares whose last one is short; a tile a share; more shares than are joined at a time.
SIZES = [
    (1, 131, 17, 1),
    (3, 600, 64, 3),
    (17, 200, 130, 99),
    (66, 290, 33, 4),
    (9, 384, 48, 9),
    (2, 4200, 9, 999),
]


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_fused_head_is_the_head_in_chunks(sizes, dtype):
    num_rows, vocab_size, hidden_size, num_programs = sizes
    product = new_product(vocab_size, hidden_size, dtype, bias=num_rows % 2 == 1)
    fused, chunked = new_heads(product, num_programs=num_programs)
    hidden, held, may_delete = new_rows(num_rows, product)
    for deletes in (may_delete, None):
        seen = chunked.statistics(hidden, held, None, deletes)
        expect_alike(fused.statistics(hidden, held, deletes), seen, dtype)
        for seed in (0, 2**63 - 1, -(2**63)):
            params = draw_params(num_rows, seed)
            drawn = chunked.draw(hidden, params, truncate=False, may_delete=deletes)
            expect_alike(fused.draw(hidden, params, deletes), drawn, dtype)
    log_prob = [head.log_prob(hidden, held) for head in (fused, chunked)]
    torch.testing.assert_close(*log_prob, rtol=1e-3, atol=2e-3 if dtype == torch.float32 else 7e-2)


def expect_alike(one: RowStatistics | Draws, other: RowStatistics | Draws, dtype: Any) -> None:
    """The same tokens and nearly the same numbers. In 16 bits a logit that lies between two
    numbers may be rounded to either by either way, and so decide some row."""
    near = 2e-3 if dtype == torch.float32 else 7e-2
    apart = torch.zeros(len(one.columns()[0]), dtype=torch.bool, device=DEVICE)
    for mine, theirs in zip(one.columns(), other.columns(), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        is_id = not mine.is_floating_point()
        is_id = not mine.is_floating_point()
        apart |= mine != theirs if is_id else ~torch.isclose(mine, theirs, rtol=1e-3, atol=near)
    assert apart.sum() <= (0 if dtype == torch.float32 else len(apart) // 10)


@pytest.mark.gpu
@by_kernels
def test_noise_is_that_of_the_counter_generator_for_any_key():
    from noise_kernel import write_noise

    edges = [0, -1, 1, 2**63 - 1, -(2**63), 2**32, 2**31, -(2**31), 2**32 - 1]
    key = torch.cat([torch.tensor(edges, device=DEVICE), draw_params(91).key])
    noise = torch.empty(100, 1024, device=DEVICE)
    write_noise[(100,)](key, noise, LANES=1024, enable_fp_fusion=True)
    torch.testing.assert_close(noise, gumbel(key, 1024), rtol=0, atol=1e-5)


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("dtype", TYPES[1:])
def test_logits_are_rounded_as_a_product_in_sixteen_bits_rounds_them(dtype):
    product = new_product(40, 2, dtype, bias=False)
    product.weight.zero_()
    product.weight[[5, 9], 0] = 100.0
    product.weight[9, 1] = 0.01  # less than half of what lies between 100 and the next number
    fused, chunked = new_heads(product)
    hidden = torch.ones(1, 2, device=DEVICE, dtype=dtype)
    held = torch.tensor([9], device=DEVICE)
    for head in (fused, chunked):
        seen = head.statistics(hidden, held)
        assert seen.top_id.tolist() == [5]
        assert seen.margin.tolist() == [0.0]
        assert seen.log_held.equal(seen.log_top)


@pytest.mark.gpu
@by_kernels
def test_draws_follow_the_softmax():
    num_rows, temperature = 2048, 0.7
    product = new_product(12, 8, torch.float32, bias=False)
    fused, _ = new_heads(product)
    hidden = new_rows(1, product)[0].expand(num_rows, 8)
    drawn = fused.draw(hidden, draw_params(num_rows, temperature=temperature)).token_id
    logits = product(hidden[0]) / temperature
    logits[BANNED] = -math.inf
    expected = logits.softmax(dim=0) * num_rows
    counts = torch.bincount(drawn, minlength=12)
    assert not counts[BANNED].any()
    allowed = expected > 0
    chi_squared = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum().item()
    assert chi_squared < 8 + 5 * math.sqrt(2 * 8)


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize(("vocab_size", "num_programs"), [(700, 1), (700, 99), (4200, 999)])
def test_of_equal_logits_the_first_counts_within_tiles_and_beyond(vocab_size, num_programs):
    product = new_product(vocab_size, 16, torch.float32, bias=False)
    product.weight.round_().clamp_(-1, 1)
    product.weight[[5, -1]] = 2.0
    fused, chunked = new_heads(product, num_programs=num_programs)
    hidden = new_rows(16, product)[0].round()
    hidden[0] = 1.0  # here one of the first tokens and the last one are the top
    held = torch.zeros(16, dtype=torch.long, device=DEVICE)
    params = draw_params(16, temperature=0.0)
    seen, greedy = fused.statistics(hidden, held), fused.draw(hidden, params)
    logits = product(hidden).index_fill(1, torch.tensor(BANNED, device=DEVICE), -math.inf)
    is_top = logits == logits.amax(dim=1, keepdim=True)
    is_tie = is_top.sum(dim=1) > 1
    first = torch.where(is_top, torch.arange(vocab_size, device=DEVICE), vocab_size).amin(dim=1)
    assert first[0] == 5
    assert is_tie.any()
    assert greedy.token_id.equal(first)
    assert seen.top_id.equal(first)
    assert greedy.token_id.equal(chunked.draw(hidden, params, truncate=False).token_id)
    assert not seen.margin[is_tie].any()


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("scale", [1e-6, 1e4, 1e18])
def test_logits_may_be_as_large_or_small_as_they_like(scale):
    product = new_product(300, 20, torch.float32, bias=False)
    product.weight.mul_(scale)
    fused, chunked = new_heads(product, num_programs=2)
    hidden, held, may_delete = new_rows(8, product)
    held.fill_(9)
    seen = fused.statistics(hidden, held, may_delete)
    expected = chunked.statistics(hidden, held, None, may_delete)
    assert all(each.isfinite().all() for each in seen.columns())
    for name in ("log_top", "margin", "top_id", "entropy"):
        # The chunks' entropy is a difference of numbers as large as the logits.
        tolerance = max(1e-3, 1e-6 * scale) if name == "entropy" else 1e-3
        torch.testing.assert_close(
            getattr(seen, name), getattr(expected, name), rtol=1e-3, atol=tolerance
        )
    torch.testing.assert_close(seen.log_held, expected.log_held, rtol=1e-4, atol=1e-4)
    if scale > 1:
        assert (seen.entropy < 1e-3).all()
    params = draw_params(8)
    drawn = fused.draw(hidden, params, may_delete)
    assert drawn.token_id.equal(
        chunked.draw(hidden, params, truncate=False, may_delete=may_delete).token_id
    )


@pytest.mark.gpu
@by_kernels
def test_the_last_token_that_is_not_banned_is_certain():
    product = new_product(200, 8, torch.float32, bias=True)
    allowed = 150
    banned = torch.tensor([each for each in range(200) if each != allowed], device=DEVICE)
    fused = FusedHead(torch.clone, product, banned, num_programs=2)
    hidden, held, _ = new_rows(3, product)
    seen, drawn = fused.statistics(hidden, held), fused.draw(hidden, draw_params(3))
    for ids in (seen.top_id, drawn.token_id):
        assert ids.tolist() == [allowed] * 3
    for certain in (seen.log_top.exp(), seen.margin, 1 - seen.entropy, drawn.log_prob.exp()):
        assert certain.tolist() == [1.0] * 3


@pytest.mark.gpu
@by_kernels
def test_a_row_of_nan_is_told_an_id_of_the_vocabulary():
    product = new_product(130, 8, torch.float32, bias=False)
    fused, _ = new_heads(product)
    hidden = torch.full((3, 8), math.nan, device=DEVICE)
    held = torch.zeros(3, dtype=torch.long, device=DEVICE)
    ids = [fused.statistics(hidden, held).top_id, fused.draw(hidden, draw_params(3)).token_id]
    assert all(0 <= each < 130 for each in torch.cat(ids).tolist())


@pytest.mark.gpu
@by_kernels
def test_no_rows_have_no_results():
    product = new_product(30, 8, torch.float32, bias=False)
    fused, chunked = new_heads(product)
    hidden, held, may_delete = new_rows(0, product)
    seen = chunked.statistics(hidden, held, None, may_delete)
    expect_alike(fused.statistics(hidden, held, may_delete), seen, torch.float32)
    params = draw_params(0)
    drawn = chunked.draw(hidden, params, truncate=False)
    expect_alike(fused.draw(hidden, params), drawn, torch.float32)


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


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("num_rows", [1, 40])
def test_it_can_be_captured_in_a_graph_and_asks_the_device_nothing(num_rows):
    product = new_product(5000, 64, torch.bfloat16, bias=True)
    fused, _ = new_heads(product)
    hidden, held, may_delete = new_rows(num_rows, product)
    params = draw_params(num_rows)

    def run() -> list[Tensor]:
        seen = fused.statistics(hidden, held, may_delete)
        return [*seen.columns(), *fused.draw(hidden, params, may_delete).columns()]

    run()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    hidden.copy_(torch.randn_like(hidden))
    graph.replay()
    for mine, theirs in zip(captured, run(), strict=True):
        assert mine.equal(theirs)


@pytest.mark.gpu
@on_cuda
def test_no_tensor_of_rows_and_vocabulary_is_made():
    product = new_product(50_000, 64, torch.bfloat16, bias=False)
    fused, _ = new_heads(product)
    hidden, held, may_delete = new_rows(512, product)
    fused.statistics(hidden, held, may_delete)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused.statistics(hidden, held, may_delete)
    fused.draw(hidden, draw_params(512), may_delete)
    assert torch.cuda.max_memory_allocated() - before < 512 * 50_000 / 10


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("name", ["measure_shares", "join_measures", "draw_shares", "join_draws"])
@pytest.mark.parametrize(("capability", "rows"), [(80, 16), (90, 64)])
def test_the_kernels_compile_for_devices_that_are_not_here(name, capability, rows):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diffusiongpt.engine import head_kernels

    kernel = getattr(head_kernels, name)
    types = {"sums": "*fp32", "statistics": "*fp32", "temperatures": "*fp32", "log_probs": "*fp32"}
    types |= dict.fromkeys(("hidden", "weight", "bias"), "*bf16")
    types |= {"ids": "*i32", "banned": "*u8", "may_delete": "*u8"}
    types |= dict.fromkeys(("held", "keys", "top_ids", "token_ids"), "*i64")
    types |= dict.fromkeys(("num_rows", "num_tiles", "num_shares"), "i32")
    numbers = {"VOCABULARY": 4096, "HIDDEN": 256, "DELETE_ID": 4, "ROWS": rows}
    numbers |= {"COLUMNS": 128, "INNER": 64, "SHARES": 32}
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={each: types.get(each, "constexpr") for each in names},
        constexprs={(names.index(each),): numbers[each] for each in names if each in numbers},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options_of(rows))
    assert compiled.asm["cubin"]
    # What every device of these capabilities gives a block (of 8.6 and 8.9: 99 KiB).
    assert compiled.metadata.shared <= 99 * 2**10


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
    monkeypatch.setattr("diffusiongpt.engine.engine.fuses_head", lambda model, config: True)
    with pytest.warns(RuntimeWarning, match="the head runs in chunks: the fused head needs Triton"):
        served = Engine.from_pretrained(write_modernbert(tmp_path))
    assert served.head_runs == "in chunks of 512 rows"


def test_a_deterministic_engine_refuses_a_fused_head():
    with pytest.raises(LoadError, match="fused_head must be off or absent when deterministic"):
        Engine.from_pretrained(fused_head=True, deterministic=True)
