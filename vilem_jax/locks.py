"""One writer of a folder or file: a lock of the operating system.

It ends with its process, also after `kill -9`; its file names the holder. Readers take
none.
"""

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vilem_jax.errors import UserError
from vilem_jax.files import reason, write_errors

WAIT = 0.5  # seconds: `check_free` of another process holds a lock for a moment


@contextlib.contextmanager
def locked(path: Path, *, wait: float = 0.0) -> Iterator[str]:
    """Holds the lock file `path` for the block, if nobody else does.

    Yields:
      the holder, "process 12 on HOST"; "" if it is this block.

    Raises:
      OSError: the file cannot be created.
    """
    end = time.monotonic() + wait
    while True:
        with open(path, "a+") as file:
            holder = _other_holder(file, fcntl.LOCK_EX)
            if holder and time.monotonic() < end:
                time.sleep(0.02)
                continue
            if not holder and not _is_file(path, file):  # its holder has removed it
                continue
            if holder:
                yield holder
                return
            try:
                file.truncate(0)
                print(f"process {os.getpid()} on {socket.gethostname()}", file=file)
                file.flush()
                yield ""
            finally:  # while it is held: nobody else's is removed
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def only_writer(path: Path, what: str | os.PathLike) -> Iterator[None]:
    """Holds the lock file `path`, for the block, as the only writer of `what`.

    Raises:
      UserError: another process does, which is named, or the file cannot be created.
    """
    with contextlib.ExitStack() as stack:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(locked(path, wait=WAIT))
        _refuse(holder, what)
        yield


def check_free(path: Path, what: str | os.PathLike) -> None:
    """Raises UserError if `only_writer` would, before long work; writes nothing."""
    with contextlib.suppress(OSError), open(path) as file:
        _refuse(_other_holder(file, fcntl.LOCK_SH), what)


def _other_holder(file: TextIO, kind: int) -> str:
    """Takes the lock; returns its holder if that is another one."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError as error:  # a file system without locks
        why = f"{file.name} cannot be locked ({reason(error)})"
        print(f"vilem: {why}: start no second writer there", file=sys.stderr)
    return ""


def _is_file(path: Path, file: TextIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def _refuse(holder: str, what: str | os.PathLike) -> None:
    if holder:
        raise UserError(
            f"{what} is being written by {holder}: wait until it ends, or stop it"
        )
