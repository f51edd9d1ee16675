"""Other spellings of a path: how names in annotations and on disk differ."""

import difflib
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np


def loose(path: str) -> str:
    """One text for all spellings of a path.

    They differ in `./` and `a/../`, backslashes, `%20`, letter case, and Unicode's
    composed or decomposed letters. Two files may have the same: compare exact names
    first.
    """
    path = path.replace("\\", "/")
    if "%" in path:
        path = unquote(path, errors="surrogateescape")
    path = path.lower() if path.isascii() else _folded(path)
    return posixpath.normpath(path) if "./" in path or "//" in path else path


def _folded(path: str) -> str:
    for _ in range(2):  # a folded letter may compose with what follows it
        path = unicodedata.normalize("NFC", path.casefold())
    return path


def first_spellings(
    names: Sequence[str], loosely: Callable[[str], str], path_of: Callable[[str], str]
) -> dict[str, str]:
    """The first spelling of each name that repeats the path of an earlier one.

    Args:
      names: different texts, millions of them.
      loosely: the same for all spellings of a path: names that share it are compared.
      path_of: the `identity` of the path that a name means; slow, it looks at the disk.
    """
    hashes = np.fromiter((hash(loosely(name)) for name in names), np.int64, len(names))
    _, group, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    first: dict[str, str] = {}
    repeated = {}
    for row in np.flatnonzero(sizes[group] > 1):
        name = names[int(row)]
        spelling = first.setdefault(path_of(name), name)
        if spelling != name:
            repeated[name] = spelling
    return repeated


def identity(path: Path) -> str:
    """The same for spellings of one path; a link to a file is a path of its own.

    The folder may be a link, of which `..` is another folder than it seems.
    """
    folder, file = os.path.split(path)
    return os.path.join(os.path.realpath(folder), file)


def near_miss(name: str, others: Iterable[str]) -> str:
    """The name among `others` that `name` may mean, or ""."""
    by_stem = {_stem(other): other for other in others}
    wanted = _stem(name)
    for stem, other in by_stem.items():
        if posixpath.basename(stem) == posixpath.basename(wanted):
            return other
    found = difflib.get_close_matches(wanted, list(by_stem)[:2000], 1, 0.8)
    return by_stem[found[0]] if found else ""


def _stem(name: str) -> str:
    return posixpath.splitext(loose(name))[0]
