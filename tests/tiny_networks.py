"""A tiny random network of every class that the engine runs."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
# Layers of both kinds, or of one with a window.
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
_SLIDING = {"sliding_window": 5}
# What tells a class from others, far from its neutral value.
OWN: dict[str, dict[str, Any]] = {
    "ModernBertForMaskedLM": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "CamembertForMaskedLM": {"pad_token_id": 1},
    "RobertaForMaskedLM": {"pad_token_id": 1},
    "RobertaPreLayerNormForMaskedLM": {"pad_token_id": 1},
    "XLMRobertaForMaskedLM": {"pad_token_id": 1},
    "XLMRobertaXLForMaskedLM": {"pad_token_id": 1},
    "DistilBertForMaskedLM": {"dim": 16, "hidden_dim": 24, "n_heads": 4, "n_layers": 2},
    "ElectraForMaskedLM": {"embedding_size": 8},
    "Qwen2ForCausalLM": {**_MIXED, "use_sliding_window": True},
    "Qwen3ForCausalLM": {**_MIXED, "use_sliding_window": True},
    "SmolLM3ForCausalLM": {**_MIXED, "use_sliding_window": True, "no_rope_layers": [1, 0]},
    "MistralForCausalLM": _SLIDING,
    "Ministral3ForCausalLM": _SLIDING,
    "Phi3ForCausalLM": _SLIDING,
    "Starcoder2ForCausalLM": _SLIDING,
    "Cohere2ForCausalLM": {**_MIXED, "logit_scale": 3.0},
    "CohereForCausalLM": {"logit_scale": 3.0, "use_qk_norm": True},
    "CwmForCausalLM": _MIXED,
    "Exaone4ForCausalLM": _MIXED,
    "Gemma3ForCausalLM": _MIXED,
    "MinistralForCausalLM": _MIXED,
    "ModernBertDecoderForCausalLM": _MIXED,
    "Olmo3ForCausalLM": _MIXED,
    "OlmoForCausalLM": {"clip_qkv": 0.5},
    "GPT2LMHeadModel": {"scale_attn_by_inverse_layer_idx": True},
    "GPTNeoXForCausalLM": {"use_parallel_residual": False},
    "GraniteForCausalLM": {
        "attention_multiplier": 0.4,
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.7,
    },
}


def tiny_config(name: str, **changes: Any) -> Any:
    """The config of a class, with those of SIZES that it has."""
    config_class = getattr(transformers, name).config_class
    known = config_class()
    sizes = {key: value for key, value in SIZES.items() if hasattr(known, key)}
    return config_class(**{**sizes, **OWN.get(name, {}), **changes})


def tiny_network(name: str, **changes: Any) -> PreTrainedModel:
    """A network in eval mode; norms and biases are random, too, so that none can be left out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: PreTrainedModel = getattr(transformers, name)(tiny_config(name, **changes))
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()
