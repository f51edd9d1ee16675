"""`vilem data prepare`: the result has all records once, or does not exist."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.make_files import (
    img2dataset_members,
    make_image,
    pair_folder,
    write_json,
    write_tar,
    write_zip,
)
from vilem_jax.cli.main import main
from vilem_jax.config.sources import JsonConfig, TfdsConfig
from vilem_jax.data.images import decode, fit_short_side
from vilem_jax.data.prepare import local as preparing
from vilem_jax.data.prepare.local import prepare
from vilem_jax.data.prepare.records import Settings
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.sources.source import open_source
from vilem_jax.errors import UserError


def run(*arguments) -> int:
    return main(["data", "prepare", *map(str, arguments), "--workers=1"])


def opened(folder, split=""):
    return open_source(TfdsConfig(path=str(folder), split=split))


def listed(source) -> list[tuple[str, tuple[str, ...]]]:
    return [(source.image_name(i), source.captions(i)) for i in range(len(source))]


def encoded(size, form="PNG", mode="RGB", **settings) -> bytes:
    content = io.BytesIO()
    width, height = size
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 4), np.uint8)
    Image.fromarray(noise).convert(mode).save(content, form, **settings)
    return content.getvalue()


def rotated() -> bytes:
    """80 x 40 pixels in the file, 40 x 80 when shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded((80, 40), "JPEG", exif=exif)


