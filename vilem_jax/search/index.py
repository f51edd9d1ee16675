"""The index of a folder of images: one file with their embeddings and names.

Rebuilding it encodes only new and changed images, and drops deleted ones.
"""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from vilem_jax import files, locks
from vilem_jax.api import Model
from vilem_jax.errors import UserError
from vilem_jax.parsing import read_arrays
from vilem_jax.progress import track
from vilem_jax.search.folder import Entry, FolderImages
from vilem_jax.search.readable import encode_readable

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """Embeddings of the images in a folder, by one model."""

    folder: str  # absolute
    fingerprint: str  # of the model
    entries: tuple[Entry, ...]
    embedding: np.ndarray  # float32 [N, E], unit rows


@dataclasses.dataclass(frozen=True)
class IndexReport:
    """Counts of one call of `index`."""

    images: int  # in the index now
    encoded: int  # of them new or changed
    removed: int  # in the index before, now deleted or corrupt
    corrupt: tuple[tuple[str, str], ...]  # path, and why it cannot be read
    notes: tuple[str, ...]  # what else was left out, counted


def index(
    folder: str | Path, model: Model, out: str | Path, *, show_progress: bool = False
) -> IndexReport:
    """Encodes the images in `folder` and below it, and writes the index to `out`.

    The index is replaced at the end, as one change: an interrupted call leaves it as it
    was (`embed` keeps finished shards).
    If `out` is an index of another model or folder, everything is encoded again.
    Hidden files and folders are left out.

    Args:
      show_progress: a bar on stderr, or lines.

    Raises:
      UserError: no such folder, no readable image in it, `out` is a file that is not
        an index, or another process is writing it.
    """
    images, file = FolderImages(folder), Path(out).expanduser()
    files.check_writable(file)
    if file.exists() and not file.is_file():  # a FIFO, a device
        return _index(images, model, file, show_progress)
    file = file.resolve()  # several links to one file have one lock
    with locks.only_writer(file.with_name(f".{file.name}.lock"), file):
        return _index(images, model, file, show_progress)


def _index(
    images: FolderImages, model: Model, out: Path, show_progress: bool
) -> IndexReport:
    root, entries = images.root, images.entries
    before = load_index(out) if out.is_file() else None
    rows: dict[Entry, np.ndarray] = {}
    if before and (before.folder, before.fingerprint) == (str(root), model.fingerprint):
        rows = dict(zip(before.entries, before.embedding, strict=True))
    new = [row for row, entry in enumerate(entries) if entry not in rows]
    counted = track(new, "encoding images") if show_progress else new
    encoded = encode_readable(images, counted, model)
    corrupt = tuple((entries[row].path, why) for row, why in encoded.corrupt)
    found = (entries[row] for row in encoded.rows)
    rows |= zip(found, encoded.embedding, strict=True)
    kept = tuple(entry for entry in entries if entry in rows)
    if not kept:
        path, why = corrupt[0]
        raise UserError(
            f"none of the {len(entries)} images in {root} can be read; {path}: {why}"
        )
    embedding = np.stack([rows[entry] for entry in kept])
    save_index(Index(str(root), model.fingerprint, kept, embedding), out)
    paths = {entry.path for entry in kept}
    gone = {entry.path for entry in before.entries} - paths if before else ()
    return IndexReport(len(kept), len(encoded.rows), len(gone), corrupt, images.notes)


def save_index(index: Index, path: str | Path) -> None:
    """Writes an index as .npz, as one change."""
    about = {
        "format_version": FORMAT_VERSION,
        "folder": index.folder,
        "fingerprint": index.fingerprint,
        "images": [dataclasses.astuple(entry) for entry in index.entries],
    }
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)  # escapes any file name
    content = io.BytesIO()
    np.savez(content, embedding=index.embedding, about=text)
    files.write_bytes(path, content.getvalue())


def load_index(path: str | Path) -> Index:
    """What `save_index` wrote.

    Raises:
      UserError: no file, not an index, or one of another format version.
    """
    path = Path(path).expanduser()
    missing = f"there is no index {path}; `vilem index` makes one"
    corrupt = f"{path} is not an index of images, or is cut short: name another file"
    with files.read_errors(path, missing=missing, corrupt=corrupt):
        stored = read_arrays(path, ("embedding", "about"))
        embedding, about = stored["embedding"], json.loads(bytes(stored["about"]))
        version = about.get("format_version")
        rebuild = "delete it and rebuild it with `vilem index`"
        files.check_format_version(version, FORMAT_VERSION, path, rebuild)
        entries = tuple(Entry(*entry) for entry in about["images"])
        if embedding.shape[:1] != (len(entries),) or embedding.ndim != 2:
            raise ValueError(f"{len(entries)} images, embeddings {embedding.shape}")
        return Index(about["folder"], about["fingerprint"], entries, embedding)
