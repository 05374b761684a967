"""From a folder or hub id to a model that is ready to denoise.

The class is always one that transformers ships. The weights' names and shapes must fit it
exactly, and a leak check shows that its attention is what the family says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from diffusiongpt.engine.architectures import reason_against
from diffusiongpt.engine.attention import PACKED_ATTENTION
from diffusiongpt.engine.checkpoint import (
    find_folder,
    find_token_id,
    read_json,
    read_weights,
    some,
)
from diffusiongpt.engine.conversion import convert_weights
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.families import DELETE_TOKEN, FamilySpec, detect_family
from diffusiongpt.engine.leak_check import check_for_leaks
from diffusiongpt.engine.model import LoadedModel, TokenIds
from diffusiongpt.engine.native import number_layers

__all__ = ["DTypeName", "LoadedModel", "adopt_network", "load_model"]

DTypeName = Literal["auto", "bfloat16", "float32"]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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
    config = _native_config(spec, raw_config, str(folder))
    tokens = _find_tokens(
        spec, raw_config, str(folder), config.vocab_size, partial(find_token_id, folder)
    )
    network = _build(spec, config, str(folder))
    weights = convert_weights(read_weights(folder), spec, config)
    _check_weights(weights, network, str(folder))
    _fill(network, _own_copies(weights, network, _choose_dtype(dtype, target)), target)
    is_folder = Path(model).expanduser().is_dir()
    public_name = name or (folder.resolve().name if is_folder else str(model))
    loaded = LoadedModel(network, spec, tokens, name=public_name, folder=folder)
    check_for_leaks(loaded)
    return loaded


def adopt_network(network: PreTrainedModel, vocabulary: Mapping[str, int]) -> LoadedModel:
    """A network that transformers has loaded, ready to denoise; the weights are shared.

    The network itself is left as it is: the engine runs a twin of the same class.

    Args:
        vocabulary: the tokenizer's tokens, special ones included, and their ids.

    Raises:
        LoadError: its config does not say that it is a diffusion model the engine knows.
    """
    raw_config = network.config.to_dict()
    raw_config["architectures"] = raw_config.get("architectures") or [type(network).__name__]
    where = network.name_or_path or type(network).__name__
    spec = detect_family(raw_config, where=where)
    if type(network).__name__ != spec.native:
        raise LoadError(
            f"{where} must be loaded as a {spec.native}, got a {type(network).__name__}"
        )
    config = _native_config(spec, raw_config, where)
    tokens = _find_tokens(spec, raw_config, where, config.vocab_size, vocabulary.get)
    twin = _build(spec, config, where)
    weights = network.state_dict()
    _check_weights(weights, twin, where)
    _fill(twin, weights, network.device)
    loaded = LoadedModel(twin, spec, tokens, name=where, folder=Path(where))
    check_for_leaks(loaded)
    return loaded


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


def _native_config(spec: FamilySpec, raw: Mapping[str, Any], where: str) -> PreTrainedConfig:
    native: Any = getattr(transformers, spec.native)
    fields = {spec.config.get(key, key): value for key, value in raw.items() if key != "auto_map"}
    # A target of a renamed field that the source config also has under its own name is stale.
    fields |= {spec.config[key]: raw[key] for key in spec.config if key in raw}
    fields.pop("model_type", None)
    try:
        config: PreTrainedConfig = native.config_class.from_dict(fields)
    except Exception as error:
        raise _bad_config(spec, where, error) from error
    if reason := reason_against(config):
        raise LoadError(f"{where} is a {spec.native} that cannot be run: {reason}")
    config.architectures = [spec.native]
    config._attn_implementation = PACKED_ATTENTION
    return config


def _bad_config(spec: FamilySpec, where: str, error: Exception) -> LoadError:
    """Whatever transformers raises on a config.json (its classes do not say what) is its fault."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return LoadError(f"{where}/config.json does not describe a {spec.native}: {reason}")


