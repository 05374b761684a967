"""Settings from flags, variables and a file: who wins, and what stops the start."""

from __future__ import annotations

import pytest

from diffusiongpt.server.auth import read_api_keys
from diffusiongpt.server.errors import ApiError
from diffusiongpt.server.settings import ModelSource, Settings, SettingsError, read_settings


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('port = 1\nmax_waiting = 7\napi_keys = ["from-file"]\nlog_level = "debug"\n')
    return path


def test_a_flag_beats_a_variable_and_a_variable_the_file(file, monkeypatch):
    assert read_settings({}, file).port == 1
    monkeypatch.setenv("DIFFUSIONGPT_PORT", "2")
    assert read_settings({}, file).port == 2
    assert read_settings({"port": 3}, file).port == 3
    settings = read_settings({"port": 3}, file)
    assert (settings.max_waiting, settings.log_level, settings.host) == (7, "debug", "127.0.0.1")


def test_a_variable_may_name_the_file(file, monkeypatch):
    monkeypatch.setenv("DIFFUSIONGPT_CONFIG", str(file))
    assert read_settings({}).max_waiting == 7


def test_variables_list_several_values_with_commas(monkeypatch):
    monkeypatch.setenv("DIFFUSIONGPT_API_KEYS", "one, two")
    monkeypatch.setenv("DIFFUSIONGPT_MODEL", "a=/x,b=org/y")
    settings = read_settings({})
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.models == [ModelSource("a", "/x"), ModelSource("b", "org/y")]


BAD_FLAGS = {
    "port": ({"port": 70_000}, "port: input should be less than or equal to 65535, got 70000"),
    "type": ({"max_waiting": "many"}, "max_waiting: input should be a valid integer"),
    "level": ({"log_level": "loud"}, "log_level"),
    "origin": ({"cors_origins": ["example.org"]}, "got 'example.org'"),
    "no key": ({"api_keys": []}, "api_keys needs at least one key"),
    "slots": ({"num_slots": 0}, "num_slots"),
    "unknown": ({"colour": "red"}, "colour"),
    "two unnamed": ({"model": ["/x", "/y"]}, "NAME=PATH, got /x, /y"),
    "one name twice": ({"model": ["a=/x", "a=/y"]}, "names of their own"),
    "two names": ({"model": ["a=/x"], "name": "b"}, "name='b' is for one model"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_a_bad_value_is_one_sentence(case):
    flags, words = BAD_FLAGS[case]
    with pytest.raises(SettingsError) as caught:
        read_settings(flags)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_keys_of_the_file_and_the_environment_stop_the_start(tmp_path, monkeypatch):
    path = tmp_path / "server.toml"
    path.write_text("prot = 1\n")
    with pytest.raises(SettingsError, match=r"unknown setting 'prot'; it takes host, port"):
        read_settings({}, path)
    monkeypatch.setenv("DIFFUSIONGPT_PROT", "1")
    with pytest.raises(SettingsError, match="unknown setting DIFFUSIONGPT_PROT; known are"):
        read_settings({})


@pytest.mark.parametrize(("text", "words"), [(None, "No such file"), ("port: 1", "is not TOML")])
def test_a_file_that_cannot_be_read_stops_the_start(tmp_path, text, words):
    path = tmp_path / "server.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=words):
        read_settings({}, path)


def test_a_folder_with_an_equals_sign_in_its_name_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert Settings(model=("lr=3",)).models == [ModelSource(None, "lr=3")]
    assert Settings(model=("x=lr=3",)).models == [ModelSource("x", "lr=3")]
    assert Settings(model=("./lr=4",)).models == [ModelSource(None, "./lr=4")]


def test_keys_come_from_settings_and_from_their_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# who\nsecond\n\n  third \n")
    keys = read_api_keys(Settings(api_keys=("first",), api_key_file=path))
    found = [keys.check(f"Bearer {key}") for key in ("first", "second", "third")]
    assert found == [0, 1, 2]
    assert keys.check("bearer second") == 1
    for wrong in (None, "", "Bearer", "Bearer ", "Basic second", "Bearer fourth", "Bearer # who"):
        with pytest.raises(ApiError) as caught:
            keys.check(wrong)
        assert caught.value.status == 401
        assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_without_keys_everybody_comes_in():
    assert read_api_keys(Settings()).check(None) == 0


def test_every_key_is_compared_whichever_fits(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "diffusiongpt.server.auth.hmac.compare_digest",
        lambda one, other: compared.append((len(one), len(other))) or one == other,
    )
    keys = read_api_keys(Settings(api_keys=("a", "a-much-longer-key", "c")))
    for given in ("a", "c"):
        compared.clear()
        keys.check(f"Bearer {given}")
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("text", ["", "# nobody\n"])
def test_a_key_file_without_keys_does_not_open_the_server(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(SettingsError, match="holds no API key"):
        read_api_keys(Settings(api_key_file=path))


def test_bad_keys_stop_the_start_and_are_not_shown(tmp_path):
    for key in ("has space", "schlüssel"):
        with pytest.raises(SettingsError) as caught:
            read_api_keys(Settings(api_keys=("fine", key)))
        assert "API key 2 of 2" in str(caught.value)
        assert key not in str(caught.value)
    with pytest.raises(SettingsError, match="cannot read the API keys"):
        read_api_keys(Settings(api_key_file=tmp_path / "missing"))
    with pytest.raises(SettingsError) as caught:
        read_settings({"api_keys": [["hidden"]]})
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(Settings(api_keys=("hidden",)))
