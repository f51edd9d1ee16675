"""One writer: many processes at once, a killed holder, readers, no locks at all."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vilem_jax import locks
from vilem_jax.cli.main import main
from vilem_jax.errors import UserError
from vilem_jax.search.index import index

ROOT = Path(__file__).resolve().parents[1]
NUM_STARTS, NUM_RECORDS = 20, 50
WRITER = """
import sys
from pathlib import Path
from vilem_jax.errors import UserError
from vilem_jax.locks import check_free, only_writer
folder = Path(sys.argv[1])
try:
    check_free(folder / ".lock", folder)
    with only_writer(folder / ".lock", folder):
        with open(folder / "records", "a") as file:
            for number in range(int(sys.argv[2])):
                print(number, file=file, flush=True)
        print("wrote", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(NUM_RECORDS)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_many_starts_at_once_one_writes(tmp_path):
    folder = tmp_path / "run"
    processes = [start(folder) for _ in range(NUM_STARTS)]
    lines = [process.stdout.readline().strip() for process in processes]
    (writer,) = [p for p, line in zip(processes, lines, strict=True) if line == "wrote"]
    holder = f"process {writer.pid} on {socket.gethostname()}"
    refused = f"{folder} is being written by {holder}: wait until it ends, or stop it"
    assert sorted(lines) == sorted([*[refused] * (NUM_STARTS - 1), "wrote"])
    expected = "".join(f"{number}\n" for number in range(NUM_RECORDS))
    assert (folder / "records").read_text() == expected
    with pytest.raises(UserError, match=holder):
        locks.check_free(folder / ".lock", folder)
    # It dies with its process, and is not left behind by one that ends.
    writer.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    locks.check_free(folder / ".lock", folder)
    with locks.only_writer(folder / ".lock", folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    assert [path.name for path in folder.iterdir()] == ["records"]


def test_train_is_refused_before_it_loads_anything(tmp_path, capsys):
    workdir = tmp_path / "run"
    with locks.only_writer(workdir / ".lock", workdir):
        code = main(["train", "--config=flickr8k", f"--workdir={workdir}"])
    assert code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"vilem: .*run is .* {os.getpid()} on .*\n", error), error


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with locks.only_writer(tmp_path / "lock", "it"):
        pass
    assert "cannot be locked (no locks available)" in capsys.readouterr().err


def test_a_lock_that_cannot_be_created_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="is a file where a folder is needed"),
        locks.only_writer(tmp_path / "file" / "lock", "it"),
    ):
        pass


def test_a_full_disk_leaves_no_lock_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.socket, "gethostname", refuse)
    with (
        pytest.raises(UserError, match="lock: no space left"),
        locks.only_writer(tmp_path / "lock", "it"),
    ):
        pass
    assert not any(tmp_path.iterdir())


def test_an_index_has_one_writer(tmp_path):
    model = SimpleNamespace(encode_image=lambda _: pytest.fail("it is encoded twice"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "index")
    with (
        locks.only_writer(tmp_path / ".index.lock", "it"),
        pytest.raises(UserError, match=f"index is being written by .*{os.getpid()}"),
    ):
        index(tmp_path / "photos", model, tmp_path / "link")
