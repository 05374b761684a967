"""Models small enough to know everything about, in the shape that the engine takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.engine import Engine


@dataclass(kw_only=True)
class ToyModel:
    """A denoiser whose "hidden states" are its logits; the mask is the last id.

    Subclasses write `denoise`: (L,) ids of one segment to (L, V) logits.
    """

    vocab_size: int
    context_length: int = 64
    block_length: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    sampler: Mapping[str, Any] = field(default_factory=dict)
    logit_shift: bool = False
    can_edit: bool = True
    delete_token_id: int | None = None
    num_forwards: int = 0
    num_tokens: int = 0
    num_head_rows: int = 0
    ways: dict[str, int] = field(default_factory=dict)
    pool: None = None
    captured: None = None

    name = "toy"
    family = SimpleNamespace(name="toy")
    block_lengths = ()
    num_parameters = 0
    device = torch.device("cpu")

    @property
    def attention(self) -> str:
        return "bidirectional" if self.block_length is None else "block_causal"

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size - 1

    @property
    def never_emit_token_ids(self) -> tuple[int, ...]:
        deletes = [] if self.delete_token_id is None else [self.delete_token_id]
        return (*deletes, self.mask_token_id)

    def denoise(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def backbone(
        self,
        ids: Tensor,
        position_ids: Tensor,
        plan: AttentionPlan,
        wanted: Tensor | None = None,
    ) -> Tensor:
        self.num_forwards += 1
        self.num_tokens += ids.shape[1]
        hidden = torch.cat(list(self._see_segments(ids[0].split(list(plan.lengths)), plan)))
        return hidden if wanted is None else hidden[wanted]

    def _see_segments(self, segments: Sequence[Tensor], plan: AttentionPlan) -> Iterator[Tensor]:
        caches = plan.caches or (None,) * len(segments)
        shadows = plan.shadows or (None,) * len(segments)
        canvas = segments[0]
        for ids, cache, place in zip(segments, caches, shadows, strict=True):
            if place is None:
                canvas = ids
                yield self.see(ids, cache)
            else:
                places = range(place, place + len(ids))
                yield torch.stack([self.denoise(without(canvas, i, ids[0]))[i] for i in places])

    def see(self, ids: Tensor, cache: SlotCache | None) -> Tensor:
        """(L, V) of a segment."""
        assert cache is None
        return self.denoise(ids)

    def head(self, hidden: Tensor) -> Tensor:
        self.num_head_rows += len(hidden)
        return hidden.clone()

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        return self.denoise(torch.tensor(list(token_ids)))


def without(canvas: Tensor, place: int, mask_token_id: Tensor) -> Tensor:
    """A canvas with the mask at one place."""
    canvas = canvas.clone()
    canvas[place] = mask_token_id
    return canvas


def probabilities(model: ToyModel, ids: list[int]) -> Tensor:
    """(L, V) of a canvas, the mask banned."""
    logits = model.logits(ids)
    logits[:, model.mask_token_id] = -torch.inf
    return logits.softmax(dim=-1)


class HashModel(ToyModel):
    """Logits that depend on every token of the segment: a canvas that differs anywhere, or is
    shown in another window, gives other logits everywhere."""

    def denoise(self, ids: Tensor) -> Tensor:
        mixed = (ids.double() * torch.arange(1, len(ids) + 1)).sum()
        grid = torch.arange(len(ids))[:, None] * 37.0 + torch.arange(self.vocab_size) * 11.0
        return (3.0 * torch.sin(grid.double() + mixed)).float()


class CausalHashModel(ToyModel):
    """A block-causal HashModel with a cache of one layer, whose keys are the token ids: logits
    depend on every token up to the end of their block, and on nothing that rounds."""

    def see(self, ids: Tensor, cache: SlotCache | None) -> Tensor:
        if cache is None:
            return self.denoise(ids)
        before = cache.length
        seen, _ = cache.extend(0, ids.view(1, 1, -1, 1), ids.view(1, 1, -1, 1))
        return self.denoise(seen.flatten())[before:]

    def denoise(self, ids: Tensor) -> Tensor:
        assert self.block_length is not None
        places = torch.arange(len(ids))
        block_end = ((places // self.block_length + 1) * self.block_length).clamp(max=len(ids))
        mixed = (ids.double() * (1 + places)).cumsum(dim=0)[block_end - 1]
        grid = places[:, None] * 37.0 + torch.arange(self.vocab_size) * 11.0
        return (3.0 * torch.sin(grid.double() + mixed[:, None])).float()


class ScriptedModel(ToyModel):
    """Always predicts `text`, surer of a position the further left it is."""

    def __init__(self, text: Sequence[int], prompt_length: int = 0, **fields: Any) -> None:
        super().__init__(**fields)
        self.text = list(text)
        self.prompt_length = prompt_length

    def denoise(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(len(ids), self.vocab_size)
        for position in range(len(ids)):
            place = min(max(position - self.prompt_length, 0), len(self.text) - 1)
            logits[position, self.text[place]] = 20.0 - 0.1 * position
        return logits


class MarkovModel(ToyModel):
    """The exact posterior of a stationary first-order Markov chain, given the filled positions.

    What it returns for a masked position is log p(x_i | all filled positions), by forward and
    backward messages; so a correct sampler must draw from the chain itself. For a filled one it
    is what a model learns that was trained with a share `corruption` of the filled tokens
    replaced at random: the token is what stands there, or else what the others say.
    """

    def __init__(self, transition: Tensor, *, corruption: float = 0.1, **fields: Any) -> None:
        super().__init__(vocab_size=transition.shape[0] + 1, **fields)
        self.transition = transition  # (K, K), rows sum to one
        self.stationary = torch.linalg.matrix_power(transition, 200)[0]  # (K,)
        self.corruption = corruption

    def _see_segments(self, segments: Sequence[Tensor], plan: AttentionPlan) -> Iterator[Tensor]:
        shadows = plan.shadows or (None,) * len(segments)
        canvases = [ids for ids, place in zip(segments, shadows, strict=True) if place is None]
        seen = iter(self.posterior(torch.stack(canvases)))
        canvas = iter(canvases)
        for ids, place in zip(segments, shadows, strict=True):
            if place is None:
                before = next(canvas)
                yield next(seen)
            else:
                places = range(place, place + len(ids))
                rests = torch.stack([without(before, i, ids[0]) for i in places])
                yield self.posterior(rests)[range(len(ids)), list(places)]

    def posterior(self, ids: Tensor) -> Tensor:
        """(N, L) canvases of equal length to (N, L, V) log posteriors, the mask's at -inf."""
        num, length = ids.shape
        states = self.transition.shape[0]
        evidence = torch.ones(num, length, states, dtype=self.transition.dtype)
        filled = ids != self.mask_token_id
        evidence[filled] = torch.nn.functional.one_hot(ids[filled], states).to(evidence.dtype)
        forward = torch.empty_like(evidence)
        backward = torch.ones_like(evidence)
        message = self.stationary.expand(num, states)
        for i in range(length):
            forward[:, i] = message
            message = _normalised((message * evidence[:, i]) @ self.transition)
        message = torch.ones(num, states, dtype=evidence.dtype)
        for i in range(length - 1, -1, -1):
            backward[:, i] = message
            message = _normalised((message * evidence[:, i]) @ self.transition.T)
        doubted = self.corruption / states + (1.0 - self.corruption) * evidence
        own = torch.where(filled[:, :, None], doubted, 1.0)
        posterior = _normalised(forward * backward * own).log().clamp(min=-60.0)
        return torch.nn.functional.pad(posterior, (0, 1), value=-60.0).float()

    def sample(self, num: int, length: int, generator: torch.Generator) -> Tensor:
        """(N, L) true chains."""
        state = torch.multinomial(self.stationary, num, replacement=True, generator=generator)
        chain = [state]
        for _ in range(length - 1):
            chances = self.transition[chain[-1]]
            chain.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        return torch.stack(chain, dim=1)

    def negative_log_likelihood(self, chains: Tensor) -> Tensor:
        """(N,) nats per token of (N, L) chains."""
        first = self.stationary[chains[:, 0]].log()
        steps = self.transition[chains[:, :-1], chains[:, 1:]].log().sum(dim=1)
        return -(first + steps) / chains.shape[1]


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def markov_chain(states: int = 12, seed: int = 0) -> Tensor:
    """A random transition matrix (K, K): some states have one likely successor, some many, and
    no transition is impossible."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(states, states, generator=generator, dtype=torch.double)
    sharpness = torch.logspace(0.3, 2.3, states, dtype=torch.double)[:, None]
    return 0.98 * _normalised(uniform**sharpness) + 0.02 / states


def toy_engine(model: ToyModel, **settings: Any) -> Engine:
    """An engine around a toy, without a tokenizer."""
    return Engine(model, None, EngineConfig(**{"max_tokens": 256, **settings}))  # type: ignore[arg-type]
