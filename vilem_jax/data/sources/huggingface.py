"""A data set of Hugging Face: a folder that `datasets` saved, or Parquet files."""

import dataclasses
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vilem_jax.config.sources import HuggingFaceConfig
from vilem_jax.data.sources.annotations import Columns, Row, split_of, take_split
from vilem_jax.data.sources.arrow_files import ArrowFile, Image, is_parquet
from vilem_jax.data.sources.columns import find_columns
from vilem_jax.data.sources.handles import PerProcess
from vilem_jax.data.sources.index_files import fingerprint, load_or_build
from vilem_jax.data.sources.packed_text import PackedSource, pack_records
from vilem_jax.errors import UserError
from vilem_jax.files import MAX_IMAGE_BYTES, read_input
from vilem_jax.parsing import read_json

_SHARD = re.compile(r"(.+?)-\d+(-of-\d+)?")  # train-00000-of-00002


class _Part(NamedTuple):
    """A file, and the split that all of its rows belong to; None if it has none."""

    file: Path
    split: str | None


class HuggingFaceSource(PackedSource):
    """Rows of an image and its captions, read by their number.

    Images are bytes or paths, plain or as `datasets` stores them. Rows of one path (or
    id) with the same bytes are one image.

    Args:
      config: `path`: a folder of `save_to_disk`, or Parquet, a file, a glob or a
        folder; `split`, a folder or file of this name, or a value of the column
        `split`; `num_images`; and the columns, which are found by their usual names.

    Raises:
      UserError: no such files or split, a file is corrupt, or no column is known as
        that of the images or captions; no image has a caption.
    """

    def __init__(self, config: HuggingFaceConfig):
        path = Path(config.path).expanduser()
        self._root = path if path.is_dir() else path.parent
        parts = _parts(path)
        self._files = PerProcess(_open_files, [part.file for part in parts])
        files = self._files.get()
        self._columns = _find_columns(files, config)
        self._ends = np.cumsum([file.num_rows for file in files])
        wanted = {*config.split.split("+"), "restval"}
        is_every = not config.split or bool(self._columns.split)
        reads = [is_every or part.split in (None, *wanted) for part in parts]
        names = self._names([f for f, r in zip(files, reads, strict=True) if r], path)
        first: dict[str, int] = {}
        rows = self._rows(parts, reads, iter(names), first)
        captions_of, notes = take_split(path, rows, config.split)
        packed = pack_records(list(captions_of.items()))
        found = np.array([first[name] for name in captions_of], np.int64)
        self._row_of = found[packed["kept"]]
        super().__init__(
            config.name or path.stem, path, [packed], config.num_images, notes
        )

    def read_image(self, index: int) -> bytes:
        image = self._image(int(self._row_of[self._checked(index)]))
        if image.content is not None:
            return image.content
        if not image.path:
            raise OSError(f"{self.image_name(index)} has neither bytes nor a path")
        return read_input(self._root / image.path, MAX_IMAGE_BYTES)

    def _image(self, row: int) -> Image:
        number = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._files.get()[number].image(self._columns.image, row - start)

    def _rows(
        self,
        parts: Sequence[_Part],
        reads: Sequence[bool],
        names: Iterator[str],
        first: dict[str, int],
    ) -> Iterator[Row]:
        """All rows in order; those of parts that are not read have a split alone.

        Args:
          names: of the images of the rows that are read.
          first: gets the number of the first row of each image.
        """
        row = 0
        files = zip(parts, self._files.get(), reads, strict=True)
        for part, file, is_read in files:
            if not is_read:
                yield from (("", [], part.split) for _ in range(file.num_rows))
                row += file.num_rows
                continue
            splits = file.texts(self._columns.split) if self._columns.split else None
            for found in file.texts(self._columns.caption):
                name = next(names)
                first.setdefault(name, row)
                captions = found if isinstance(found, list) else [found]
                own = {"split": next(splits)} if splits else {}
                split = split_of(own, f"{file.path}: row {row}") or part.split
                yield name, [caption or "" for caption in captions], split
                row += 1

    def _names(self, files: Sequence[ArrowFile], path: Path) -> list[str]:
        """A name of each row's image, the same for rows of one image alone."""
        names, rows = [], []
        starts = dict(zip(self._files.get(), [0, *self._ends], strict=False))
        for file in files:
            paths = list(file.paths(self._columns.image))
            ids = paths
            if self._columns.image_id and not any(paths):
                ids = list(file.texts(self._columns.image_id))
            own = file.path.relative_to(self._root).with_suffix("").as_posix()
            for row, value in enumerate(ids):
                given = value is not None and value != ""
                names.append(str(value) if given else f"{own}/{row}")
                rows.append(int(starts[file]) + row)
        counts = Counter(names)
        repeated = [i for i, name in enumerate(names) if counts[name] > 1]
        if not repeated:
            return names
        digests = self._digests([rows[i] for i in repeated], path)
        first: dict[str, str] = {}
        for i, digest in zip(repeated, digests, strict=True):
            # A path is often a file name without its folder: two images may have one.
            if first.setdefault(names[i], digest) != digest:
                names[i] = f"{names[i]}#{digest}"
        return names

    def _digests(self, rows: Sequence[int], path: Path) -> list[str]:
        """A checksum of the bytes of each of `rows`, stored beside the data."""
        files = [file.path for file in self._files.get()]
        described = repr([(str(f), fingerprint(f)) for f in files] + [self._columns])
        described += f"{len(rows)} {hash(tuple(rows))}"
        version = hashlib.sha256(described.encode()).hexdigest()

        def build() -> dict[str, np.ndarray]:
            bar = tqdm(rows, f"{path.name}: images", disable=None, leave=False)
            sums = [_digest(self._content(row)) for row in bar]
            return {"digests": np.array(sums)}

        stored = load_or_build(self._root, "images", version, build)
        return stored["digests"].tolist()

    def _content(self, row: int) -> bytes:
        try:
            return self._image(row).content or b""
        except OSError:  # a corrupt image is reported when it is used
            return b""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _open_files(files: Sequence[Path]) -> list[ArrowFile]:
    return [ArrowFile(file) for file in files]


