"""Annotation files: which captions belong to which image, in the common layouts.

The content decides the layout:

  rows      ALBEF and BLIP: [{"image", "caption": text or [text], "image_id", "split"}],
            one per pair or one per image; the last two keys are optional
  Karpathy  {"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}]}
  COCO      {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from posixpath import normpath
from typing import NamedTuple, NoReturn

from vilem_jax.errors import MissingSplitError, UserError
from vilem_jax.parsing import Records, read_json, records_of, whole_number

# Usual names of splits; "restval" is the rest of COCO's validation set.
_SPLITS = ("train", "restval", "val", "validation", "dev", "test")
_ID = "a whole number or a text"
Row = tuple[str, list[str], str | None]  # image, captions, split
Annotations = tuple[dict[str, list[str]], tuple[str, ...]]  # captions by image, notes


class Columns(NamedTuple):
    """The keys of a row's values; "" if it has none."""

    image: str = "image"
    caption: str = "caption"
    split: str = "split"
    image_id: str = "image_id"


_ALBEF = Columns()


def read_annotations(path: str, split: str = "") -> Annotations:
    """`take_split` of the rows of a JSON file.

    Args:
      path: a JSON file, or one inside a zip: "data.zip/captions.json".

    Raises:
      UserError: the file is missing, not JSON, empty, of another layout, or has no such
        split.
    """
    return take_split(path, _rows(path, read_json(path)), split)


def take_split(path: object, rows: Iterable[Row], split: str) -> Annotations:
    """Captions by image, in the order of `rows`, and notes; rows of one are merged.

    Args:
      path: for messages.
      split: splits to take, joined by "+"; "" takes all. "train" includes "restval"
        if there is one: Karpathy's COCO training set is both.

    Raises:
      UserError: there is no such split.
    """
    wanted = set(split.split("+")) if split else set()
    taken = wanted | ({"restval"} if split == "train" else set())
    captions_of: dict[str, list[str]] = {}
    seen: Counter[str | None] = Counter()
    for name, captions, row_split in rows:
        seen[row_split or None] += 1
        if not wanted or row_split in taken:
            captions_of.setdefault(name, []).extend(captions)
    if missing := wanted - seen.keys():
        wanted = "+".join(sorted(missing))
        raise MissingSplitError(
            f"{path} has no split {wanted!r}; rows: {count_splits(seen)}; name one of "
            "these as the source's split, or '' for all rows"
        )
    notes = unreadable_captions(chain.from_iterable(captions_of.values()))
    return captions_of, (*unread_splits(seen, taken), *notes)


def unreadable_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """A note on captions with U+FFFD, which stands for bytes that are not UTF-8."""
    if not (count := sum("\ufffd" in caption for caption in captions)):
        return ()
    return (
        f"{count:,} captions with bytes that are not UTF-8, read as spaces: save the "
        "file as UTF-8",
    )


def count_splits(rows: Counter[str | None]) -> str:
    """Numbers of rows by split, for a message."""
    return ", ".join(
        f"{count:,} of {name!r}" if name else f"{count:,} without a split"
        for name, count in rows.items()
    )


def unread_splits(rows: Counter[str | None], taken: set[str]) -> tuple[str, ...]:
    """A note on rows that are left out and that nobody may have meant to leave out.

    The other splits of a benchmark are no fault: those of usual names, unless the name
    resembles one that is taken, such as "validation" beside "val".
    """

    def is_meant(name: str | None) -> bool:
        near = (each.startswith(name or "") for each in taken)
        return name in _SPLITS and not any(near) and not name.startswith(tuple(taken))

    left_out = rows.keys() - taken if taken else set()
    unread = Counter({n: rows[n] for n in rows if n in left_out and not is_meant(n)})
    if not unread:
        return ()
    wanted = "+".join(sorted(taken))
    return (f"rows left out, split is {wanted!r}: {count_splits(unread)}",)


def _rows(path: str, content: object) -> Iterator[Row]:
    if (records := records_of(content, "image", "caption")) is not None:
        _filled(path, records)
        return plain_rows(path, records)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        images = _filled(path, content["images"], "'images'")
        if isinstance(content.get("annotations"), list):
            return _coco_rows(path, images, content["annotations"])
        return _karpathy_rows(path, images)
    raise UserError(
        f"{path} has none of the known layouts: a list of records with 'image' and "
        "'caption', or an object with 'images' that have 'sentences' (Karpathy), or "
        "with 'images' and 'annotations' (COCO)"
    )


