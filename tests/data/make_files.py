"""Small images and data sets in the formats people have, for the tests of data."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image


def make_image(value: int, size: tuple[int, int] = (24, 20), form="PNG") -> bytes:
    """The bytes of an image of one colour."""
    target = io.BytesIO()
    Image.new("RGB", size, (value % 256, 100, 50)).save(target, form)
    return target.getvalue()


def noise(seed: int, width: int, height: int) -> np.ndarray:
    """Random smooth pixels, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def write_json(folder: Path, content, name: str = "captions.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def pair_folder(folder: Path, num_images: int, captions_each: int = 2) -> Path:
    """An annotation file with images beside it, some rows an image."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(num_images):
        (folder / f"{i}.png").write_bytes(make_image(i))
        captions = [f"image {i} said in way {j}" for j in range(captions_each)]
        rows.append({"image": f"{i}.png", "caption": captions})
    return write_json(folder, rows)


def write_zip(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def img2dataset_members(keys) -> list[tuple[str, bytes]]:
    """KEY.jpg KEY.txt KEY.json for each key, as img2dataset orders them."""
    members = []
    for key in keys:
        described = json.dumps({"caption": f"caption {key}", "key": f"{key:09d}"})
        members += [
            (f"{key:09d}.jpg", make_image(key, form="JPEG")),
            (f"{key:09d}.json", described.encode()),
            (f"{key:09d}.txt", f"caption {key}".encode()),
        ]
    return members


def save_to_disk(folder, content, rows_each=2):
    """The files of `datasets`, which is not installed for the tests."""
    folder.mkdir(parents=True)
    file = folder / "data-00000-of-00001.arrow"
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, content.schema) as w:
        w.write_table(content, max_chunksize=rows_each)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def image_table(captions: list[str]) -> pa.Table:
    """A row for each caption, as `datasets` stores images."""
    numbers = range(len(captions))
    images = [{"bytes": make_image(i), "path": f"{i}.png"} for i in numbers]
    return pa.table({"image": images, "text": captions})