def files_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def mixed(tmp_path):
    """Images above, at and below a short side of 32, of several kinds."""
    contents = {
        "large.png": encoded((90, 60)),
        "tall.jpg": encoded((33, 200), "JPEG"),
        "alpha.png": encoded((64, 64), mode="RGBA"),
        "grey.png": encoded((40, 50), mode="L"),
        "rotated.jpg": rotated(),
        "equal.png": encoded((32, 90)),
        "small.webp": encoded((20, 10), "WEBP"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rows = [
        {"image": name, "caption": [f"ä {name}", "\U0001f600 two"][: 1 + index % 2]}
        for index, name in enumerate(contents)
    ]
    return contents, write_json(tmp_path, rows)


def test_round_trip_of_names_captions_and_sizes(mixed, tmp_path, capsys):
    contents, file = mixed
    out = tmp_path / "packed" / "Mixed-32"
    assert run(file, f"--out={out}", "--short-side=32") == 0
    assert "7 images (5 resized, 2 kept" in capsys.readouterr().out
    before = open_source(JsonConfig(path=str(file)))
    after = opened(out, "train")
    assert listed(after) == listed(before)
    for index, content in enumerate(contents.values()):
        height, width = decode(content).shape[:2]
        found = after.read_image(index)
        if min(height, width) <= 32:
            assert found == content
            continue
        scale = 32 / min(height, width)
        assert decode(found).shape[:2] == (round(height * scale), round(width * scale))
        assert found[:3] == b"\xff\xd8\xff"
    assert not Path(f"{out}.partial").exists()
    assert "tensorflow" not in sys.modules


def test_images_are_resized_with_pillows_bicubic():
    content = encoded((90, 60))
    found, is_resized = fit_short_side(content, 30, 90)
    with Image.open(io.BytesIO(content)) as whole:
        expected = io.BytesIO()
        whole.resize((45, 30), Image.Resampling.BICUBIC).save(
            expected, "JPEG", quality=90
        )
    assert is_resized and found == expected.getvalue()
    assert len(fit_short_side(content, 30, 20)[0]) < len(found)
    array = np.zeros((9, 7, 3), np.uint8)
    kept, is_resized = fit_short_side(array, 30, 90)
    np.testing.assert_array_equal(decode(kept), array)
    assert not is_resized


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path):
    splits = {
        split: [ScenesSource(split, num_images=10)] for split in ("train", "test")
    }
    settings = Settings(short_side=40, images_per_shard=4)
    report = prepare(splits, tmp_path / "a" / "x", settings)
    prepare(splits, tmp_path / "b" / "x", settings, num_workers=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert report["splits"]["train"]["shards"] == 3
    for split, (source,) in splits.items():
        found = opened(tmp_path / "a" / "x", split)
        assert listed(found) == listed(source)
        assert decode(found.read_image(9)).shape == (40, 40, 3)
    ids = [record["image_id"] for record in opened(tmp_path / "b" / "x")._data.get()]
    assert ids == list(range(20))


def test_an_interrupted_run_resumes(tmp_path, monkeypatch):
    source = ScenesSource("train", num_images=10)
    settings = Settings(short_side=40, images_per_shard=2)
    prepare({"train": [source]}, tmp_path / "whole" / "x", settings)
    written, fails_at = [], 3
    write = preparing._write_shard

    def failing(partial, records, shard):
        if len(written) == fails_at:
            raise OSError(28, "No space left on device")
        written.append(shard.number)
        return write(partial, records, shard)

    monkeypatch.setattr(preparing, "_write_shard", failing)
    out = tmp_path / "again" / "x"
    with pytest.raises(UserError, match=r"cannot write .*x: no space left on device"):
        prepare({"train": [source]}, out, settings)
    assert not out.exists() and written == [0, 1, 2]
    (out.parent / "x.partial" / "shards" / "train-00001").write_bytes(b"cut")
    with pytest.raises(UserError, match="half a preparation of other data"):
        prepare({"train": [source]}, out, Settings(41, images_per_shard=2))
    with pytest.raises(UserError, match="half a preparation of other data"):
        other = ScenesSource("train", num_images=10, seed=1)
        prepare({"train": [other]}, out, settings)
    fails_at = None
    prepare({"train": [source]}, out, settings)
    assert written == [0, 1, 2, 1, 3, 4]  # 1 was corrupted
    assert files_of(out) == files_of(tmp_path / "whole" / "x")


def test_corrupt_images_are_left_out_and_counted(tmp_path, capsys):
    file = pair_folder(tmp_path / "in", 6)
    (tmp_path / "in" / "1.png").write_bytes(b"no image")
    (tmp_path / "in" / "4.png").unlink()
    out = tmp_path / "out"
    assert run(file, f"--out={out}", "--images-per-shard=1") == 0
    assert "2 images left out, such as 1.png" in capsys.readouterr().err
    assert [name for name, _ in listed(opened(out))] == [
        "0.png",
        "2.png",
        "3.png",
        "5.png",
    ]
    report = json.loads((out / "prepared.json").read_text())["splits"]["train"]
    assert (report["images"], report["left_out"], report["shards"]) == (4, 2, 4)
    assert [e["image"] for e in report["left_out_examples"]] == ["1.png", "4.png"]
    assert report["left_out_examples"][1]["why"] == "missing"


def test_splits_by_name_and_by_source(tmp_path):
    karpathy = {
        "images": [
            {"filename": f"{i}.png", "split": split, "sentences": [{"raw": f"c {i}"}]}
            for i, split in enumerate(("train", "restval", "val", "test"))
        ]
    }
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(make_image(i))
    file = write_json(tmp_path, karpathy)
    assert run(file, f"--out={tmp_path / 'a'}", "--split=train", "--split=val") == 0
    assert [n for n, _ in listed(opened(tmp_path / "a", "train"))] == ["0.png", "1.png"]
    assert [n for n, _ in listed(opened(tmp_path / "a", "val"))] == ["2.png"]
    other = pair_folder(tmp_path / "more", 2)
    out = tmp_path / "b"
    assert run(f"train={file}", f"train={other}", f"val={other}", f"--out={out}") == 0
    assert len(opened(out, "train")) == 6 and len(opened(out, "val")) == 2


def test_zips_of_coco_are_read(tmp_path):
    """captions_*.json inside a zip, images in a folder inside another."""
    names = [f"COCO_{i}.jpg" for i in range(3)]
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "caption": f"c {i}"} for i in range(3)],
    }
    inside = "annotations/captions_train2014.json"
    notes = write_zip(tmp_path / "notes.zip", {inside: json.dumps(coco).encode()})
    members = {f"train2014/{n}": make_image(i) for i, n in enumerate(names)}
    write_zip(tmp_path / "train2014.zip", members | {"train2014/": b""})
    out = tmp_path / "a"
    images = f"--images={tmp_path / 'train2014.zip'}"
    assert run(f"train={notes}/{inside}", images, f"--out={out}") == 0
    assert listed(opened(out)) == [(n, (f"c {i}",)) for i, n in enumerate(names)]
    assert decode(opened(out).read_image(2))[0, 0, 0] == 2

    karpathy = {
        "images": [
            {"filepath": "train2014", "filename": n, "sentences": [{"raw": "c"}]}
            for n in names
        ]
    }
    file = write_json(tmp_path, karpathy)
    assert run(file, f"--out={tmp_path / 'b'}") == 0  # train2014.zip is next to it
    assert len(opened(tmp_path / "b")) == 3


