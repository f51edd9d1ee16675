"""Encoded images by name, from a folder or straight from a zip."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vilem_jax.data.sources.handles import PerProcess
from vilem_jax.errors import UserError

MAX_FILE_BYTES = 256 << 20  # more than any image of 50 megapixels


def open_images(path: str | os.PathLike, names: Sequence[str]) -> "ImageFiles":
    """The images `names` in the folder or zip `path`.

    Raises:
      UserError: `path` does not exist, or is neither a folder nor a zip.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return ImageFolder(path, names)
    if not path.exists():
        raise UserError(f"images: {path} does not exist; give a folder or a zip")
    if not zipfile.is_zipfile(path):
        raise UserError(f"images: {path} is neither a folder nor an intact zip")
    return ImageZip(path, names)


class ImageFiles:
    """Reads images by the names that an annotation file gives them.

    Annotation files often contain paths of another machine. The number of leading
    folders to drop is the one with which most of a sample of the names exist. It is the
    same for all names: cut one by one, a name could match another image's file.
    """

    top = ""  # the folder that contains all images and is not part of the names

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        self._num_dropped = 0
        sample = names[:: max(1, len(names) // 20)]
        deepest = max((len(PurePosixPath(n).parts) for n in sample), default=1)
        found = []
        for self._num_dropped in range(deepest):
            found.append(sum(self.exists(name) for name in sample))
        self._num_dropped = found.index(max(found)) if found else 0

    def read(self, name: str) -> bytes:
        """The bytes of image `name`.

        Raises:
          OSError: it is missing, corrupt or larger than any image can be.
        """
        raise NotImplementedError

    def exists(self, name: str) -> bool:
        return self._exists(self._local(name))

    def _local(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        kept = parts[min(self._num_dropped, len(parts) - 1) :]
        return str(PurePosixPath(self.top, *kept))

    def _exists(self, local: str) -> bool:
        raise NotImplementedError


class ImageFolder(ImageFiles):
    """Images in a folder, whose subfolders may be zips: X/1.jpg in X.zip."""

    def __init__(self, path: Path, names: Sequence[str]):
        self._zips: dict[str, ImageZip | None] = {}
        super().__init__(path, names)

    def read(self, name: str) -> bytes:
        local = self._local(name)
        try:
            with open(self.path / local, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            if packed := self._zip_of(local):
                return packed.read(local)
            raise
        except ValueError as error:  # a NUL in the name
            raise OSError(f"{name!r}: {error}") from None
        if len(content) > MAX_FILE_BYTES:
            raise OSError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
        return content

    def _exists(self, local: str) -> bool:
        try:
            if (self.path / local).is_file():
                return True
            packed = self._zip_of(local)
        except (OSError, ValueError):  # not a valid file name
            return False
        return packed is not None and packed.exists(local)

    def _zip_of(self, local: str) -> "ImageZip | None":
        """The zip that stands for the first folder of `local`, if there is one."""
        first, _, rest = local.partition("/")
        if not rest:
            return None
        if first not in self._zips:
            file = self.path / f"{first}.zip"
            is_zip = zipfile.is_zipfile(file)
            self._zips[first] = ImageZip(file, [local]) if is_zip else None
        return self._zips[first]


class ImageZip(ImageFiles):
    """Images in a zip; in COCO's they are in a folder that annotations do not name."""

    def __init__(self, path: Path, names: Sequence[str]):
        self._archive = PerProcess(zipfile.ZipFile, path)
        super().__init__(path, names)
        tops = {name.partition("/")[0] for name in self._archive.get().NameToInfo}
        if len(tops) == 1 and names and not any(map(self.exists, names[:20])):
            self.top = tops.pop()
            super().__init__(path, names)

    def read(self, name: str) -> bytes:
        try:
            archive = self._archive.get()
            info = archive.getinfo(self._local(name))
            if info.file_size > MAX_FILE_BYTES:
                raise OSError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
            return archive.read(info)
        except KeyError:
            raise FileNotFoundError(f"{self.path} holds no {name}") from None
        # RuntimeError: encrypted; its subclass NotImplementedError: another method.
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise OSError(f"{name} in {self.path}: {error}") from error

    def _exists(self, local: str) -> bool:
        return local in self._archive.get().NameToInfo
