"""A tiny tokenizer and a folder of tiny files, made once for all training tests."""

import json
import random

import pytest
import torch

from diffusiongpt.training.config_file import from_mapping
from diffusiongpt.training.denoiser import Denoiser, build_network
from diffusiongpt.training.tokenizer import save_tokenizer, special_ids, train_tokenizer

SENTENCE = "the cat dog saw ran home to a big red ball and then it was very happy with his friend"


def make_text(seed, length):
    chooser = random.Random(seed)
    words = SENTENCE.split()
    return " ".join(chooser.choice(words) for _ in range(length)) + "."


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [make_text(seed, 60) for seed in range(20)]
    save_tokenizer(train_tokenizer(texts, vocab_size=300, max_length=64), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = [{"text": make_text(100 + i, 40 + i), "source": "a:1"} for i in range(40)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": make_text(i, 4)},
                {"role": "assistant", "content": make_text(i + 500, 3 + i % 5)},
            ],
            "source": "chat" if i % 2 else "talk",
        }
        for i in range(20)
    ]
    for name, records in (("texts", texts), ("chats", chats)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def make_config(tokenizer_dir, data_dir, tmp_path):
    """A tiny configuration; sections are given as keyword arguments and merged."""

    def build(stage="pretrain", **sections):
        values = {
            "stage": stage,
            "model": {
                "hidden_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "global_attn_every_n_layers": 2,
                "local_attention": 16,
            },
            "data": {
                "data_dir": str(data_dir),
                "tokenizer": str(tokenizer_dir),
                "cache_dir": str(tmp_path / "cache"),
                "max_seq_length": 32,
                "mix": {"texts" if stage == "pretrain" else "chats": 1.0},
            },
            "diffusion": {"objective": "block", "block_length": 4},
            "run": {
                "output_dir": str(tmp_path / "run"),
                "batch_size": 4,
                "max_steps": 4,
                "precision": "float32",
                "log_steps": 1,
                "progress_bar": False,
                "warmup_fraction": 0.1,
            },
        }
        for name, section in sections.items():
            values[name] = {**values[name], **section}
        return from_mapping(values)

    return build


@pytest.fixture
def make_denoiser(make_config, tokenizer):
    """A tiny denoiser with random weights in float32."""

    def build(objective="block", block_length=4, **model):
        config = make_config(model=model)
        special = special_ids(tokenizer)
        torch.manual_seed(1)
        network = build_network(config.model, len(tokenizer), 64, special)
        with torch.no_grad():  # far from uniform, so that the tests can see differences
            for parameter in network.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(8)
        banned = [special[t] for t in ("<|pad|>", "<|im_start|>", "<|mask|>", "<|delete|>")]
        return Denoiser(network, objective, block_length, special["<|mask|>"], banned).eval()

    return build
