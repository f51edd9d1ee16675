"""A user's files as values; every error is a sentence with the file and the line.

`files.read_errors` is the boundary: inside it a parser may raise anything.
"""

import codecs
import csv
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import MAX_TEXT_BYTES, open_input, read_errors, read_input, reason

# UTF-32 first: its mark starts with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON takes as white space
_LONG_NUMBER = re.compile(r"\d{4301}")  # Python refuses integers of more than 4300
# Spaces, control and format characters, marks without a letter.
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me")
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol without ink


class Records(list[Any]):
    """The records of a file; those of JSON lines know their lines."""

    def __init__(self, values: Sequence[Any], lines: Sequence[int] = ()):
        super().__init__(values)
        self._lines = lines

    def where(self, index: int) -> str:
        return f"line {self._lines[index]}" if self._lines else f"record {index}"


def records_of(content: Any, *keys: str) -> Records | None:
    """A list as records, and an object, which must have one of `keys`; else None."""
    if isinstance(content, dict) and (not keys or not content.keys().isdisjoint(keys)):
        return Records([content], [1])
    if isinstance(content, Records):
        return content
    return Records(content) if isinstance(content, list) else None


def decode(content: bytes) -> str:
    """The text of a file by its byte-order mark; without one it is UTF-8.

    Invalid bytes become U+FFFD: one corrupt caption must not refuse ten million.
    """
    return content.decode(encoding_by_mark(content) or "utf-8", "replace")


def encoding_by_mark(content: bytes) -> str:
    """The encoding that the byte-order mark of a text names; "" if it has none."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), "")


def split_zip_path(path: str | Path) -> tuple[Path, str]:
    """("data.zip", "captions.json") of "data.zip/captions.json"; member "" outside."""
    whole = Path(path).expanduser()
    for parent in whole.parents:
        if parent.is_file():
            return parent, whole.relative_to(parent).as_posix()
    return whole, ""


def read_text(
    path: str | Path, what: str = "annotation file", missing: str = ""
) -> str:
    """The text of a file, plain or inside a zip ("data.zip/captions.json").

    Args:
      what: messages call the file so.
      missing: the message if it does not exist.

    Raises:
      UserError: the file is missing, empty or cannot be read.
    """
    file, member = split_zip_path(path)
    missing = missing or f"{what} {path} does not exist"
    with read_errors(f"{what} {path}", missing=missing):
        if member:
            with open_zip(file) as archive:
                if member not in archive.NameToInfo:
                    raise UserError(f"{path}: the zip has no member {member}")
                content = read_member(archive, member, MAX_TEXT_BYTES)
        else:
            content = read_input(file, MAX_TEXT_BYTES, allow_pipe=True)
    text = decode(content)
    if not text.strip():
        raise UserError(f"{what} {path} is empty")
    return text


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip for reading.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is no regular file, no zip, or corrupt.
    """
    try:
        open_input(path).close()
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # of a corrupt zip nearly every built-in one
        raise UserError(
            f"{path} is not an intact zip ({reason(error)}): download or pack it again"
        ) from None


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """The bytes of the member `name`.

    Raises:
      OSError: it is missing (FileNotFoundError), corrupt, encrypted or too large.
    """
    try:
        info = archive.getinfo(name)
        if info.file_size > max_bytes:
            raise OSError(f"it is larger than {max_bytes >> 20} MiB")
        return archive.read(info)
    except KeyError:
        raise FileNotFoundError(f"{archive.filename} holds no {name}") from None
    except Exception as error:  # as above
        raise OSError(f"{name} in {archive.filename}: {reason(error)}") from error


def read_json(
    path: str | Path, what: str = "annotation file", missing: str = ""
) -> Any:
    """`parse_json` of a file; arguments and further errors as of `read_text`."""
    return parse_json(read_text(path, what, missing), path)


