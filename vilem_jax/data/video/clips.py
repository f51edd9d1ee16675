"""Clips with captions: the common formats of annotations, and the files of the clips.

Recognised by content:

  JSON lines  {"clip_name": "video7010", "caption": text}, one line per pair
  CSV         columns `video_id` and `sentence`, one row per pair
  JSON        [{"video": "a.mp4", "caption": text or [text]}], one per pair or clip
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vilem_jax.data.sources.annotations import parse_text, read_text, split_of
from vilem_jax.data.video.frames import VideoError, read_frames
from vilem_jax.errors import UserError

SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v"),
    *(".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".ts", ".3gp"),
)
# MSR-VTT's test split of JSFusion, "1k-A": one caption for each clip.
MSRVTT_1KA, MSRVTT_1KA_PAIRS = "msrvtt-1ka", 1000

_CLIP_KEYS = ("clip_name", "video", "video_id")
_CAPTION_KEYS = ("caption", "sentence")
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
        captions_of: dict[str, list[str]] = {}
        for clip, caption, pair_split in pairs:
            if split in ("", pair_split):
                captions_of.setdefault(clip, []).append(caption)
        if not captions_of:
            known = ", ".join(sorted({s for *_, s in pairs if s})) or "it names none"
            raise UserError(f"{path} has no clip of the split {split!r} (has: {known})")
        self.clips = tuple(captions_of)
        self.captions = tuple(map(tuple, captions_of.values()))
        self.folder = Path(folder).expanduser() if folder else file.parent
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder: say with --videos where")
        self._files_by_stem: dict[str, list[Path]] = {}
        for file in sorted(self.folder.iterdir()):
            if file.suffix.lower() in SUFFIXES:
                self._files_by_stem.setdefault(file.stem, []).append(file)

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
        name = self.clips[index]
        if (self.folder / name).exists():
            return self.folder / name
        found = self._files_by_stem.get(name, [])
        if len(found) > 1:
            names = " and ".join(file.name for file in found[:2])
            raise UserError(f"{self.folder} holds {names}: which is clip {name}?")
        return found[0] if found else None

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
        if protocol != MSRVTT_1KA:
            return
        wanted = MSRVTT_1KA_PAIRS
        if self.num_pairs != wanted or len(self) != wanted:
            raise UserError(
                f"{self.name} holds {self.num_pairs:,} pairs of {len(self):,} clips, "
                f"and MSR-VTT 1k-A has {wanted:,} clips with one caption each: give "
                "that test file, or leave out --protocol"
            )


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
    start = text.lstrip()[0]
    if start == "[":
        for number, record in enumerate(parse_text(text, file)):
            yield from _record_pairs(record, f"{file}: record {number}")
    elif start == "{":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                where = f"{file}:{number}"
                yield from _record_pairs(parse_text(line, where), where)
    else:
        yield from _csv_pairs(file, text)


def _csv_pairs(file: Path, text: str) -> Iterator[Pair]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = rows.fieldnames or ()
        if not {"video_id", "sentence"} <= set(columns):
            raise UserError(
                f"{file} is none of the known layouts: JSON lines with 'clip_name' and "
                "'caption', a JSON list with 'video' and 'caption', or a CSV file with "
                "the columns 'video_id' and 'sentence'"
            )
        for row in rows:
            yield from _record_pairs(row, f"{file}: row at line {rows.line_num}")
    except csv.Error:  # for example an open quotation mark
        raise UserError(
            f"{file} is not CSV from line {rows.line_num + 1} on: is a quotation mark "
            "left open?"
        ) from None


def _record_pairs(record: object, where: str) -> Iterator[Pair]:
    if not isinstance(record, dict):
        raise UserError(f"{where} is not an object with a clip and a caption")
    clip = _field(record, _CLIP_KEYS)
    captions = _field(record, _CAPTION_KEYS)
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(clip, str) or not clip:
        raise UserError(f"{where} names no clip ({' or '.join(_CLIP_KEYS)})")
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(caption, str) for caption in captions)
    ):
        keys = " or ".join(_CAPTION_KEYS)
        raise UserError(f"{where} has no caption ({keys}), a text or a list of texts")
    split = split_of(record, where)
    for caption in captions:
        yield clip, caption, split


def _field(record: dict, keys: tuple[str, ...]) -> object:
    return next((record[key] for key in keys if key in record), None)
