"""Encoded images by name, from a folder or straight from a zip."""

import os
import posixpath
import stat
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from vilem_jax.data.sources.handles import PerProcess
from vilem_jax.data.sources.names import first_spellings, identity, loose, near_miss
from vilem_jax.errors import UserError
from vilem_jax.files import MAX_IMAGE_BYTES, read_input
from vilem_jax.parsing import open_zip, read_member


def open_images(path: str | os.PathLike, names: Sequence[str]) -> "ImageFiles":
    """The images `names` in the folder or zip `path`.

    Raises:
      UserError: `path` does not exist, or is neither a folder nor a zip; two of the
        names would be one of its files.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"images: {path} does not exist; give a folder or a zip")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise UserError(f"images: {path} is neither a folder nor an intact zip")
    images = (ImageFolder if path.is_dir() else ImageZip)(path, names)
    images.check_distinct(names)
    return images


class ImageFiles:
    """Reads images by the names that an annotation file gives them.

    Annotation files often contain paths of another machine. The number of leading
    folders to drop is the one with which most of a sample of the names exist. It is the
    same for all names: cut one by one, a name could match another image's file.

    An image whose exact name does not exist is the one that has another spelling of
    it (see `loose`), if there is exactly one.
    """

    top = ""  # the folder that contains all images and is not part of the names
    max_dropped = 100  # leading folders

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        self._num_dropped, self._slash = 0, "/"
        sample = names[:: max(1, len(names) // 20)]
        # By exact names; else by other spellings; else by paths of Windows.
        tries = ((self._is_there, "/"), (self._spelled, "/"), (self._spelled, "\\"))
        for find, slash in tries:
            self._slash = slash
            found = []
            for dropped in range(self._num_droppable(sample)):
                self._num_dropped = dropped
                found.append(sum(bool(find(self._local(name))) for name in sample))
            self._num_dropped = found.index(max(found)) if found else 0
            if any(found):
                return
        self._slash = "/"

    def read(self, name: str) -> bytes:
        """The bytes of image `name`.

        Raises:
          OSError: it is missing, corrupt, no regular file, or larger than any image.
        """
        local = self._local(name)
        try:
            return self._read(local)
        except (FileNotFoundError, NotADirectoryError):
            if spelled := self._spelled(local):
                return self._read(spelled)
            raise

    def exists(self, name: str) -> bool:
        return self._find(name) is not None

    def near(self, name: str) -> str:
        """An image that `name`, which does not exist, may mean; "" if there is none."""
        local = self._local(name)
        spelled = sorted(self._spellings(local))[:2]
        return " or ".join(spelled) or near_miss(local, self._siblings(local))

    def first_spellings(self, names: Sequence[str]) -> dict[str, str]:
        """The first spelling of each of `names` that repeats an earlier image."""
        return first_spellings(names, self._loosely, self._identity)

    def check_distinct(self, names: Sequence[str]) -> None:
        """Raises UserError if two names are one image because folders are dropped."""
        if not self._num_dropped:
            return

        def local(name: str) -> str:
            return loose(self._local(name))

        for name, first in first_spellings(names, local, self._identity).items():
            if self._loosely(name) != self._loosely(first):
                raise UserError(
                    f"{first} and {name} would both be {self._find(name)} in "
                    f"{self.path}, without the folders that it lacks: give the folder "
                    "that holds them, or correct the names"
                )

    def _loosely(self, name: str) -> str:
        """The same for all spellings of a path."""
        root = f"{self.path.absolute()}/"
        home = os.path.expanduser(name) if name.startswith("~") else name
        return loose(home[len(root) :] if home.startswith(root) else name)

    def _find(self, name: str) -> str | None:
        local = self._local(name)
        return local if self._is_there(local) else self._spelled(local)

    def _num_droppable(self, names: Sequence[str]) -> int:
        """One more than the leading folders of `names` that may be dropped."""
        deepest = max((len(self._parts(name)) for name in names), default=1)
        return min(deepest, self.max_dropped + 1)

    def _parts(self, name: str) -> tuple[str, ...]:
        return PurePosixPath(name.replace(self._slash, "/")).parts or (name,)

    def _local(self, name: str) -> str:
        parts = self._parts(name)
        kept = parts[min(self._num_dropped, len(parts) - 1) :]
        return str(PurePosixPath(self.top, *kept))

    def _spelled(self, local: str) -> str | None:
        """The one other spelling of `local` that exists."""
        plain = posixpath.normpath(os.path.expanduser(local))
        if plain != local and self._is_there(plain):
            return plain
        found = set(self._spellings(local))
        return found.pop() if len(found) == 1 else None

    def _identity(self, name: str) -> str:
        """The same for names of one image."""
        return identity(self.path / (self._find(name) or name))

    def _read(self, local: str) -> bytes:
        raise NotImplementedError

    def _is_there(self, local: str) -> bool:
        raise NotImplementedError

    def _spellings(self, local: str) -> Iterable[str]:
        """The images that have another spelling of `local`."""
        raise NotImplementedError

    def _siblings(self, local: str) -> Iterable[str]:
        """The images beside `local`."""
        raise NotImplementedError


class ImageFolder(ImageFiles):
    """Images in a folder, whose subfolders may be zips: X/1.jpg in X.zip."""

    def __init__(self, path: Path, names: Sequence[str]):
        self._zips: dict[str, ImageZip | None] = {}
        self._listed: dict[str, dict[str, list[str]]] = {}
        super().__init__(path, names)

    def _read(self, local: str) -> bytes:
        try:
            return read_input(self.path / local, MAX_IMAGE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            if packed := self._zip_of(local):
                return packed.read(local)
            raise
        except ValueError as error:  # a NUL in the name
            raise OSError(f"{local!r}: {error}") from None

    def _is_there(self, local: str) -> bool:
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                # A pipe is there, and reading it says that it is one.
                return not stat.S_ISDIR((self.path / local).stat().st_mode)
            packed = self._zip_of(local)
        except (OSError, ValueError):  # not a valid file name
            return False
        return packed is not None and packed.exists(local)

    def _spellings(self, local: str) -> Iterator[str]:
        if not os.path.isabs(local):
            yield from self._below("", loose(local))

    def _below(self, folder: str, wanted: str) -> Iterator[str]:
        """The files in `folder` and below it with the loose name `wanted`."""
        first = wanted.partition("/")[0]
        for name in self._list(folder).get(first, ()):
            path, spelled = posixpath.join(folder, name), loose(name)
            if spelled == wanted:
                if (self.path / path).is_file():
                    yield path
            elif wanted.startswith(f"{spelled}/"):
                yield from self._below(path, wanted[len(spelled) + 1 :])

    def _siblings(self, local: str) -> Iterator[str]:
        folder = posixpath.dirname(local)
        for names in self._list(folder).values():
            yield from (posixpath.join(folder, name) for name in names)

    def _list(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder, by their first part, spelled loosely."""
        if folder not in self._listed:
            names = defaultdict(list)
            with suppress(OSError, ValueError):  # there is no such folder
                for name in sorted(os.listdir(self.path / folder)):
                    if not name.startswith("."):
                        names[loose(name).partition("/")[0]].append(name)
            self._listed[folder] = dict(names)
        return self._listed[folder]

    def _zip_of(self, local: str) -> "ImageZip | None":
        """The zip that stands for the first folder of `local`, if there is one."""
        first, _, rest = local.partition("/")
        if not rest:
            return None
        if first not in self._zips:
            file = self.path / f"{first}.zip"
            is_zip = file.is_file() and zipfile.is_zipfile(file)
            self._zips[first] = _ImageZipOfFolder(file, [local]) if is_zip else None
        return self._zips[first]


