"""The backbone's forward, recorded once for each bucket of packed tokens and replayed.

At a few hundred tokens a forward is hundreds of small kernels, and to start them one by one takes
longer than to run them; a CUDA graph starts all at once. What is replayed reads and writes the
memory that it was recorded with: so inputs are copied into static buffers, padded up to a bucket,
and outputs are copied out before anything is replayed again. Who sees whom is in tensors, too
(`segments.py`), so that a recording is good for any mix of canvases.

Keys and values that requests keep lie in a pool that does not move, either (`kept_segments.py`).

What cannot be replayed runs eagerly, by `CapturedForward.way_of`, and is counted. On the CPU
a recording is the function itself, run again on the same buffers: no faster, but the same path,
which is how it is tested without a device.

Legend: T packed tokens, M tokens of the largest bucket, H hidden size, R wanted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.segments import Segments

# Larger forwards keep a device busy by themselves, and a mask over the row is quadratic.
LARGEST_BUCKET = 2048
SMALLEST_BUCKET = 64
# Kernels choose and load themselves in their first runs, which may not be captured.
_WARM_UPS = 3

# How a forward may run: replayed with all of its step, replayed by itself, or eagerly: nothing is
# recorded here, it goes on from keys and values that lie elsewhere than recordings look, keeps none
# where they reckon with it, looks at filled positions through shadows, has more tokens or canvases
# than any recording, or block limits that the varlen kernel does not know.
WAYS = (
    "captured_step",
    "captured",
    "eager",
    "eager_cache",
    "eager_uncached",
    "eager_shadows",
    "eager_tokens",
    "eager_canvases",
    "eager_blocks",
)

Replay = Callable[[], None]


class Forward(Protocol):
    """The backbone, without asking the device for anything."""

    def __call__(
        self,
        ids: Tensor,
        position_ids: Tensor,
        plan: Segments,
        wanted: Tensor | None = None,
        /,
    ) -> Tensor:
        """Ids and positions (1, T) to hidden states (T, H), or those of `wanted` tokens (R, H)."""
        ...


class Recorder(Protocol):
    """Records what a function without arguments does to tensors."""

    def record(self, run: Callable[[], None]) -> Replay:
        """Run the function (perhaps several times) and return what does the same again."""
        ...


class RunAgain:
    """Where there are no graphs, the function is its own recording."""

    def record(self, run: Callable[[], None]) -> Replay:
        """Run once, so that what cannot run is found now."""
        run()
        return run


class GraphRecorder:
    """CUDA graphs that share one memory pool: only one of them is ever under way, and what they
    leave is copied before the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], None]) -> Replay:
        """Warm up on a side stream, then capture there."""
        with torch.cuda.device(self._device):
            self._warm_up(run)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile, such as another model's engine.
            mode = "thread_local"
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                run()
        return graph.replay

    def _warm_up(self, run: Callable[[], None]) -> None:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                run()
        current.wait_stream(self._stream)


def recorder_for(device: torch.device) -> Recorder:
    """CUDA graphs on CUDA, the function itself on the CPU."""
    return GraphRecorder(device) if device.type == "cuda" else RunAgain()


def bucket_ladder(largest: int) -> tuple[int, ...]:
    """Powers of two from the smallest bucket up to `largest`, or to the first that holds it:
    100 -> (64, 128). A larger limit than LARGEST_BUCKET is that."""
    buckets = [SMALLEST_BUCKET]
    while buckets[-1] < min(largest, LARGEST_BUCKET):
        buckets.append(2 * buckets[-1])
    return tuple(buckets)


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory that all recordings share: `ids` and `position_ids` (1, M), `hidden` (M, H)."""

    ids: Tensor
    position_ids: Tensor
    hidden: Tensor

    def first(self, num_tokens: int) -> Buffers:
        """The part that a bucket of so many tokens uses."""
        return Buffers(
            self.ids[:, :num_tokens], self.position_ids[:, :num_tokens], self.hidden[:num_tokens]
        )


@dataclass(frozen=True, slots=True)
class Recording:
    """One bucket: its part of the buffers, who sees whom in it, and what runs it."""

    buffers: Buffers
    segments: Segments
    replay: Replay


class CapturedForward:
    """A forward of any plan that fits a bucket, by replaying that bucket's recording.

    Args:
        forward: what is recorded.
        new_segments: how attention learns who sees whom, for a bucket's number of tokens.
        buckets: numbers of tokens; one recording each, all made now.
        hidden_size, dtype, device: of what `forward` returns.
    """

    def __init__(
        self,
        forward: Forward,
        new_segments: Callable[[int], Segments],
        recorder: Recorder,
        *,
        buckets: Sequence[int],
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        largest = max(buckets)
        self.buffers = Buffers(
            torch.zeros(1, largest, dtype=torch.long, device=device),
            torch.zeros(1, largest, dtype=torch.long, device=device),
            torch.zeros(largest, hidden_size, dtype=dtype, device=device),
        )
        self.recordings: dict[int, Recording] = {}
        self.forward = forward
        self.new_segments = new_segments
        self.recorder = recorder
        # The largest first: the smaller ones then find their memory in the pool.
        for bucket in sorted(buckets, reverse=True):
            self.recordings[bucket] = self._record(bucket)
        self._ascending = [self.recordings[bucket] for bucket in sorted(buckets)]

    @property
    def attention(self) -> str:
        """How recorded forwards attend: "varlen" or "mask"."""
        return self._ascending[0].segments.name

    def way_of(self, plan: AttentionPlan) -> str:
        """One of WAYS: "captured", or why a forward of this plan must run eagerly."""
        if self._find(plan) is not None:
            return "captured"
        return self._ascending[-1].segments.way_of(plan)

    def bucket_of(self, plan: AttentionPlan) -> int | None:
        """Tokens of the smallest bucket that can hold a plan; None where none can."""
        recording = self._find(plan)
        return None if recording is None else recording.segments.num_tokens

    def _find(self, plan: AttentionPlan) -> Recording | None:
        """The smallest recording that can hold a plan."""
        for recording in self._ascending:
            if recording.segments.way_of(plan) == "captured":
                return recording
        return None

    def run(
        self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan, wanted: Tensor | None
    ) -> Tensor:
        """Hidden states as `LoadedModel.backbone` gives them, in memory of their own; the plan
        must be one whose way is "captured"."""
        num_tokens, recording = plan.num_tokens, self._find(plan)
        if recording is None:
            raise ValueError(f"no recording holds this plan: {self.way_of(plan)}")
        for buffer, given in (
            (recording.buffers.ids, ids),
            (recording.buffers.position_ids, position_ids),
        ):
            buffer[:, :num_tokens].copy_(given)
            buffer[:, num_tokens:].zero_()
        recording.segments.load(plan.padded(recording.segments.num_tokens))
        recording.replay()
        hidden = recording.buffers.hidden[:num_tokens]
        return hidden.clone() if wanted is None else hidden[wanted]  # a copy, either way

    @torch.inference_mode(False)
    def _record(self, bucket: int) -> Recording:
        buffers = self.buffers.first(bucket)
        segments = self.new_segments(bucket)
        segments.load(AttentionPlan(lengths=(1,)).padded(bucket))

        def run() -> None:
            segments.begin()
            hidden = self.forward(buffers.ids, buffers.position_ids, segments)
            buffers.hidden.copy_(hidden)

        with torch.inference_mode():  # as denoising runs
            replay = self.recorder.record(run)
        segments.begin()  # what was made on the way need not be kept
        return Recording(buffers, segments, replay)
