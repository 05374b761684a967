"""The network with its objective: a batch and its corruption in, the summed loss out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM

from diffusiongpt.training.attention import IMPLEMENTATION, bidirectional_masks, block_masks
from diffusiongpt.training.config import ConfigError, ModelConfig
from diffusiongpt.training.loss import Nll, nll_of_logits, weighted_loss


def build_network(
    config: ModelConfig, vocab_size: int, max_length: int, special: dict[str, int]
) -> ModernBertForMaskedLM:
    """A ModernBERT with random weights, or the one in `init_from`, with our attention function."""
    if config.init_from is not None:
        network = ModernBertForMaskedLM.from_pretrained(
            config.init_from, attn_implementation=IMPLEMENTATION, dtype=torch.float32
        )
        if network.config.vocab_size < vocab_size:
            raise ConfigError(
                f"model.init_from has {network.config.vocab_size} tokens, "
                f"the tokenizer has {vocab_size}"
            )
        network.config.max_position_embeddings = max_length
        return network
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
    """ModernBERT under one of three objectives: `block`, `masked` or `causal` (a warm start).

    Args:
        network: the backbone and its head.
        objective: which positions see which, and what is predicted where.
        block_length: of the block objective.
        mask_token_id: what a masked position holds.
        banned_ids: ids that are never predicted.
        delete_token_id: the one of them that may be predicted at visible positions, if any.
    """

    def __init__(
        self,
        network: ModernBertForMaskedLM,
        objective: str,
        block_length: int,
        mask_token_id: int,
        banned_ids: list[int],
        delete_token_id: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.block_length = block_length
        self.mask_token_id = mask_token_id
        self.nll_of_logits: Nll = nll_of_logits
        self.register_buffer("banned", torch.tensor(sorted(banned_ids)), persistent=False)
        self.banned: Tensor
        visible = sorted(set(banned_ids) - {delete_token_id})
        self.register_buffer("banned_visible", torch.tensor(visible), persistent=False)
        self.banned_visible: Tensor

    def compile_layers(self) -> None:
        """Compile each layer, and the loss for any number of rows."""
        for layer in self.network.model.layers:
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
        visible_weight: float = 1.0,
    ) -> Tensor:
        """The loss summed over the batch, a scalar in float32. Tensors are (B, L).

        In the edit stage `noisy`, `targets` and `visible` are those of a `Corruption`, and the
        visible positions add their own loss.
        """
        if self.objective == "causal":
            return self._next_token_loss(tokens, segments, maskable)
        hidden = self.hidden(tokens, segments, masked, noisy)  # (B, L, D)
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
        return loss + visible_weight * self._edit_loss(hidden[visible], truth[visible])

    def nll(self, tokens: Tensor, segments: Tensor, masked: Tensor) -> Tensor:
        """NLL of each masked token, (M,) in row order."""
        hidden = self.hidden(tokens, segments, masked)[masked]
        return self.nll_of_logits(self.head(hidden), tokens[masked], self.banned)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (M, V) of hidden rows (M, D)."""
        logits: Tensor = self.network.decoder(self.network.head(hidden))
        return logits

    def _edit_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy at visible positions, the only ones where `<|delete|>` may be said."""
        ones = torch.ones((), device=hidden.device).expand(len(targets))
        return weighted_loss(
            hidden, targets, ones, self.head, self.banned_visible, self.nll_of_logits
        )

    def hidden(
        self, tokens: Tensor, segments: Tensor, masked: Tensor, noisy: Tensor | None = None
    ) -> Tensor:
        """The last hidden states (B, L, D) of the noisy positions.

        `noisy` is what is seen there; by default the tokens with the mask where `masked`.
        """
        config = self.network.config
        dtype = self.network.decoder.weight.dtype
        if torch.is_autocast_enabled(tokens.device.type):
            dtype = torch.get_autocast_dtype(tokens.device.type)
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)[None]
        if noisy is None:
            noisy = tokens.masked_fill(masked, self.mask_token_id)
        if self.objective == "masked":
            masks = bidirectional_masks(segments, config.sliding_window, dtype)
            return self._backbone(noisy, masks, positions)
        stream_masks = block_masks(
            segments, self.block_length, config.sliding_window, noisy=True, dtype=dtype
        )
        both = torch.cat([noisy, tokens], dim=1)  # (B, 2L)
        return self._backbone(both, stream_masks, positions.repeat(1, 2))[:, :length]

    def _next_token_loss(self, tokens: Tensor, segments: Tensor, maskable: Tensor) -> Tensor:
        config = self.network.config
        dtype = self.network.decoder.weight.dtype
        masks = block_masks(segments, 1, config.sliding_window, noisy=False, dtype=dtype)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        hidden = self._backbone(tokens, masks, positions)[:, :-1]
        known = maskable[:, 1:] & (segments[:, 1:] == segments[:, :-1])
        return weighted_loss(
            hidden[known],
            tokens[:, 1:][known],
            torch.ones((), device=tokens.device).expand(int(known.sum())),
            self.head,
            self.banned,
            self.nll_of_logits,
        )

    def _backbone(self, ids: Tensor, masks: object, positions: Tensor) -> Tensor:
        output = self.network.model(input_ids=ids, attention_mask=masks, position_ids=positions)
        hidden: Tensor = output.last_hidden_state
        return hidden