def _filled(path: str, records: list, where: str = "the list") -> list:
    if not records:
        raise UserError(f"{path} holds no records: {where} is empty")
    return records


def plain_rows(
    path: object, records: Records, columns: Columns = _ALBEF
) -> Iterator[Row]:
    """The rows of `records`, each an object with the keys `columns`.

    Raises:
      UserError: a value is missing or has another type; an id stands for two images.
    """
    named: dict[str, str] = {}
    for i, record in enumerate(records):
        where = f"{path}: {records.where(i)}"
        name = _text(record, columns.image, where)
        if not name:
            _refuse_field(record, columns.image, "the name of an image", where)
        _check_id(record, columns.image_id, name, named, where)
        split = split_of(record, where, columns.split)
        captions = record.get(columns.caption)
        if isinstance(captions, str):
            yield name, [captions], split
        elif isinstance(captions, list) and all(isinstance(c, str) for c in captions):
            yield name, captions, split
        else:
            _refuse_field(record, columns.caption, "a text or a list of texts", where)


def _karpathy_rows(path: str, images: list) -> Iterator[Row]:
    named: dict[str, str] = {}
    for i, record in enumerate(images):
        where = f"{path}: images[{i}]"
        name = _text(record, "filename", where)
        if folder := record.get("filepath"):
            name = f"{folder}/{name}"
        _check_id(record, "imgid", name, named, where)
        sentences = record.get("sentences")
        if not isinstance(sentences, list):
            _refuse_field(record, "sentences", "a list", where)
        captions = [
            _text(sentence, "raw", f"{where}.sentences[{j}]")
            for j, sentence in enumerate(sentences)
        ]
        yield name, captions, split_of(record, where)


def _coco_rows(path: str, images: list, annotations: list) -> Iterator[Row]:
    captions_of: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for i, record in enumerate(images):
        where = f"{path}: images[{i}]"
        name = _text(record, "file_name", where)
        image_id = _check_id(record, "id", name, names, where)
        if image_id is None:
            _refuse_field(record, "id", _ID, where)
        captions_of[image_id] = []
    for i, record in enumerate(_filled(path, annotations, "'annotations'")):
        where = f"{path}: annotations[{i}]"
        caption = _text(record, "caption", where)
        image_id = id_of(record.get("image_id"))
        if image_id not in captions_of:
            _refuse_field(record, "image_id", "the id of one of 'images'", where)
        captions_of[image_id].append(caption)
    for image_id, captions in captions_of.items():
        yield names[image_id], captions, None


def id_of(value: object) -> str | None:
    """The spelling by which ids are compared; None if `value` is not an id.

    1, 1.0 and "1" are one id, because programs differ in how they write it; "0001" is
    another one, because texts are compared as they are.
    """
    if isinstance(value, str):
        return value
    number = whole_number(value)
    return None if number is None else str(number)


def _check_id(
    record: dict, field: str, name: str, named: dict[str, str], where: str
) -> str | None:
    """The image's id, after adding it to `named`.

    It is optional; null is none.

    Raises:
      UserError: it is not an id, or belongs to another image.
    """
    if record.get(field) is None:
        return None
    image_id = id_of(record[field])
    if image_id is None:
        _refuse_field(record, field, _ID, where)
    first = named.setdefault(image_id, name)
    if first != name and normpath(first) != normpath(name):
        raise UserError(
            f"{where}: {field} {record[field]!r} stands for two images, "
            f"{first} and {name}: give each its own"
        )
    return image_id


def _text(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        _refuse_field(record, field, "a text", where)
    return record[field]


def split_of(record: dict, where: str, field: str = "split") -> str | None:
    """The record's split, or None if it has none.

    Raises:
      UserError: it is not a text.
    """
    split = record.get(field)
    if split is not None and not isinstance(split, str):
        _refuse_field(record, field, "a text", where)
    return split


def _refuse_field(record: object, field: str, expected: str, where: str) -> NoReturn:
    if not isinstance(record, dict):
        found = f"is {short(record)}, not an object with {field!r}"
    elif field not in record:
        found = f"has no {field!r} (it has: {', '.join(map(str, record)) or 'nothing'})"
    else:
        found = f"has {field!r} = {short(record[field])}, which is not {expected}"
    raise UserError(f"{where} {found}")


def short(value: object, length: int = 60) -> str:
    """`repr(value)`, cut to `length` characters, for messages."""
    shown = repr(value)
    return shown if len(shown) <= length else shown[: length - 3] + "..."
