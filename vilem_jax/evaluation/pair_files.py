"""Files of true and wrong captions, in the layouts of their authors.

The fields of an entry show its layout; your own may also be a CSV or TSV file:

  own             {"image", "caption", "wrong_caption", and optionally "kind"}
  SugarCrepe      {"filename", "caption", "negative_caption"}
  ARO, relation   {"image_path", "true_caption", "false_caption", "relation_name",
                   "bbox_x", "bbox_y", "bbox_w", "bbox_h"}: the box is what is looked at
  ARO, attribute  the same with "attributes": [two words] for the relation
  ARO, order      {"image", "caption_options": [true, wrong, wrong, ...]}, or {"image",
                   "correct_caption", "hard_text_1", "hard_text_2", ...}
  VALSE           {"dataset", "image_file", "caption", "foil",
                   "mturk": {"caption": votes, 0 to 3}}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vilem_jax.data.images import decode
from vilem_jax.data.sources.annotations import short
from vilem_jax.errors import UserError
from vilem_jax.evaluation.named_images import NamedImages
from vilem_jax.parsing import (
    Records,
    is_blank,
    is_number,
    parse_csv,
    read_json,
    read_text,
    whole_number,
)
from vilem_jax.typing import JsonObject

LAYOUT = (
    "an entry of your own has 'image', 'caption' and 'wrong_caption', one of "
    "SugarCrepe 'filename', 'caption' and 'negative_caption', one of ARO 'image_path', "
    "'true_caption' and 'false_caption' or 'image' and 'caption_options', one of VALSE "
    "'image_file', 'caption', 'foil' and 'mturk'"
)
MIN_VOTES = 2  # of VALSE's three annotators: "valid foils"
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


@dataclass(frozen=True)
class CaptionPair:
    """One question: which caption is true of the image?"""

    image: Any  # what `Images.read_image` takes: a file name, or an index
    caption: str
    wrong_caption: str | tuple[str, ...]  # if several, the true one must beat all
    kind: str  # what was changed: "object", "swap", or a file's name
    group: str = ""  # of its kind, such as the relation


class Boxed(NamedTuple):
    """A part of an image; in pixels."""

    name: str
    box: tuple[float, ...]  # left, top, width, height


def read_pairs(*paths: str | Path) -> tuple[tuple[CaptionPair, ...], JsonObject]:
    """Pairs from files in any of the layouts, or from folders of JSON files.

    The type of a pair is its "kind", or its file's name without ending. Entries of
    VALSE whose foil fewer than two of three annotators distinguished from the caption
    are left out and counted; those without votes are taken.

    Returns:
      the pairs, and their protocol: "layouts" are those that were met, "notes" say what
      was left out, and why.

    Raises:
      UserError: nothing there, no JSON, or another layout; names file and entry.
    """
    pairs, layouts, notes = [], {}, []
    for file in (file for path in paths for file in _files(Path(path).expanduser())):
        left_out = 0
        for name, entry in _entries(file).items():
            layout, pair = _read_entry(f"{file}, entry {name!r}", entry, file.stem)
            layouts[layout] = None
            if pair is None:
                left_out += 1
            else:
                pairs.append(pair)
        if left_out:
            notes.append(
                f"{file.stem}: {left_out} entries left out, for fewer than {MIN_VOTES} "
                "annotators chose the caption and not the foil"
            )
    return tuple(pairs), {
        "data": ", ".join(map(str, paths)),
        "split": "all",
        "layouts": list(layouts),
        "notes": notes,
        "ties": "count against the model",
    }


class PairImages(NamedImages):
    """The images of `pairs` in a folder or zip, cut to their boxes."""

    def __init__(self, path: str | Path, pairs: Sequence[CaptionPair]):
        names = dict.fromkeys(self.image_name(pair.image) for pair in pairs)
        super().__init__(path, list(names), "the pairs")

    def image_name(self, image: str | Boxed, /) -> str:
        return image.name if isinstance(image, Boxed) else image

    def read_image(self, image: str | Boxed, /) -> bytes | np.ndarray:
        content = super().read_image(self.image_name(image))
        return _cut(decode(content), image) if isinstance(image, Boxed) else content


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .json file with caption pairs")
    return files


def _cut(pixels: np.ndarray, image: Boxed) -> np.ndarray:
    """The box of an image, as far as it lies inside; uint8 [H, W, 3]."""
    left, top, width, height = image.box
    rows = slice(max(0, round(top)), max(0, round(top + height)))
    columns = slice(max(0, round(left)), max(0, round(left + width)))
    part = pixels[rows, columns]
    if part.size == 0:
        raise UserError(
            f"the box {list(image.box)} of {image.name} lies outside the image of "
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
        )
    return np.ascontiguousarray(part)


def _entries(file: Path) -> JsonObject:
    if file.suffix in (".csv", ".tsv"):
        text = read_text(file, "file of caption pairs")
        _, rows = parse_csv(text, file, "\t" if file.suffix == ".tsv" else ",")
        entries = {f"line {line}": row for line, row in rows}
        if not entries:
            raise UserError(f"{file} holds no caption pairs; {LAYOUT}")
        return entries
    entries = read_json(file, "file of caption pairs")
    if isinstance(entries, Records):
        entries = {entries.where(i): entry for i, entry in enumerate(entries)}
    elif isinstance(entries, list):  # some releases have a list
        entries = {str(number): entry for number, entry in enumerate(entries)}
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file} holds no caption pairs; {LAYOUT}")
    return entries


def _read_entry(where: str, entry: Any, kind: str) -> tuple[str, CaptionPair | None]:
    """The layout of an entry, and its pair; None if annotators refused it."""
    entry = entry if isinstance(entry, dict) else {}
    if entry.keys() & {"true_caption", "image_path"}:
        return "ARO", _read_boxed(where, entry, kind)
    if entry.keys() & {"caption_options", "correct_caption"}:
        return "ARO", _read_order(where, entry, kind)
    if entry.keys() & {"foil", "image_file"}:
        return "VALSE", _read_foil(where, entry, kind)
    if entry.keys() & {"wrong_caption"}:
        names = ("image", "caption", "wrong_caption")
        image, caption, wrong = _texts(where, entry, *names)
        kind = str(entry.get("kind") or kind)
        return "own", CaptionPair(image, caption, wrong, kind)
    names = ("filename", "caption", "negative_caption")
    image, caption, wrong = _texts(where, entry, *names)
    return "SugarCrepe", CaptionPair(image, caption, wrong, kind)


def _read_boxed(where: str, entry: dict, kind: str) -> CaptionPair:
    names = ("image_path", "true_caption", "false_caption")
    image, caption, wrong = _texts(where, entry, *names)
    if any(name in entry for name in _BOX):
        for name in _BOX:
            if not is_number(entry.get(name)):
                shown = short(entry.get(name))
                raise UserError(f"{where}: {name!r} is no finite number: {shown}")
        image = Boxed(image, tuple(entry[name] for name in _BOX))
    words = entry.get("attributes") or []
    if not isinstance(words, list):
        raise UserError(f"{where}: 'attributes' is no list of words")
    group = entry.get("relation_name") or "_".join(map(str, words))
    return CaptionPair(image, caption, wrong, kind, group=str(group))


def _read_order(where: str, entry: dict, kind: str) -> CaptionPair:
    (image,) = _texts(where, entry, "image" if "image" in entry else "images")
    options = entry.get("caption_options")
    if options is None:
        hard = [entry[name] for name in sorted(entry) if name.startswith("hard_text_")]
        options = [entry.get("correct_caption"), *hard]
    is_fit = isinstance(options, list) and len(options) > 1
    if not is_fit or not all(map(_is_caption, options)):
        raise UserError(f"{where}: a true and one or more wrong captions are needed")
    return CaptionPair(image, options[0], tuple(options[1:]), kind)


def _read_foil(where: str, entry: dict, kind: str) -> CaptionPair | None:
    votes = entry.get("mturk")
    if votes is not None:
        stated = votes.get("caption") if isinstance(votes, dict) else None
        count = whole_number(stated)
        if count is None:
            raise UserError(f"{where}: no whole number of votes in 'mturk', 'caption'")
        if count < MIN_VOTES:
            return None
    caption = entry.get("caption")
    if isinstance(caption, list) and caption:  # a list of one, in some copies
        entry = entry | {"caption": caption[0]}
    image, caption, wrong = _texts(where, entry, "image_file", "caption", "foil")
    if isinstance(entry.get("dataset"), str):  # a folder for each; or all in one
        image = f"{entry['dataset']}/{image}"
    return CaptionPair(image, caption, wrong, kind)


def _texts(where: str, entry: dict, *fields: str) -> list[str]:
    for field in fields:
        value = entry.get(field)
        if not _is_caption(value):
            raise UserError(f"{where}: no text in {field!r}; {LAYOUT}")
    return [entry[field] for field in fields]


def _is_caption(value: object) -> bool:
    return isinstance(value, str) and not is_blank(value)
