"""What loads is exact; what does not fit is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ModernBertForMaskedLM, Qwen3ForCausalLM

from diffusiongpt.engine import loader
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.checkpoint import find_token_id
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.loader import load_model

from tiny_models import (
    CONTEXT_LENGTH,
    MASK_TOKEN_ID,
    STOP_TOKEN_ID,
    VOCAB_SIZE,
    edit_config,
    write_modernbert,
    write_qwen3,
)

SHARED = Path(os.environ.get("DIFFUSIONGPT_SHARED", Path(__file__).parents[3] / "shared"))
GOLDENS = SHARED / "goldens"


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modernbert(tmp_path_factory.mktemp("models") / "modernbert")


@pytest.fixture
def folder(modernbert: Path, tmp_path: Path) -> Path:
    """A ModernBERT folder of the test's own."""
    return Path(shutil.copytree(modernbert, tmp_path / "tiny"))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = {key: value.clone() for key, value in load_file(path).items()}
    edit(weights)
    save_file(weights, path)


def shard(folder: Path) -> Path:
    """Split the weights over two files and return the index."""
    weights = load_file(folder / "model.safetensors")
    weight_map = {
        key: f"model-0000{1 + number % 2}-of-00002.safetensors"
        for number, key in enumerate(sorted(weights))
    }
    for name in set(weight_map.values()):
        part = {key: weights[key].clone() for key in weights if weight_map[key] == name}
        save_file(part, folder / name)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_a_loaded_model_knows_its_facts(modernbert: Path) -> None:
    model = load_model(modernbert, dtype="float32")
    reference = ModernBertForMaskedLM.from_pretrained(modernbert)
    assert model.name == "modernbert"
    assert model.folder == modernbert
    assert model.family.name == "modernbert"
    assert (model.attention, model.block_length, model.logit_shift) == (
        "bidirectional",
        None,
        False,
    )
    assert model.mask_token_id == MASK_TOKEN_ID
    assert model.stop_token_ids == (STOP_TOKEN_ID,)
    assert model.never_emit_token_ids == (0, 1, MASK_TOKEN_ID)
    assert model.sampler == {"policy": "entropy_bound"}
    assert (model.context_length, model.vocab_size) == (CONTEXT_LENGTH, VOCAB_SIZE)
    assert model.num_parameters == sum(each.numel() for each in reference.parameters())
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert load_model(modernbert, name="mine", dtype="float32").name == "mine"


def test_the_mask_is_never_emitted_even_if_the_section_forgets_it(folder: Path) -> None:
    section = {"version": 1, "mask_token_id": 7, "never_emit_token_ids": [3]}
    edit_config(folder, diffusion=section)
    assert load_model(folder, dtype="float32").never_emit_token_ids == (3, 7)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
@pytest.mark.parametrize("block_length", [None, 8])
@pytest.mark.parametrize("write", [write_modernbert, write_qwen3])
def test_models_load_in_each_dtype_and_give_float32_logits(
    tmp_path: Path, write: Callable[..., Path], block_length: int | None, dtype: loader.DTypeName
) -> None:
    model = load_model(write(tmp_path / "tiny", block_length=block_length), dtype=dtype)
    logits = model.logits(range(20))
    assert logits.shape == (20, VOCAB_SIZE)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad


def test_shards_give_the_same_logits_as_one_file(modernbert: Path, folder: Path) -> None:
    shard(folder)
    whole = load_model(modernbert, dtype="float32").logits(range(30))
    assert load_model(folder, dtype="float32").logits(range(30)).equal(whole)


@pytest.mark.parametrize("keep", [True, False])
def test_a_tied_weight_may_be_absent_or_repeated(
    modernbert: Path, folder: Path, keep: bool
) -> None:
    def edit(weights: dict[str, Tensor]) -> None:
        weights.pop("decoder.weight", None)
        if keep:
            weights["decoder.weight"] = weights["model.embeddings.tok_embeddings.weight"].clone()

    edit_weights(folder, edit)
    model = load_model(folder, dtype="float32")
    original = load_model(modernbert, dtype="float32")
    assert model.num_parameters == original.num_parameters
    assert model.logits(range(30)).equal(original.logits(range(30)))


def test_the_folder_may_be_written_again_while_its_model_is_used(folder: Path) -> None:
    model = load_model(folder, dtype="float32")
    before = model.logits(range(30))
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(bytes(weights.stat().st_size))
    assert model.logits(range(30)).equal(before)


def test_remote_code_is_not_run(folder: Path) -> None:
    code = 'raise SystemExit("remote code ran")'
    (folder / "modeling_mine.py").write_text(code)
    edit_config(folder, auto_map={"AutoModelForMaskedLM": "modeling_mine.Mine"})
    assert load_model(folder, dtype="float32").family.name == "modernbert"


def test_a_mask_token_is_found_by_its_text(folder: Path) -> None:
    edit_config(folder, diffusion=None)
    added = [{"id": 9, "content": "[MASK]"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {}}))
    assert load_model(folder, dtype="float32").mask_token_id == 9


