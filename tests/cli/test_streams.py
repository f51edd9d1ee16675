"""Results reach the disk in any state of stdout; the exit code keeps its meaning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The verb prints more than a buffer holds and writes its result after that, or refuses.
PROGRAM = """
import sys
from vilem_jax.cli import train
from vilem_jax.cli.main import main
from vilem_jax.errors import UserError
from vilem_jax.files import check_writable, write_json
def demo(options):
    out, seed = options.out, options.seed
    check_writable(out)
    for line in range(5000):
        print("a line of words", line)
    print("a note", file=sys.stderr)
    write_json(out, {"seed": seed})
    if seed == 9:
        raise UserError("refused")
train._demo = demo  # a verb that imports no JAX
sys.exit(main(["demo", *sys.argv[1:]]))
"""


def run(ending, *arguments, unbuffered=""):
    """The exit code of the program, whose command line ends so, and its stderr."""
    command = f'"$0" -c "$PROGRAM" "$@" {ending}; exit "${{PIPESTATUS[0]}}"'
    environment = {**os.environ, "PROGRAM": PROGRAM, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr, done.stdout


CODES = {"": 0, ">&-": 0, "2>&-": 0, ">/dev/full": 2, "| head -1": 141}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("ending", CODES)
def test_result_is_written_however_stdout_ends(ending, unbuffered, tmp_path):
    out = tmp_path / "out.json"
    code, errors, _ = run(ending, f"--out={out}", unbuffered=unbuffered)
    assert json.loads(out.read_text()) == {"seed": 0}
    assert code == CODES[ending], errors
    full = "vilem: cannot print the result: no space left on device; what --out names"
    assert errors.count("\n") == (ending != "2>&-") + (code == 2)
    assert "a note" in errors or ending == "2>&-"
    assert full in errors if code == 2 else full not in errors
    code, errors, _ = run(ending, f"--out={out}", "--seed=9", unbuffered=unbuffered)
    assert code == 2
    assert "vilem: refused" in errors or ending == "2>&-"


def test_out_follows_links_and_writes_into_nodes(tmp_path):
    real, link, fifo = tmp_path / "new/real", tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(real)
    for _ in range(2):  # the target is new, then exists
        assert run("", f"--out={link}")[0] == 0
        assert link.is_symlink() and json.loads(real.read_text()) == {"seed": 0}
    os.mkfifo(fifo)
    code, _, printed = run(
        f">{tmp_path / 'words'} & cat {fifo}; wait $!", f"--out={fifo}"
    )
    assert code == 0 and json.loads(printed) == {"seed": 0} and fifo.is_fifo()
    assert run("", "--out=/dev/null")[0] == 0 and Path("/dev/null").is_char_device()
    words = tmp_path / "words"
    for ending in ("| cat", f"> {words}; cat {words}"):
        _, _, printed = run(ending, "--out=/dev/stdout")
        assert printed.startswith("a line of words 0\n")
        assert json.loads(printed.split("words 4999\n")[1]) == {"seed": 0}
    link.unlink()
    link.symlink_to(link)
    code, errors, _ = run("", f"--out={link}")
    assert code == 2 and "too many levels of symbolic links" in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fifo",
        "link",
        "new",
        "words",
    ]


def test_full_device_is_a_sentence(tmp_path):
    code, errors, _ = run("", "--out=/dev/full")
    assert code == 2
    assert errors.endswith("vilem: cannot write /dev/full: no space left on device\n")
