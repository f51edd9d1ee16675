"""Files on disk: whole, or not at all. Every room may write with this."""

import contextlib
import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vilem_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` at the end of the block.

    A reader, or a crash, sees the old file or the new. A block or a write that fails
    leaves the old one and no other trace.
    """
    # Several hosts may write to one folder, so the number of a process is not enough.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(draft, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name and no bytes
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def replace_file(path: Path, text: str) -> None:
    """`text` as UTF-8, by `replacing`; an OSError where that cannot be."""
    with replacing(path) as file:
        file.write(text.encode())


def create_file(path: Path, content: bytes) -> bool:
    """Writes `path` whole where nobody has yet; False where somebody has.

    Of several that call it at once, on one file system, one creates the file.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename, refuses to replace
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(draft, path)
        return True
    finally:
        draft.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """That `write_bytes` may write there: to be asked before hours of work; makes the
    folder.

    Raises:
      UserError: the folder cannot be made, or is not writable.
    """
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a result where a person asked for it, and makes the folder.

    Raises:
      UserError: the folder cannot be made, or is not writable.
    """
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def write_json(path: str | Path, values: Any) -> None:
    """Writes `values` as JSON for people and programs."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def check_format_version(found: object, version: int, path: Path, rebuild: str) -> None:
    """That what is stored at `path` has the layout that this release reads.

    Args:
      found: the stored `format_version`; None if there is none.
      version: the one that this release reads and writes.
      rebuild: how to write it again, for the message.

    Raises:
      UserError: another version, or none.
    """
    if found != version:
        stored = "no format_version" if found is None else f"format_version {found!r}"
        raise UserError(
            f"{path} has {stored}, but this release reads format_version {version}: "
            f"{rebuild}, or use the release that wrote it"
        )


def reason(error: BaseException) -> str:
    """The one line of an exception that tells a person what happened."""
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename} is a file where a folder is needed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
