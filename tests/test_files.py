"""Files on disk: complete, or not at all."""

import json
import os
import subprocess

import pytest

from vilem_jax.errors import UserError
from vilem_jax.files import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    check_writable,
    read_input,
    write_bytes,
    write_json,
)


def test_json_is_written_completely_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"r1": 1.5})
    write_json(path, {"r1": 2.5})
    assert json.loads(path.read_text()) == {"r1": 2.5}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_asking_leaves_the_folder_alone(tmp_path):
    write_bytes(tmp_path / "old", b"old")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new" / "file")
    assert (tmp_path / "old").read_bytes() == b"old"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path / "old" / "file"):
        with pytest.raises(UserError, match="cannot write"):
            check_writable(path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_pipe_that_the_user_names_is_read_and_ends_at_the_limit(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert read_input(tmp_path / "pipe", 1 << 20, allow_pipe=True) == b""  # no writer
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout
        path = f"/dev/fd/{endless.stdout.fileno()}"
        content = read_input(path, 2 << 20, allow_pipe=True)
        endless.kill()
    assert content == b"y\n" * (1 << 20)


def test_a_text_with_a_hole_is_not_read(tmp_path):
    with open(tmp_path / "captions.json", "wb") as file:
        file.write(b"[" + b" " * 10000)
        file.truncate(3 << 30)
    with pytest.raises(OSError, match="it has a hole at byte"):
        read_input(tmp_path / "captions.json", MAX_TEXT_BYTES)


def test_an_image_that_is_nearly_all_hole_is_not_read(tmp_path):
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(200 << 20)
    with pytest.raises(OSError, match="it has a hole at byte"):
        read_input(tmp_path / "sparse.jpg", MAX_IMAGE_BYTES)
    content = b"\xff\xd8\xff" + bytes(9 << 20)  # zeros that are on the disk
    (tmp_path / "black.jpg").write_bytes(content)
    assert read_input(tmp_path / "black.jpg", MAX_IMAGE_BYTES) == content


def test_a_folder_in_the_way_is_a_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*taken"):
        write_json(tmp_path / "taken", {})
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"cannot write .*file is a file where a folder"
    ):
        write_json(tmp_path / "file" / "metrics.json", {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken"]
