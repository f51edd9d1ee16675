"""Users' files are read within limits; results are written completely or not at all."""

import contextlib
import errno
import itertools
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vilem_jax.errors import UserError

_STDOUT = 1  # a file descriptor
MAX_IMAGE_BYTES = 256 << 20  # more than any image of 50 megapixels
MAX_TEXT_BYTES = 8 << 30  # of annotations
_ANY_HOLE = 8 << 20  # smaller files may have any hole: reading them costs little
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `path`, removed at the end unless renamed."""
    # The process id is not unique: several hosts may write to one folder.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(draft, "xb") as file:
            yield file
    finally:
        draft.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    # Without this, a power failure may leave the name of a renamed file but no content.
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` at the end of the block.

    Readers see the old or the new file, also after a crash. If the block or a write
    fails, the old file stays and nothing else is left.
    """
    with _draft(path) as file:
        yield file
        _sync(file)
        os.replace(file.name, path)


def replace_file(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 with `replacing`; raises an OSError if that fails."""
    with replacing(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # names of any bytes


def create_file(path: Path, content: bytes) -> bool:
    """Creates `path` with its content; returns False if it exists already.

    If several processes call this at the same time, on one file system, only one
    creates the file.
    """
    with _draft(path) as file:
        file.write(content)
        _sync(file)
        try:
            os.link(file.name, path)  # unlike a rename, never replaces a file
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(file.name, path)
        return True


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


@contextlib.contextmanager
def read_errors(
    path: str | Path, *, missing: str = "", corrupt: str = ""
) -> Iterator[None]:
    """Turns every error of the block, which reads `path`, into a UserError.

    Parsers of foreign files raise almost anything: zlib.error, struct.error,
    RecursionError, OverflowError, an AttributeError of a wrong type.

    Args:
      missing: the message if there is no such file.
      corrupt: the message if the content is not what the block expects.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        sentence = f"{path} cannot be read: {reason(error)}"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            sentence = missing or sentence
        elif not isinstance(error, OSError) or error.errno is None:
            sentence = corrupt or sentence
        raise UserError(sentence) from error


def open_input(
    path: str | Path, max_bytes: int = 0, *, allow_pipe: bool = False
) -> BinaryIO:
    """Opens a file that a user names, or that is in a folder of theirs.

    It never blocks: a device may never end, and a pipe waits for its writer.

    Args:
      max_bytes: refuse larger files; 0 for no limit.
      allow_pipe: for a file that the user names, as in `--data=<(zcat a.json.gz)`.

    Raises:
      OSError: it is missing, no regular file, too large, or begins with zeros.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError("it is a socket, not a file") from None
        raise
    status = os.fstat(file.fileno())
    if stat.S_ISFIFO(status.st_mode) and allow_pipe:
        os.set_blocking(file.fileno(), True)
    elif why := _why_unfit(file, status, max_bytes):
        file.close()
        raise OSError(why)
    return file


def read_input(path: str | Path, max_bytes: int, *, allow_pipe: bool = False) -> bytes:
    """The bytes of a file, as `open_input` opens it; raises an OSError as it does."""
    with open_input(path, max_bytes, allow_pipe=allow_pipe) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            return file.read(status.st_size)
        parts = iter(lambda: file.read(1 << 20), b"")
        return b"".join(itertools.islice(parts, max_bytes >> 20))


def _why_unfit(file: BinaryIO, status: os.stat_result, max_bytes: int) -> str:
    """Why a file is not opened; "" if it is fit."""
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        return f"it is {kind}, not a file"
    if not max_bytes:  # it is not read as a whole
        return ""
    if size > max_bytes:
        return f"it is larger than {max_bytes >> 20} MiB"
    head = file.read(512)
    file.seek(0)
    if head and not head.strip(b"\0"):
        return "it begins with zeros: was it written completely?"
    # No byte of a text is zero. An image may be black, and some disks store nothing for
    # zeros: a large one is refused only if it takes far less of the disk than its size.
    is_text, stored = size > MAX_IMAGE_BYTES, 512 * status.st_blocks
    if is_text or size > max(_ANY_HOLE, 8 * stored):
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        if hole < size:
            return f"it has a hole at byte {hole}: was it written completely?"
    return ""


def check_image_file(path: str | Path) -> None:
    """Checks, before long work, that an image file can be read; raises UserError."""
    with read_errors(path):
        open_input(Path(path).expanduser(), MAX_IMAGE_BYTES).close()


def check_writable(path: str | Path) -> None:
    """Checks, before long work, that `write_bytes` can write; creates the folder.

    Raises:
      UserError: if the folder cannot be created or is not writable.
    """
    path = Path(path).expanduser()
    with write_errors(path):
        if target := _real_target(path):
            tempfile.TemporaryFile(dir=target.parent).close()
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a result to a path that a user gave, and creates its folder.

    A regular file is replaced as one change, also where a link leads to it; a FIFO or a
    device is written into.

    Raises:
      UserError: if the folder cannot be created or is not writable.
    """
    path = Path(path).expanduser()
    with write_errors(path):
        if target := _real_target(path):
            with replacing(target) as file:
                file.write(content)
        elif _is_stdout(path):  # its own position would overwrite what is printed
            print(end="", flush=True)
            with open(_STDOUT, "wb", closefd=False) as file:
                file.write(content)
        else:
            path.write_bytes(content)


@contextlib.contextmanager
def new_folder(
    out: str | Path, *, errors: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[Path]:
    """A folder to write to that becomes `out` at the end of the block.

    Args:
      errors: of the block, that say that it cannot be written.

    Raises:
      UserError: `out` holds something, or cannot be written.
    """
    folder = Path(out).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} is not an empty folder: name a new one")
    check_writable(folder.parent / f".{folder.name}")
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir()
        yield draft
        os.replace(draft, folder)
    except errors as error:
        raise UserError(f"cannot write {out}: {reason(error)}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _real_target(path: Path) -> Path | None:
    """The regular file, new or not, that `path` leads to; its folder is created.

    None if it leads to something else, which must not be replaced by a file.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = path.stat().st_mode  # of what links lead to; raises if they are a loop
    except (FileNotFoundError, NotADirectoryError):
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return target if stat.S_ISREG(mode) and not _is_stdout(path) else None


def _is_stdout(path: Path) -> bool:
    """Whether `path` is where this program prints, such as /dev/stdout."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(_STDOUT))
    return False


def write_json(path: str | Path, values: object) -> None:
    """Writes `values` as readable JSON, like `write_bytes`."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    # A byte of a name that is not UTF-8 is escaped as in any JSON: \udce9.
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))


def check_format_version(found: object, version: int, path: Path, rebuild: str) -> None:
    """Checks that the content of `path` has the format that this release reads.

    Args:
      found: the stored `format_version`; None if there is none.
      version: the version that this release reads and writes.
      rebuild: how to rebuild it, for the message.

    Raises:
      UserError: if it has another version, or none.
    """
    if found != version:
        stored = "no format_version" if found is None else f"format_version {found!r}"
        raise UserError(
            f"{path} has {stored}, but this release reads format_version {version}: "
            f"{rebuild}, or use the release that wrote it"
        )


def reason(error: BaseException) -> str:
    """One line of an exception, for a message to the user."""
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename} is a file where a folder is needed"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if text := getattr(error, "strerror", None):  # of an OSError, or PyAV's
        return text.lower()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
