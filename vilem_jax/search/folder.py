"""Images in a folder and below it, without captions."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vilem_jax.errors import UserError
from vilem_jax.files import MAX_IMAGE_BYTES, read_input, reason

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_NETPBM = (".ppm", ".pgm", ".pnm")
_OTHER = (".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SUFFIXES = frozenset((*_JPEG, *_NETPBM, *_OTHER))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image: its path below the folder, and how a change is recognized."""

    path: str
    size: int  # bytes
    modified: int  # nanoseconds


class FolderImages:
    """The images below a folder, in the order of their paths, without captions.

    Hidden ones are left out, and links to folders are not followed. `notes` count all
    that is left out, by reason.

    Raises:
      UserError: no such folder, no image in it, or a folder in it cannot be listed,
        whose images would count as removed.
    """

    def __init__(self, folder: str | Path):
        self.root = Path(folder).expanduser().absolute()
        if not self.root.is_dir():
            raise UserError(f"there is no folder {folder}")
        left_out: Counter[str] = Counter()
        self.entries = list(_walk(self.root, left_out))
        counts = ", ".join(f"{n} {what}" for what, n in left_out.most_common() if n)
        self.notes = (f"left out: {counts}",) if counts else ()
        if not self.entries:
            endings = ", ".join(sorted(SUFFIXES))
            none = f"{folder} holds no image ({endings}), nor do the folders in it"
            raise UserError("; ".join([none, *self.notes]))

    def __len__(self) -> int:
        return len(self.entries)

    def image_name(self, index: int) -> str:
        return self.entries[index].path

    def read_image(self, index: int) -> bytes:
        return read_input(self.root / self.entries[index].path, MAX_IMAGE_BYTES)


def _walk(root: Path, left_out: Counter[str]) -> Iterator[Entry]:
    """The images below `root`; counts in `left_out` what is no image."""

    def refuse(error: OSError):
        raise UserError(
            f"cannot list {error.filename}: {reason(error)}; make it readable, or move "
            "it out of the folder"
        ) from error

    for here, folders, files in os.walk(root, onerror=refuse):
        names = (*folders, *files)
        left_out["hidden"] += sum(name.startswith(".") for name in names)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        left_out["links to folders"] += sum(Path(here, f).is_symlink() for f in folders)
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(here, name)
            if (ending := path.suffix.lower()) not in SUFFIXES:
                left_out[ending or "without ending"] += 1
                continue
            try:
                status = path.stat()
            except OSError:  # a dangling link, or a file that has just been deleted
                status = None
            size, modified = (status.st_size, status.st_mtime_ns) if status else (0, 0)
            yield Entry(str(path.relative_to(root)), size, modified)
