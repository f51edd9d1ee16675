"""Index a folder and search it, with a model that sees mean colours."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vilem_jax import files
from vilem_jax.data.images import decode, resize_square
from vilem_jax.errors import UserError
from vilem_jax.search.index import index, load_index
from vilem_jax.search.query import search

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourModel:
    """Words name colours; the embedding of an image is its mean colour."""

    embedding_width = 3

    def __init__(self, fingerprint="one"):
        self.fingerprint = fingerprint
        self.encoder = SimpleNamespace(image_size=4, encode_pixels=self.encode_pixels)
        self.num_encoded = 0

    def encode_image(self, path):
        return self.encode_pixels([resize_square(decode(path.read_bytes()), 4)])

    def encode_pixels(self, images):
        means = np.array([image.mean(axis=(0, 1)) for image in images])
        self.num_encoded += len(means)
        return self._unit(means)

    def knows_a_word(self, text):
        return text in COLOURS

    def encode_text(self, words):
        return self._unit(np.array([COLOURS[text] for text in words]))

    def _unit(self, rows):
        rows = rows.astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    paint(folder / "b" / "red.PNG", (250, 20, 10))
    paint(folder / "a.jpg", (10, 20, 250))
    paint(folder / "b" / "purple.webp", (200, 10, 200))
    paint(folder / ".hidden" / "green.png", (0, 255, 0))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_words_and_images_find_their_like(folder, tmp_path):
    model, out = ColourModel(), tmp_path / "photos.npz"
    report = index(folder, model, out)
    assert (report.images, report.encoded, report.corrupt) == (3, 3, ())
    hits = search(out, model, words="red", top_k=2)
    assert [hit.path.name for hit in hits] == ["red.PNG", "purple.webp"]
    assert hits[0].path == folder / "b" / "red.PNG"
    assert 1 >= hits[0].score >= hits[1].score
    hits = search(out, model, image=folder / "a.jpg", top_k=99)
    assert len(hits) == 3 and hits[0].path.name == "a.jpg"
    assert hits[0].score == pytest.approx(1, abs=1e-3)


def test_indexing_again_encodes_only_what_changed(folder, tmp_path):
    model, out = ColourModel(), tmp_path / "photos.npz"
    index(folder, model, out)
    content = out.read_bytes()
    assert index(folder, model, out).encoded == 0
    assert model.num_encoded == 3
    assert out.read_bytes() == content
    paint(folder / "new.png", (0, 200, 0))
    paint(folder / "a.jpg", (9, 200, 9))
    os.utime(folder / "a.jpg", ns=(1, 1))
    (folder / "b" / "purple.webp").unlink()
    report = index(folder, model, out)
    assert (report.images, report.encoded, report.removed) == (3, 2, 1)
    assert search(out, model, words="green")[0].path.name in ("new.png", "a.jpg")
    again = index(folder, ColourModel("two"), out)
    assert again.encoded == 3
    assert load_index(out).fingerprint == "two"


def test_corrupt_images_are_reported_and_left_out(folder, tmp_path):
    model, out = ColourModel(), tmp_path / "photos.npz"
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "empty.png").touch()
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    report = index(folder, model, out)
    assert report.images == 3
    names = [path for path, _ in report.corrupt]
    assert names == ["corrupt.jpg", "empty.png", "nowhere.png"]
    reasons = [reason for _, reason in report.corrupt]
    assert all(why.startswith("not an image of a known") for why in reasons[:2])
    assert reasons[2] == "no such file or directory"


def test_all_that_is_left_out_is_counted(folder, tmp_path):
    for name in ("a.heic", "b.HEIC", "c.avif", "noending", "._a.jpg"):
        (folder / name).touch()
    (folder / "elsewhere").symlink_to(tmp_path)
    report = index(folder, ColourModel(), tmp_path / "photos.npz")
    (note,) = report.notes
    start, *counts = note.replace(": ", ", ").split(", ")
    assert start == "left out" and sorted(counts) == [
        "1 .avif",
        "1 .txt",
        "1 links to folders",
        "1 without ending",
        "2 .heic",
        "2 hidden",
    ]
    assert report.images == 3


def test_what_is_no_file_is_left_out_with_its_reason(folder, tmp_path):
    (folder / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(3 << 30)
    report = index(folder, ColourModel(), tmp_path / "photos.npz")
    assert report.corrupt == (
        ("endless.png", "it is a device, not a file"),
        ("pipe.jpg", "it is a pipe, not a file"),
        ("sparse.jpg", "it is larger than 256 MiB"),
    )


def test_a_stop_leaves_the_index_before(folder, tmp_path, monkeypatch):
    model, out = ColourModel(), tmp_path / "photos.npz"
    index(folder, model, out)
    content = out.read_bytes()
    paint(folder / "new.png", (0, 200, 0))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        index(folder, model, out)
    assert out.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "photos.npz"]


def test_nothing_is_taken_for_removed_that_cannot_be_listed(
    folder, tmp_path, monkeypatch
):
    out = tmp_path / "photos.npz"
    index(folder, ColourModel(), out)
    before, scandir = out.read_bytes(), os.scandir

    def deny(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match=r"cannot list .*/photos/b: permission denied"):
        index(folder, ColourModel(), out)
    assert out.read_bytes() == before


def test_where_the_index_cannot_be_written_nothing_is_encoded(folder, tmp_path):
    (tmp_path / "file").touch()
    model = ColourModel()
    with pytest.raises(UserError, match="cannot write"):
        index(folder, model, tmp_path / "file" / "photos.npz")
    assert model.num_encoded == 0


def test_another_model_is_refused(folder, tmp_path):
    out = tmp_path / "photos.npz"
    index(folder, ColourModel("one"), out)
    with pytest.raises(UserError, match="another model"):
        search(out, ColourModel("two"), words="red")


@pytest.mark.parametrize("version", [2, None])
def test_another_format_version_is_refused(folder, tmp_path, monkeypatch, version):
    model, out = ColourModel(), tmp_path / "photos.npz"
    monkeypatch.setattr("vilem_jax.search.index.FORMAT_VERSION", version)
    index(folder, model, out)
    monkeypatch.undo()
    before = out.read_bytes()
    words = r"photos\.npz has .*format_version.* reads format_version 1: delete it and"
    for call in (
        lambda: search(out, model, words="red"),
        lambda: index(folder, model, out),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert out.read_bytes() == before


def test_wrong_folders_and_files_are_refused(folder, tmp_path):
    model = ColourModel()
    with pytest.raises(UserError, match="no folder"):
        index(tmp_path / "none", model, tmp_path / "out.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        index(tmp_path / "empty", model, tmp_path / "out.npz")
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(UserError, match="none of the 1 images"):
        index(tmp_path / "empty", model, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
    letter = tmp_path / "letter.npz"
    letter.write_text("Dear friend")
    for call in (
        lambda: search(letter, model, words="red"),
        lambda: index(folder, model, letter),
    ):
        with pytest.raises(UserError, match=r"letter\.npz is not an index"):
            call()
    assert letter.read_text() == "Dear friend"
    with pytest.raises(UserError, match="there is no index"):
        search(tmp_path / "none.npz", model, words="red")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({}, "one of the two"),
        ({"words": "red", "image": "a.jpg"}, "one of the two"),
        ({"words": " "}, "no word"),
        ({"words": "red", "top_k": 0}, "top_k is 0"),
    ],
)
def test_questions_that_cannot_be_answered(query, words):
    with pytest.raises(UserError, match=words):
        search("index.npz", ColourModel(), **query)
