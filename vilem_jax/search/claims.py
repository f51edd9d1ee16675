"""Which worker embeds which shard, so that workers on one folder share the work.

A claim is a file that names its holder. Claims only save time: shards are written as
one change, and two workers on the same shard would write the same bytes.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vilem_jax.files import create_file

STALE = 900.0  # seconds without a sign of life after which a claim is dead
EVERY = 10.0  # seconds between signs of life
_ours: set[str] = set()  # tokens of the claims that this process holds


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Callable[[], None] | None]:
    """Holds the claim `path` for the block.

    Yields:
      a function to call repeatedly as a sign of life; None if another worker holds
      the claim.
    """
    token = secrets.token_hex(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
    content = json.dumps(holder).encode()
    _ours.add(token)
    try:
        is_mine = create_file(path, content) or (
            _is_dead(path) and _remove(path) and create_file(path, content)
        )
        try:
            yield _sign_of_life(path) if is_mine else None
        finally:
            if is_mine:
                path.unlink(missing_ok=True)
    finally:
        _ours.discard(token)


def _sign_of_life(path: Path) -> Callable[[], None]:
    last = time.monotonic()

    def sign() -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            with contextlib.suppress(FileNotFoundError):  # removed as dead
                os.utime(path)

    return sign


def _is_dead(path: Path) -> bool:
    """Whether the worker that holds the claim is gone."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        age = _clock_of(path.parent) - path.stat().st_mtime
        host, pid, token = holder["host"], int(holder["pid"]), holder["token"]
    except FileNotFoundError:
        return False  # its holder has just finished
    except (ValueError, KeyError, TypeError):
        return True
    if age > STALE:
        return True
    if host != socket.gethostname():
        return False
    if pid == os.getpid():  # ours, or of an earlier process with our number
        return token not in _ours
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process
        pass
    return False


def _remove(path: Path) -> bool:
    """Removes a dead claim; False if another worker has just done so."""
    grave = path.with_name(f".{path.name}.{secrets.token_hex(4)}.dead")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return False
    grave.unlink(missing_ok=True)
    return True


def _clock_of(folder: Path) -> float:
    """The time of the file system's clock: those of the machines may differ."""
    probe = folder / f".{secrets.token_hex(4)}.clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
