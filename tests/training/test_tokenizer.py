"""A tokenizer of our own, and one taken over from another model."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from diffusiongpt.engine import Engine, GenerationParams
from diffusiongpt.training.__main__ import main
from diffusiongpt.training.run import train
from diffusiongpt.training.tokenizer import DELETE, IM_END, MASK, PAD, SPECIAL_TOKENS, special_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture
def stranger(tmp_path):
    """A folder with a tokenizer.json and nothing else, as GPT-2's may be: bytes and an ending."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    folder = tmp_path / "stranger"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_a_strangers_tokenizer_keeps_its_ids_and_gets_what_it_lacks(stranger, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "--source", str(stranger), "--output_dir", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (out, stranger))
    assert ours("the cat, saw")["input_ids"] == theirs("the cat, saw")["input_ids"]
    assert {token: ours.get_vocab()[token] for token in theirs.get_vocab()} == theirs.get_vocab()
    assert len(ours) == len(theirs) + len(SPECIAL_TOKENS) - 1
    assert len(set(special_ids(ours).values())) == len(SPECIAL_TOKENS)
    assert (ours.pad_token, ours.mask_token, ours.eos_token) == (PAD, MASK, IM_END)
    asked = ours.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert ours.decode(ours(f"a{DELETE}b")["input_ids"], skip_special_tokens=True) == "ab"


def test_a_network_of_ours_learns_and_is_served_in_that_vocabulary(stranger, tmp_path, make_config):
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "--source", str(stranger), "--output_dir", str(out)]) == 0
    folder = train(make_config(data={"tokenizer": str(out)}, run={"max_steps": 2}))
    engine = Engine.from_pretrained(str(folder))
    asked = GenerationParams(max_tokens=8, seed=1, ignore_eos=True)
    result = engine.generate(["the cat"], asked)[0]
    tokenizer = AutoTokenizer.from_pretrained(stranger)
    assert len(result.token_ids) == 8
    assert result.text == tokenizer.decode(result.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("given", [[], ["texts", "--source", "there"]])
def test_either_files_or_a_source(given, tmp_path, capsys):
    assert main(["tokenizer", *given, "--output_dir", str(tmp_path / "out")]) == 2
    assert "either names of files to learn from or --source" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_tokenizer_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / "empty")
    assert main(["tokenizer", "--source", source, "--output_dir", str(tmp_path / "out")]) == 2
    assert f"there is no tokenizer in '{source}'" in capsys.readouterr().err
