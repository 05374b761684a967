"""The original's pipeline interface: what `transformers.pipeline` gives is the engine's answer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, ModernBertForMaskedLM, pipeline

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest, LoadError
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.pipeline import TextDiffusionPipeline
from diffusiongpt.engine.pipeline_options import PipelineOptions, params_of
from diffusiongpt.engine.resolve import ORIGINAL_EDITS, original_parameters

from tiny_models import CONTEXT_LENGTH, edit_config, write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, PAD, VOCAB_SIZE, write_tiny_tokenizer

PROMPT = "the cat sat"
SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [PAD, 2, MASK, DELETE],
}


def write_model(folder: Path, **changes: object) -> Path:
    section = {**SECTION, **changes}
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=section)
    return write_tiny_tokenizer(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), stop_token_ids=[])


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextDiffusionPipeline:
    return pipeline("text-diffusion", model=str(folder), dtype="float32")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> TextDiffusionPipeline:
    folder = write_model(
        tmp_path_factory.mktemp("blocks"), attention="block_causal", block_length=8
    )
    return pipeline("text-diffusion", model=str(folder), dtype="float32")


@pytest.mark.parametrize("use_confidence", [False, True])
@pytest.mark.parametrize("can_edit", [False, True])
def test_a_call_gives_what_the_engine_gives(tmp_path: Path, use_confidence: bool, can_edit: bool):
    folder = write_model(tmp_path, stop_token_ids=[], can_edit=can_edit)
    pipe = pipeline("text-diffusion", model=str(folder), dtype="float32")
    result = pipe(PROMPT, num_steps=6, use_confidence=use_confidence, max_length=30, seed=5)
    engine = Engine.from_pretrained(folder, dtype="float32")
    prompt = engine.encode(PROMPT)
    params = GenerationParams(
        max_tokens=30 - len(prompt),
        steps=6,
        temperature=1.0,
        seed=5,
        **original_parameters(use_confidence=use_confidence, can_edit=can_edit),
    )
    (answer,) = engine.generate([prompt], params)
    assert result["final_ids"].tolist() == [[*prompt, *answer.token_ids]]
    assert result["decoded_texts"][0].startswith(PROMPT)
    assert result["decoded_texts"] == pipe.tokenizer.batch_decode(result["final_ids"])


def test_the_history_fills_a_canvas_of_masks_and_never_touches_what_is_filled(
    pipe: TextDiffusionPipeline,
):
    history = pipe(PROMPT, num_steps=5, use_confidence=True, max_length=30, seed=1)["history"]
    prompt = pipe.tokenizer(PROMPT)["input_ids"]
    assert history[0].tolist() == [prompt + [MASK] * (30 - len(prompt))]
    assert len(history) == 6
    for before, after in pairwise(history):
        filled = before != MASK
        assert torch.equal(before[filled], after[filled])
        assert (after == MASK).sum() < (before == MASK).sum()
    assert MASK not in history[-1]


def test_masks_and_pads_in_the_prompt_are_the_prompts_own(pipe: TextDiffusionPipeline):
    final = pipe("the<|pad|> cat<|mask|>", max_length=20, seed=1)["final_ids"][0].tolist()
    prompt = pipe.tokenizer("the<|pad|> cat<|mask|>")["input_ids"]
    assert {PAD, MASK} < set(prompt)
    assert final[: len(prompt)] == prompt


@pytest.mark.parametrize("num_steps", [20, 1000])
def test_as_many_steps_as_positions_or_more_mean_one_at_a_time(
    pipe: TextDiffusionPipeline, num_steps: int
):
    options = {"use_confidence": True, "seed": 2}
    prompt = pipe.tokenizer(PROMPT)["input_ids"]
    history = pipe(PROMPT, num_steps=num_steps, max_length=len(prompt) + 20, **options)["history"]
    assert len(history) == 21


def test_a_stream_shows_every_state_and_ends_with_the_call_s_text(pipe: TextDiffusionPipeline):
    options = {"num_steps": 4, "max_length": 24, "seed": 3}
    texts = list(pipe.stream_generation(PROMPT, **options))
    result = pipe(PROMPT, **options)
    assert texts == [pipe._decode(state) for state in result["history"]]
    assert texts[0].startswith(PROMPT + "<|mask|><|mask|>")
    assert texts[-1] == result["decoded_texts"][0]
    assert "<|mask|>" not in texts[-1]


def test_a_stream_left_early_frees_its_slot(pipe: TextDiffusionPipeline):
    stream = pipe.stream_generation(PROMPT, max_length=40, seed=1)
    next(stream)
    stream.close()
    assert pipe.engine.num_running == 0


def test_several_prompts_share_the_batch_and_answer_as_alone(pipe: TextDiffusionPipeline):
    prompts = [PROMPT, "one day the little girl", "hello"] * 12  # more than there are slots
    options = {"num_steps": 8, "max_length": 24}
    together = pipe(prompts, seed=7, **options)
    assert len(together) == len(prompts)
    for index in (0, 1, 2, 35):
        alone = pipe(prompts[index], seed=7 + index, **options)
        assert together[index]["decoded_texts"] == alone["decoded_texts"]


def test_blocks_go_beyond_the_context_one_after_another(pipe: TextDiffusionPipeline):
    length = CONTEXT_LENGTH + 60
    options = {"block_size": 32, "max_length": length, "num_steps": 4, "seed": 4}
    result = pipe.semi_autoregressive_generate(PROMPT, **options)
    prompt = pipe.tokenizer(PROMPT)["input_ids"]
    assert result["final_ids"].shape == (1, length)
    shown = [state.shape[1] for state in result["history"]]
    assert shown[0] == len(prompt) + 32
    assert shown == sorted(shown)
    for state in result["history"]:  # what is shown before the last block has been filled
        assert MASK not in state[0, : state.shape[1] - 32]
    texts = list(pipe.stream_semi_autoregressive_generate(PROMPT, **options))
    assert texts[-1] == result["decoded_texts"][0]
    assert len(texts) == len(result["history"])


def test_each_block_has_num_steps_steps(pipe: TextDiffusionPipeline):
    prompt = pipe.tokenizer(PROMPT)["input_ids"]
    result = pipe.semi_autoregressive_generate(
        PROMPT,
        block_size=16,
        max_length=len(prompt) + 48,
        num_steps=4,
        use_confidence=True,
        seed=4,
    )
    assert [s.shape[1] - len(prompt) for s in result["history"]] == [16] * 5 + [32] * 4 + [48] * 4


def test_a_block_causal_model_keeps_its_own_blocks(blocks: TextDiffusionPipeline):
    result = blocks(PROMPT, num_steps=50, max_length=40, seed=1)
    again = blocks.semi_autoregressive_generate(PROMPT, num_steps=50, max_length=40, seed=1)
    assert result["decoded_texts"] == again["decoded_texts"]
    with pytest.raises(InvalidRequest, match="block_length must be 8"):
        blocks.semi_autoregressive_generate(PROMPT, block_size=16, max_length=40)


def test_the_text_ends_before_the_stop_token(pipe: TextDiffusionPipeline):
    options = {"num_steps": 4, "max_length": 60, "seed": 6}
    whole = pipe(PROMPT, **options)["final_ids"][0].tolist()
    start = len(pipe.tokenizer(PROMPT)["input_ids"])
    stop_id = whole[start + 5]
    first = whole.index(stop_id, start)
    stop_token = pipe.tokenizer.convert_ids_to_tokens(stop_id)
    cut = pipe(PROMPT, stop_token=stop_token, **options)
    assert cut["final_ids"][0].tolist() == whole[:first]
    streamed = list(pipe.stream_generation(PROMPT, stop_token=stop_token, **options))
    assert streamed[-1] == cut["decoded_texts"][0]
    assert pipe.engine.is_idle or not pipe.engine.num_running


def test_the_models_own_end_ends_the_text(tmp_path: Path):
    plain = pipeline("text-diffusion", model=str(write_model(tmp_path / "a", stop_token_ids=[])))
    options = {"num_steps": 4, "max_length": 60, "seed": 6}
    whole = plain(PROMPT, **options)["final_ids"][0].tolist()
    start = len(plain.tokenizer(PROMPT)["input_ids"])
    stop_id = whole[start + 5]
    ends = pipeline(
        "text-diffusion", model=str(write_model(tmp_path / "b", stop_token_ids=[stop_id]))
    )
    assert ends(PROMPT, **options)["final_ids"][0].tolist() == whole[: whole.index(stop_id, start)]


def test_a_chat_goes_through_the_template(pipe: TextDiffusionPipeline):
    chat = [{"role": "user", "content": "hello"}]
    text = pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    options = {"max_length": 40, "seed": 1}
    assert pipe(chat, **options)["decoded_texts"] == pipe(text, **options)["decoded_texts"]


def test_the_network_is_shared_and_left_as_it_was(folder: Path):
    network = ModernBertForMaskedLM.from_pretrained(folder).eval()
    ids = torch.tensor([[10, 11, MASK, 12]])
    before = network(input_ids=ids).logits
    pipe = TextDiffusionPipeline(network, AutoTokenizer.from_pretrained(folder))
    pipe(PROMPT, max_length=20)
    assert torch.equal(network(input_ids=ids).logits, before)
    torch.testing.assert_close(pipe.engine.logits(ids[0].tolist()), before[0])
    twin = pipe.engine._model._network.model.layers[0].mlp.Wi.weight
    assert twin.data_ptr() == network.model.layers[0].mlp.Wi.weight.data_ptr()
    assert all(each.requires_grad for each in network.parameters())


def test_edits_are_the_models_own_choice_and_can_be_switched_off(tmp_path: Path):
    pipe = pipeline("text-diffusion", model=str(write_model(tmp_path, can_edit=True)))
    options = {"num_steps": 4, "max_length": 40, "seed": 3}
    own = pipe(PROMPT, **options)["final_ids"].tolist()
    assert pipe(PROMPT, allow_edits=True, **options)["final_ids"].tolist() == own
    states = list(pipe.stream_generation(PROMPT, allow_edits=True, **options))
    assert states[-1] == pipe(PROMPT, allow_edits=True, **options)["decoded_texts"][0]
    edits = [
        params_of(PipelineOptions(allow_edits=asked), 4, pipe.engine.info, by_blocks=False).edits
        for asked in (None, True, False)
    ]
    assert edits == [ORIGINAL_EDITS, ORIGINAL_EDITS, False]


def test_what_cannot_be_honoured_is_refused(pipe: TextDiffusionPipeline, folder: Path):
    for options, words in (
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 2.5}, "got 2.5"),
        ({"max_length": 2}, "max_length must be greater than the prompt's"),
        ({"block_size": 8}, "block_size belongs to the semi-autoregressive methods"),
        ({"allow_edits": True}, "was not trained to predict filled positions"),
        ({"stop_token": "the cat sat on"}, "stop_token must be one token"),
        ({"temperature": 3.0}, "temperature must be in"),
        ({"steps": 4}, "got 'steps'"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            pipe(PROMPT, **options)
        assert pipe.engine.is_idle
    with pytest.raises(ContextLengthExceeded, match=str(CONTEXT_LENGTH)):
        pipe(PROMPT, max_length=CONTEXT_LENGTH + 1)
    with pytest.raises(InvalidRequest, match="a text or a chat, got 7"):
        pipe(7)
    with pytest.raises(InvalidRequest, match="got 'nonsense'"):
        pipeline("text-diffusion", model=str(folder), nonsense=1)


def test_a_model_that_is_no_diffusion_model_is_refused(tmp_path: Path):
    folder = write_model(tmp_path)
    edit_config(folder, diffusion={"version": 1, "attention": "causal"})
    with pytest.raises(LoadError, match="attention in the diffusion section"):
        pipeline("text-diffusion", model=str(folder))
    network = ModernBertForMaskedLM.from_pretrained(folder)
    with pytest.raises(LoadError, match="needs a tokenizer"):
        TextDiffusionPipeline(network)