def parse_json(text: str, path: object) -> Any:
    """The value of a JSON text; of JSON lines the objects, as `Records`.

    Objects end where they end in JSON: one may take several lines, and a string may
    contain U+2028, which other programs take for the end of a line.

    Args:
      path: for messages.

    Raises:
      UserError: it is not JSON (with the line), has a key twice in an object, an
        integer that is too long, or is nested too deeply.
    """
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _object(pairs, path))
    values, lines, line, last = [], [], 1, 0
    start = _after_space(text, 0)
    try:
        while start < len(text) or not values:
            line, last = line + text.count("\n", last, start), start
            value, start = decoder.raw_decode(text, start)
            values.append(value)
            lines.append(line)
            start = _after_space(text, start)
            if start < len(text) and not isinstance(value, dict):
                raise json.JSONDecodeError("Extra data", text, start)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        if error.lineno > line and values and isinstance(values[-1], dict):
            # In JSON lines, where the parser stops may be in the next line.
            where = f"line {line}"
        raise UserError(f"{path} is not JSON: {where}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply, from line {line} on") from None
    except UserError:
        raise
    except ValueError:
        number = _LONG_NUMBER.search(text, last)
        line += text.count("\n", last, number.start() if number else last)
        raise UserError(
            f"{path}: line {line} has an integer of more than 4,300 digits"
        ) from None
    return values[0] if len(values) == 1 else Records(values, lines)


def _after_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _object(pairs: list[tuple[str, Any]], path: object) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # JSON's readers would drop the first
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise UserError(
            f"{path}: an object has the key {double[:60]!r} twice: one would be lost"
        )
    return values


def parse_csv(
    text: str, path: object, delimiter: str = ","
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The columns of a CSV text, and its rows: their line, and the fields by column.

    Blank lines are left out; a field in quotation marks may have several lines.

    Args:
      path: for messages.

    Raises:
      UserError: it is not CSV, has two columns of one name, or (while the rows are
        read) a row has another number of fields than the first line.
    """
    rows = _csv_rows(text, path, delimiter)
    _, first = next(rows, (1, []))
    columns = [name.strip() for name in first]
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} has two columns of one name: {', '.join(columns)}")

    def records() -> Iterator[tuple[int, dict[str, str]]]:
        for line, row in rows:
            if len(row) != len(columns):
                raise UserError(
                    f"{path}: row at line {line} has {len(row)} fields, the first line "
                    f"has {len(columns)}: put a text with {delimiter!r} in it in "
                    "quotation marks"
                )
            yield line, dict(zip(columns, row, strict=True))

    return columns, records()


def _csv_rows(
    text: str, path: object, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, and the lines where they begin."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in rows:
            if any(map(str.strip, row)):
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path} is not CSV at line {rows.line_num} ({error}): is a quotation mark "
            "left open?"
        ) from None


def read_arrays(path: Path, names: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, without Python objects; call it in `read_errors`.

    Args:
      names: those that are read; all if none is given.

    Raises:
      UserError: one of `names` is missing.
    """
    with open_input(path) as file, zipfile.ZipFile(file) as archive:
        found = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
        if missing := [name for name in names if name not in found]:
            has = ", ".join(found) or "nothing"
            raise UserError(f"{path} has no {' and no '.join(missing)}; it has: {has}")
        # Whole members: their checksums are compared before NumPy trusts a header.
        contents = {name: archive.read(f"{name}.npy") for name in names or found}
    return {
        name: np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        for name, content in contents.items()
    }


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number (JSON's true is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e300  # False for NaN; far larger integers fit no float


def whole_number(value: object) -> int | None:
    """The integer that a JSON value stands for (3 and 3.0 are one), else None."""
    return int(value) if is_number(value) and value == int(value) else None


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control and zero-width characters."""
    for char in text:  # a letter ends it, so it costs little for millions of texts
        if char not in _FILLERS and unicodedata.category(char) not in _INVISIBLE:
            return False
    return True
