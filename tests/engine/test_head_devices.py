"""Where the kernels of the fused head run: in Triton's interpreter, in a CUDA graph, on devices
that are not here.

Tests of kernels are marked `gpu`. Without a device `test_the_kernels_under_the_interpreter` runs
those that can be in a process of its own, if Triton is installed (`pip install triton`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine.fused_head import options_of

from paired_heads import (
    IS_INTERPRETED,
    draw_params,
    new_heads,
    new_product,
    new_rows,
    on_cuda,
)

OF_KERNELS = ("test_head_kernels.py", "test_head_devices.py", "test_fused_head.py")


def interpreter_trouble() -> str | None:
    """Why Triton's interpreter cannot be used."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    installed = version("triton")
    if tuple(int(part) for part in installed.split(".")[:2]) < (3, 9):
        return f"the interpreter of Triton {installed} uses what NumPy has given up"
    return None


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the process of its own")
def test_the_kernels_under_the_interpreter():
    if trouble := interpreter_trouble():
        pytest.skip(trouble)
    modules = [str(Path(__file__).with_name(each)) for each in OF_KERNELS]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *modules]
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
