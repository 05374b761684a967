"""Families are found from what a folder says, and never guessed."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.families import FAMILIES, detect_family
from diffusiongpt.engine.policies import PRESETS

SECTION = {
    "version": 1,
    "mask_token_id": 5,
    "attention": "block_causal",
    "block_length": 32,
    "logit_shift": False,
    "stop_token_ids": [2, 3],
    "never_emit_token_ids": [0, 5],
    "sampler": {"policy": "threshold", "threshold": 0.8},
}


def config(architecture: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **fields}


def with_section(**changes: Any) -> dict[str, Any]:
    return config("ModernBertForMaskedLM", diffusion={**SECTION, **changes})


def test_families_need_no_torch() -> None:
    code = "import sys, diffusiongpt.engine.families; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_found_by_its_architectures(name: str) -> None:
    for architecture in FAMILIES[name].architectures:
        assert detect_family(config(architecture, block_size=4)).name == name


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_names_a_policy_that_exists(name: str) -> None:
    assert FAMILIES[name].sampler.get("policy", "random") in PRESETS


def test_the_section_says_what_the_folder_is() -> None:
    spec = detect_family(with_section())
    assert spec.name == "modernbert"
    assert spec.attention == "block_causal"
    assert spec.block_length == 32
    assert spec.mask_token_id == 5
    assert spec.stop_token_ids == (2, 3)
    assert spec.never_emit_token_ids == (0, 5)
    assert spec.sampler == {"policy": "threshold", "threshold": 0.8}


def test_a_causal_architecture_with_a_section_is_a_diffusion_model() -> None:
    spec = detect_family(config("Qwen3ForCausalLM", diffusion=SECTION))
    assert (spec.name, spec.native) == ("qwen3", "Qwen3ForCausalLM")


def test_the_named_family_comes_before_the_architectures() -> None:
    spec = detect_family(config("Qwen2ForCausalLM"), family="dream")
    assert (spec.name, spec.logit_shift) == ("dream", True)


def test_the_section_wins_over_the_named_family() -> None:
    spec = detect_family(with_section(), family="modernbert")
    assert spec.attention == "block_causal"


def test_a_block_causal_family_takes_its_block_length_from_the_config() -> None:
    assert detect_family(config("SDARForCausalLM", block_size=16)).block_length == 16


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({}, "names no architectures"),
        ({"architectures": "ModernBertForMaskedLM"}, "names no architectures"),
        (
            config("Qwen3ForCausalLM", model_type="qwen3"),
            "is a causal language model .*pass family",
        ),
        (config("LlamaForCausalLM"), "LlamaForCausalLM, which is a causal language model"),
        (config("T5Model"), "has the architecture T5Model, which is not known"),
        (config("T5Model", diffusion=SECTION), "is a T5Model, which this engine cannot run"),
        (config("SDARForCausalLM"), "must say block_length .* got None"),
        (config("SDARForCausalLM", block_size=0), "of at least 1, got 0"),
        (with_section(block_length=None), "must say block_length"),
        (with_section(block_length=0), "block_length .* must be null or an integer .* got 0"),
        (with_section(version=2), "must have version 1, got 2"),
        (with_section(noise="uniform"), "the unknown key 'noise'; it may have version, mask"),
        (with_section(mask_token_id=-1), "mask_token_id .* must be a token id, got -1"),
        (with_section(mask_token_id=True), "mask_token_id .* must be a token id, got True"),
        (with_section(mask_token_id="<mask>"), "must be a token id, got '<mask>'"),
        (with_section(attention="causal"), "must be one of bidirectional, block_causal"),
        (with_section(attention=["causal"]), "must be one of bidirectional, block_causal"),
        (with_section(logit_shift=1), "logit_shift .* must be true or false, got 1"),
        (with_section(stop_token_ids=3), "stop_token_ids .* must be a list of token ids, got 3"),
        (with_section(stop_token_ids=[1.5]), "must be a list of token ids"),
        (with_section(never_emit_token_ids="05"), "must be a list of token ids, got '05'"),
        (with_section(sampler=[]), r"sampler .* must be an object, got \[\]"),
        (with_section(sampler={"polcy": "random"}), "sampler .* has the unknown key 'polcy'"),
        (with_section(sampler={"seed": 1}), "sampler .* has the unknown key 'seed'"),
        (with_section(sampler={"policy": "best"}), "policy must be one of .* got 'best'"),
        (with_section(sampler={"temperature": 9}), "temperature must be in"),
        (config("ModernBertForMaskedLM", diffusion=[]), r"must be an object, got \[\]"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(
    source: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(LoadError, match=sentence) as refusal:
        detect_family(source, where="this model")
    assert "this model" in str(refusal.value)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    known = re.escape(", ".join(FAMILIES))
    with pytest.raises(LoadError, match=f"family must be one of {known}, got 'gpt'"):
        detect_family(config("ModernBertForMaskedLM"), family="gpt")