def test_tars_are_read(tmp_path):
    write_tar(tmp_path / "00000.tar", img2dataset_members(range(3)))
    write_tar(tmp_path / "00001.tar", img2dataset_members(range(3, 5)))
    assert run(tmp_path / "*.tar", f"--out={tmp_path / 'cc'}") == 0
    source = opened(tmp_path / "cc")
    assert listed(source)[4] == ("00001.tar/000000004", ("caption 4",))


def test_wrong_arguments_are_one_sentence(tmp_path, capsys):
    file = pair_folder(tmp_path / "in", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "a_file").write_text("mine")
    out = f"--out={tmp_path / 'out'}"
    cases = {
        "holds something else": (file, f"--out={tmp_path / 'full'}"),
        "a_file holds something else": (file, f"--out={tmp_path / 'a_file'}"),
        "is a file where a folder is needed": (file, f"--out={tmp_path / 'a_file/x'}"),
        "--short-side=15 is below 16": (file, out, "--short-side=15"),
        "--quality=0 must": (file, out, "--quality=0"),
        "2 --images for 1 sources": (file, out, "--images=a", "--images=b"),
        "leave out --split": (f"train={file}", out, "--split=val"),
        "cannot name a split": (f"all={file}", out),
        "cannot recognise the kind": (tmp_path / "in", out),
        "no image of the split 'train' can be read (0.png: missing)": (
            file,
            out,
            f"--images={tmp_path / 'full'}",
        ),
        "belongs to --beam-runner": (file, out, "--beam-options=--x=1"),
    }
    for sentence, arguments in cases.items():
        assert run(*arguments) == 2, sentence
        errors = capsys.readouterr().err
        assert sentence in errors and errors.count("\n") == 1, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_file", "full", "in"]
    assert run(file, out) == 0 and run(file, out) == 2
    assert "is prepared already" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # those of Beam and its dependencies
def test_beam_writes_the_same_records(tmp_path, capsys, caplog):
    pytest.importorskip(
        "apache_beam", reason="no apache-beam: preparing on many machines NOT tested"
    )
    file = pair_folder(tmp_path / "in", 70)
    for corrupt in (3, 66):
        (tmp_path / "in" / f"{corrupt}.png").write_bytes(b"no image")
    arguments = (f"train={file}", "test=scenes", "--num-images=70", "--short-side=18")
    assert run(*arguments, f"--out={tmp_path / 'here'}") == 0
    by_beam = f"--out={tmp_path / 'beam'}", "--beam-runner=DirectRunner"
    assert run(*arguments, *by_beam) == 0
    for split in ("train", "test"):
        here, beam = opened(tmp_path / "here", split), opened(tmp_path / "beam", split)
        assert len(here) == {"train": 68, "test": 70}[split]
        assert listed(here) == listed(beam)
        for i in range(len(here)):
            assert here.read_image(i) == beam.read_image(i)
    reports = [
        json.loads((tmp_path / name / "prepared.json").read_text())
        for name in ("here", "beam")
    ]
    assert reports[0] == reports[1]
    assert "tensorflow" not in sys.modules
    capsys.readouterr()
    assert run(file, f"--out={tmp_path / 'c'}", "--beam-runner=NoSuchRunner") == 2
    assert "Beam has no runner 'NoSuchRunner'" in capsys.readouterr().err
    no_images = f"--images={tmp_path / 'here'}"
    assert run(file, no_images, f"--out={tmp_path / 'c'}", by_beam[1]) == 2
    assert "no image of the split 'train' can be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("c*"))
    (tmp_path / "c.partial").mkdir()
    assert run(file, f"--out={tmp_path / 'c'}", by_beam[1]) == 2
    assert "which Beam cannot resume: delete it" in capsys.readouterr().err


def test_without_beam_the_error_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    file = pair_folder(tmp_path / "in", 1)
    assert run(file, f"--out={tmp_path / 'out'}", "--beam-runner=DirectRunner") == 2
    assert "pip install 'vilem-jax[beam]'" in capsys.readouterr().err
