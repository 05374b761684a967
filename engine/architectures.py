"""The classes of transformers that the engine runs and training trains, as data. Torch-free.

Every one of them calls the attention function that its config names, for each layer and with the
layer's window, and hands the keyword arguments of a forward on to it: so who sees whom is ours to
say. A class is listed because `tests/engine/test_architectures.py` compares it with its own
forward pass, and `tests/training/test_backbones.py` what is trained with what is served. Those
that were tried and cannot be listed are in docs/LOG.md, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Where a class of transformers keeps what we handle ourselves.

    Attributes:
        layers: the list of layers, in the base model.
        head: what leads from the last hidden states to the logits, in this order: modules of the
            whole network, "gelu" for the function, and "*field" or "/field" for a product with,
            or a division by, a field of the config. The last one is the output embedding.
        positions: the table of learned positions, in the base model; None: positions are rotated.
        skips_padding: positions are counted from the one after the padding id on, as RoBERTa does.
        rename: as in FamilySpec, from the names that checkpoints of the class have.
    """

    layers: str = "layers"
    head: tuple[str, ...] = ("lm_head",)
    positions: str | None = None
    skips_padding: bool = False
    rename: tuple[tuple[str, str], ...] = ()


_PLAIN = Architecture()
_BERT = Architecture(
    layers="encoder.layer",
    head=("cls.predictions.transform", "cls.predictions.decoder"),
    positions="embeddings.position_embeddings",
)
_ROBERTA = Architecture(
    layers="encoder.layer",
    head=("lm_head.dense", "gelu", "lm_head.layer_norm", "lm_head.decoder"),
    positions="embeddings.position_embeddings",
    skips_padding=True,
)
_COHERE = Architecture(head=("*logit_scale", "lm_head"))

ENCODERS: Mapping[str, Architecture] = MappingProxyType(
    {
        "ModernBertForMaskedLM": Architecture(head=("head", "decoder")),
        "BertForMaskedLM": _BERT,
        "CamembertForMaskedLM": _ROBERTA,
        "DistilBertForMaskedLM": Architecture(
            layers="transformer.layer",
            head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
            positions="embeddings.position_embeddings",
        ),
        "ElectraForMaskedLM": Architecture(
            layers="encoder.layer",
            head=("generator_predictions", "generator_lm_head"),
            positions="embeddings.position_embeddings",
        ),
        "ErnieForMaskedLM": _BERT,
        "EuroBertForMaskedLM": _PLAIN,
        "RobertaForMaskedLM": _ROBERTA,
        "RobertaPreLayerNormForMaskedLM": _ROBERTA,
        "XLMRobertaForMaskedLM": _ROBERTA,
        "XLMRobertaXLForMaskedLM": _ROBERTA,
    }
)
DECODERS: Mapping[str, Architecture] = MappingProxyType(
    {
        "Qwen2ForCausalLM": _PLAIN,
        "Qwen3ForCausalLM": _PLAIN,
        "LlamaForCausalLM": _PLAIN,
        "MistralForCausalLM": _PLAIN,
        "SmolLM3ForCausalLM": _PLAIN,
        "Olmo2ForCausalLM": _PLAIN,
        "ApertusForCausalLM": _PLAIN,
        "ArceeForCausalLM": _PLAIN,
        "CohereForCausalLM": _COHERE,
        "Cohere2ForCausalLM": _COHERE,
        "CwmForCausalLM": _PLAIN,
        "Ernie4_5ForCausalLM": _PLAIN,
        "Exaone4ForCausalLM": _PLAIN,
        "GPT2LMHeadModel": Architecture(layers="h", positions="wpe"),
        "GPTNeoXForCausalLM": Architecture(rename=((r"^embed_out\.", "lm_head."),)),
        "GemmaForCausalLM": _PLAIN,
        "Gemma3ForCausalLM": _PLAIN,
        "GlmForCausalLM": _PLAIN,
        "Glm4ForCausalLM": _PLAIN,
        "GraniteForCausalLM": Architecture(head=("/logits_scaling", "lm_head")),
        "HeliumForCausalLM": _PLAIN,
        "HunYuanDenseV1ForCausalLM": _PLAIN,
        "MinistralForCausalLM": _PLAIN,
        "Ministral3ForCausalLM": _PLAIN,
        "ModernBertDecoderForCausalLM": Architecture(head=("lm_head", "decoder")),
        "OlmoForCausalLM": _PLAIN,
        "Olmo3ForCausalLM": _PLAIN,
        "PhiForCausalLM": _PLAIN,
        "Phi3ForCausalLM": _PLAIN,
        "SeedOssForCausalLM": _PLAIN,
        "Starcoder2ForCausalLM": _PLAIN,
    }
)
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({**ENCODERS, **DECODERS})

_ENDINGS = ("ForMaskedLM", "ForCausalLM", "LMHeadModel")
# Fields that change the result in a way that we do not follow; the last one halves the window
# whenever a config is read.
_NOT_FOLLOWED = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
)


def short_name(architecture: str) -> str:
    """A class without what its ending says: "Qwen2ForCausalLM" -> "Qwen2"."""
    for ending in _ENDINGS:
        architecture = architecture.removesuffix(ending)
    return architecture


def describe_known() -> str:
    """The classes of the table, for a sentence."""
    encoders, decoders = (", ".join(map(short_name, each)) for each in (ENCODERS, DECODERS))
    return f"a masked language model ({encoders}) or a causal one ({decoders})"


def reason_against(config: Any) -> str | None:
    """Why a network of a known class cannot be run as its config says, or None.

    Args:
        config: of the class that transformers ships.
    """
    for name in _NOT_FOLLOWED:
        value = getattr(config, name, None)
        if value:
            return f"{name} must be null or false, got {value!r}"
    # Its angles depend on the longest text of a forward, and so on the company of a request.
    if "longrope" in _rope_types(getattr(config, "rope_parameters", None) or {}):
        return "the rope_type longrope makes an answer depend on its batch"
    return None


def _rope_types(parameters: Mapping[str, Any]) -> Iterable[str]:
    """The kinds of rotary positions of a config, which may have some for each kind of layer."""
    for value in (parameters, *parameters.values()):
        if isinstance(value, Mapping) and "rope_type" in value:
            yield value["rope_type"]


def first_position(config: Any) -> int:
    """What a class counts positions from: 0, or the position after the padding id."""
    known = ARCHITECTURES.get((config.architectures or [""])[0])
    return config.pad_token_id + 1 if known is not None and known.skips_padding else 0


def context_length_of(config: Any) -> int:
    """Positions that a network has."""
    return int(config.max_position_embeddings) - first_position(config)
