"""Results on disk: whole, or not at all."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from vilem_jax.config import UserError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes `content` to `path` by a rename, so that no reader sees half of it.

    Raises:
      UserError: the folder cannot be made, or is not writable.
    """
    path = Path(path).expanduser()
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}") from error


def write_json(path: str | Path, values: Any) -> None:
    """Writes `values` as JSON for people and programs."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())
