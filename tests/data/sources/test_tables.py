"""Tables with named columns: CSV, TSV, and the metadata of an imagefolder."""

import json

import pytest

from tests.data.make_files import make_image, write_zip
from vilem_jax.cli.options import kind_of
from vilem_jax.config.sources import CsvConfig, ImageFolderConfig
from vilem_jax.data.sources.source import notes_of, open_source
from vilem_jax.errors import UserError

EXPECTED = [("a.png", ("a dog", "one dog")), ("b.png", ("a cat, \nasleep",))]


@pytest.fixture
def folder(tmp_path):
    for name, value in (("a.png", 10), ("b.png", 20)):
        (tmp_path / name).write_bytes(make_image(value))
    return tmp_path


def written(folder, text, name="a.csv", encoding="utf-8"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(text.encode(encoding))
    return str(folder / name)


def records(source):
    return [(source.image_name(i), source.captions(i)) for i in range(len(source))]


def opened(path, **settings):
    return open_source(CsvConfig(name="mine", path=path, **settings))


def refused(path, **settings):
    with pytest.raises(UserError) as found:
        opened(path, **settings)
    return str(found.value).replace(path, "FILE")


@pytest.mark.parametrize(
    "header", ["image,caption", "filepath,title", "file_name,text", "Image Path, TEXT"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_usual_columns_in_any_encoding(folder, header, encoding):
    rows = 'a.png,a dog\r\n\r\nb.png,"a cat, \nasleep"\r\n./a.png,one dog\r\n'
    source = opened(written(folder, f"{header}\r\n{rows}", encoding=encoding))
    assert records(source) == EXPECTED and source.notes == ()
    assert source.read_image(1) == make_image(20) and source.has_image(0)


def test_tabs_by_the_ending_and_any_delimiter(folder):
    rows = "image\tcaption\na.png\ta, dog\n"
    for path, settings in (
        (written(folder, rows, "a.tsv"), {}),
        (written(folder, rows, "a.txt"), {"delimiter": "\t"}),
        (written(folder, rows.replace("\t", "|")), {"delimiter": "|"}),
    ):
        assert records(opened(path, **settings)) == [("a.png", ("a, dog",))]
    path = written(folder, "image;caption\na.png;a dog\n")
    assert "has one column, 'image;caption': set `delimiter` to ';'" in refused(path)
    assert "must be one character" in refused(path, delimiter=";;")
    assert [kind_of(f"x.{end}") for end in ("csv", "tsv", "jsonl")] == [
        *("csv", "csv", "json")
    ]


def test_other_columns_are_named_by_settings(folder):
    path = written(folder, "photo,words,part\na.png,a dog,x\nb.png,a cat,y\n")
    has = "set `image_column` to one of photo, words, part"
    assert f"FILE: no column is known as that of the images: {has}" in refused(path)
    why = refused(path, image_column="photo")
    assert "the captions: set `caption_column` to one of photo, words" in why
    named = {"image_column": "photo", "caption_column": "words"}
    why = refused(path, **named, split_column="party")
    assert "has no column 'party': set `split_column` to one of photo" in why
    source = opened(path, **named, split_column="part", split="y")
    assert records(source) == [("b.png", ("a cat",))]
    both = written(folder, "filename,filepath,text\na.png,b.png,a dog\n")
    assert "both 'filename' and 'filepath' may be known" in refused(both)


def test_splits_ids_and_blank_captions(folder):
    rows = "a.png,a dog,train,1\nb.png,a cat,training,2\na.png, ,train,1\nb.png,x,,\n"
    path = written(folder, "image,caption,split,image_id\n" + rows)
    assert opened(path, split="train").notes == (
        "1 blank captions left out",
        "rows left out, split is 'restval+train': 1 of 'training', 1 without a split",
    )
    assert "no split 'val'; rows: 2 of 'train'" in refused(path, split="val")
    path = written(folder, "image,caption,image_id\na.png,a dog,1\nb.png,a cat,1\n")
    assert "line 3: image_id '1' stands for two images" in refused(path)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a.png,a dog, brown\n", "row at line 2 has 3 fields, the first line has 2"),
        ('a.png,"a\ndog"\n\nb.png\n', "row at line 5 has 1 fields"),
        ('a.png,"a dog\n', "is a quotation mark left open?"),
        (",a dog\n", "line 2 has 'image' = '', which is not the name of an image"),
        ("", "holds no rows"),
        ("a.png,\n", "no image has a caption; 1 images without a caption left out"),
    ],
)
def test_rows_that_cannot_be_read_are_named(folder, rows, sentence):
    assert sentence in refused(written(folder, "image,caption\n" + rows))


def test_a_table_inside_a_zip(tmp_path):
    table = b"image,caption\na.png,a dog\n"
    members = {"x/a.csv": table, "a.png": make_image(3)}
    file = write_zip(tmp_path / "all.zip", members)
    source = opened(str(file / "x/a.csv"))
    assert source.read_image(0) == make_image(3)
    assert kind_of(str(file / "x/a.csv")) == "csv"


# ---- imagefolder ----


def folder_of(path, **settings):
    return open_source(ImageFolderConfig(name="mine", path=str(path), **settings))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ROWS = [
    {"file_name": "a.png", "text": "a dog"},
    {"file_name": "b.png", "text": "a cat, \nasleep"},
    {"file_name": "a.png", "text": "one dog"},
]


def test_an_imagefolder_by_its_folder_or_file(folder):
    for name, text in (
        ("metadata.jsonl", lines(*ROWS)),
        (
            "metadata.csv",
            'file_name,text\na.png,a dog\nb.png,"a cat, \nasleep"\na.png,one dog\n',
        ),
    ):
        file = written(folder, text, name)
        for path in (folder, file):
            assert kind_of(str(path)) == "imagefolder"
            source = folder_of(path)
            assert records(source) == EXPECTED
            assert source.read_image(1) == make_image(20)
        (folder / name).rename(folder / "x")
    written(folder, lines(*ROWS), "metadata.jsonl")
    written(folder, "file_name,text\n", "metadata.csv")
    with pytest.raises(UserError, match=r"holds metadata.jsonl and metadata.csv"):
        folder_of(folder)


def test_folders_of_an_imagefolder_are_splits(folder):
    for split in ("train", "validation", "test"):
        written(
            folder,
            lines({"file_name": "a.png", "caption": [split, "x"]}),
            f"{split}/metadata.jsonl",
        )
        (folder / split / "a.png").write_bytes(make_image(len(split)))
    assert kind_of(str(folder)) == "imagefolder"
    assert len(folder_of(folder)) == 3
    source = folder_of(folder, split="validation")
    assert records(source) == [("validation/a.png", ("validation", "x"))]
    assert source.read_image(0) == make_image(len("validation"))
    assert notes_of([source]) == []
    with pytest.raises(UserError, match="no split 'val'; rows: 1 of 'test', 1 of 'tr"):
        folder_of(folder, split="val")


def test_an_imagefolder_without_metadata_is_refused(folder):
    with pytest.raises(UserError, match=r'holds no metadata.jsonl or .*"file_name"'):
        folder_of(folder)
    with pytest.raises(UserError, match="is not a folder with images"):
        folder_of(folder / "nowhere")
    written(folder, "[1]", "metadata.jsonl")
    with pytest.raises(UserError, match="does not hold objects, one a line"):
        folder_of(folder)
    written(folder, lines({"file_name": "a.png", "words": "a dog"}), "metadata.jsonl")
    with pytest.raises(UserError, match=r"`caption_column` to one of file_name, words"):
        folder_of(folder)
    assert len(folder_of(folder, caption_column="words")) == 1
    written(folder, lines(*ROWS, {"file_name": "a.png"}), "metadata.jsonl")
    with pytest.raises(UserError, match=r"line 4 has no 'text' \(it has: file_name\)"):
        folder_of(folder)
