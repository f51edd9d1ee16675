"""Clips with captions: the common formats of annotations, and the files of the clips.

Recognised by content:

  JSON lines  {"clip_name": "video7010", "caption": text}, one line per pair
  CSV         columns `video_id` and `sentence`, one row per pair
  JSON        [{"video": "a.mp4", "caption": text or [text]}], one per pair or clip
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vilem_jax.data.sources.annotations import (
    count_splits,
    split_of,
    unread_splits,
    unreadable_captions,
)
from vilem_jax.data.sources.names import first_spellings, identity, loose, near_miss
from vilem_jax.data.video.frames import VideoError, read_frames
from vilem_jax.errors import UserError
from vilem_jax.parsing import is_blank, parse_csv, parse_json, read_text, records_of

SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v"),
    *(".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".ts", ".3gp"),
)
# MSR-VTT's test split of JSFusion, "1k-A": one caption for each clip.
MSRVTT_1KA, MSRVTT_1KA_PAIRS = "msrvtt-1ka", 1000

_CLIP_KEYS = ("clip_name", "video", "video_id")
_CAPTION_KEYS = ("caption", "sentence")
_UNKNOWN = (
    "is none of the known layouts: JSON lines with 'clip_name' and 'caption', a JSON "
    "list with 'video' and 'caption', or a CSV file with the columns 'video_id' and "
    "'sentence'"
)
Pair = tuple[str, str, str | None]  # clip, caption, split


class VideoClips:
    """Clips with their captions; `read_frames` reads their frames.

    Args:
      path: annotations, in one of the formats above.
      folder: the clips: files named as in the annotations, with or without suffix, or
        folders of frames. None for the folder of `path`.
      split: selects rows by their "split"; "" for all.

    Raises:
      UserError: if a file or folder is missing, the format is another one, or no pair
        is in the split.
    """

    def __init__(self, path: str | Path, folder: str | Path | None, split: str = ""):
        file = Path(path).expanduser()
        self.name, self.split = file.stem, split
        pairs = read_pairs(file)
        rows = Counter(pair_split or None for *_, pair_split in pairs)
        if split and split not in rows:
            known = count_splits(rows)
            raise UserError(f"{path} has no clip of the split {split!r} (has: {known})")
        taken = [pair for pair in pairs if split in ("", pair[2])]
        captions_of: dict[str, list[str]] = {}
        for clip, caption, _ in taken:
            if not is_blank(caption):
                captions_of.setdefault(clip, []).append(caption)
        if not captions_of:
            raise UserError(f"{path}: all of its {len(taken)} captions are blank")
        self.notes = (
            *unread_splits(rows, {split} - {""}),
            *unreadable_captions(caption for _, caption, _ in taken),
        )
        if blank := sum(is_blank(caption) for _, caption, _ in taken):
            self.notes = (f"{blank} blank captions left out", *self.notes)
        self.folder = Path(folder).expanduser() if folder else file.parent
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder: say with --videos where")
        # Videos, and what may be a folder of frames, by stem and by its spellings.
        self._files: dict[str, list[Path]] = {}
        self._spelled: dict[str, list[Path]] = {}
        for file in sorted(self.folder.iterdir()):
            is_video = file.suffix.lower() in SUFFIXES
            if not file.name.startswith(".") and (is_video or not file.suffix):
                self._files.setdefault(file.stem, []).append(file)
                self._spelled.setdefault(_loosely(file.name), []).append(file)
        for name, first in first_spellings(
            list(captions_of), _loosely, lambda name: identity(self._find(name))
        ).items():
            captions_of[first] += captions_of.pop(name)
        self.clips = tuple(captions_of)
        self.captions = tuple(map(tuple, captions_of.values()))

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def num_pairs(self) -> int:
        return sum(map(len, self.captions))

    def file(self, index: int) -> Path | None:
        """The file or folder of clip `index`, or None if there is none.

        Raises:
          UserError: if several files have its name.
        """
        found = self._find(self.clips[index])
        return found if os.path.exists(found) else None

    def near(self, name: str) -> str:
        """A clip that `name`, which is missing, may mean; "" if there is none."""
        files = itertools.chain(*self._files.values())
        return near_miss(name, (file.name for file in files))

    def _find(self, name: str) -> Path:
        """The path of a clip, also of one that does not exist."""
        path = self.folder / name
        if os.path.exists(path):  # unlike Path.exists, False for a name too long
            return path
        found = self._files.get(name) or self._spelled.get(_loosely(name), [])
        if len(found) > 1:
            names = " and ".join(file.name for file in found[:2])
            raise UserError(f"{self.folder} holds {names}: which is clip {name}?")
        return found[0] if found else path

    def read_frames(self, index: int, num_frames: int) -> list[np.ndarray]:
        """Frames of clip `index`, by `frames.read_frames`.

        Raises:
          VideoError: if the clip is missing or cannot be decoded.
        """
        file = self.file(index)
        if file is None:
            raise VideoError("missing")
        return read_frames(file, num_frames)

    def check_protocol(self, protocol: str) -> None:
        """Checks the clips of the protocol "msrvtt-1ka", by their number.

        Raises:
          UserError: if they are others.
        """
        wanted = MSRVTT_1KA_PAIRS
        if protocol == MSRVTT_1KA and (self.num_pairs, len(self)) != (wanted, wanted):
            raise UserError(
                f"{self.name} holds {self.num_pairs:,} pairs of {len(self):,} clips, "
                f"and MSR-VTT 1k-A has {wanted:,} clips with one caption each: give "
                "that test file, or leave out --protocol"
            )


def _loosely(name: str) -> str:
    """The same text for all spellings of a clip, with or without suffix."""
    stem, suffix = os.path.splitext(loose(name))
    return stem if suffix in SUFFIXES else f"{stem}{suffix}"


def read_pairs(file: Path) -> list[Pair]:
    """Clip, caption and split (None if it has none), in the file's order.

    Raises:
      UserError: if the file is missing, empty, or in none of the formats.
    """
    pairs = list(_pairs(file, read_text(str(file))))
    if not pairs:
        raise UserError(f"{file} holds no pair of a clip and a caption")
    return pairs


def _pairs(file: Path, text: str) -> Iterator[Pair]:
    if text.lstrip()[0] not in "[{":
        columns, rows = parse_csv(text, file)
        if not {"video_id", "sentence"} <= set(columns):
            raise UserError(f"{file} {_UNKNOWN}")
        for line, row in rows:
            yield from _record_pairs(row, f"{file}: row at line {line}")
        return
    records = records_of(parse_json(text, file), *_CLIP_KEYS, *_CAPTION_KEYS)
    if records is None:
        raise UserError(f"{file} {_UNKNOWN}")
    for number, record in enumerate(records):
        yield from _record_pairs(record, f"{file}: {records.where(number)}")


def _record_pairs(record: object, where: str) -> Iterator[Pair]:
    if not isinstance(record, dict):
        raise UserError(f"{where} is not an object with a clip and a caption")
    clip = _field(record, _CLIP_KEYS)
    found = _field(record, _CAPTION_KEYS)
    captions: list = found if isinstance(found, list) else [found]
    if not isinstance(clip, str) or not clip:
        raise UserError(f"{where} names no clip ({' or '.join(_CLIP_KEYS)})")
    if not captions or not all(isinstance(caption, str) for caption in captions):
        keys = " or ".join(_CAPTION_KEYS)
        raise UserError(f"{where} has no caption ({keys}), a text or a list of texts")
    split = split_of(record, where)
    for caption in captions:
        yield clip, caption, split


def _field(record: dict, keys: tuple[str, ...]) -> object:
    return next((record[key] for key in keys if key in record), None)
