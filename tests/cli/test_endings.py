"""How the command line ends: exit codes, and one sentence for what went wrong."""

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest
from PIL import Image

from vilem_jax.cli.main import main
from vilem_jax.data.tokenizer import train_vocabulary
from vilem_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_interrupted(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vilem_jax.report.demo.run_demo", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "vilem: interrupted\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Unable to allocate 9 TiB"),
    ],
)
def test_out_of_memory(error, monkeypatch, capsys):
    def exhaust(*_, **__):
        raise error

    monkeypatch.setattr("vilem_jax.report.demo.run_demo", exhaust)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert "out of memory (" in message and "num_microbatches" in message
    assert "9 TiB" in message and message.count("\n") == 1


def test_a_file_name_of_any_bytes_is_printed(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", shown)
    name = os.fsdecode(b"bad\xff.png")
    monkeypatch.setattr("vilem_jax.report.demo.run_demo", lambda *_, **__: print(name))
    assert main(["demo"]) == 0
    assert shown.buffer.getvalue() == b"bad\\udcff.png\n"


def test_a_file_name_does_not_act_on_the_terminal(monkeypatch, capsys):
    """R30: to a terminal these are a title, a cleared screen, an overwritten line."""
    name = "a\x1b]0;title\x07\x9b2J\rb.png"

    def show(*_, **__):
        print(name)
        print(name.replace("\r", ""), file=sys.stderr)

    monkeypatch.setattr("vilem_jax.report.demo.run_demo", show)
    assert main(["demo"]) == 0
    shown = r"a\x1b]0;title\x07\x9b2J\x0db.png" + "\n"
    assert capsys.readouterr() == (shown, shown.replace(r"\x0d", ""))


def test_warnings_of_pillow_are_not_printed(monkeypatch, capsys):
    def warn(*_, **__):
        text, module = "Tag data larger than file", "PIL.TiffImagePlugin"
        warnings.warn_explicit(text, UserWarning, "file.py", 773, module=module)
        logging.getLogger(module).error("More samples per pixel than can be decoded")

    monkeypatch.setattr("vilem_jax.report.demo.run_demo", warn)
    assert main(["demo"]) == 0
    assert capsys.readouterr() == ("", "")


def test_exit_code_and_sentence_of_the_program(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vilem_jax.cli.main", "train", "--config=scnes"),
            f"--workdir={tmp_path / 'run'}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vilem: there is no config 'scnes'; did you mean")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_user_error_of_a_library_call_is_one_line(monkeypatch, capsys):
    def refuse(*_, **__):
        raise UserError("a sentence")

    monkeypatch.setattr("vilem_jax.report.demo.run_demo", refuse)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "vilem: a sentence\n"


CHECKED = """
from vilem_jax.config.files import packaged_config, source

def get_config():
    config = packaged_config("scenes")
    del config.data.train["scenes"], config.data.validation["scenes"]
    config.data.train.mine = source(kind="json", path={path!r})
    config.data.tokenizer = {vocabulary!r}
    return config
"""


def test_data_check_exits_with_1_at_a_missing_image_of_any_name(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    names = ("\udce9.png", "0.png")  # a byte that is not UTF-8
    rows = [{"image": name, "caption": "a red square"} for name in names]
    data, config, out = (tmp_path / name for name in ("a.json", "a.py", "out.json"))
    train_vocabulary(["a red square"], 120, tmp_path / "words")
    settings = {"path": str(data), "vocabulary": str(tmp_path / "words")}
    config.write_text(CHECKED.format(**settings))
    for listed, code in ((rows[1:], 0), (rows, 1)):
        data.write_text(json.dumps(listed))
        assert main(["data", "check", f"--config={config}", f"--out={out}"]) == code
    text = capsys.readouterr().out
    assert "train: 2 images (1 decoded)" in text and "1 images missing (50.00%)" in text
    counts = json.loads(out.read_text())["splits"]["train"]
    assert counts["missing_images"]["examples"][0].startswith("\udce9.png: ")


@pytest.mark.parametrize("verb", ["proofread", "search"])
def test_what_is_no_file_is_refused_before_a_model_is_loaded(verb, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    image = str(tmp_path / "pipe.png")
    arguments = [image, "red"] if verb == "proofread" else ["x", f"--image={image}"]
    assert main([verb, "--model=nowhere", *arguments]) == 2
    assert (
        "pipe.png cannot be read: it is a pipe, not a file" in capsys.readouterr().err
    )
