"""Data sets of Hugging Face: Parquet, and what `save_to_disk` writes."""

import json
import pickle

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.make_files import make_image, save_to_disk
from vilem_jax.cli.options import kind_of
from vilem_jax.config.sources import HuggingFaceConfig
from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.errors import UserError

PNG = [make_image(value) for value in range(4)]


def table(rows, **more):
    """Rows of (value of the image, path, caption)."""
    images = [{"bytes": PNG[value], "path": path} for value, path, _ in rows]
    return pa.table({"image": images, "text": [row[2] for row in rows], **more})


def write(file, content, **settings):
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, file, **settings)
    return file


def opened(path, **settings):
    return open_source(HuggingFaceConfig(name="mine", path=str(path), **settings))


def records(source):
    return [(source.image_name(i), source.captions(i)) for i in range(len(source))]


def refused(path, **settings):
    with pytest.raises(UserError) as found:
        opened(path, **settings)
    return str(found.value)


ROWS = [(0, "a.png", "a dog"), (1, "b.png", "a cat"), (0, "a.png", "one dog")]
EXPECTED = [("a.png", ("a dog", "one dog")), ("b.png", ("a cat",))]


@pytest.mark.parametrize("rows_each", [1, 2, 3])
def test_rows_of_one_image_in_either_format(tmp_path, rows_each):
    file = write(tmp_path / "a.parquet", table(ROWS), row_group_size=rows_each)
    saved = save_to_disk(tmp_path / "saved", table(ROWS), rows_each)
    for path in (file, saved, tmp_path / "*.parquet"):
        source = opened(path)
        assert isinstance(source, Source) and records(source) == EXPECTED
        copy = pickle.loads(pickle.dumps(source))
        assert [copy.read_image(i) for i in (1, 0)] == [PNG[1], PNG[0]]
        assert records(opened(path)) == EXPECTED  # by the stored checksums
        assert records(opened(path, num_images=1)) == EXPECTED[:1]
    assert [kind_of(str(path)) for path in (file, saved)] == ["huggingface"] * 2


def test_images_of_one_file_name_are_compared_by_their_bytes(tmp_path):
    rows = [(0, "1.png", "a dog"), (1, "1.png", "a cat"), (1, "1.png", "one cat")]
    source = opened(write(tmp_path / "a.parquet", table(rows)))
    assert [source.captions(i) for i in range(2)] == [("a dog",), ("a cat", "one cat")]
    assert (
        source.read_image(1) == PNG[1] and len({*map(source.image_name, (0, 1))}) == 2
    )
    nameless = [(0, None, "a dog"), (0, None, "one dog")]
    names = [
        name
        for name, _ in records(opened(write(tmp_path / "b.parquet", table(nameless))))
    ]
    assert names == ["b/0", "b/1"]
    ids = write(tmp_path / "c.parquet", table(nameless, image_id=[7, 7]))
    assert records(opened(ids)) == [("7", ("a dog", "one dog"))]


def test_splits_by_folder_file_or_column(tmp_path):
    parts = {"train": ROWS, "test": [(2, "a.png", "a bird")]}
    hub, saved = tmp_path / "hub", tmp_path / "saved"
    for split, rows in parts.items():
        write(hub / f"data/{split}-00000-of-00001.parquet", table(rows))
        save_to_disk(saved / split, table(rows))
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": [*parts]}))
    column = ["train"] * 3 + ["test"]
    rows = parts["train"] + parts["test"]
    one = write(tmp_path / "one.parquet", table(rows, split=column))
    for path in (hub, saved, one):
        assert records(opened(path, split="train")) == EXPECTED
        source = opened(path, split="test")
        assert source.captions(0) == ("a bird",) and len(source) == 1
        assert source.read_image(0) == PNG[2] and source.notes == ()
        assert len(opened(path)) == 3
        why = refused(path, split="val")
        assert "has no split 'val'" in why and "3 of 'train'" in why


def test_bytes_paths_and_lists_of_captions(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG[3])
    texts = [["a dog", "one dog"], None]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    structs = pa.array([{"bytes": None, "path": "x.png"}] * 2, kind)
    for images in (PNG[3:] * 2, structs, ["x.png"] * 2):
        content = pa.table({"jpg": images, "caption": texts})
        settings = {"image_column": "jpg"} if images[0] == "x.png" else {}
        source = opened(write(tmp_path / "a.parquet", content), **settings)
        assert source.captions(0) == ("a dog", "one dog") and len(source) == 1
        assert source.read_image(0) == PNG[3]
    (tmp_path / "x.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read_image(0)


def test_what_cannot_be_read_is_refused(tmp_path):
    words = pa.table({"image": PNG[:1], "words": ["a dog"]})
    file = write(tmp_path / "a.parquet", words)
    assert "`caption_column` to one of image, words" in refused(file)
    assert len(opened(file, caption_column="words")) == 1
    numbers = pa.table({"image": PNG[:1], "text": [3]})
    assert "must hold texts" in refused(write(tmp_path / "b.parquet", numbers))
    write(tmp_path / "two/0.parquet", table(ROWS))
    write(tmp_path / "two/1.parquet", words)
    assert "1.parquet has no column 'image' as 0.parquet has" in refused(
        tmp_path / "two"
    )
    file.write_bytes(b"PAR1" + bytes(range(100)))
    assert "is not an intact Arrow or Parquet file" in refused(file)
    assert "cannot be read" in refused(tmp_path / "none.parquet")
    assert "holds no data set" in refused(tmp_path / "nothing")
    saved = save_to_disk(tmp_path / "saved", table(ROWS))
    (saved / "state.json").write_text("{}")
    assert "lists no files" in refused(saved)
