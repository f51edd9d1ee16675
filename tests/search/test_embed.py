"""Embedding by shards: whole files, many workers, kills, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.data.make_files import img2dataset_members, write_tar
from vilem_jax.config.sources import WebDatasetConfig
from vilem_jax.data.sources.source import open_source
from vilem_jax.errors import UserError
from vilem_jax.search import embed, vectors
from vilem_jax.search.folder import FolderImages
from vilem_jax.search.query import Searcher

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class MeanColour:
    """A model whose embedding of an image is its mean colour."""

    embedding_width = 3

    def __init__(self, fingerprint="one", seconds=0.0):
        self.fingerprint, self.seconds = fingerprint, seconds
        self.encoder = SimpleNamespace(image_size=4, encode_pixels=self.encode_pixels)
        self.num_encoded = 0

    def knows_a_word(self, text):
        return bool(text.strip())

    def encode_pixels(self, images):
        means = [image.mean(axis=(0, 1)) + 1 for image in images]
        time.sleep(self.seconds)
        self.num_encoded += len(means)
        return unit(means)

    def encode_text(self, words):
        return unit([COLOURS[text] for text in words])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(23):
        colour = (250 - 10 * number, 10 * number, 5)
        Image.new("RGB", (6, 5), colour).save(folder / f"{number:02d}.png")
    return folder


def run(folder, out, model=None, **settings):
    settings = {"images_per_shard": 5} | settings
    return embed.embed(FolderImages(folder), model or MeanColour(), out, **settings)


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_shards_hold_what_one_pass_gives(folder, tmp_path):
    out, model = tmp_path / "vectors", MeanColour()
    done = run(folder, out, model)
    assert (done.shards, done.written, done.missing) == (5, 5, 0)
    opened = vectors.open_vectors(out)
    assert [opened.names[i] for i in range(23)] == [f"{i:02d}.png" for i in range(23)]
    assert [len(part) for part in opened.parts] == [5, 5, 5, 5, 3]
    pixels = [np.asarray(Image.open(folder / f"{i:02d}.png")) for i in range(23)]
    expected = MeanColour().encode_pixels(pixels)
    np.testing.assert_array_equal(np.concatenate(opened.parts), expected)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["embedded"] == 23 and manifest["corrupt"] == 0
    assert manifest["dimension"] == 3 and manifest["dtype"] == "float32"
    (hits,) = Searcher(out, model).by_words("red", top_k=2)
    assert [hit.path for hit in hits] == [folder / "00.png", folder / "01.png"]


def test_again_makes_only_what_is_missing(folder, tmp_path):
    out = tmp_path / "vectors"
    run(folder, out)
    before = files_in(out)
    model = MeanColour()
    assert run(folder, out, model).written == 0 and model.num_encoded == 0
    (out / "vectors-00002.safetensors").unlink()
    assert run(folder, out, model).written == 1 and model.num_encoded == 5
    assert files_in(out) == before


def test_parts_make_up_the_whole(folder, tmp_path):
    run(folder, tmp_path / "whole")
    done = [run(folder, tmp_path / "parts", part=(i, 3)) for i in range(3)]
    assert [each.written for each in done] == [2, 2, 1]
    assert [each.missing for each in done] == [3, 1, 0]
    assert done[0].manifest is None and done[2].manifest["embedded"] == 23
    assert files_in(tmp_path / "whole") == files_in(tmp_path / "parts")


def test_half_precision(folder, tmp_path):
    run(folder, tmp_path / "full")
    run(folder, tmp_path / "half", dtype="float16")
    full, half = (vectors.open_vectors(tmp_path / name) for name in ("full", "half"))
    assert half.parts[0].dtype == np.float16
    expected = np.concatenate(full.parts).astype(np.float16)
    np.testing.assert_array_equal(np.concatenate(half.parts), expected)


def test_corrupt_images_are_counted_and_listed(folder, tmp_path):
    (folder / "03.png").write_bytes(b"no image")
    (folder / "22.png").unlink()
    (folder / "22.png").symlink_to(folder / "gone.png")
    for number in range(15, 20):  # a shard of nothing else
        (folder / f"{number}.png").write_bytes(b"")
    done = run(folder, tmp_path / "vectors")
    assert done.manifest["embedded"] == 16 and done.manifest["corrupt"] == 7
    text = (tmp_path / "vectors" / "corrupt.jsonl").read_text()
    listed = [json.loads(line) for line in text.splitlines()]
    numbers = (3, *range(15, 20), 22)
    assert [each["image"] for each in listed] == [f"{n:02d}.png" for n in numbers]
    assert "no such file" in listed[-1]["why"]
    opened = vectors.open_vectors(tmp_path / "vectors")
    assert len(opened) == sum(map(len, opened.parts)) == 16
    assert opened.names[3] == "04.png"


def test_tars_as_a_source(tmp_path):
    write_tar(tmp_path / "0.tar", img2dataset_members([7, 8, 9]))
    source = open_source(WebDatasetConfig(name="tars", path=str(tmp_path / "0.tar")))
    done = embed.embed(source, MeanColour(), tmp_path / "out", images_per_shard=2)
    assert done.manifest["embedded"] == 3 and done.manifest["root"] == ""
    assert vectors.open_vectors(tmp_path / "out").names[2] == "0.tar/000000009"


WORKER = """
import sys
from tests.search.test_embed import MeanColour, run
run(sys.argv[1], sys.argv[2], MeanColour(seconds=float(sys.argv[3])))
"""


def worker(folder, out, seconds):
    arguments = [sys.executable, "-c", WORKER, str(folder), str(out), str(seconds)]
    return subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_workers_at_once_and_one_killed_in_the_middle(folder, tmp_path):
    run(folder, tmp_path / "alone")
    out = tmp_path / "vectors"
    victim = worker(folder, out, 600)
    claim = out / embed.CLAIMS / "00000"
    until = time.monotonic() + 200
    while not claim.exists() and victim.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    # The living one keeps its shard, and others work beside it.
    first, second = worker(folder, out, 0.2), worker(folder, out, 0.2)
    for other in (first, second):
        assert other.wait(200) == 0, other.stderr.read()
    assert not (out / "vectors-00000.safetensors").exists()
    assert len(list(out.glob("vectors-*"))) == 4
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    for process in (victim, first, second):
        process.stderr.close()
    assert claim.exists() and not (out / "manifest.json").exists()
    with pytest.raises(UserError, match=r"1 of 5 shards .* vectors-00000"):
        vectors.open_vectors(out)
    model = MeanColour()
    assert run(folder, out, model).written == 1 and model.num_encoded == 5
    assert files_in(out) == files_in(tmp_path / "alone")


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_corrupt_shards_are_named(folder, tmp_path):
    out = tmp_path / "vectors"
    run(folder, out)
    shard = out / "vectors-00001.safetensors"
    whole = shard.read_bytes()
    for size in (0, 7, 40, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"00001\.safetensors is corrupt"):
            vectors.open_vectors(out)
    done = run(folder, out)
    assert done.written == 1 and done.replaced == (shard.name,)
    assert shard.read_bytes() == whole
    start = 8 + int.from_bytes(whole[:8], "little")
    plan = whole.index(b"plan")  # the name of a field
    for position in (9, plan, start // 2, start - 9, start + 5, len(whole) - 1):
        shard.write_bytes(whole)
        flip(shard, position)
        with pytest.raises(UserError, match="delete it and rerun the same"):
            vectors.open_vectors(out)
        assert run(folder, out).replaced == (shard.name,)
        assert shard.read_bytes() == whole
    other = tmp_path / "other"
    run(folder, other, MeanColour("two"))
    os.replace(other / shard.name, shard)
    with pytest.raises(UserError, match="made by another model"):
        vectors.open_vectors(out)


def test_another_plan_is_refused(folder, tmp_path):
    out = tmp_path / "vectors"
    run(folder, out)
    before = files_in(out)
    with pytest.raises(UserError, match="another model"):
        run(folder, out, MeanColour("two"))
    with pytest.raises(UserError, match="started with --dtype=float32"):
        run(folder, out, dtype="float16")
    with pytest.raises(UserError, match="started with --images-per-shard=5"):
        run(folder, out, images_per_shard=6)
    with pytest.raises(UserError, match="another model"):
        Searcher(out, MeanColour("two"))
    os.utime(folder / "00.png", ns=(1, 1))
    with pytest.raises(UserError, match="they have changed"):
        run(folder, out)
    (folder / "new.png").touch()
    with pytest.raises(UserError, match="23 images, now 24"):
        run(folder, out)
    assert files_in(out) == before


def test_folders_that_will_not_do(folder, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="holds something else"):
        run(folder, folder)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file is a file"):
        run(folder, tmp_path / "file")
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(UserError, match=r"none of the 1 images .* a\.png"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no embedding"):
        vectors.open_vectors(tmp_path / "out")
    with pytest.raises(UserError, match="there are no embeddings"):
        vectors.open_vectors(tmp_path / "empty")
    for text in ("[]", '{"format_version": 1}', "{"):
        (tmp_path / "out" / "plan.json").write_text(text)
        with pytest.raises(UserError, match="not a plan"):
            vectors.open_vectors(tmp_path / "out")


@pytest.mark.parametrize("version", [2, None])
def test_another_format_version_is_refused(folder, tmp_path, version):
    out = tmp_path / "vectors"
    run(folder, out)
    for name in ("plan.json", "manifest.json"):
        assert json.loads((out / name).read_text())["format_version"] == 1
    plan = json.loads((out / "plan.json").read_text())
    plan["format_version"] = version
    (out / "plan.json").write_text(json.dumps(plan))
    before = files_in(out)
    words = r"vectors has .*format_version.* reads format_version 1: rebuild it with"
    for call in (lambda: vectors.open_vectors(out), lambda: run(folder, out)):
        with pytest.raises(UserError, match=words):
            call()
    assert files_in(out) == before


def test_an_unwritable_folder(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "vectors"
    with monkeypatch.context() as patch:
        patch.setattr("vilem_jax.files.os.fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*no space left"):
            run(folder, out)
    assert not list(out.rglob("*vectors-*"))
    assert run(folder, out).written == 5


def test_searchers_refuse_with_a_sentence(folder, tmp_path):
    run(folder, tmp_path / "vectors")
    searcher = Searcher(tmp_path / "vectors", MeanColour())
    for words in ("", "  ", [], ["red", " "]):
        with pytest.raises(UserError, match="no word"):
            searcher.by_words(words)
    with pytest.raises(UserError, match="width 3"):
        searcher.by_vectors(np.ones((1, 4)))
    with pytest.raises(UserError, match="give the model"):
        Searcher(tmp_path / "vectors", None).by_words("red")
    hits = searcher.by_vectors(np.eye(3)[:2], top_k=99)
    assert [len(each) for each in hits] == [23, 23]
