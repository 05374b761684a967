"""Pretrained networks of several kinds are trained, exported and served alike."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.token_bytes import spelling_of
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.convert import adopt_tokenizer, convert
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.folders import load_denoiser
from diffusiongpt.training.run import make_trainer, train
from diffusiongpt.training.sample import canvas_logits
from diffusiongpt.training.tokenizer import SPECIAL_TOKENS

from tiny_networks import tiny_network
from token_kinds import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory):
    """A byte-level tokenizer that knows no special token of ours but one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<|endoftext|>", *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("plain")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def pretrained(plain_tokenizer, tmp_path):
    """Writes a tiny model of a class with random weights, converted or as it is."""

    def write(name, converted=True, **changes):
        folder = tmp_path / "pretrained"
        tiny_network(name, **changes).save_pretrained(folder)
        plain_tokenizer.save_pretrained(folder)
        return convert(str(folder), tmp_path / "converted") if converted else folder

    return write


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        *((name, tied) for name in ("Qwen2ForCausalLM", "BertForMaskedLM") for tied in (0, 1)),
        ("DistilBertForMaskedLM", True),
        ("ElectraForMaskedLM", True),
        ("GPT2LMHeadModel", True),
        ("RobertaForMaskedLM", True),
    ],
)
def test_conversion_adds_what_is_missing_and_keeps_the_weights(pretrained, name, tied):
    folder = pretrained(name, tie_word_embeddings=bool(tied))
    native = getattr(transformers, name)
    before = native.from_pretrained(folder.parent / "pretrained")
    after = native.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert len(set(ids)) == 6
    assert max(ids) == after.config.vocab_size - 1 == len(tokenizer) - 1
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    ).endswith("a<|im_end|>\n")
    tokens = torch.randint(2, 250, (1, 12))
    torch.testing.assert_close(
        after(tokens).logits[..., :258], before(tokens).logits[..., :258], atol=1e-5, rtol=1e-5
    )
    rows = after.get_input_embeddings().weight
    torch.testing.assert_close(rows[-1], rows[:258].mean(0))


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM"])
def test_our_mask_is_seen_as_the_checkpoints_own(pretrained, plain_tokenizer, name, tmp_path):
    source = pretrained(name, converted=False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(source)
    folder = convert(str(source), tmp_path / "converted")
    native = getattr(transformers, name)
    before, after = native.from_pretrained(source), native.from_pretrained(folder)
    tokens = torch.tensor([[7, 8, tokenizer.mask_token_id, 9]])
    ours = tokens.clone()
    ours[0, 2] = AutoTokenizer.from_pretrained(folder).mask_token_id
    assert not ours.equal(tokens)
    torch.testing.assert_close(
        after(ours).logits[..., :258], before(tokens).logits[..., :258], atol=1e-5, rtol=1e-5
    )


def test_a_tokenizer_that_could_not_be_served_is_refused_before_training(pretrained, tmp_path):
    source = pretrained("HeliumForCausalLM", converted=False)
    path = source / "tokenizer.json"
    layout = json.loads(path.read_text())
    path.write_text(json.dumps({**layout, "decoder": {"type": "BPEDecoder", "suffix": "</w>"}}))
    for run in (convert, adopt_tokenizer):
        with pytest.raises(ConfigError, match=r"could not be served: .* got BPEDecoder"):
            run(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "objective", "shift"),
    [
        ("BertForMaskedLM", "block", False),
        ("EuroBertForMaskedLM", "block", False),
        ("GPT2LMHeadModel", "block", True),
        ("Gemma3ForCausalLM", "block", False),
        ("GraniteForCausalLM", "masked", False),
        ("Olmo2ForCausalLM", "block", False),
        ("Qwen2ForCausalLM", "block", True),
        ("Qwen3ForCausalLM", "block", False),
        ("RobertaForMaskedLM", "block", False),
        ("SmolLM3ForCausalLM", "masked", True),
        ("LlamaForCausalLM", "masked", False),
        ("MistralForCausalLM", "masked", True),
    ],
)
def test_a_network_is_trained_exported_and_served_with_the_same_logits(
    make_config, pretrained, name, objective, shift
):
    folder = pretrained(name)
    trained = train(
        make_config(
            model={"init_from": str(folder), "logit_shift": shift},
            data={"tokenizer": str(folder)},
            diffusion={"objective": objective},
            run={"max_steps": 2},
        )
    )
    served = load_model(trained, dtype="float32")
    assert (served.logit_shift, served.attention == "block_causal") == (shift, objective == "block")
    denoiser, _ = load_denoiser(trained)
    ids = torch.randint(6, 250, (1, 12))
    ids[0, 9:] = denoiser.mask_token_id
    logits = served.logits(ids[0].tolist())
    if shift:
        logits = torch.cat([logits[:1], logits[:-1]])
    logits[:, denoiser.banned] = -torch.inf
    with torch.no_grad():
        torch.testing.assert_close(canvas_logits(denoiser, ids)[0], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [("BertForMaskedLM", "word_piece"), ("Gemma3ForCausalLM", "gemma")]
)
def test_a_network_is_served_with_its_own_kind_of_tokenizer(make_config, tmp_path, name, kind):
    source, backend = tmp_path / "pretrained", KINDS[kind][0]()
    tiny_network(name, vocab_size=backend.get_vocab_size()).save_pretrained(source)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.save_pretrained(source)
    folder = convert(str(source), tmp_path / "converted")
    trained = train(
        make_config(
            model={"init_from": str(folder)}, data={"tokenizer": str(folder)}, run={"max_steps": 2}
        )
    )
    engine = Engine.from_pretrained(trained, dtype="float32")
    params = GenerationParams(max_tokens=8, seed=3, ignore_eos=True)
    (answer,) = engine.generate(["the cat"], params)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    spell = spelling_of(json.loads((Path(trained) / "tokenizer.json").read_text()), Path(trained))
    tokens = tokenizer.convert_ids_to_tokens(answer.token_ids)
    data = b"".join(spell(each) for each in tokens if each not in tokenizer.all_special_tokens)
    assert answer.text
    assert answer.text == data.decode(errors="replace")


