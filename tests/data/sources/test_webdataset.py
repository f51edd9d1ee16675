"""R14: img2dataset's tars by offset; what is corrupt is left out and reported."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from tests.data.make_files import img2dataset_members, make_image, write_tar
from vilem_jax.config.sources import WebDatasetConfig
from vilem_jax.data.images import decode
from vilem_jax.data.sources import webdataset
from vilem_jax.data.sources.source import caption_counts, open_source
from vilem_jax.errors import UserError


def config(path, **settings) -> WebDatasetConfig:
    return WebDatasetConfig(name="cc3m", path=str(path), **settings)


def records(source) -> list[tuple[str, str]]:
    return [(source.image_name(i), source.captions(i)[0]) for i in range(len(source))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Indexes that cannot lie beside the data go here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    write_tar(tmp_path / "00000.tar", img2dataset_members(range(3)))
    write_tar(tmp_path / "00001.tar", img2dataset_members(range(3, 5)))
    return tmp_path


def test_reads_all_tars_in_order(folder):
    source = open_source(config(folder / "*.tar"))
    assert records(source) == [
        (f"{i // 3:05d}.tar/{i:09d}", f"caption {i}") for i in range(5)
    ]
    assert caption_counts(source).tolist() == [1] * 5 and source.notes == ()
    for i in range(5):
        assert source.read_image(i) == make_image(i, form="JPEG")
    assert len(open_source(config(folder / "*.tar", num_images=4))) == 4
    with pytest.raises(IndexError):
        open_source(config(folder / "*.tar", num_images=4)).captions(4)


def test_indexes_once(folder, monkeypatch):
    before = records(open_source(config(folder / "*.tar")))
    assert (folder / "00000.tar.pairs.vilem-index.npz").exists()
    monkeypatch.setattr(webdataset, "_scan", None)
    source = open_source(config(folder / "*.tar"))
    assert records(source) == before
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read_image(4) == source.read_image(4)


def test_a_changed_tar_is_indexed_again(folder):
    open_source(config(folder / "*.tar"))
    write_tar(folder / "00001.tar", img2dataset_members(range(7, 8)))
    os.utime(folder / "00001.tar", ns=(1, 1))
    assert records(open_source(config(folder / "*.tar")))[3:] == [
        ("00001.tar/000000007", "caption 7")
    ]


def test_a_corrupt_index_is_rebuilt(folder):
    expected = records(open_source(config(folder / "*.tar")))
    index = folder / "00000.tar.pairs.vilem-index.npz"
    content = index.read_bytes()
    for size in (0, 10, len(content) // 2):
        index.write_bytes(content[:size])
        assert records(open_source(config(folder / "*.tar"))) == expected


def test_index_of_read_only_data_is_stored_in_the_cache(folder, cache, monkeypatch):
    real = webdataset.load_or_build.__globals__["replacing"]

    def replacing(file):
        if cache not in file.parents:
            raise PermissionError(file)
        return real(file)

    monkeypatch.setitem(webdataset.load_or_build.__globals__, "replacing", replacing)
    open_source(config(folder / "*.tar"))
    assert len(list(cache.rglob("*.vilem-index.npz"))) == 2
    assert not list(folder.glob("*.vilem-index.npz"))


def test_captions_without_a_txt_come_from_json(tmp_path):
    members = [m for m in img2dataset_members(range(2)) if not m[0].endswith(".txt")]
    source = open_source(config(write_tar(tmp_path / "a.tar", members)))
    assert records(source)[1] == ("a.tar/000000001", "caption 1")


def test_incomplete_and_double_members(tmp_path):
    members = [
        *img2dataset_members([0]),
        ("000000001.jpg", make_image(1)),  # no caption
        ("000000002.txt", b"no image"),
        ("000000003.jpg", make_image(3)),
        ("000000003.json", b'{"caption": null'),  # and no caption in it
        ("000000000.txt", b"a second caption of 0"),
        ("000000000.jpg", make_image(9)),
    ]
    source = open_source(config(write_tar(tmp_path / "a.tar", members)))
    assert records(source) == [("a.tar/000000000", "caption 0")]
    assert source.read_image(0) == make_image(0, form="JPEG")
    assert source.notes == (
        "2 members repeat a key and ending; the first counts",
        "3 keys lack an image or a caption; left out",
    )


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "../x", "a/../../evil"])
def test_names_are_never_paths(tmp_path, name):
    inside = tmp_path / "deep" / "data"
    inside.mkdir(parents=True)
    members = [(f"{name}.jpg", make_image(1)), (f"{name}.txt", b"evil")]
    source = open_source(config(write_tar(inside / "a.tar", members)))
    source.read_image(0)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"a.tar", "a.tar.pairs.vilem-index.npz"}
    assert not os.path.exists("/tmp/evil.jpg")


def test_cut_at_every_block_gives_the_members_before(tmp_path):
    file = write_tar(tmp_path / "whole.tar", img2dataset_members(range(3)))
    content = file.read_bytes()
    with tarfile.open(file) as archive:
        ends = [m.offset_data + m.size for m in archive if m.name.endswith(".txt")]
    last = max(ends)
    other = write_tar(tmp_path / "b.tar", img2dataset_members([7]))
    assert other.exists()
    for size in range(0, len(content), 512):
        (tmp_path / "a.tar").write_bytes(content[:size])
        source = open_source(config(tmp_path / "[ab].tar"))
        whole = sum(end <= size for end in ends)
        expected = [*range(whole), 7]
        # json stands before txt, so a caption may be had before its txt is.
        captions = [source.captions(i)[0] for i in range(len(source))]
        assert [c for c in captions if c == f"caption {7}"]
        assert {f"caption {i}" for i in expected} <= set(captions)
        for i in range(len(source)):
            number = int(source.captions(i)[0].split()[1])
            assert source.read_image(i) == make_image(number, form="JPEG")
        is_cut = size < last + 2 * 512
        assert any("a.tar at byte" in note for note in source.notes) == is_cut, size


def test_flipped_bytes_never_fail(tmp_path):
    content = np.frombuffer(
        write_tar(tmp_path / "w.tar", img2dataset_members(range(3))).read_bytes(),
        np.uint8,
    )
    write_tar(tmp_path / "b.tar", img2dataset_members([7]))
    rng = np.random.default_rng(0)
    for _ in range(150):
        corrupt = content.copy()
        # Corrupt headers have the largest effect.
        offsets = rng.integers(0, len(content) // 512, 3) * 512 + rng.integers(
            0, 512, 3
        )
        corrupt[offsets] = rng.integers(0, 256, 3)
        (tmp_path / "a.tar").write_bytes(corrupt.tobytes())
        source = open_source(config(tmp_path / "[ab].tar"))
        for i in range(len(source)):
            source.captions(i)
            source.read_image(i)


def test_sizes_that_lead_back_end_the_tar(tmp_path):
    """A size below 0 would lead `tarfile` around in a circle."""
    content = bytearray(
        write_tar(tmp_path / "a.tar", img2dataset_members(range(2))).read_bytes()
    )
    header = content[:512]
    header[124:136] = b"\xff" * 8 + (-512 & 0xFFFFFFFF).to_bytes(4, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[:512] = header
    (tmp_path / "a.tar").write_bytes(content)
    write_tar(tmp_path / "b.tar", img2dataset_members([7]))
    source = open_source(config(tmp_path / "*.tar"))
    assert len(source) == 1 and "a.tar at byte 0" in source.notes[0]


def test_a_tar_that_shrinks_afterwards_is_an_os_error(folder):
    source = open_source(config(folder / "00000.tar"))
    os.truncate(folder / "00000.tar", 1024)
    with pytest.raises(OSError, match="shorter"):
        source.read_image(2)


def test_non_tars_are_refused_in_one_sentence(folder):
    with pytest.raises(UserError, match=r"no tar matches .*\*.tar.none"):
        open_source(config(folder / "*.tar.none"))
    with pytest.raises(UserError, match="tars have no split 'train'"):
        open_source(config(folder / "*.tar", split="train"))
    packed = io.BytesIO((folder / "00000.tar").read_bytes())
    (folder / "c.tar").write_bytes(gzip.compress(packed.getvalue()))
    with pytest.raises(UserError, match=r"c.tar is compressed"):
        open_source(config(folder / "c.tar"))
    (folder / "d.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(UserError, match="no image has a caption"):
        open_source(config(folder / "d.tar"))


def test_images_are_whole(folder):
    source = open_source(config(folder / "00001.tar"))
    assert decode(source.read_image(0)).shape == (20, 24, 3)
