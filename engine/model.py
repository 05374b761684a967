"""A model that is ready to denoise: packed tokens in, hidden states and logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffusiongpt.engine.architectures import context_length_of, first_position
from diffusiongpt.engine.attention import plan_under_way
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.captured import WAYS, CapturedForward, bucket_ladder, recorder_for
from diffusiongpt.engine.config import QuantizeKind
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.families import FamilySpec
from diffusiongpt.engine.info import AttentionKind
from diffusiongpt.engine.kept_segments import KeptShape, VarlenKept
from diffusiongpt.engine.kernels import (
    choose_eager,
    choose_kept,
    choose_segments,
    fit_buckets,
    make_kept,
    make_plain,
    new_shape,
)
from diffusiongpt.engine.last_layer import narrow_last_layer
from diffusiongpt.engine.native import layers_of, matrices_of, output_head, size_of
from diffusiongpt.engine.pool import KeyPool
from diffusiongpt.engine.quantization import quantize_layers
from diffusiongpt.engine.segments import Segments


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Token ids with a role, all of them inside the vocabulary; `never_emit` holds the mask."""

    mask: int
    stop: tuple[int, ...]
    never_emit: tuple[int, ...]
    delete: int | None = None


class LoadedModel:
    """A network in eval mode with the facts that denoising needs.

    Attributes:
        config: of the class that transformers ships.
        name: public id. folder: where it came from. family: its FamilySpec.
        attention, block_length, block_lengths, logit_shift, can_edit, sampler, chat_template: as in
            FamilySpec.
        mask_token_id, stop_token_ids, never_emit_token_ids: the last one holds the mask.
        delete_token_id: what an edit may write to delete a token, and nothing else may.
        context_length: positions the model was trained for. vocab_size: V, rows of the embedding.
        num_parameters: tied ones once. dtype, device: of the weights.
        num_forwards, num_tokens, num_head_rows: work done so far: passes through the backbone,
            tokens in them, rows through the output head.
        ways: forwards by how they ran, one of `captured.WAYS`.
        captured: the recorded forwards, if there are any.
        pool: where these find the keys and values that requests keep, if they do.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        family: FamilySpec,
        tokens: TokenIds,
        *,
        name: str,
        folder: Path,
    ) -> None:
        self.config = network.config
        self._network = network
        self._head = nn.Sequential(*output_head(network))
        self._first_position = first_position(network.config)
        self._narrows = narrow_last_layer(network)
        self._compiled: Callable[..., Any] | None = None
        self.captured: CapturedForward | None = None
        self.pool: KeyPool | None = None
        self.family = family
        self.name = name
        self.folder = folder
        self.mask_token_id = tokens.mask
        self.stop_token_ids = tokens.stop
        self.never_emit_token_ids = tokens.never_emit
        self.delete_token_id = tokens.delete
        self.attention: AttentionKind = family.attention
        self.block_length = family.block_length
        self.block_lengths = family.block_lengths
        self.logit_shift = family.logit_shift
        self.can_edit = family.can_edit
        self.sampler: Mapping[str, Any] = family.sampler
        self.chat_template = family.chat_template
        self.context_length = context_length_of(network.config)
        self.vocab_size: int = network.config.vocab_size
        self.num_parameters = sum(each.numel() for each in network.parameters())
        self.dtype: torch.dtype = network.dtype
        self.device: torch.device = network.device
        self._attend_eagerly = choose_eager(self.config, self.dtype, self.device)
        self._kept_shape: KeptShape | None = None  # where the varlen kernel reads ranges of a pool
        self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self.num_forwards = 0
        self.num_tokens = 0
        self.num_head_rows = 0
        self.ways = dict.fromkeys(WAYS, 0)

    @torch.no_grad()
    def backbone(
        self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan, wanted: Tensor | None = None
    ) -> Tensor:
        """Hidden states (T, H) of packed token ids (1, T) at positions (1, T), or only those of
        the `wanted` tokens, (R, H) of indices (R,)."""
        self.num_forwards += 1
        self.num_tokens += ids.shape[1]
        way = "eager" if self.captured is None else self.captured.way_of(plan)
        self.ways[way] += 1
        if self.captured is not None and way == "captured":
            return self.captured.run(ids, position_ids, plan, wanted)
        return self._run(ids, position_ids, self._attend_eagerly(plan, self._kept_shape), wanted)

    def note_replay(self, num_tokens: int, num_head_rows: int) -> None:
        """Count the work of a step that is replayed whole."""
        self.num_forwards += 1
        self.num_tokens += num_tokens
        self.num_head_rows += num_head_rows
        self.ways["captured_step"] += 1

    def _run(
        self,
        ids: Tensor,
        position_ids: Tensor,
        plan: AttentionPlan | Segments,
        wanted: Tensor | None = None,
    ) -> Tensor:
        # A mask of four axes is passed on as it is, and `packed_attention` looks at none; without
        # one, transformers would read the positions to find out whether tokens are packed.
        inputs = {
            "input_ids": ids,
            "position_ids": position_ids + self._first_position,
            "attention_mask": self._no_mask,
            "use_cache": False,
        }
        if self._compiled is not None:
            return self._run_compiled(inputs, plan, wanted)
        if self._narrows and wanted is not None:
            inputs["wanted"] = wanted
        output = self._network.base_model(**inputs, attention_plan=plan)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if self._narrows or wanted is None else hidden[wanted]

    def _run_compiled(
        self, inputs: dict[str, Any], plan: AttentionPlan | Segments, wanted: Tensor | None
    ) -> Tensor:
        """One graph serves all: it always gets wanted tokens, and at least two of them, because
        sizes of 0 and 1 are compiled on their own."""
        assert self._compiled is not None
        if wanted is None:
            wanted = torch.arange(plan.num_tokens, device=self.device)
        padded = torch.cat([wanted, wanted.new_zeros(max(2 - len(wanted), 0))])
        if self._narrows:
            inputs["wanted"] = padded
        with plan_under_way(plan):
            output = self._compiled(**inputs)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden[: len(wanted)] if self._narrows else hidden[wanted]

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits (R, V) in float32 of hidden states (R, H)."""
        logits: Tensor = self.head_product(self.before_head(hidden))
        return logits.float()

    @torch.no_grad()
    def before_head(self, hidden: Tensor) -> Tensor:
        """What the output head's last product takes, (R, H), of hidden states (R, H)."""
        self.num_head_rows += len(hidden)
        before: Tensor = self._head[:-1](hidden)
        return before

    @property
    def head_product(self) -> nn.Module:
        """The output head's last product: its result are the logits (R, V)."""
        return self._head[-1]

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits (T, V) in float32 of one canvas, before any shift or ban.

        A block-causal model sees the canvas in one pass under its block mask.

        Raises:
            InvalidRequest: no ids, or an id outside the vocabulary.
        """
        ids = torch.as_tensor(token_ids, dtype=torch.long, device=self.device)
        if ids.ndim != 1 or not len(ids):
            raise InvalidRequest(f"token_ids must be a list of ids, got shape {tuple(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise InvalidRequest(
                f"token_ids must be in 0..{self.vocab_size - 1}, got {wrong}", "prompt"
            )
        positions = torch.arange(len(ids), device=self.device)
        return self.head(self.backbone(ids[None], positions[None], self.plan(len(ids))))

    def linear_flops(self, tokens: int, head_rows: int) -> float | None:
        """Operations of the linear layers for so many tokens and rows of the head; attention is
        not counted. None for mixtures of experts, where a token meets only some of them."""
        if self.family.is_mixture:
            return None
        return 2.0 * (
            tokens * _num_linear_weights(self._network.base_model)
            + head_rows * _num_linear_weights(self._head)
        )

    def quantize(self, kind: QuantizeKind) -> None:
        """Keep the layers' weights in 8 or 4 bits, and try them once.

        Raises:
            LoadError: torchao is missing, or cannot do that here.
        """
        quantize_layers(layers_of(self._network), kind)
        try:
            with torch.inference_mode():
                self.logits([self.mask_token_id] * 48)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise LoadError(
                f"quantize={kind} does not run on this {self.device.type}: "
                f"{type(error).__name__}: {reason}"
            ) from error

    def compile(self) -> None:
        """Compile the backbone as one graph for any number of tokens, and try it once.

        Raises:
            LoadError: there is no compiler that works.
        """
        on_cpu = self.device.type == "cpu"
        options: dict[str, Any] = {"freezing": on_cpu, "cpp_wrapper": on_cpu}
        self._compiled = torch.compile(self._network.base_model, dynamic=True, options=options)
        try:
            with torch.inference_mode():  # as denoising runs; other modes are compiled anew
                self._try_compiled()
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise LoadError(
                f"compile is on, but {self.name} could not be compiled here "
                f"(a C++ compiler is needed): {type(error).__name__}: {reason}"
            ) from error

    def _try_compiled(self) -> None:
        """One forward, in which no two sizes are the same: those that are would be taken to be
        the same ever after."""
        ids = torch.full((1, 48), self.mask_token_id, device=self.device)
        positions = torch.arange(48, device=self.device)
        self.backbone(ids, positions[None], self.plan(48), positions[:7])

    def capture(self, *, largest: int, max_canvases: int, num_kept: int = 0) -> None:
        """Record the backbone for forwards of up to `largest` tokens (or LARGEST_BUCKET) and
        `max_canvases` canvases; other forwards go on as before.

        Args:
            num_kept: positions of `pool`, which this makes, for a block-causal model whose requests
                keep their keys there; 0 is none, and canvases are computed whole.

        Raises:
            LoadError: the device cannot record this model.
        """
        if self.family.is_mixture:
            raise LoadError(
                f"capture is on, but {self.name} is a mixture of experts, and which of them run "
                "is decided anew in every forward"
            )
        try:
            self.captured = self._record(bucket_ladder(largest), max_canvases, num_kept)
        except Exception as error:
            self.pool = self._kept_shape = None
            reason = (str(error).strip().splitlines() or [""])[0]
            raise LoadError(
                f"capture is on, but {self.name} could not be recorded on this "
                f"{self.device.type}: {type(error).__name__}: {reason}"
            ) from error

    def _record(
        self, buckets: tuple[int, ...], max_canvases: int, num_kept: int
    ) -> CapturedForward:
        config, dtype, device = self.config, self.dtype, self.device
        if num_kept:
            blocks = [each for each in (self.block_length, *self.block_lengths) if each]
            shape = new_shape(config, num_kept, blocks, dtype=dtype, device=device)
            kept = choose_kept(config, dtype, device)
            segments = make_kept(kept, max_canvases, shape)
            buckets = fit_buckets(kept, buckets, shape)
            self.pool = shape.pool
            self._kept_shape = shape if kept is VarlenKept else None
        else:
            has_blocks = self.attention == "block_causal"
            plain = choose_segments(config, dtype, device, has_blocks=has_blocks)
            segments = make_plain(plain, max_canvases, device)
        return CapturedForward(
            self._run,
            segments,
            recorder_for(device),
            buckets=buckets,
            hidden_size=config.hidden_size,
            dtype=dtype,
            device=device,
        )

    @property
    def captured_attention(self) -> str | None:
        """How recorded forwards attend, "varlen" or "mask"; None if nothing is recorded."""
        return None if self.captured is None else self.captured.attention

    def plan(self, *lengths: int) -> AttentionPlan:
        """The plan of segments that all start at position 0 and see what the family sees."""
        block_length = self.block_length if self.attention == "block_causal" else None
        return AttentionPlan(lengths=lengths, block_length=block_length)


def _num_linear_weights(module: nn.Module) -> int:
    return sum(size_of(each) for _, each in matrices_of(module))