class ImageZip(ImageFiles):
    """Images in a zip, in which a folder that annotations do not name may hold them.

    COCO's zips have such a folder, and those that Finder, tar, GitHub and .NET write:
    `__MACOSX`, `./`, backslashes.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self._archive = PerProcess(open_zip, path)
        self._by_loose: dict[str, list[str]] = {}
        for name in self._archive.get().NameToInfo:
            base = name.rpartition("/")[2]
            if base and not base.startswith("._") and not name.startswith("__MACOSX/"):
                self._by_loose.setdefault(loose(name), []).append(name)
        super().__init__(path, names)
        sample = names[:20]
        if sample and not any(map(self.exists, sample)):
            self._drop_top(sample)

    def _drop_top(self, sample: Sequence[str]) -> None:
        """Sets `top` to the one folder below which images of `sample` are."""
        for dropped in range(self._num_droppable(sample)):
            self._num_dropped = dropped
            ends = tuple({f"/{loose(self._local(name))}" for name in sample})
            tops = {
                (names[0] if len(names[0]) == len(member) else member)[: -len(end)]
                for member, names in self._by_loose.items()
                if member.endswith(ends)
                for end in ends
                if member.endswith(end)
            }
            if tops:
                top = min(tops, key=len)
                if all(each == top or each.startswith(f"{top}/") for each in tops):
                    self.top = top
                    return
                break  # which of them?
        self._num_dropped = 0

    def _read(self, local: str) -> bytes:
        return read_member(self._archive.get(), local, MAX_IMAGE_BYTES)

    def _is_there(self, local: str) -> bool:
        return local in self._archive.get().NameToInfo

    def _spellings(self, local: str) -> list[str]:
        return self._by_loose.get(loose(local), [])

    def _siblings(self, local: str) -> Iterator[str]:
        return (names[0] for names in self._by_loose.values())


class _ImageZipOfFolder(ImageZip):
    """X.zip as the folder X, of which only the name X may be dropped."""

    max_dropped = 1  # with more, X/a/1.jpg and X/b/1.jpg could be one
