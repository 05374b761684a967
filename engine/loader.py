"""From a folder or hub id to a model that is ready to denoise.

The class is always one that transformers ships. The weights' names and shapes must fit it
exactly, and a leak check shows that its attention is what the family says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import ModernBertForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from diffusiongpt.engine.attention import PACKED_ATTENTION, AttentionPlan
from diffusiongpt.engine.checkpoint import (
    find_folder,
    find_token_id,
    read_json,
    read_weights,
    some,
)
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.families import FamilySpec, detect_family
from diffusiongpt.engine.info import AttentionKind

DTypeName = Literal["auto", "bfloat16", "float32"]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Token ids with a role, all of them inside the vocabulary; `never_emit` holds the mask."""

    mask: int
    stop: tuple[int, ...]
    never_emit: tuple[int, ...]


class LoadedModel:
    """A network in eval mode with the facts that denoising needs.

    Attributes:
        name: public id. folder: where it came from. family: its FamilySpec.
        attention, block_length, logit_shift, sampler, chat_template: as in FamilySpec.
        mask_token_id, stop_token_ids, never_emit_token_ids: the last one holds the mask.
        context_length: positions the model was trained for. vocab_size: V, rows of the embedding.
        num_parameters: tied ones once. dtype, device: of the weights.
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
        self._network = network
        self._head = _output_head(network)
        self.family = family
        self.name = name
        self.folder = folder
        self.mask_token_id = tokens.mask
        self.stop_token_ids = tokens.stop
        self.never_emit_token_ids = tokens.never_emit
        self.attention: AttentionKind = family.attention
        self.block_length = family.block_length
        self.logit_shift = family.logit_shift
        self.sampler: Mapping[str, Any] = family.sampler
        self.chat_template = family.chat_template
        self.context_length: int = network.config.max_position_embeddings
        self.vocab_size: int = network.config.vocab_size
        self.num_parameters = sum(each.numel() for each in network.parameters())
        self.dtype: torch.dtype = network.dtype
        self.device: torch.device = network.device

    @torch.no_grad()
    def backbone(self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Hidden states (T, H) of packed token ids (1, T) at positions (1, T)."""
        output = self._network.base_model(
            input_ids=ids, position_ids=position_ids, use_cache=False, attention_plan=plan
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0]

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits (R, V) in float32 of hidden states (R, H)."""
        logits: Tensor = self._head(hidden)
        return logits.float()

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

    def plan(self, *lengths: int) -> AttentionPlan:
        """The plan of segments that all start at position 0 and see what the family sees."""
        block_length = self.block_length if self.attention == "block_causal" else None
        return AttentionPlan(lengths=lengths, block_length=block_length)


def load_model(
    model: str | Path,
    *,
    family: str | None = None,
    dtype: DTypeName = "auto",
    device: str = "cpu",
    name: str | None = None,
) -> LoadedModel:
    """Load a model folder or a hub id; the network is used for hub ids only.

    Args:
        family: name of a FamilySpec, where config.json does not say.
        dtype: "auto" is bfloat16 where the device multiplies it in hardware.
        name: public id, by default the folder's name or the hub id.

    Raises:
        LoadError: one sentence on what does not fit.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise LoadError(f"dtype must be one of auto, {', '.join(_DTYPES)}, got {dtype!r}")
    target = _find_device(device)
    folder = find_folder(model)
    raw_config = read_json(folder / "config.json")
    spec = detect_family(raw_config, family=family, where=str(model))
    config = _native_config(spec, raw_config, folder)
    tokens = _find_tokens(spec, raw_config, folder, config.vocab_size)
    network = _build(spec, config, folder, _choose_dtype(dtype, target), target)
    is_folder = Path(model).expanduser().is_dir()
    public_name = name or (folder.resolve().name if is_folder else str(model))
    loaded = LoadedModel(network, spec, tokens, name=public_name, folder=folder)
    _check_for_leaks(loaded)
    return loaded


def _output_head(network: PreTrainedModel) -> nn.Module:
    """From the last hidden states to logits; ModernBERT's has a layer before the decoder."""
    if isinstance(network, ModernBertForMaskedLM):
        return nn.Sequential(network.head, network.decoder)
    return network.get_submodule("lm_head")


def _find_device(device: str) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise LoadError(f"device must be cpu or cuda, got {device!r}") from error
    if target.type not in ("cpu", "cuda"):
        raise LoadError(f"device must be cpu or cuda, got {device!r}")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device {device!r} was asked for, but PyTorch sees no CUDA device")
    return target


