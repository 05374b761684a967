"""What a loaded model is, for those who serve it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusiongpt.engine.chat import PLAIN_CHAT, ChatStyle
from diffusiongpt.engine.params import GenerationParams

AttentionKind = Literal["bidirectional", "block_causal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The facts about a model that a server or a terminal shows.

    Attributes:
        name: the model's public id (the folder's name, or what the user said).
        family: name of its FamilySpec. attention: who sees whom.
        context_length: tokens the model was trained to see at once.
        block_length: the model's own block, None for a full-canvas model.
        block_lengths: every block length that a block-causal model was trained with, 0 being the
            whole canvas; empty for its own alone.
        vocab_size: rows of the embedding. num_parameters: weights, tied ones once.
        max_tokens: longest completion the engine's canvases hold.
        can_edit: whether it was trained to predict filled positions, too.
        logit_shift: whether the logits at a position predict the next one.
        defaults: sampler defaults, every field filled in but `steps`, `seed` and `edits`.
        chat: how its chats are written.
    """

    name: str
    family: str
    attention: AttentionKind
    context_length: int
    block_length: int | None
    vocab_size: int
    num_parameters: int
    max_tokens: int
    defaults: GenerationParams
    can_edit: bool = False
    logit_shift: bool = False
    block_lengths: tuple[int, ...] = ()
    chat: ChatStyle = PLAIN_CHAT
