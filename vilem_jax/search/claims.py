"""Who works on which shard: so that workers on a shared folder seldom do it twice.

A claim is a file. Nothing depends on claims but time: shards are written whole, and
two workers that made the same one would write the same.
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

STALE = 900.0  # seconds without a sign of life, of a worker on another machine
EVERY = 10.0  # seconds between signs of life
_ours: set[str] = set()  # tokens of the claims that this process holds


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Callable[[], None] | None]:
    """Holds the claim `path` for the block.

    Yields:
      a function to call now and then as a sign of life; None where somebody else
      holds the claim.
    """
    token = secrets.token_hex(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
    content = json.dumps(holder).encode()
    _ours.add(token)
    try:
        if not create_file(path, content):
            if not _is_dead(path) or not _remove(path):
                yield None
                return
            if not create_file(path, content):
                yield None
                return
        try:
            yield _sign_of_life(path)
        finally:
            path.unlink(missing_ok=True)
    finally:
        _ours.discard(token)


def _sign_of_life(path: Path) -> Callable[[], None]:
    last = time.monotonic()

    def sign() -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            with contextlib.suppress(FileNotFoundError):  # taken for dead
                os.utime(path)

    return sign


def _is_dead(path: Path) -> bool:
    """Whether the worker that holds the claim is gone."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        age = _clock_of(path.parent) - path.stat().st_mtime
        host, pid, token = holder["host"], int(holder["pid"]), holder["token"]
    except FileNotFoundError:
        return False  # finished just now
    except (ValueError, KeyError, TypeError):
        return True
    if age > STALE:
        return True
    if host != socket.gethostname():
        return False
    if pid == os.getpid():  # else of one that had our number before us
        return token not in _ours
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _remove(path: Path) -> bool:
    """Takes a dead claim away; False where somebody else just did."""
    grave = path.with_name(f".{path.name}.{secrets.token_hex(4)}.dead")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return False
    grave.unlink(missing_ok=True)
    return True


def _clock_of(folder: Path) -> float:
    """Now, by the clock that stamps files there: machines' own may differ."""
    probe = folder / f".{secrets.token_hex(4)}.clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