def _choose_dtype(dtype: DTypeName, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16
    found = torch.cpu.get_capabilities()
    has_bfloat16 = any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _native_config(spec: FamilySpec, raw: Mapping[str, Any], folder: Path) -> PreTrainedConfig:
    native: Any = getattr(transformers, spec.native)
    fields = {spec.config.get(key, key): value for key, value in raw.items() if key != "auto_map"}
    # A target of a renamed field that the source config also has under its own name is stale.
    fields |= {spec.config[key]: raw[key] for key in spec.config if key in raw}
    fields.pop("model_type", None)
    try:
        config: PreTrainedConfig = native.config_class.from_dict(fields)
    except Exception as error:
        raise _bad_config(spec, folder, error) from error
    config.architectures = [spec.native]
    config._attn_implementation = PACKED_ATTENTION
    return config


def _bad_config(spec: FamilySpec, folder: Path, error: Exception) -> LoadError:
    """Whatever transformers raises on a config.json (its classes do not say what) is its fault."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return LoadError(f"{folder / 'config.json'} does not describe a {spec.native}: {reason}")


def _find_tokens(
    spec: FamilySpec, raw: Mapping[str, Any], folder: Path, vocab_size: int
) -> TokenIds:
    mask = spec.mask_token_id
    if mask is None:
        mask = raw.get("mask_token_id")
    if mask is None and spec.mask_token is not None:
        mask = find_token_id(folder, spec.mask_token)
    if mask is None:
        raise LoadError(
            f"{folder} has no mask token: neither config.json names a mask_token_id "
            f"nor tokenizer.json has {spec.mask_token or 'a mask token'!r}"
        )
    stop = spec.stop_token_ids
    if stop is None:
        stop = _default_stop(spec, raw, folder)
    for role, ids in (
        ("mask", (mask,)),
        ("stop", stop),
        ("never_emit", spec.never_emit_token_ids),
    ):
        for token_id in ids:
            if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                raise LoadError(
                    f"the {role} token id of {folder} must be in 0..{vocab_size - 1}, "
                    f"got {token_id!r}"
                )
    never_emit = tuple(sorted({mask, *spec.never_emit_token_ids}))
    return TokenIds(mask=mask, stop=stop, never_emit=never_emit)


def _default_stop(spec: FamilySpec, raw: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    """Where neither section nor family say: the config's end of text and the family's texts."""
    end = raw.get("eos_token_id")
    ids = [] if end is None else end if isinstance(end, list) else [end]
    found = (find_token_id(folder, text) for text in spec.stop)
    return tuple(dict.fromkeys([*ids, *(each for each in found if each is not None)]))


def _build(
    spec: FamilySpec,
    config: PreTrainedConfig,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """The native class with the folder's weights in it.

    The class is made on the CPU with its weights left uninitialised, and not on the meta device:
    so the buffers that are no weights (the rotary frequencies) are computed and not lost.
    """
    native: type[PreTrainedModel] = getattr(transformers, spec.native)
    try:
        with no_init_weights():
            network = native(config)
    except Exception as error:
        raise _bad_config(spec, folder, error) from error
    weights = _rename(read_weights(folder), spec)
    _check_weights(weights, network, folder)
    # A copy, because the tensors are a view of the file, which may be written again.
    own = {key: _own(value, dtype) for key, value in weights.items()}
    network.load_state_dict(own, strict=False, assign=True)
    network.tie_weights()
    network.requires_grad_(False)
    network.train(mode=False)
    nn.Module.to(network, device)  # PreTrainedModel.to has no types
    return network


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype=dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _rename(weights: Mapping[str, Tensor], spec: FamilySpec) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in weights.items():
        for pattern, replacement in spec.rename:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def _check_weights(weights: Mapping[str, Tensor], network: PreTrainedModel, folder: Path) -> None:
    """Names and shapes must fit; a tied weight may be absent, but must not be another one."""
    expected = network.state_dict()
    tied = network._tied_weights_keys if network.config.tie_word_embeddings else None
    missing = sorted(set(expected) - set(weights) - set(tied or ()))
    unexpected = sorted(set(weights) - set(expected))
    kind = type(network).__name__
    if missing:
        raise LoadError(f"{folder} lacks weights of a {kind}: {some(missing)}")
    if unexpected:
        raise LoadError(f"{folder} has weights that a {kind} has not: {some(unexpected)}")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise LoadError(
                f"{key} of {folder} must have the shape {tuple(expected[key].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    for copy, source in (tied or {}).items():
        if copy in weights and not torch.equal(weights[copy], weights[source]):
            raise LoadError(
                f"{folder} ties its embeddings in config.json, but {copy} differs from {source}"
            )


def _check_for_leaks(model: LoadedModel) -> None:
    """Refuse a network whose attention is not what its family says.

    What lies ahead is replaced as a whole and not in its last token only: one token among many
    can vanish in bfloat16.
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
    config = model._network.config
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
