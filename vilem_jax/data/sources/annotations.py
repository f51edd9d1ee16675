"""Annotation files: which captions belong to which image, in the common layouts.

The content decides the layout:

  rows      ALBEF and BLIP: [{"image", "caption": text or [text], "image_id", "split"}],
            one per pair or one per image; the last two keys are optional
  Karpathy  {"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}]}
  COCO      {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from vilem_jax.errors import UserError
from vilem_jax.files import reason

Row = tuple[str, list[str], str | None]  # image, captions, split


def read_annotations(path: str, split: str = "") -> dict[str, list[str]]:
    """Captions by image, in the file's order; rows of one image are merged.

    Args:
      path: a JSON file, or one inside a zip: "data.zip/captions.json".
      split: splits to take, joined by "+"; "" takes all. "train" includes "restval"
        if there is one: Karpathy's COCO training set is both.

    Raises:
      UserError: the file is missing, not JSON, empty, of another layout, or has no such
        split.
    """
    content = parse_json(path)
    wanted = set(split.split("+")) if split else set()
    taken = wanted | ({"restval"} if split == "train" else set())
    captions_of: dict[str, list[str]] = {}
    seen = set()
    for name, captions, row_split in _rows(path, content):
        seen.add(row_split)
        if not wanted or row_split in taken:
            captions_of.setdefault(name, []).extend(captions)
    if missing := wanted - seen:
        known = sorted(str(split) for split in seen if split is not None)
        has = f"its splits are {', '.join(known)}" if known else "it names no splits"
        raise UserError(f"{path} has no split {'+'.join(sorted(missing))!r}; {has}")
    return captions_of


def parse_json(path: str) -> Any:
    """The content of a JSON file, plain or inside a zip ("data.zip/captions.json").

    Raises:
      UserError: the file is missing, empty or not JSON (with the line).
    """
    return parse_text(read_text(path), path)


def parse_text(text: str, where: object) -> Any:
    """The value of a JSON text.

    Args:
      where: file, or file and line, for the message.

    Raises:
      UserError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        is_json_lines = error.msg == "Extra data"
        way_out = "; turn JSON lines into one list, [line, line]"
        raise UserError(
            f"{where} is not JSON: line {error.lineno}, column {error.colno}: "
            f"{error.msg}{way_out if is_json_lines else ''}"
        ) from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be annotations") from None


def split_zip_path(path: str) -> tuple[Path, str]:
    """("data.zip", "captions.json") of "data.zip/captions.json"; member "" outside."""
    whole = Path(path).expanduser()
    for parent in whole.parents:
        if parent.is_file():
            return parent, whole.relative_to(parent).as_posix()
    return whole, ""


def read_text(path: str) -> str:
    """The text of an annotation file, plain or inside a zip.

    Raises:
      UserError: the file is missing, empty or cannot be read.
    """
    file, member = split_zip_path(path)
    try:
        if member:
            with zipfile.ZipFile(file) as archive:
                content = archive.read(member)
        else:
            content = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"annotation file {path} does not exist") from None
    except KeyError:
        raise UserError(f"annotations {path}: {file} has no member {member}") from None
    except (OSError, zipfile.BadZipFile) as error:
        why = "is a folder" if file.is_dir() else f"cannot be read: {reason(error)}"
        raise UserError(f"annotation file {path} {why}") from None
    # Invalid bytes become U+FFFD: one corrupt caption must not refuse ten million.
    text = content.decode("utf-8-sig", "replace")
    if not text.strip():
        raise UserError(f"{path} is empty; expected annotations")
    return text


def _rows(path: str, content: object) -> Iterator[Row]:
    if isinstance(content, list):
        return _plain_rows(path, _filled(path, content))
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


def _plain_rows(path: str, records: list) -> Iterator[Row]:
    named: dict[int | str, str] = {}
    for i, record in enumerate(records):
        where = f"{path}: record {i}"
        name = _text(record, "image", where)
        _check_id(record, "image_id", name, named, where)
        split = split_of(record, where)
        captions = record.get("caption")
        if isinstance(captions, str):
            yield name, [captions], split
        elif isinstance(captions, list) and all(isinstance(c, str) for c in captions):
            yield name, captions, split
        else:
            _refuse_field(record, "caption", "a text or a list of texts", where)


def _karpathy_rows(path: str, images: list) -> Iterator[Row]:
    named: dict[int | str, str] = {}
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
    captions_of: dict[int | str, list[str]] = {}
    names: dict[int | str, str] = {}
    for i, record in enumerate(images):
        where = f"{path}: images[{i}]"
        name = _text(record, "file_name", where)
        if not isinstance(record.get("id"), int | str):
            _refuse_field(record, "id", "a number", where)
        _check_id(record, "id", name, names, where)
        captions_of[record["id"]] = []
    for i, record in enumerate(_filled(path, annotations, "'annotations'")):
        where = f"{path}: annotations[{i}]"
        caption = _text(record, "caption", where)
        image_id = record.get("image_id")
        if not isinstance(image_id, int | str) or image_id not in captions_of:
            _refuse_field(record, "image_id", "the id of one of 'images'", where)
        captions_of[image_id].append(caption)
    for image_id, captions in captions_of.items():
        yield names[image_id], captions, None


def _check_id(record: dict, field: str, name: str, named: dict, where: str) -> None:
    """Adds the image's id, which is optional, to `named`.

    Raises:
      UserError: the id belongs to another image.
    """
    number = record.get(field)
    if isinstance(number, int | str) and named.setdefault(number, name) != name:
        raise UserError(
            f"{where}: {field} {number!r} stands for two images, {named[number]} and "
            f"{name}: give each its own"
        )


def _text(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        _refuse_field(record, field, "a text", where)
    return record[field]


def split_of(record: dict, where: str) -> str | None:
    """The record's "split", or None if it has none.

    Raises:
      UserError: it is not a text.
    """
    split = record.get("split")
    if split is not None and not isinstance(split, str):
        _refuse_field(record, "split", "a text", where)
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
