"""What a diffusion language model is beyond its architecture, as data. Torch-free.

A checkpoint's family is the one that the caller names, or else what the table below says of
the `architectures` in its config.json. A `diffusion` section there, which our trainer writes,
is the folder's word about itself and wins over the table field by field:

    "diffusion": {"version": 1, "mask_token_id": 4, "attention": "block_causal",
                  "block_length": 32, "logit_shift": false, "stop_token_ids": [2],
                  "never_emit_token_ids": [0, 1, 4], "sampler": {"policy": "entropy_bound"}}

A causal language model has the same `model_type` as a diffusion model made from it and would
load without an error, so nothing is ever guessed from `model_type`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args

from diffusiongpt.engine.architectures import ARCHITECTURES, describe_known, short_name
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.info import AttentionKind
from diffusiongpt.engine.params import GenerationParams

SECTION_VERSION = 1
# A special token that has no text: a model that may edit deletes a token by writing this one.
DELETE_TOKEN = "<|delete|>"

# Fields of GenerationParams that only a request can know, or must ask for itself.
_PER_REQUEST = {"seed", "stop", "watch", "cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """One family of diffusion language models.

    Attributes:
        name: what `family=` takes. architectures: the names in config.json that mean it.
        native: the class of transformers that the weights are loaded into.
        attention: who sees whom. block_length: of block-causal attention, or a bidirectional
            model's own block of denoising; None takes the config's `block_size` or the canvas.
        block_lengths: all that a block-causal model was trained with, 0 being the whole canvas;
            empty: `block_length` alone.
        logit_shift: the logits at a position predict the next one.
        can_edit: the model was trained to predict filled positions, too, so that they can be
            edited; a section that does not say so says no.
        mask_token_id: None takes the config's `mask_token_id`, then `mask_token`.
        mask_token: text of the mask token, looked up in the tokenizer.
        stop_token_ids: None takes the config's `eos_token_id`, and `stop`.
        stop: texts of further stop tokens, looked up in the tokenizer.
        never_emit_token_ids: ids that are never drawn, next to the mask.
        sampler: defaults, as fields of `GenerationParams`.
        rename: (pattern, replacement) regular expressions from the checkpoint's weight names
            to the native class's, each applied to every name in this order.
        is_mixture: the checkpoint has fused projections and its experts one by one.
        config: source name to native name of config fields.
        chat_template: replaces the tokenizer's.
    """

    name: str
    architectures: tuple[str, ...]
    native: str
    attention: AttentionKind = "bidirectional"
    block_length: int | None = None
    block_lengths: tuple[int, ...] = ()
    logit_shift: bool = False
    can_edit: bool = False
    mask_token_id: int | None = None
    mask_token: str | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    never_emit_token_ids: tuple[int, ...] = ()
    sampler: Mapping[str, Any] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()
    is_mixture: bool = False
    config: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None


_LLADA_NAMES = (
    (r"^model\.transformer\.wte\.", "model.embed_tokens."),
    (r"^model\.transformer\.ln_f\.", "model.norm."),
    (r"^model\.transformer\.ff_out\.", "lm_head."),
    (r"^model\.transformer\.blocks\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ff_norm\.", ".post_attention_layernorm."),
    (r"\.attn_out\.", ".self_attn.o_proj."),
    (r"\.([qkv])_proj\.", r".self_attn.\1_proj."),
    (r"\.ff_proj\.", ".mlp.gate_proj."),
    (r"\.up_proj\.", ".mlp.up_proj."),
    (r"\.ff_out\.", ".mlp.down_proj."),
)
_LLADA_CONFIG = MappingProxyType(
    {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "mlp_hidden_size": "intermediate_size",
        "embedding_size": "vocab_size",
        "max_sequence_length": "max_position_embeddings",
        "weight_tying": "tie_word_embeddings",
        "include_qkv_bias": "attention_bias",
    }
)
_LLADA2_NAMES = (
    (r"^model\.word_embeddings\.", "model.embed_tokens."),
    (r"\.attention\.query_key_value\.", ".self_attn.qkv_proj."),
    (r"\.attention\.dense\.", ".self_attn.o_proj."),
    (r"\.attention\.query_layernorm\.", ".self_attn.q_norm."),
    (r"\.attention\.key_layernorm\.", ".self_attn.k_norm."),
    (r"\.mlp\.gate\.expert_bias$", ".mlp.gate.e_score_correction_bias"),
)
_LLADA2_CONFIG = MappingProxyType(
    {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"}
)

_SPECS = (
    FamilySpec(
        name="modernbert",
        architectures=("ModernBertForMaskedLM",),
        native="ModernBertForMaskedLM",
        can_edit=True,  # masked language models see replaced tokens in training
        mask_token="[MASK]",
    ),
    FamilySpec(
        name="a2d_qwen3",
        architectures=("A2DQwen3LMHeadModel",),
        native="Qwen3ForCausalLM",
        mask_token="<|mask|>",
        stop=("<|im_end|>",),
    ),
    FamilySpec(
        name="dream",
        architectures=("DreamModel",),
        native="Qwen2ForCausalLM",
        logit_shift=True,
        mask_token="<|mask|>",
        stop=("<|im_end|>",),
        sampler=MappingProxyType({"policy": "entropy", "temperature": 0.2, "top_p": 0.95}),
    ),
    FamilySpec(
        name="sdar",
        architectures=("SDARForCausalLM",),
        native="Qwen3ForCausalLM",
        attention="block_causal",
        mask_token="<|MASK|>",
        stop=("<|im_end|>",),
        sampler=MappingProxyType({"policy": "threshold", "threshold": 0.9}),
    ),
    FamilySpec(
        name="llada",
        architectures=("LLaDAModelLM",),
        native="LlamaForCausalLM",
        mask_token="<|mdm_mask|>",
        stop=("<|eot_id|>",),
        rename=_LLADA_NAMES,
        config=_LLADA_CONFIG,
        sampler=MappingProxyType({"policy": "confidence", "temperature": 0.0}),
    ),
    FamilySpec(
        name="llada2",
        architectures=("LLaDA2MoeModelLM",),
        native="Glm4MoeForCausalLM",
        attention="block_causal",
        block_length=32,
        can_edit=True,  # from LLaDA2.1 on (arXiv 2602.08676)
        mask_token="<|mask|>",
        stop=("<|endoftext|>", "<|role_end|>"),
        rename=_LLADA2_NAMES,
        is_mixture=True,
        config=_LLADA2_CONFIG,
        sampler=MappingProxyType({"policy": "threshold", "threshold": 0.95, "temperature": 0.0}),
    ),
)

FAMILIES: Mapping[str, FamilySpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
_BY_ARCHITECTURE = {name: spec for spec in _SPECS for name in spec.architectures}
# Without a section these are causal or masked language models.
_NEED_SECTION = {
    name: FamilySpec(
        name=short_name(name).lower(), architectures=(name,), native=name, rename=known.rename
    )
    for name, known in ARCHITECTURES.items()
    if name not in _BY_ARCHITECTURE
}


def detect_family(
    config: Mapping[str, Any], *, family: str | None = None, where: str = "the model"
) -> FamilySpec:
    """The family of a checkpoint, with the facts of its `diffusion` section filled in.

    Args:
        config: the parsed config.json.
        family: name of a family, which is then not looked for.
        where: what the sentences of errors call the checkpoint.

    Raises:
        LoadError: an unknown family, a section that cannot be used, or not a diffusion model.
    """
    section = config.get("diffusion")
    if family is not None:
        if family not in FAMILIES:
            raise LoadError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        spec = FAMILIES[family]
    else:
        spec = _from_architectures(config, where, has_section=section is not None)
    if section is not None:
        spec = dataclasses.replace(spec, **_read_section(section, where))
    return _with_block_length(spec, config, where)


def _from_architectures(config: Mapping[str, Any], where: str, *, has_section: bool) -> FamilySpec:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise LoadError(
            f"{where} names no architectures in its config.json; "
            f"pass family= one of {', '.join(FAMILIES)}"
        )
    table = {**_BY_ARCHITECTURE, **(_NEED_SECTION if has_section else {})}
    for name in architectures:
        if name in table:
            return table[name]
    name = str(architectures[0])
    if has_section:
        raise LoadError(
            f"{where} is a {name}, which this engine cannot run; "
            f"a folder with a diffusion section must be {describe_known()}"
        )
    raise LoadError(
        f"{where} has the architecture {name}, which is {_kind_of(name)}; "
        f"if its weights are one, pass family= one of {', '.join(FAMILIES)}"
    )


def _kind_of(name: str) -> str:
    if name.endswith("ForMaskedLM"):
        return "a masked language model and becomes a diffusion model by a diffusion section"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "a causal language model and not a diffusion model"
    return "not known"


def _with_block_length(spec: FamilySpec, config: Mapping[str, Any], where: str) -> FamilySpec:
    """Block-causal attention needs a block length: the spec's, or the config's `block_size`."""
    if spec.attention == "bidirectional" or spec.block_length is not None:
        return spec
    length = config.get("block_size")
    if not _is_count(length):
        raise LoadError(
            f"{where} is block-causal and must say block_length in the diffusion section "
            f"or block_size in config.json as an integer of at least 1, got {length!r}"
        )
    return dataclasses.replace(spec, block_length=length)


def _read_section(section: Any, where: str) -> dict[str, Any]:
    """The fields of FamilySpec that a `diffusion` section sets."""
    if not isinstance(section, Mapping):
        raise LoadError(f"the diffusion section of {where} must be an object, got {section!r}")
    unknown = sorted(set(section) - {"version", *_SECTION_FIELDS})
    if unknown:
        raise LoadError(
            f"the diffusion section of {where} has the unknown key {unknown[0]!r}; "
            f"it may have version, {', '.join(_SECTION_FIELDS)}"
        )
    if section.get("version") != SECTION_VERSION:
        raise LoadError(
            f"the diffusion section of {where} must have version {SECTION_VERSION}, "
            f"got {section.get('version')!r}"
        )
    for name, (is_valid, accepted) in _SECTION_FIELDS.items():
        if name in section and not is_valid(section[name]):
            raise LoadError(
                f"{name} in the diffusion section of {where} must be {accepted}, "
                f"got {section[name]!r}"
            )
    values = {name: section[name] for name in _SECTION_FIELDS if name in section}
    _check_sampler(values.get("sampler", {}), where)
    _check_block_lengths(values, where)
    values.setdefault("can_edit", False)
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _check_block_lengths(values: Mapping[str, Any], where: str) -> None:
    lengths, own = values.get("block_lengths"), values.get("block_length")
    if lengths and (values.get("attention") != "block_causal" or own not in lengths):
        raise LoadError(
            f"block_lengths in the diffusion section of {where} are of a block-causal model and "
            f"hold its block_length, got {list(lengths)} with block_length {own}"
        )


def _check_sampler(sampler: Mapping[str, Any], where: str) -> None:
    known = {each.name for each in dataclasses.fields(GenerationParams)} - _PER_REQUEST
    for name in sampler:
        if name not in known:
            raise LoadError(
                f"sampler in the diffusion section of {where} has the unknown key {name!r}; "
                f"it may have {', '.join(sorted(known))}"
            )
    try:
        GenerationParams(**sampler)
    except InvalidRequest as error:
        raise LoadError(f"sampler in the diffusion section of {where}: {error}") from error


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_count(value: object) -> bool:
    return _is_id(value) and value != 0


def _are_ids(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_id, value))


_SECTION_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "mask_token_id": (_is_id, "a token id"),
    "attention": (
        lambda value: value in get_args(AttentionKind),
        f"one of {', '.join(get_args(AttentionKind))}",
    ),
    "block_length": (
        lambda value: value is None or _is_count(value),
        "null or an integer of at least 1",
    ),
    "block_lengths": (_are_ids, "a list of lengths of at least 0, 0 being the whole canvas"),
    "can_edit": (lambda value: isinstance(value, bool), "true or false"),
    "logit_shift": (lambda value: isinstance(value, bool), "true or false"),
    "stop_token_ids": (_are_ids, "a list of token ids"),
    "never_emit_token_ids": (_are_ids, "a list of token ids"),
    "sampler": (lambda value: isinstance(value, Mapping), "an object"),
}
