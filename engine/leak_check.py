"""Does a loaded network see what its family says, and no more?"""

from __future__ import annotations

import torch

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.model import LoadedModel


def check_for_leaks(model: LoadedModel) -> None:
    """Refuse a network whose attention is not what its family says.

    Bidirectional: the first logits must move with tokens that only global layers reach.
    Block-causal: they must move with the rest of their block, and not with the next block.

    What lies ahead is replaced as a whole and not in its last token only: one token among many
    can vanish in bfloat16.

    Raises:
        LoadError: which tokens move the first logits and should not, or the other way round.
    """
    if model.attention == "block_causal":
        _check_block_causal(model)
        return
    length = min(model.context_length, 2 * _first_out_of_window(model) + 8)
    ahead = max(length // 2, _first_out_of_window(model))
    if not _moves(model, length, changed=slice(ahead, length)):
        raise LoadError(
            f"{model.name} was loaded as bidirectional, but its first logits do not change "
            f"with the tokens at {ahead}..{length - 1}"
        )


def _check_block_causal(model: LoadedModel) -> None:
    block_length = model.block_length or 1
    length = min(model.context_length, 2 * block_length)
    if _moves(model, length, changed=slice(block_length, length)):
        raise LoadError(
            f"{model.name} was loaded as block-causal, but its first block of {block_length} "
            f"tokens changes with the next one"
        )
    first = min(length, block_length)
    if first > 1 and not _moves(model, first, changed=slice(1, first)):
        raise LoadError(
            f"{model.name} was loaded as block-causal, but its first logits do not change "
            f"with the rest of the block of {block_length} tokens"
        )


def _first_out_of_window(model: LoadedModel) -> int:
    """The first position that position 0 sees in global layers only; 1 without both kinds."""
    config = model.config
    kinds = set(config.to_dict().get("layer_types") or ())
    beyond: int = config.sliding_window + 1 if len(kinds) > 1 else 1
    return beyond if beyond < model.context_length else 1


def _moves(model: LoadedModel, length: int, changed: slice) -> bool:
    """Whether the logits at position 0 move with the tokens in `changed`."""
    ids = torch.full((length,), model.mask_token_id)
    others = ids.clone()
    others[changed] = torch.arange(length)[changed] * 7 % model.vocab_size
    before, after = (model.logits(each.tolist())[0] for each in (ids, others))
    if not (before.isfinite().all() and after.isfinite().all()):
        raise LoadError(
            f"{model.name} gives logits that are not finite, so its weights are damaged"
        )
    return not torch.equal(before, after)
