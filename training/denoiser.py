"""The network with its objective: a batch and its corruption in, the summed loss out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel
from transformers.activations import ACT2FN

from diffusiongpt.engine.last_layer import narrow_last_layer
from diffusiongpt.engine.native import layers_of
from diffusiongpt.training.attention import IMPLEMENTATION, layer_masks
from diffusiongpt.training.backbones import (
    add_adapters,
    apply_head,
    fit_positions,
    load_backbone,
    output_embedding,
    run_backbone,
    window_of,
)
from diffusiongpt.training.config import ConfigError, ModelConfig
from diffusiongpt.training.loss import Nll, nll_of_logits, weighted_loss
from diffusiongpt.training.rotary import rotate_in_pieces


def build_network(
    config: ModelConfig, vocab_size: int, max_length: int, special: dict[str, int]
) -> PreTrainedModel:
    """A ModernBERT with random weights, or the network of `init_from`, with our attention."""
    if config.init_from is None:
        return _random_network(config, vocab_size, max_length, special)
    network = load_backbone(config.init_from)
    if network.config.vocab_size < vocab_size:
        raise ConfigError(
            f"model.init_from has {network.config.vocab_size} tokens, "
            f"the tokenizer has {vocab_size}"
        )
    fit_positions(network, max_length)
    if config.lora_rank:
        add_adapters(network, config)
    return network


def _random_network(
    config: ModelConfig, vocab_size: int, max_length: int, special: dict[str, int]
) -> ModernBertForMaskedLM:
    if config.hidden_activation not in ACT2FN:
        accepted = ", ".join(sorted(ACT2FN))
        raise ConfigError(
            f"model.hidden_activation must be one of {accepted}, got {config.hidden_activation!r}"
        )
    numbers: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "local_attention": config.local_attention,
        "hidden_activation": config.hidden_activation,
        "mlp_dropout": config.dropout,
        "max_position_embeddings": max_length,
        "pad_token_id": special["<|pad|>"],
        "bos_token_id": special["<|im_start|>"],
        "eos_token_id": special["<|im_end|>"],
        "cls_token_id": special["<|im_start|>"],
        "sep_token_id": special["<|im_end|>"],
        "attn_implementation": IMPLEMENTATION,
    }
    return ModernBertForMaskedLM(ModernBertConfig(**numbers))


class Denoiser(nn.Module):
    """A network under one of three objectives: `block`, `masked` or `causal` (a warm start).

    Args:
        network: the backbone and its head.
        objective: which positions see which, and what is predicted where.
        block_length: of the block objective, where a call does not name another one.
        mask_token_id: what a masked position holds.
        banned_ids: ids that are never predicted.
        delete_token_id: the one of them that may be predicted at visible positions, if any.
        logit_shift: what stands at a position is predicted at the one before it.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        objective: str,
        block_length: int,
        mask_token_id: int,
        banned_ids: list[int],
        delete_token_id: int | None = None,
        logit_shift: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.block_length = block_length
        self.mask_token_id = mask_token_id
        self.logit_shift = logit_shift
        rotate_in_pieces(network)
        # A logit shift looks at both streams.
        self.narrows = narrow_last_layer(network) and not logit_shift
        self.nll_of_logits: Nll = nll_of_logits
        self.register_buffer("banned", torch.tensor(sorted(banned_ids)), persistent=False)
        self.banned: Tensor
        visible = sorted(set(banned_ids) - {delete_token_id})
        self.register_buffer("banned_visible", torch.tensor(visible), persistent=False)
        self.banned_visible: Tensor

    def compile_layers(self) -> None:
        """Compile each layer, and the loss for any number of rows."""
        for layer in layers_of(self.network):
            layer.compile()
        self.nll_of_logits = torch.compile(nll_of_logits, dynamic=True)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor,
        maskable: Tensor,
        masked: Tensor,
        weights: Tensor,
        noisy: Tensor | None = None,
        targets: Tensor | None = None,
        visible: Tensor | None = None,
        visible_weight: Tensor | float = 1.0,
        block_length: int | None = None,
    ) -> Tensor:
        """The loss summed over the batch, a scalar in float32. Tensors are (B, L).

        `block_length` is of this batch, 0 for the whole canvas. In the edit stage `noisy`,
        `targets` and `visible` are those of a `Corruption`, and the visible positions add their
        own loss, which weighs `visible_weight`, as each token of a next-token model does.
        """
        of_visible = torch.as_tensor(visible_weight, device=tokens.device).expand_as(maskable)
        if self.objective == "causal":
            return self._next_token_loss(tokens, segments, maskable, of_visible)
        hidden = self.hidden(tokens, segments, masked, noisy, block_length)  # (B, L, D)
        truth = tokens if targets is None else targets
        loss = weighted_loss(
            hidden[masked],
            truth[masked],
            weights[masked],
            self.head,
            self.banned,
            self.nll_of_logits,
        )
        if visible is None:
            return loss
        return loss + self._edit_loss(hidden[visible], truth[visible], of_visible[visible])

    def nll(self, tokens: Tensor, segments: Tensor, masked: Tensor) -> Tensor:
        """NLL of each masked token, (M,) in row order."""
        hidden = self.hidden(tokens, segments, masked)[masked]
        return self.nll_of_logits(self.head(hidden), tokens[masked], self.banned)

    def next_token_nll(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """NLL (B, L) of each token after those before it, of a causal model.

        A segment's first token has none before it: it is as likely as any other.
        """
        hidden = self.canvas_hidden(tokens, segments, 1)
        before = hidden[:, :-1].reshape(-1, hidden.shape[2])
        after = tokens[:, 1:].reshape(-1)
        nll = torch.empty(tokens.shape, device=tokens.device)
        known = self.nll_of_logits(self.head(before), after, self.banned)
        nll[:, 1:] = known.view(len(tokens), -1)
        first = torch.ones_like(tokens, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        emitted = self.network.config.vocab_size - len(self.banned)
        return nll.masked_fill(first, math.log(emitted))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (M, V) of hidden rows (M, D)."""
        return apply_head(self.network, hidden)

    def _edit_loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Cross entropy at visible positions, the only ones where `<|delete|>` may be said."""
        return weighted_loss(
            hidden, targets, weights, self.head, self.banned_visible, self.nll_of_logits
        )

    def hidden(
        self,
        tokens: Tensor,
        segments: Tensor,
        masked: Tensor,
        noisy: Tensor | None = None,
        block_length: int | None = None,
    ) -> Tensor:
        """The last hidden states (B, L, D) that predict the noisy positions.

        `noisy` is what is seen there; by default the tokens with the mask where `masked`.
        """
        if noisy is None:
            noisy = tokens.masked_fill(masked, self.mask_token_id)
        block = self._block(block_length)
        if block == 0:
            return self.canvas_hidden(noisy, segments, block)
        length = tokens.shape[1]
        masks = self.layer_masks(segments, block, noisy=True)
        positions = torch.arange(length, device=tokens.device)[None].repeat(1, 2)
        both = torch.cat([noisy, tokens], dim=1)  # (B, 2L)
        wanted = slice(0, length) if self.narrows else None
        hidden = run_backbone(self.network, both, masks, positions, wanted)
        if self.logit_shift:
            source = self._shifted(segments, hidden.shape[2], block)
            return hidden[:, : 2 * length].gather(1, source)
        return hidden[:, :length]

    def _block(self, block_length: int | None) -> int:
        """The block length that a call means; 0 is the whole canvas."""
        if self.objective == "masked":
            return 0
        return self.block_length if block_length is None else block_length

    def canvas_hidden(
        self, ids: Tensor, segments: Tensor, block_length: int | None = None
    ) -> Tensor:
        """The last hidden states (B, L, D) that predict each position of canvases (B, L).

        A block-causal model sees a canvas whose masks are all in the last block as it saw `x_t`
        in training: earlier blocks are clean, so one stream gives both.
        """
        masks = self.layer_masks(segments, self._block(block_length), noisy=False)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = run_backbone(self.network, ids, masks, positions)
        if not self.logit_shift:
            return hidden
        return hidden.gather(1, self._shifted(segments, hidden.shape[2]))

    def layer_masks(self, segments: Tensor, block_length: int, noisy: bool) -> dict[str, Any]:
        """The masks of this network's kinds of layers; a `block_length` of 0: the whole canvas."""
        dtype = self._mask_dtype(segments)
        return layer_masks(segments, block_length, window_of(self.network), noisy, dtype)

    def _shifted(self, segments: Tensor, size: int, block_length: int = 0) -> Tensor:
        """(B, L, size) long: where the state that predicts each position stands.

        It is the position before, in a segment's first position its own. Before a block's first
        position stand the clean tokens of the block before it: those of the second stream.
        With a `block_length` of 0 there is one stream.
        """
        length = segments.shape[1]
        position = torch.arange(length, device=segments.device)
        before = (position - 1).clamp(min=0).expand_as(segments).clone()
        if block_length:
            before[:, position % block_length == 0] += length
        first = torch.ones_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        source = torch.where(first, position, before)
        return source[..., None].expand(-1, -1, size)

    def _mask_dtype(self, like: Tensor) -> torch.dtype:
        if torch.is_autocast_enabled(like.device.type):
            return torch.get_autocast_dtype(like.device.type)
        dtype: torch.dtype = output_embedding(self.network).weight.dtype
        return dtype

    def _next_token_loss(
        self, tokens: Tensor, segments: Tensor, maskable: Tensor, weights: Tensor
    ) -> Tensor:
        masks = self.layer_masks(segments, 1, noisy=False)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        hidden = run_backbone(self.network, tokens, masks, positions)[:, :-1]
        known = maskable[:, 1:] & (segments[:, 1:] == segments[:, :-1])
        return weighted_loss(
            hidden[known],
            tokens[:, 1:][known],
            weights[:, 1:][known],
            self.head,
            self.banned,
            self.nll_of_logits,
        )
