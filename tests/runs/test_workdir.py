"""The work directory: command lines and format versions."""

import json
import os

import pytest

from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError
from vilem_jax.runs.workdir import (
    FORMAT_VERSION,
    check_workdir,
    claim_workdir,
    note_command,
    program,
    read_commands,
    read_config,
)


def test_each_command_line_is_kept_once(tmp_path, monkeypatch):
    assert read_commands(tmp_path) == []
    monkeypatch.setattr("sys.argv", ["/usr/bin/vilem", "train", "--workdir=a b"])
    note_command(tmp_path)
    note_command(tmp_path)
    monkeypatch.setattr("sys.argv", ["vilem", "train", "--config.train.num_steps=9"])
    note_command(tmp_path)
    assert read_commands(tmp_path) == [
        "vilem train '--workdir=a b'",
        "vilem train --config.train.num_steps=9",
    ]


@pytest.mark.parametrize("version", [None, 2, "1"])
def test_another_format_version_is_refused(tmp_path, version):
    claim_workdir(tmp_path, Config())
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    assert settings.pop("format_version") == FORMAT_VERSION == 1
    assert read_config(tmp_path) == Config()
    if version is not None:
        settings["format_version"] = version
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="this release reads format_version 1") as error:
        check_workdir(tmp_path, Config())
    assert str(tmp_path) in str(error.value) and "--workdir" in str(error.value)


def test_a_command_line_of_any_bytes_is_noted(tmp_path, monkeypatch):
    name = os.fsdecode(b"--workdir=r\xe9sum\xe9")
    monkeypatch.setattr("sys.argv", ["vilem", "train", name])
    note_command(tmp_path)
    note_command(tmp_path)
    assert read_commands(tmp_path) == [f"vilem train '{name}'"]


def test_settings_with_a_byte_order_mark_are_read(tmp_path):
    claim_workdir(tmp_path, Config())
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert read_config(tmp_path) == Config()
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_config(tmp_path)


def test_program_is_named_so_that_the_shell_finds_it(tmp_path, monkeypatch):
    called = tmp_path / "a b" / "bin" / "vilem"
    called.parent.mkdir(parents=True)
    called.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(called), "demo"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == "a b/bin/vilem"
    monkeypatch.chdir(called.parent.parent)
    assert program() == "bin/vilem"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert program() == str(called)
    monkeypatch.setenv("PATH", str(called.parent))
    assert program() == "vilem"
    monkeypatch.setattr("sys.argv", ["-c"])
    assert program() == "vilem"


def test_data_that_has_changed_is_named(tmp_path):
    from vilem_jax.config.sources import ScenesConfig
    from vilem_jax.data.corpus import Corpus
    from vilem_jax.data.fingerprint import fingerprints
    from vilem_jax.data.sources.source import open_source
    from vilem_jax.runs.workdir import note_data, read_data

    def data(number):
        config = ScenesConfig(name="scenes", split="train", num_images=number)
        return fingerprints(Corpus([open_source(config)]))

    assert read_data(tmp_path) == {}
    assert note_data(tmp_path, data(4)) == note_data(tmp_path, data(4)) == []
    assert read_data(tmp_path)["scenes"]["images"] == 4
    assert note_data(tmp_path, data(5)) == ["scenes"]
    assert len({data(n)["scenes"]["names_sha256"] for n in (4, 4, 5)}) == 2