def _find_tokens(
    spec: FamilySpec,
    raw: Mapping[str, Any],
    where: str,
    vocab_size: int,
    find: Callable[[str], int | None],
) -> TokenIds:
    """The ids with a role; `find` looks a token's text up in the tokenizer."""
    mask = spec.mask_token_id
    if mask is None:
        mask = raw.get("mask_token_id")
    if mask is None and spec.mask_token is not None:
        mask = find(spec.mask_token)
    if mask is None:
        raise LoadError(
            f"{where} has no mask token: neither config.json names a mask_token_id "
            f"nor tokenizer.json has {spec.mask_token or 'a mask token'!r}"
        )
    stop = spec.stop_token_ids
    if stop is None:
        stop = _default_stop(spec, raw, find)
    for role, ids in (
        ("mask", (mask,)),
        ("stop", stop),
        ("never_emit", spec.never_emit_token_ids),
    ):
        for token_id in ids:
            if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                raise LoadError(
                    f"the {role} token id of {where} must be in 0..{vocab_size - 1}, "
                    f"got {token_id!r}"
                )
    delete = find(DELETE_TOKEN)
    never_emit = {mask, *spec.never_emit_token_ids, *([] if delete is None else [delete])}
    return TokenIds(mask=mask, stop=stop, never_emit=tuple(sorted(never_emit)), delete=delete)


def _default_stop(
    spec: FamilySpec, raw: Mapping[str, Any], find: Callable[[str], int | None]
) -> tuple[int, ...]:
    """Where neither section nor family say: the config's end of text and the family's texts."""
    end = raw.get("eos_token_id")
    ids = [] if end is None else end if isinstance(end, list) else [end]
    found = (find(text) for text in spec.stop)
    return tuple(dict.fromkeys([*ids, *(each for each in found if each is not None)]))


def _build(spec: FamilySpec, config: PreTrainedConfig, where: str) -> PreTrainedModel:
    """The native class, its weights to be filled in.

    The class is made on the CPU with its weights left uninitialised, and not on the meta device:
    so the buffers that are no weights (the rotary frequencies) are computed and not lost.
    """
    native: type[PreTrainedModel] = getattr(transformers, spec.native)
    try:
        with no_init_weights():
            network = native(config)
    except Exception as error:
        raise _bad_config(spec, where, error) from error
    number_layers(network)
    return network


def _own_copies(
    weights: Mapping[str, Tensor], network: PreTrainedModel, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Copies, because the tensors are a view of the file, which may be written again."""
    parameters = {key for key, _ in network.named_parameters(remove_duplicate=False)}
    return {
        key: value.to(dtype=dtype if key in parameters else value.dtype, copy=True)
        for key, value in weights.items()
    }


def _fill(network: PreTrainedModel, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Take over the tensors as they are and make the network ready."""
    network.load_state_dict(weights, strict=False, assign=True)
    network.tie_weights()
    network.requires_grad_(False)
    network.train(mode=False)
    nn.Module.to(network, device)  # PreTrainedModel.to has no types


def _check_weights(weights: Mapping[str, Tensor], network: PreTrainedModel, where: str) -> None:
    """Names and shapes must fit; a tied weight may be absent, but must not be another one."""
    expected = network.state_dict()
    tied = network._tied_weights_keys if network.config.tie_word_embeddings else None
    missing = sorted(set(expected) - set(weights) - set(tied or ()))
    unexpected = sorted(set(weights) - set(expected))
    kind = type(network).__name__
    if missing:
        raise LoadError(f"{where} lacks weights of a {kind}: {some(missing)}")
    if unexpected:
        raise LoadError(f"{where} has weights that a {kind} has not: {some(unexpected)}")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise LoadError(
                f"{key} of {where} must have the shape {tuple(expected[key].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    for copy, source in (tied or {}).items():
        if copy in weights and not torch.equal(weights[copy], weights[source]):
            raise LoadError(
                f"{where} ties its embeddings in config.json, but {copy} differs from {source}"
            )
