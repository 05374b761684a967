import json

import pytest
import torch
from transformers import AutoTokenizer, ModernBertForMaskedLM, dynamic_module_utils, pipeline

from diffusiongpt.engine.families import detect_family
from diffusiongpt.engine.pipeline import TextDiffusionPipeline
from diffusiongpt.training.__main__ import main
from diffusiongpt.training.export import diffusion_section, export_folder
from diffusiongpt.training.folders import export, load_denoiser
from diffusiongpt.training.judge import evaluate
from diffusiongpt.training.run import train
from diffusiongpt.training.tokenizer import special_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture
def folder(make_denoiser, tokenizer, tmp_path):
    denoiser = make_denoiser()
    weights = {name: p.detach() for name, p in denoiser.network.named_parameters()}
    export_folder(
        tmp_path / "model", denoiser.network, weights, tokenizer, "block", 4, torch.float32
    )
    return tmp_path / "model", denoiser.network


def test_an_export_loads_with_equal_logits_and_no_key_amiss(folder):
    path, network = folder
    loaded, report = ModernBertForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(6, 250, (2, 24))
    network.set_attn_implementation("sdpa")
    assert loaded.eval()(input_ids=ids).logits.equal(network.eval()(input_ids=ids).logits)


def test_tied_weights_are_saved_once(folder):
    from safetensors import safe_open

    with safe_open(folder[0] / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert "model.embeddings.tok_embeddings.weight" in names
    assert "decoder.weight" not in names


def test_the_diffusion_section_says_how_to_sample(folder, tokenizer):
    config = json.loads((folder[0] / "config.json").read_text())
    special = special_ids(tokenizer)
    section = config["diffusion"]
    assert config["architectures"] == ["ModernBertForMaskedLM"]
    assert config["max_position_embeddings"] == 64
    assert section["mask_token_id"] == special["<|mask|>"]
    assert (section["attention"], section["block_length"]) == ("block_causal", 4)
    assert section["stop_token_ids"] == [special["<|im_end|>"], special["<|endoftext|>"]]
    assert special["<|im_start|>"] in section["never_emit_token_ids"]
    assert AutoTokenizer.from_pretrained(folder[0]).chat_template


def test_a_run_with_an_edit_stage_says_so_and_the_engine_reads_it(make_config, tmp_path):
    folder = train(make_config(diffusion={"edit_stage_start": 0.5}, run={"max_steps": 2}))
    export(folder, tmp_path / "small")
    for path in (folder, tmp_path / "small"):
        assert detect_family(json.loads((path / "config.json").read_text())).can_edit


def test_a_sampler_that_could_not_be_served_is_refused(folder, tmp_path, capsys):
    arguments = ["export", str(folder[0]), str(tmp_path / "out"), "--sampler"]
    for sampler, words in (
        ('{"policy": "nope"}', "policy must be one of ancestral"),
        ('{"polcy": "random"}', "has the unknown key 'polcy'"),
    ):
        assert main([*arguments, sampler]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_canvas_model_has_no_block_length(tokenizer):
    section = diffusion_section("masked", 8, special_ids(tokenizer), {})
    assert (section["attention"], section["block_length"]) == ("bidirectional", None)


def test_a_causal_model_cannot_be_exported(tokenizer):
    with pytest.raises(ValueError, match="got 'causal'"):
        diffusion_section("causal", 8, special_ids(tokenizer), {})


def test_an_export_in_bf16_is_evaluated_like_its_source(folder, make_config, tmp_path):
    path, _ = folder
    export(path, tmp_path / "small")
    data = make_config().data
    bounds = [
        evaluate(where, ["texts"], data, draws=2, max_rows=6)["texts"]
        for where in (path, tmp_path / "small")
    ]
    assert bounds[0].nats_per_token == pytest.approx(bounds[1].nats_per_token, rel=0.02)
    assert bounds[0].bits_per_byte > 0
    assert load_denoiser(tmp_path / "small")[0].block_length == 4


def test_an_export_brings_its_pipeline(folder, tmp_path, monkeypatch):
    path, _ = folder
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    pipe = pipeline("text-diffusion", model=str(path), trust_remote_code=True)
    assert type(pipe) is TextDiffusionPipeline
    assert pipe("one day", max_length=24, seed=1)["decoded_texts"][0].startswith("one day")
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("text-diffusion", model=str(path))
