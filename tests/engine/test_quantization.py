"""Weights in 8 or 4 bits: near the plain model, only where asked for, refused in a sentence.

What needs torchao is skipped without it; `pip install 'diffusiongpt[quantization]'` runs it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusiongpt.engine import quantization
from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams

from tiny_models import write_modernbert, write_qwen3

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3, whose layers have 32 and 48 inputs; int4 takes multiples of 32 only."""
    return write_qwen3(tmp_path_factory.mktemp("qwen3"))


class NoTorchao:
    """Makes an installed torchao look as if it were not."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torchao":
            raise ModuleNotFoundError("No module named 'torchao'", name="torchao")


def test_an_unknown_kind_is_refused():
    with pytest.raises(LoadError, match="quantize must be int8 or int4, got 'int2'"):
        EngineConfig(quantize="int2")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_without_torchao_one_sentence_says_what_to_install(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    for name in [each for each in sys.modules if each.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoTorchao(), *sys.meta_path])
    with pytest.raises(LoadError) as refusal:
        quantization.quantize_layers(nn.Linear(32, 8), kind)  # type: ignore[arg-type]
    assert str(refusal.value) == (
        f"quantize={kind} needs the package torchao: pip install 'diffusiongpt[quantization]'"
    )


def test_a_torchao_that_has_changed_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "import_module", lambda name: object())
    for kind in ("int8", "int4"):
        with pytest.raises(LoadError, match=f"torchao cannot do quantize={kind} here: Attribute"):
            quantization.quantize_layers(nn.Linear(32, 8), kind)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused(folder: Path):
    with pytest.raises(LoadError, match="multiples of 32, got one with 48"):
        load_model(folder).quantize("int4")
    with pytest.raises(LoadError, match="no linear layer"):
        quantization.quantize_layers(nn.LayerNorm(4), "int8")
    experts = nn.ParameterList([nn.Parameter(torch.zeros(4, 32, 32))])
    with pytest.raises(LoadError, match="most weights of this model are fused experts"):
        quantization.quantize_layers(nn.ModuleList([nn.Linear(32, 4), experts]), "int8")


@needs_torchao
@pytest.mark.parametrize("write", [write_modernbert, write_qwen3])
def test_int8_is_the_model_with_rounded_weights(write, tmp_path: Path):
    plain, quantised = (load_model(write(tmp_path), dtype="float32") for _ in range(2))
    quantised.quantize("int8")
    rounded = 0
    for mine, theirs in zip(plain._network.modules(), quantised._network.modules(), strict=True):
        if isinstance(mine, nn.Linear) and type(theirs.weight.data) is not torch.Tensor:
            weight = mine.weight.data
            scale = weight.abs().amax(dim=1, keepdim=True) / 127.5
            assert not torch.equal(theirs.weight.dequantize(), weight)
            assert (theirs.weight.dequantize() - weight).abs().le(scale * 1.01).all()
            mine.weight.data = theirs.weight.dequantize()
            rounded += 1
    assert rounded == len(
        [m for m in plain._network.base_model.layers.modules() if isinstance(m, nn.Linear)]
    )
    ids = list(range(10, 40))
    torch.testing.assert_close(quantised.logits(ids), plain.logits(ids), rtol=1e-3, atol=1e-3)


@needs_torchao
def test_the_embeddings_and_the_head_stay_as_they_are(folder: Path):
    plain, quantised = (load_model(folder) for _ in range(2))
    quantised.quantize("int8")
    hidden = torch.randn(3, 32, dtype=plain.dtype)
    assert torch.equal(quantised.head(hidden), plain.head(hidden))
    embeddings = [each._network.get_input_embeddings().weight for each in (plain, quantised)]
    assert torch.equal(*embeddings)


@needs_torchao
def test_int4_is_near_and_answers_the_same_in_company(tmp_path: Path):
    layer = nn.Sequential(nn.Linear(64, 64, bias=False)).requires_grad_(False)
    inputs = torch.randn(10, 64)
    before = layer(inputs)
    quantization.quantize_layers(layer, "int4")
    error = (layer(inputs) - before).norm() / before.norm()
    assert 0.005 < error < 0.12
    engine = Engine.from_pretrained(
        write_modernbert(tmp_path), quantize="int8", deterministic=True, token_budget=512
    )
    params = GenerationParams(max_tokens=12, seed=1)
    alone = engine.generate([[10, 11]], params)[0]
    assert engine.generate([[10, 11], [12]], params)[0].token_ids == alone.token_ids


@needs_torchao
def test_a_kernel_that_fails_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(folder)
    monkeypatch.setattr(model, "logits", lambda ids: 1 / 0)
    with pytest.raises(LoadError, match="int8 does not run on this cpu: ZeroDivisionError"):
        model.quantize("int8")
