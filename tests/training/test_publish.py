"""The model card, and the way of a folder to the hub: a fake one, here."""

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from diffusiongpt.engine import Engine
from diffusiongpt.training.__main__ import main
from diffusiongpt.training.card import read_figures
from diffusiongpt.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture
def folder(make_config, data_dir, tmp_path):
    final = train(make_config(run={"max_steps": 2}, diffusion={"block_length": [4, 8, 0]}))
    where = ["--data_dir", str(data_dir), "--draws", "1", "--max_rows", "4"]
    assert main(["eval", str(final), "texts", *where, "--record"]) == 0
    assert main(["eval", str(final), "texts", *where, "--record", "--block_length", "8"]) == 0
    assert main(["export", str(final), str(tmp_path / "small")]) == 0
    return tmp_path / "small"


class FakeApi:
    calls: list[tuple[str, dict[str, object]]] = []  # noqa: RUF012

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo, **options):
        if repo.startswith("others/"):
            answer = httpx.Response(403, request=httpx.Request("POST", "https://hub"))
            raise HfHubHTTPError("403 Forbidden: this is not yours\nmore", response=answer)
        self.calls.append(("create_repo", {"repo": repo, "token": self.token, **options}))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch):
    """A hub that notes what it is asked, and a token for it."""
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    return FakeApi.calls


def test_the_card_tells_the_runs_figures_and_the_folder_is_still_served(folder):
    card = (folder / "README.md").read_text()
    figures = read_figures(folder)
    assert (figures["steps"], figures["tokens"]) == (2, 2 * 4 * 32)
    assert "denoises in blocks of 4 or 8, or of the whole canvas" in card
    assert "2 steps of the last stage, 256 tokens" in card
    assert f"{figures['last_loss']:.4f} nats per maskable token" in card
    assert "batch_size: 4" in card
    assert str(folder.parent) not in card
    for name in ("texts", "texts, blocks of 8"):
        bound = figures["evaluation"][name]
        assert f"| {name} | {bound['nats_per_token']:.4f} ± {bound['standard_error']:.4f} |" in card
    assert Engine.from_pretrained(str(folder)).info.block_lengths == (4, 8, 0)


def test_a_push_sends_the_files_of_the_model_and_nothing_else(folder, hub, capsys):
    (folder / "optimizer.pt").write_text("private")
    (folder / "README.md").write_text("My own card.")
    assert main(["push", str(folder), "me/small", "--private"]) == 0
    (create, made), (upload, sent) = hub
    assert (create, upload) == ("create_repo", "upload_folder")
    assert (made["repo"], made["token"], made["private"]) == ("me/small", "secret", True)
    assert sent["repo_id"] == "me/small"
    assert {"model.safetensors", "config.json", "README.md"} <= set(sent["allow_patterns"])
    assert "optimizer.pt" not in sent["allow_patterns"]
    assert (folder / "README.md").read_text() == "My own card."
    assert "sent to https://huggingface.co/me/small" in capsys.readouterr().out


def test_a_dry_run_needs_no_token_and_sends_nothing(folder, hub, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    (folder / "README.md").unlink()
    assert main(["push", str(folder), "me/small", "--dry-run"]) == 0
    said = capsys.readouterr().out
    size = (folder / "model.safetensors").stat().st_size
    assert f"model.safetensors: {size:,} bytes" in said
    assert "would be sent to me/small; there is no token" in said
    assert not hub
    assert not (folder / "README.md").exists()


def test_what_cannot_be_pushed_is_refused_in_a_sentence(folder, hub, monkeypatch, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, code, words in (
        ([str(folder), "small"], 2, "must be named owner/name, got 'small'"),
        ([str(tmp_path / "empty"), "me/small"], 2, "is no exported folder: it has no config.json"),
        ([str(folder), "others/small"], 1, "others/small could not be sent: 403 Forbidden"),
    ):
        assert main(["push", *arguments]) == code
        error = capsys.readouterr().err
        assert words in error
        assert "more" not in error
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(folder), "me/small"]) == 2
    assert "set HF_TOKEN or run `hf auth login`" in capsys.readouterr().err
    assert not hub


def test_figures_that_are_damaged_are_named(folder, data_dir, capsys):
    (folder / "training.json").write_text("{")
    assert main(["eval", str(folder), "texts", "--data_dir", str(data_dir), "--record"]) == 2
    assert "training.json is not JSON" in capsys.readouterr().err
