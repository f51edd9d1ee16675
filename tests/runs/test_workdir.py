"""The command lines of a run, kept for people."""

from vilem_jax.runs.workdir import note_command, read_commands


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
