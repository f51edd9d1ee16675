"""R23, R29: one path is one image in any spelling, and only files are read."""

import os
import socket
import unicodedata
import zipfile

import numpy as np
import pytest

from tests.data.make_files import make_image, write_json
from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.sources.image_files import open_images
from vilem_jax.data.sources.missing import check_complete
from vilem_jax.data.sources.source import open_source
from vilem_jax.errors import UserError

NAMES = ("0.png", "1.png", "2.png")
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))


def fill(folder, *names: str) -> None:
    """Files whose content is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(path, *names: str) -> list[str]:
    images = open_images(path, names)
    return [images.read(name).decode() if images.exists(name) else "" for name in names]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("./0.png", "0.png"),
        ("x/../0.png", "0.png"),
        (".//0.png", "0.png"),
        ("sub\\0.png", "sub/0.png"),
        ("sub/0.png", "sub\\0.png"),  # as an old unzip unpacks a zip of .NET
        ("C:\\photos\\sub\\0.png", "sub/0.png"),
        ("my%20cat.png", "my cat.png"),
        ("my cat.png", "my%20cat.png"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        ("a/" + COMPOSED, "A/" + DECOMPOSED),
        ("0.PNG", "0.png"),
        ("IMG_1.jpg", "img_1.JPG"),
    ],
)
def test_another_spelling_is_found(tmp_path, name, file):
    fill(tmp_path, file, "other.png")
    assert found(tmp_path, name) == [file]


def test_the_home_folder_is_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, "photos/0.png", ".hidden.png")
    assert found(tmp_path / "photos", "~/photos/0.png") == ["photos/0.png"]
    names = ("0.png", "~/photos/0.png")
    assert records(open_rows(tmp_path / "photos", *names)) == [("0.png", ("0", "1"))]
    # Hidden files are found by their paths, not by other spellings.
    names = (".hidden.png", "x/../.hidden.png", ".HIDDEN.png")
    assert found(tmp_path, *names) == [".hidden.png", ".hidden.png", ""]


def test_a_folder_may_be_called_as_the_home_folder_is(tmp_path):
    fill(tmp_path, "~/1.png")
    names = ("~/1.png", "x/../~/1.png")
    assert records(open_rows(tmp_path, *names)) == [("~/1.png", ("0", "1"))]


def test_exact_names_come_first_and_two_files_are_never_one(tmp_path):
    names = ("a.png", "A.png", "a%20b.png", "a b.png", COMPOSED, DECOMPOSED)
    fill(tmp_path, *names)
    assert found(tmp_path, *names) == list(names)
    # Two files have this name in another spelling: neither is taken.
    fill(tmp_path, "b.PNG", "B.png")
    assert found(tmp_path, "a.png", "b.png") == ["a.png", ""]
    with pytest.raises(FileNotFoundError):
        open_images(tmp_path, ["a.png", "b.png"]).read("b.png")
    assert open_images(tmp_path, ["a.png"]).near("b.png") == "B.png or b.PNG"


def open_rows(folder, *names: str):
    rows = [{"image": name, "caption": f"{i}"} for i, name in enumerate(names)]
    return open_source(JsonConfig(name="x", path=str(write_json(folder, rows))))


def records(source) -> list[tuple[str, tuple[str, ...]]]:
    return [(source.image_name(i), source.captions(i)) for i in range(len(source))]


def test_spellings_of_one_path_are_one_image(tmp_path):
    fill(tmp_path, "0.png", "sub/1.png", DECOMPOSED)
    inside = (
        str(tmp_path / "0.png"),
        "sub/../0.png",
        "0.PNG",
        "gone.png",
        "./gone.png",
    )
    names = ("0.png", "./0.png", "sub\\1.png", "sub/1.png", COMPOSED, DECOMPOSED)
    assert records(open_rows(tmp_path, *names, *inside)) == [
        ("0.png", ("0", "1", "6", "7", "8")),
        ("sub\\1.png", ("2", "3")),
        (COMPOSED, ("4", "5")),
        ("gone.png", ("9", "10")),
    ]


def test_spellings_of_one_path_may_share_an_id(tmp_path):
    fill(tmp_path, "0.png", "1.png")
    rows = [
        {"image": name, "caption": "a", "image_id": 7} for name in ("0.png", "./0.png")
    ]
    config = JsonConfig(name="x", path=str(write_json(tmp_path, rows)))
    assert records(open_source(config)) == [("0.png", ("a", "a"))]
    write_json(tmp_path, [*rows, {"image": "1.png", "caption": "a", "image_id": 7}])
    with pytest.raises(UserError, match=r"two images, 0\.png and 1\.png"):
        open_source(config)


def test_names_that_differ_in_a_dropped_folder_are_not_one_image(tmp_path):
    fill(tmp_path / "folder", "0.png", "1.png")
    pack(tmp_path / "images.zip", "photos/0.png", "photos/1.png")
    for path in (tmp_path / "folder", tmp_path / "images.zip"):
        assert found(path, "train/0.png", "val/1.png") == ["0.png", "1.png"]
        assert found(path, "a/0.png", "./a/0.png") == ["0.png", "0.png"]
        with pytest.raises(UserError, match=r"train/0\.png and val/0\.png would both"):
            open_images(path, ["train/0.png", "val/1.png", "val/0.png"])
    with pytest.raises(UserError, match=r"train/0\.png and 0\.png would both"):
        open_images(tmp_path / "folder", ["train/0.png", "val/1.png", "0.png"])


def test_of_names_in_a_zip_for_a_folder_only_its_name_is_dropped(tmp_path):
    pack(tmp_path / "X.zip", "1.png", "2.png")
    assert found(tmp_path, "X/1.png", "X/2.png") == ["1.png", "2.png"]
    assert found(tmp_path, "X/a/1.png", "X/b/1.png") == ["", ""]


def test_links_and_two_files_stay_two_images(tmp_path):
    fill(tmp_path, "a.png", "A.png", "elsewhere/inner/x.png", "elsewhere/a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "down").symlink_to("elsewhere/inner")  # down/.. is elsewhere
    names = ("a.png", "A.png", "link.png", "down/../a.png")
    source = open_rows(tmp_path, *names)
    assert [name for name, _ in records(source)] == list(names)
    assert source.read_image(3) == b"elsewhere/a.png"


def test_the_near_miss_of_a_missing_image_is_named(tmp_path):
    fill(tmp_path, "cat.jpg", "Dog1.png", "dog1.PNG", "horses.png")
    for name, near in (
        ("cat.png", r"cat\.png \(there is cat\.jpg\)"),
        ("dog1.png", r"there is Dog1\.png or dog1\.PNG"),
        ("horse.png", r"there is horses\.png"),
        ("q.png", r"the first is q\.png: put"),
    ):
        with pytest.raises(UserError, match=near):
            check_complete(open_rows(tmp_path, name), "data.test")


def pack(path, *members: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, name.replace("\\", "/").rpartition("/")[2])


@pytest.mark.parametrize(
    "members",
    [
        NAMES,
        [f"photos/{name}" for name in NAMES],
        ["photos/", *(f"photos/{n}" for n in NAMES), "photos/.DS_Store"]
        + [f"__MACOSX/photos/._{name}" for name in NAMES],
        [f"./photos/{name}" for name in NAMES],
        ["README.txt", *(f"photos/{name}" for name in NAMES)],
        ["repo-main/README.md", *(f"repo-main/a/Photos/{n}" for n in NAMES)],
        [f"photos\\{name}" for name in NAMES],
        ["top/thumbs/0.png", *(f"top/{name}" for name in NAMES)],
    ],
    ids=["plain", "top", "Finder", "tar", "readme", "GitHub", ".NET", "thumbs"],
)
def test_zips_as_people_make_them(tmp_path, members):
    pack(tmp_path / "images.zip", *members)
    assert found(tmp_path / "images.zip", *NAMES) == list(NAMES)
    others = [f"/data/me/photos/{name}" for name in NAMES]
    assert found(tmp_path / "images.zip", *others) == list(NAMES)


def test_two_folders_of_a_zip_are_not_guessed_between(tmp_path):
    pack(tmp_path / "images.zip", *(f"{f}/{n}" for f in ("a", "b") for n in NAMES))
    images = open_images(tmp_path / "images.zip", NAMES)
    assert not any(map(images.exists, NAMES))
    assert images.near("0.png") == "a/0.png"


def test_corrupt_zips_end_in_a_sentence(tmp_path):
    """Every error of opening is a UserError, every one of reading an OSError."""
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in NAMES:
            archive.writestr(name, make_image(1))
    whole = np.fromfile(tmp_path / "whole.zip", np.uint8)
    rng, refused = np.random.default_rng(0), 0
    for number in range(500):
        content = whole.copy()
        start = 0 if number % 2 else len(content) - 300  # the central directory
        for offset in rng.integers(start, len(content), rng.integers(1, 5)):
            content[offset] = rng.integers(0, 256)
        file = tmp_path / f"{number}.zip"
        content[: len(content) if number % 4 else rng.integers(400)].tofile(file)
        try:
            images = open_images(file, NAMES)
            for name in NAMES:
                if images.exists(name):
                    images.read(name)
        except (UserError, OSError):
            refused += 1
    assert refused > 100


def test_only_files_are_read_and_nothing_waits(tmp_path):
    fill(tmp_path, "0.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(3 << 30)
    with open(tmp_path / "zeros.png", "wb") as file:
        file.truncate(200 << 20)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket.png")
        os.chdir(here)
    words = {
        "endless.png": "it is a device, not a file",
        "pipe.png": "it is a pipe, not a file",
        "socket.png": "it is a socket, not a file",
        "sparse.png": "it is larger than 256 MiB",
        "zeros.png": "it begins with zeros",
        "folder.png": "directory",
    }
    images = open_images(tmp_path, ["0.png", *words])
    for name, why in words.items():
        with pytest.raises(OSError, match=why):
            images.read(name)
    for special in ("pipe.png", "endless.png", "socket.png"):
        with pytest.raises(
            UserError, match=f"{special} is not an intact zip .*it is a"
        ):
            open_images(tmp_path / special, ["0.png"])
