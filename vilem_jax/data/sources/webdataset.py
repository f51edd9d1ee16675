"""WebDataset tars as img2dataset writes them (KEY.jpg KEY.txt KEY.json), by offset."""

import glob
import json
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from vilem_jax.config.sources import WebDatasetConfig
from vilem_jax.data.sources.index_files import fingerprint, load_or_build
from vilem_jax.data.sources.packed_text import PackedSource, pack_records
from vilem_jax.errors import MissingSplitError, UserError
from vilem_jax.files import MAX_IMAGE_BYTES, open_input, read_errors
from vilem_jax.parsing import decode

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_INDEX_VERSION = "2"
_MAX_CAPTION_BYTES = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gz bz2 xz zst
_MAX_SHOWN = 5  # tars named in a note


class WebDatasetSource(PackedSource):
    """Pairs in uncompressed tars, in the order of the tars' names.

    Each tar is scanned once; its index is stored beside it. Of a tar that is cut short
    or corrupt the intact members at its start are used. Of members with the same key
    and ending the first counts. Names are never used as paths: nothing is unpacked.

    Args:
      config: `path`, a tar or a glob of tars; `num_images`.

    Raises:
      UserError: no tar matches, one is compressed, or none contains a pair.
    """

    def __init__(self, config: WebDatasetConfig):
        if config.split:
            raise MissingSplitError(
                f"source {config.name!r}: tars have no split {config.split!r}; choose "
                "the tars by `path`"
            )
        name = config.name or Path(config.path).stem
        pattern = os.path.expanduser(config.path)
        self._tars = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
        if not self._tars:
            raise UserError(f"source {name!r}: no tar matches {config.path}")
        desc = f"{name}: index"
        bar = tqdm(self._tars, desc, unit="tar", disable=None, leave=False)
        indexes = [_index(tar) for tar in bar]
        self._spans = np.concatenate([index["spans"] for index in indexes])  # [N, 2]
        lengths = [len(index["spans"]) for index in indexes]
        self._tar_of = np.repeat(np.arange(len(indexes)), lengths)  # [N]
        notes = _notes(self._tars, indexes)
        super().__init__(name, config.path, indexes, config.num_images, notes)

    def image_name(self, index: int) -> str:
        return f"{self._tar(index).name}/{super().image_name(index)}"

    def read_image(self, index: int) -> bytes:
        offset, size = self._spans[self._checked(index)].tolist()
        with open(self._tar(index), "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self.image_name(index)}: the tar has become shorter")
        return content

    def _tar(self, index: int) -> Path:
        return self._tars[self._tar_of[self._checked(index)]]


def _index(tar: Path) -> dict[str, np.ndarray]:
    with read_errors(tar):
        with open_input(tar) as file:
            start = file.read(6)
        if start.startswith(_COMPRESSED):
            raise UserError(f"{tar} is compressed; decompress it, to be read by offset")
        version = f"{_INDEX_VERSION}-{fingerprint(tar)}"
        return load_or_build(tar, "pairs", version, lambda: _scan(tar))


def _scan(tar: Path) -> dict[str, np.ndarray]:
    """Pairs of one tar: packed records, spans [N, 2], and counts of its faults."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    num_double = 0
    members, damage = _members(tar)
    for member in members:
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        parts = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        num_double += ending.lower() in parts
        parts.setdefault(ending.lower(), member)
    records, spans = [], []
    with open(tar, "rb") as file:
        for key, parts in samples.items():
            image = next((parts[e] for e in IMAGE_ENDINGS if e in parts), None)
            caption = _caption(file, parts)
            if image is None or caption is None or image.size > MAX_IMAGE_BYTES:
                continue
            records.append((key, (caption,)))
            spans.append((image.offset_data, image.size))
    packed = pack_records(records)
    return packed | {
        "spans": np.array(spans, np.int64).reshape(-1, 2)[packed["kept"]],
        "damage": np.array(damage, np.int64),
        "num_double": np.array(num_double, np.int64),
        "num_incomplete": np.array(len(samples) - len(records), np.int64),
    }


def _members(tar: Path) -> tuple[list[tarfile.TarInfo], int]:
    """Intact files of `tar`, and the byte offset of its first corrupt part, or -1."""
    size, members, end = tar.stat().st_size, [], 0
    try:
        # "r:": no compression, so that members are read by their offset.
        with read_errors(tar), tarfile.open(tar, "r:") as archive:
            for member in archive:
                stop = member.offset_data + member.size
                # A corrupt size may point outside, or back into an endless loop.
                if member.size < 0 or stop > size:
                    return members, end
                if member.isfile() and not member.issparse():
                    members.append(member)
                end = stop + -stop % tarfile.BLOCKSIZE
    except (UserError, MemoryError):  # a corrupt header may ask for any size
        return members, end
    # Two blocks of zeros end a tar; `tarfile` takes any invalid block as the end.
    with open(tar, "rb") as file:
        file.seek(end)
        tail = file.read(2 * tarfile.BLOCKSIZE)
    return members, -1 if tail == bytes(2 * tarfile.BLOCKSIZE) else end


def _caption(file: BinaryIO, parts: dict[str, tarfile.TarInfo]) -> str | None:
    """The text of KEY.txt, or "caption" of KEY.json."""
    for ending in ("txt", "json"):
        member = parts.get(ending)
        if member is None or member.size > _MAX_CAPTION_BYTES:
            continue
        file.seek(member.offset_data)
        text = decode(file.read(member.size))
        if ending == "txt":
            return text
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            continue
        caption = content.get("caption") if isinstance(content, dict) else None
        if isinstance(caption, str):
            return caption
    return None


def _notes(tars: list[Path], indexes: list[dict[str, np.ndarray]]) -> tuple[str, ...]:
    notes = []
    corrupt = [
        f"{tar.name} at byte {int(offset)}"
        for tar, index in zip(tars, indexes, strict=True)
        if (offset := index["damage"]) >= 0
    ]
    if corrupt:
        more = f" and {len(corrupt) - _MAX_SHOWN} more" if corrupt[_MAX_SHOWN:] else ""
        notes.append(
            f"{len(corrupt)} tars are cut short or corrupt, the part before is used: "
            + ", ".join(corrupt[:_MAX_SHOWN])
            + more
        )
    for key, what in (
        ("num_double", "members repeat a key and ending; the first counts"),
        ("num_incomplete", "keys lack an image or a caption; left out"),
    ):
        if count := sum(int(index[key]) for index in indexes):
            notes.append(f"{count} {what}")
    return tuple(notes)