def _find_columns(files: Sequence[ArrowFile], config: HuggingFaceConfig) -> Columns:
    """The columns of the first file, which the others must have.

    Raises:
      UserError: as `columns.find_columns`; a column has another type; a file lacks one.
    """
    kinds = files[0].columns()
    images = [name for name, kind in kinds.items() if kind in ("image", "bytes")]
    if len(images) == 1 and not config.image_column:
        config = dataclasses.replace(config, image_column=images[0])
    texts = [name for name, kind in kinds.items() if kind in ("text", "texts")]
    columns = find_columns(files[0].path, [*kinds], config)
    if columns.caption not in texts or kinds[columns.image] in ("texts", "number"):
        raise UserError(
            f"{files[0].path}: column {columns.caption!r} must hold texts, and "
            f"{columns.image!r} images or their paths; texts: {', '.join(texts)}"
        )
    for file in files[1:]:
        found = file.columns()
        for name in filter(None, columns):
            if found.get(name) != kinds[name]:
                raise UserError(
                    f"{file.path} has no column {name!r} as {files[0].path.name} has"
                )
    return columns


def _parts(path: Path) -> list[_Part]:
    """The files of a data set in the order of their names, with their splits.

    Raises:
      UserError: there are none.
    """
    if (path / "dataset_dict.json").is_file():
        content = read_json(path / "dataset_dict.json", "data set")
        splits = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(splits, list) or not all(isinstance(s, str) for s in splits):
            raise UserError(f"{path / 'dataset_dict.json'} lists no 'splits'")
        parts = [_Part(f, split) for split in splits for f in _saved(path / split)]
    elif (path / "state.json").is_file():
        parts = [_Part(file, None) for file in _saved(path)]
    elif path.is_dir():
        files = [*sorted(path.glob("*.parquet")), *sorted(path.glob("*/*.parquet"))]
        parts = [_Part(file, _split_of(file, path)) for file in files]
    else:
        files = sorted(map(Path, glob.glob(str(path)))) or [path]
        parts = [_Part(file, None) for file in files if is_parquet(file)]
    if not parts:
        raise UserError(
            f"{path} holds no data set: give a folder that `save_to_disk` (`datasets`) "
            "wrote, or Parquet: a file, a glob or a folder"
        )
    return parts


def _saved(folder: Path) -> list[Path]:
    """The files that the state.json of `save_to_disk` lists.

    Raises:
      UserError: it is missing or lists none.
    """
    state = read_json(folder / "state.json", "state of the data set")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    entries = listed if isinstance(listed, list) else []
    names = [each.get("filename") for each in entries if isinstance(each, dict)]
    files = [name for name in names if isinstance(name, str) and name]
    has_folder = any("/" in name for name in files)
    if not files or len(files) < len(entries) or has_folder:
        raise UserError(f"{folder / 'state.json'} lists no files of the data set")
    return [folder / name for name in files]


def _split_of(file: Path, root: Path) -> str | None:
    """train-00000-of-00002.parquet, train/0.parquet and train.parquet are "train"."""
    if file.parent not in (root, root / "data"):
        return file.parent.name
    shard = _SHARD.fullmatch(file.stem)
    return shard[1] if shard else file.stem