@pytest.mark.parametrize("shift", [False, True])
def test_the_two_streams_of_a_decoder_give_what_one_stream_gives(make_config, pretrained, shift):
    """A block's noisy stream must equal a canvas of clean blocks and this noisy one."""
    folder = pretrained("Qwen3ForCausalLM")
    config = make_config(
        model={"init_from": str(folder), "logit_shift": shift}, data={"tokenizer": str(folder)}
    )
    denoiser = make_trainer(config).model.eval()
    tokens = torch.randint(6, 250, (2, 32))
    segments = torch.ones_like(tokens)
    masked = torch.rand(2, 32) < 0.5
    with torch.no_grad():
        streams = denoiser.hidden(tokens, segments, masked)
        for start in range(0, 32, 4):
            canvas = tokens[:, : start + 4].clone()
            canvas[:, start:][masked[:, start : start + 4]] = denoiser.mask_token_id
            alone = denoiser.canvas_hidden(canvas, segments[:, : start + 4])
            torch.testing.assert_close(
                alone[:, start:], streams[:, start : start + 4], atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("objective", ["masked", "block"])
def test_a_shifted_model_starts_each_segment_by_itself(make_config, pretrained, objective):
    folder = pretrained("LlamaForCausalLM")
    config = make_config(
        model={"init_from": str(folder), "logit_shift": True},
        data={"tokenizer": str(folder)},
        diffusion={"objective": objective},
    )
    denoiser: Denoiser = make_trainer(config).model.eval()
    tokens, masked = torch.randint(6, 250, (1, 16)), torch.rand(1, 16) < 0.5
    segments = torch.tensor([[1] * 8 + [2] * 8])
    changed = tokens.clone()
    changed[:, :8] = torch.randint(6, 250, (1, 8))
    with torch.no_grad():
        before, after = (denoiser.hidden(x, segments, masked) for x in (tokens, changed))
    assert before[:, 8:].equal(after[:, 8:])
    assert not before[:, :8].equal(after[:, :8])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_adapters_alone_are_trained_and_are_merged_in_the_export(
    make_config, pretrained, precision, tmp_path
):
    pytest.importorskip("peft")
    folder = pretrained("Qwen3ForCausalLM")
    config = make_config(
        model={"init_from": str(folder), "lora_rank": 4},
        data={"tokenizer": str(folder)},
        run={"max_steps": 6, "learning_rate": 1e-2, "precision": precision},
    )
    trainer = make_trainer(config)
    trained_names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained_names
    assert all("lora_" in name for name in trained_names)
    final = train(config)
    before = transformers.Qwen3ForCausalLM.from_pretrained(folder).state_dict()
    after = transformers.Qwen3ForCausalLM.from_pretrained(final).state_dict()
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-2)}
    assert moved
    assert all("_proj" in name for name in moved)
    load_model(final, dtype="float32")


def test_adapters_resume_bit_for_bit(make_config, pretrained, tmp_path):
    pytest.importorskip("peft")
    folder = pretrained("Qwen3ForCausalLM")

    def trainer(name):
        return make_trainer(
            make_config(
                model={"init_from": str(folder), "lora_rank": 4},
                data={"tokenizer": str(folder)},
                run={"max_steps": 4, "save_steps": 2, "output_dir": str(tmp_path / name)},
            )
        )

    whole = trainer("whole")
    whole.train()
    parts = trainer("parts")
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    ours, theirs = parts.averaged_state(), whole.averaged_state()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_what_cannot_be_served_is_refused(make_config, pretrained, tmp_path):
    folder = pretrained("Qwen2ForCausalLM", converted=False)
    config = make_config(model={"init_from": str(folder)}, data={"tokenizer": str(folder)})
    with pytest.raises(ConfigError, match="`diffusiongpt convert` adds what is missing to"):
        make_trainer(config)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "architectures": ["T5Model"]}))
    with pytest.raises(ConfigError, match=r"a masked language model \(ModernBert.* got T5Model"):
        convert(str(folder), tmp_path / "out")
    with pytest.raises(ConfigError, match="no model in"):
        convert(str(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(ConfigError, match="lora_rank=4"):
        make_config(model={"lora_rank": 4})
