"""The last layer, computed only where its result is wanted.

Every token's keys and values matter to the others, but what comes after the last attention
matters to the token alone. The head looks at a few positions of a canvas, and in training at one
of two streams, so the last feed-forward block (most of a layer's work) is done for these: an
exact saving.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from diffusiongpt.engine.native import layers_of

# Norm, attention and second norm, as the layers of transformers' models call them.
_NAMES = (
    ("attn_norm", "attn", "mlp_norm"),
    ("input_layernorm", "self_attn", "post_attention_layernorm"),
)


def narrow_last_layer(network: PreTrainedModel) -> bool:
    """Let the network's last layer take the keyword argument `wanted`, the indices (R,) or a slice
    of the tokens that it goes on with; False where a layer is not of the form that we know."""
    layer = layers_of(network)[-1]
    parts = {name for name, _ in layer.named_children()}
    if hasattr(layer, "residual_multiplier"):  # Granite weighs what it adds
        return False
    for names in _NAMES:
        if parts == {*names, "mlp"}:
            layer.forward = partial(_go_on_with_wanted, layer, names, layer.forward)
            return True
    return False


def _go_on_with_wanted(
    layer: nn.Module,
    names: tuple[str, str, str],
    whole: Any,
    hidden: Tensor,
    *args: Any,
    wanted: Tensor | slice | None = None,
    **kwargs: Any,
) -> Tensor:
    """A pre-norm layer: h + attention(norm(h)), then h + mlp(norm(h)) of the wanted tokens."""
    if wanted is None:
        result: Tensor = whole(hidden, *args, **kwargs)
        return result
    norm, attention, second_norm = (layer.get_submodule(name) for name in names)
    attended, _ = attention(hidden_states=norm(hidden), **kwargs)
    hidden = hidden[:, wanted] + attended[:, wanted]
    fed: Tensor = layer.get_submodule("mlp")(second_norm(hidden))
    return hidden + fed