def test_a_token_without_an_entry_of_its_own_is_found_in_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"[MASK]": 4}}}))
    assert find_token_id(tmp_path, "[MASK]") == 4
    assert find_token_id(tmp_path, "<|mask|>") is None


def refuse(folder: Path | str, sentence: str, **arguments: object) -> None:
    with pytest.raises(LoadError, match=sentence) as refusal:
        load_model(folder, **{"dtype": "float32", **arguments})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("model", ["./nothing", "nothing", "/no/such/folder", "a/b/c", Path("a/b")])
def test_a_folder_that_does_not_exist_is_refused_without_asking_the_hub(
    model: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    refuse(model, "there is no model folder")


def test_a_misspelt_folder_beside_others_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    refuse("runs/mine", "there is no model folder 'runs/mine'")


def test_a_hub_id_is_downloaded_without_pickles_or_code(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(modernbert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_model("someone/tiny", dtype="float32")
    assert model.name == "someone/tiny"
    assert asked["hub_id"] == "someone/tiny"
    assert not {"*", "*.bin", "*.py"} & set(asked["patterns"])


def test_a_hub_that_does_not_answer_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    refuse("someone/tiny", "did not give a model of that id: no route$")


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def configure(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_config(folder, **changes)


def reweigh(edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_weights(folder, edit)


def rename_to(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def change_index(weight_map: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        shard(folder).write_text(json.dumps({"weight_map": weight_map}))

    return change


def cut_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def untie(weights: dict[str, Tensor]) -> None:
    weights["decoder.weight"] = weights["model.embeddings.tok_embeddings.weight"] + 1


NORM = "model.final_norm.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("config.json"), "has no config.json"),
        (write("config.json", b"{"), "config.json cannot be read as JSON"),
        (write("config.json", b"\xff\xfe"), "config.json cannot be read as JSON"),
        (write("config.json", b"[]"), "config.json must hold a JSON object, got list"),
        (remove("model.safetensors"), "has neither model.safetensors nor"),
        (rename_to("pytorch_model.bin"), "only in pytorch_model.bin, a format that can run code"),
        (rename_to("model.pt"), "only in model.pt"),
        (rename_to("model.pth"), "only in model.pth"),
        (rename_to("model.ckpt"), "only in model.ckpt"),
        (cut_the_weights, "model.safetensors is damaged or not a safetensors file"),
        (write("model.safetensors", b""), "model.safetensors is damaged"),
        (lose_a_shard, "lacks model-00002-of-00002.safetensors"),
        (change_index({}), "must have a weight_map"),
        (change_index({NORM: "../elsewhere.safetensors"}), "names the file '../elsewhere"),
        (change_index({NORM: "model.bin"}), "names the file 'model.bin'"),
        (
            change_index({"lost": "model-00001-of-00002.safetensors"}),
            "lack lost, which model.safetensors.index.json promises",
        ),
        (reweigh(lambda weights: weights.pop(NORM)), f"lacks weights of a .*: {NORM}"),
        (reweigh(lambda weights: weights.clear()), "and 20 more"),
        (
            reweigh(lambda weights: weights.update(more=torch.zeros(1))),
            "has weights that a ModernBertForMaskedLM has not: more",
        ),
        (
            reweigh(lambda weights: weights.update({NORM: torch.zeros(31)})),
            rf"{NORM} of .* must have the shape \(32,\), got \(31,\)",
        ),
        (
            reweigh(lambda weights: weights.update({NORM: torch.full((32,), torch.nan)})),
            "logits that are not finite",
        ),
        (reweigh(untie), "ties its embeddings in config.json, but decoder.weight differs"),
        (configure(diffusion=None), "has no mask token"),
        (configure(diffusion=None, mask_token_id=97), "mask token id .* in 0..96, got 97"),
        (configure(diffusion=None, mask_token_id="5"), "mask token id .* got '5'"),
        (
            configure(diffusion=None, mask_token_id=5, eos_token_id=[2, 99]),
            "stop token id .* got 99",
        ),
        (configure(diffusion={"version": 1, "mask_token_id": 97}), "in 0..96, got 97"),
        (
            configure(diffusion={"version": 1, "mask_token_id": 5, "never_emit_token_ids": [97]}),
            "never_emit token id .* got 97",
        ),
        (configure(diffusion={"version": 3}), "must have version 1, got 3"),
        (configure(hidden_size="wide"), "does not describe a ModernBertForMaskedLM"),
        (configure(num_attention_heads=5), "does not describe a ModernBertForMaskedLM"),
        (configure(num_attention_heads=0), "does not describe a ModernBertForMaskedLM"),
        (configure(hidden_size=30), "must have the shape"),
        (configure(architectures=["GPT2LMHeadModel"], diffusion=None), "has the architecture GPT2"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_a_sentence(
    folder: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(folder)
    refuse(folder, sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "float16"}, "dtype must be one of auto, bfloat16, float32, got 'float16'"),
        ({"device": "abacus"}, "device must be cpu or cuda, got 'abacus'"),
        ({"device": "meta"}, "device must be cpu or cuda, got 'meta'"),
        ({"family": "gpt"}, "family must be one of"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(
    modernbert: Path, arguments: dict[str, object], sentence: str
) -> None:
    refuse(modernbert, sentence, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_refused(modernbert: Path) -> None:
    refuse(modernbert, "PyTorch sees no CUDA device", device="cuda")


def test_a_file_is_no_folder(modernbert: Path) -> None:
    refuse(modernbert / "config.json", "must be a folder or a hub id, got the file")


@pytest.mark.parametrize(
    ("written", "pretended", "sentence"),
    [
        (8, None, "loaded as bidirectional, but its first logits do not change"),
        (None, 8, "loaded as block-causal, but its first block of 8 tokens changes"),
        (1, 8, "but its first logits do not change with the rest of the block"),
    ],
)
def test_attention_that_is_not_the_familys_is_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int | None,
    pretended: int | None,
    sentence: str,
) -> None:
    """The plan is forged, so that the network sees what it should not, or less than it should."""
    edit_config(
        folder,
        diffusion={
            "version": 1,
            "mask_token_id": 5,
            "attention": "bidirectional" if pretended is None else "block_causal",
            "block_length": pretended,
        },
    )
    monkeypatch.setattr(
        loader.LoadedModel,
        "plan",
        lambda _, *lengths: AttentionPlan(lengths=lengths, block_length=written),
    )
    refuse(folder, sentence)


@pytest.mark.parametrize("token_ids", [[], [[1, 2]], [-1], [VOCAB_SIZE]])
def test_logits_of_ids_that_are_no_tokens_are_refused(
    modernbert: Path, token_ids: list[int]
) -> None:
    model = load_model(modernbert, dtype="float32")
    with pytest.raises(InvalidRequest, match="token_ids must be"):
        model.logits(token_ids)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="shared/goldens is not here")
@pytest.mark.parametrize(
    ("name", "expected", "block_length"),
    [
        ("a2d_qwen3", "bidir", None),
        ("a2d_qwen3", "pad20", None),
        ("a2d_qwen3", "blockcausal8", 8),
        ("dream", "bidir", None),
        ("llada", "bidir", None),
        ("sdar", "blockcausal8", None),
        ("llada2", "blockcausal8", 8),
    ],
)
def test_golden_checkpoints_give_the_authors_logits(
    tmp_path: Path, name: str, expected: str, block_length: int | None
) -> None:
    folder = Path(shutil.copytree(GOLDENS / name, tmp_path / name, copy_function=shutil.copyfile))
    tensors = load_file(folder / "expected.safetensors")
    (folder / "expected.safetensors").unlink()
    if block_length is not None:
        section = {"version": 1, "attention": "block_causal", "block_length": block_length}
        edit_config(folder, diffusion=section)
    model = load_model(folder, dtype="float32")
    assert model.family.name == name
    length = 20 if expected == "pad20" else 24
    for ids, logits in zip(tensors["input_ids"], tensors[expected], strict=False):
        own = model.logits(ids[:length].tolist())
        torch.testing.assert_close(own, logits[:length], atol=1e-5, rtol=0)


def test_code_in_a_folder_is_never_run(folder: Path) -> None:
    ran = folder / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nraise SystemExit\n"
    for name in ("pipeline.py", "modeling.py", "configuration.py"):
        (folder / name).write_text(code)
    edit_config(
        folder,
        auto_map={"AutoConfig": "configuration.C", "AutoModelForMaskedLM": "modeling.M"},
        custom_pipelines={"text-diffusion": {"impl": "pipeline.P", "pt": ["AutoModelForMaskedLM"]}},
    )
    assert load_model(folder).logits(range(8)).isfinite().all()
    assert not ran.exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("block_length", [None, 8])
def test_a_network_of_transformers_is_adopted_with_the_same_logits(
    tmp_path: Path, block_length: int | None, tied: bool
) -> None:
    folder = write_qwen3(tmp_path, block_length=block_length, tied=tied)
    adopted = loader.adopt_network(Qwen3ForCausalLM.from_pretrained(folder), {})
    loaded = load_model(folder, dtype="float32")
    assert torch.equal(adopted.logits(range(20)), loaded.logits(range(20)))
    assert (adopted.attention, adopted.mask_token_id) == (loaded.attention, loaded.mask_token_id)
    assert adopted.num_parameters == loaded.num_parameters


def test_a_network_that_is_no_diffusion_model_is_not_adopted(tmp_path: Path) -> None:
    edit_config(write_qwen3(tmp_path), diffusion=None)
    with pytest.raises(LoadError, match="is a causal language model"):
        loader.adopt_network(Qwen3ForCausalLM.from_pretrained(tmp_path), {})
