"""Data sets that TFDS prepared as ArrayRecord, read without TensorFlow."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vilem_jax.config.sources import TfdsConfig
from vilem_jax.data.sources.handles import PerProcess
from vilem_jax.data.sources.index_files import fingerprint, load_or_build
from vilem_jax.data.sources.packed_text import PackedSource, pack_records
from vilem_jax.data.sources.tfds_files import open_records, read_info
from vilem_jax.errors import MissingSplitError, UserError
from vilem_jax.files import read_errors

# Names of the feature with the captions, also inside a structure; the likeliest first.
CAPTION_NAMES = ("captions", "caption", "text", "texts", "sentences", "sentence", "raw")
NAME_NAMES = ("image/filename", "filename", "file_name", "image/id", "image_id", "id")
INFO_FILE = "dataset_info.json"
_INDEX_VERSION = "2"


class TfdsSource(PackedSource):
    """Any TFDS data set with an image and a text, such as "coco_captions/2014".

    The captions are read once and stored beside the data. If the data set has a split
    "restval", "train" means both: Karpathy's COCO training set.

    Args:
      config: `path`, a data set's name (with its config, if it has several) or its
        prepared folder; `images`, TFDS's folder (default: TFDS_DATA_DIR or
        ~/tensorflow_datasets); `split`; `num_images`.

    Raises:
      UserError: not prepared, not as ArrayRecord, no such split, no image or text.
    """

    def __init__(self, config: TfdsConfig):
        self.name = config.name or config.path
        self._folder = _find_prepared(config)
        with self._errors():
            splits, features = read_info(self._folder)
        self._split = _choose_split(config, splits)
        self._image = _find_feature(self._folder, features, "image")
        self._caption = _find_feature(self._folder, features, "caption")
        self._data = PerProcess(open_records, self._folder, self._split, self._image)
        self._name_features = [name for name in NAME_NAMES if name in features]
        version = f"{_INDEX_VERSION}-{fingerprint(self._folder / INFO_FILE)}"
        part = re.sub(r"\W+", "_", self._split)
        index = load_or_build(self._folder, part, version, self._build_index)
        self._rows = index["kept"]
        read = f"{self._folder}, split {self._split}"
        super().__init__(self.name, read, [index], config.num_images)

    def read_image(self, index: int) -> bytes:
        row = int(self._rows[self._checked(index)])
        try:
            return bytes(self._data.get()[row][self._image])
        except Exception as error:  # ArrayRecord raises its own exceptions
            raise OSError(f"{self.image_name(index)}: {error}") from error

    def _build_index(self) -> dict[str, np.ndarray]:
        with self._errors():
            data, records = self._data.get(), []
        desc = f"{self.name}: captions"
        for row in tqdm(range(len(data)), desc, disable=None, leave=False):
            try:
                record = data[row]
            except Exception as error:
                raise UserError(
                    f"{self._folder}: record {row} of {self._split} cannot be read "
                    f"({error}); the file is corrupt or cut short, prepare it again"
                ) from None
            captions = list(_texts(record[self._caption]))
            records.append((self._record_name(record, row), captions))
        return pack_records(records)

    def _errors(self) -> AbstractContextManager[None]:
        why = f"its {INFO_FILE} or features.json is corrupt: prepare it again"
        return read_errors(self._folder, corrupt=f"{self._folder}: {why}")

    def _record_name(self, record: dict, row: int) -> str:
        if not self._name_features:
            return f"{self._split}/{row}"
        value = record[self._name_features[0]]
        return value.decode("utf-8", "replace") if _is_bytes(value) else str(value)


def _find_prepared(config: TfdsConfig) -> Path:
    """The folder with dataset_info.json; of several versions, the newest."""
    root = config.images or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    path = Path(config.path).expanduser()
    folder = path if path.is_dir() else Path(root).expanduser() / config.path
    while not (folder / INFO_FILE).is_file():
        inside = [d for d in folder.glob("*") if d.is_dir()]
        versions = [d for d in inside if re.fullmatch(r"\d+\.\d+\.\d+", d.name)]
        if versions:
            folder = max(versions, key=lambda d: tuple(map(int, d.name.split("."))))
        elif len(inside) == 1:
            folder = inside[0]
        elif inside:
            names = ", ".join(sorted(d.name for d in inside))
            raise UserError(
                f"source {config.name!r}: {folder} holds {names}; name one of them in "
                f"`path`, as {config.path}/NAME"
            )
        else:
            raise UserError(
                f"source {config.name!r}: no prepared data set {config.path} in "
                f"{root}: prepare it with TFDS as docs/data.md shows, or set `images` "
                "to the folder that holds it"
            )
    return folder


def _choose_split(config: TfdsConfig, splits: Sequence[str]) -> str:
    if not config.split:
        return "+".join(splits)
    for name in config.split.split("+"):
        if name.partition("[")[0] not in splits:
            raise MissingSplitError(
                f"source {config.name!r}: no split {name!r} in {config.path}; its "
                f"splits are {', '.join(splits)}"
            )
    if config.split == "train" and "restval" in splits:
        return "train+restval"
    return config.split


def _find_feature(folder: Path, features: dict[str, str], kind: str) -> str:
    """The first image, or the likeliest text that is no name."""
    found = [name for name in features if features[name] == kind]
    if kind == "caption":
        found = sorted((n for n in found if n not in NAME_NAMES), key=_likelihood)
    if not found:
        raise UserError(f"{folder} has no {kind}; its features: {', '.join(features)}")
    return found[0]


def _likelihood(name: str) -> int:
    return CAPTION_NAMES.index(name) if name in CAPTION_NAMES else len(CAPTION_NAMES)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes | np.bytes_)


def _texts(value: Any) -> Iterator[str]:
    """All captions in a text, a list of texts, or a structure of them."""
    if isinstance(value, dict):
        found = (list(_texts(value[key])) for key in sorted(value, key=_likelihood))
        yield from next((texts for texts in found if texts), ())
    elif _is_bytes(value):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | np.ndarray):
        for item in value:
            yield from _texts(item)
