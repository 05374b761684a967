"""What tests of recorded forwards have in common: devices, strict recorders, references."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusiongpt.engine.captured import Replay
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.params import GenerationParams

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


# In inference mode operations that are made of others come as they are.
WAITING = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero_numpy",
    "argwhere",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "repeat_interleave",
)


class AsksNothing(TorchDispatchMode):
    """Refuses operations whose result the host must wait for: a graph cannot hold them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if by_mask or name in WAITING or (name == "where" and len(args) == 1):
            raise AssertionError(f"{func} asks the device")
        return func(*args, **(kwargs or {}))


class CopiesNothing(TorchFunctionMode):
    """Refuses tensors of what the host knows, and tensors read by the host: on a device both are
    copies, which wait."""

    REFUSED = (
        torch.tensor,
        torch.as_tensor,
        torch.from_numpy,
        Tensor.tolist,
        Tensor.cpu,
        Tensor.numpy,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.REFUSED or (func is Tensor.__setitem__ and _puts_a_number(*args)):
            raise AssertionError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


def _puts_a_number(buffer: Tensor, index: Any, value: Any) -> bool:
    """Whether a number of the host is put where tensors say: `index_put_` copies it to the device,
    and waits; slices are filled by it."""
    indices = index if isinstance(index, tuple) else (index,)
    return not isinstance(value, Tensor) and any(isinstance(each, Tensor) for each in indices)


class StrictRecorder:
    def record(self, run: Replay) -> Replay:
        with AsksNothing():
            run()
        return run


class TapeRecorder:
    """Stands in for CUDA graphs where there are none: notes the operations of a function with the
    tensors that they read and write, and replays these alone. Nothing of Python is run again, each
    result is where it was, and what is left in that memory is spoiled before."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.memory: set[int] = set()

    def record(self, run: Replay) -> Replay:
        tape = Tape(self.memory)
        with AsksNothing(), CopiesNothing(), tape:
            run()
        self.tapes.append(tape)
        self.memory |= tape.own.keys()
        return tape.replay


class Tape(TorchDispatchMode):
    """One recording.

    Args:
        foreign: where the memory of other recordings begins.
    """

    def __init__(self, foreign: set[int]) -> None:
        super().__init__()
        self.num_replays = 0
        self.own: dict[int, Tensor] = {}  # by where its memory begins; kept, so nobody else has it
        self._foreign = foreign
        self._operations: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        self._given: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_memory_of(each): each for each in _tensors((args, kwargs))}
        assert not given.keys() & self._foreign, f"{func} reads another recording's memory"
        result = func(*args, **(kwargs or {}))
        made = [None if _memory_of(each) in given else each for each in _tensors(result)]
        self._given |= {place: each for place, each in given.items() if place not in self.own}
        self.own |= {_memory_of(each): each for each in made if each is not None}
        self._operations.append((func, args, kwargs or {}, made))
        return result

    def replay(self) -> None:
        self.num_replays += 1
        assert all(_memory_of(each) == place for place, each in self._given.items())
        for each in self.own.values():
            each.fill_(torch.nan if each.is_floating_point() else -7)
        for func, args, kwargs, made in self._operations:
            for kept, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if kept is not None:
                    kept.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.numel()]


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def answer_all(engine: Engine, policy: str) -> list[tuple[Any, ...]]:
    """The tokens of six requests of different lengths, two of which are aborted on the way."""
    requests = [
        engine.prepare(
            list(range(10, 11 + 3 * index)),
            GenerationParams(
                max_tokens=8 + 4 * index, steps=8, seed=index, policy=policy, ignore_eos=True
            ),
        )
        for index in range(6)
    ]
    for request in requests:
        engine.add(request)
    frames = []
    for tick in range(1000):
        if tick in (3, 5):
            engine.abort(requests[tick].request_id)
        if engine.is_idle:
            break
        frames += engine.step()
    return [(each.request_id, each.tokens, each.remasked, each.finish_reason) for each in frames]


def attend_by_loop(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
    """What varlen_attn's documentation says, one sequence after another: where it is told how many
    keys are used, it uses so many from each one's beginning."""
    given = inspect.signature(varlen_attn).bind(query, key, value, *rest, **options).arguments
    (left, right), starts = given["window_size"], given["cu_seq_k"].tolist()
    used = [stop - start for start, stop in pairwise(starts)]
    if "seqused_k" in given:
        used = given["seqused_k"].tolist()
    output = torch.full_like(query, torch.nan)
    sequences = zip(pairwise(given["cu_seq_q"].tolist()), starts, used, strict=False)
    for (first, stop), start, count in sequences:
        assert stop - first <= given["max_q"]
        assert count <= given["max_k"]
        keys, values = (each[start : start + count].transpose(0, 1) for each in (key, value))
        ahead = torch.arange(count) - torch.arange(stop - first)[:, None]
        ahead -= count - (stop - first)  # the last query stands at the last key
        seen = torch.ones_like(ahead, dtype=torch.bool)
        seen &= (left < 0) | (ahead >= -left)
        seen &= (right < 0) | (ahead <= right)
        output[first:stop] = torch.nn.functional.scaled_dot_product_attention(
            query[first:stop].transpose(0, 1),
            keys,
            values,
            attn_mask=seen,
            scale=given["scale"],
            enable_gqa=given["enable_gqa"],
        ).transpose(0, 1)
    return output
