"""Files of Arrow and Parquet: their columns, and single images by row."""

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import open_input, read_errors, reason

# Of a column: "text", "texts" (a list), "number", "bytes", or "image", a struct of
# `bytes` and `path`, as `datasets` stores images; "" for any other.
Kind = str


class Image(NamedTuple):
    """An image of a row: its bytes, or the path of its file, or both."""

    content: bytes | None
    path: str | None


class ArrowFile:
    """One file of a table, read by parts, which are row groups or record batches.

    Raises:
      UserError: it cannot be read, or is corrupt.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._errors():
            open_input(path).close()  # a regular file
            self._file = _Parquet(path) if is_parquet(path) else _Stream(path)
            self.num_rows = sum(self._file.sizes)

    def columns(self) -> dict[str, Kind]:
        """The kind of each column that may hold images or texts."""
        kinds = ((name, _kind(type_)) for name, type_ in self._file.types().items())
        return {name: kind for name, kind in kinds if kind}

    def texts(self, name: str) -> Iterator[Any]:
        """The values of a column that holds no images, row by row."""
        for part in range(len(self._file.sizes)):
            with self._errors():
                yield from self._file.read(part, name).to_pylist()

    def paths(self, name: str) -> Iterator[str | None]:
        """The path of each image; None if it has none."""
        kind = self.columns()[name]
        for part, size in enumerate(self._file.sizes):
            if kind == "bytes":
                yield from [None] * size
                continue
            with self._errors():
                below = "path" if kind == "image" else ""
                yield from self._file.read(part, name, below).to_pylist()

    def image(self, name: str, row: int) -> Image:
        """The image of `row`, of which its whole part is read.

        Raises:
          OSError: the part cannot be read.
        """
        ends = np.cumsum(self._file.sizes)
        part = int(np.searchsorted(ends, row, side="right"))
        before = int(ends[part - 1]) if part else 0
        try:
            value = self._file.read(part, name)[row - before].as_py()
        except (Exception, MemoryError) as error:  # Arrow's own, also of memory
            raise OSError(f"{self.path}: {reason(error)}") from None
        if isinstance(value, dict):
            return Image(value.get("bytes"), value.get("path"))
        return Image(None, value) if isinstance(value, str) else Image(value, None)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        corrupt = f"{self.path} is not an intact Arrow or Parquet file"
        try:
            with read_errors(self.path, corrupt=corrupt):
                yield
        except MemoryError as error:
            if type(error) is MemoryError:
                raise
            raise UserError(f"{corrupt}: {reason(error)}") from None  # its lengths


def is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


class _Parquet:
    def __init__(self, path: Path):
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        metadata = self._file.metadata
        self.sizes = [
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        ]
        if min(self.sizes, default=0) < 0:
            raise ValueError("a row group has a negative length")
        # Rows of a part are often read one after the other, as `_digests` does.
        self.read = lru_cache(maxsize=2)(self._read)

    def types(self) -> dict[str, Any]:
        schema = self._file.schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))

    def _read(self, part: int, column: str, below: str = "") -> Any:
        """A column of a part, or one field of a struct; as an Array."""
        leaf = f"{column}.{below}" if below else column
        found = self._file.read_row_group(part, columns=[leaf]).column(column)
        if len(found) != self.sizes[part]:
            raise ValueError("a row group has another number of rows than its header")
        array = found.combine_chunks()
        return array.field(below) if below else array


class _Stream:
    """What `save_to_disk` writes: record batches one after the other, memory-mapped."""

    def __init__(self, path: Path):
        import pyarrow as pa

        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            self._schema, self._batches = reader.schema, list(reader)
        for batch in self._batches:
            batch.validate(full=True)  # a corrupt offset would read outside
        self.sizes = [batch.num_rows for batch in self._batches]

    def types(self) -> dict[str, Any]:
        return dict(zip(self._schema.names, self._schema.types, strict=True))

    def read(self, part: int, column: str, below: str = "") -> Any:
        array = self._batches[part].column(column)
        return array.field(below) if below else array


def _kind(type_: Any) -> Kind:
    import pyarrow as pa

    def is_text(each: Any) -> bool:
        return pa.types.is_string(each) or pa.types.is_large_string(each)

    def is_bytes(each: Any) -> bool:
        return pa.types.is_binary(each) or pa.types.is_large_binary(each)

    if pa.types.is_struct(type_):
        of_field = {field.name: field.type for field in type_.fields}
        fits = of_field.keys() == {"bytes", "path"} and is_bytes(of_field["bytes"])
        has_paths = fits and (is_text(path := of_field["path"]) or path == pa.null())
        return "image" if has_paths else ""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return "texts" if is_text(type_.value_type) else ""
    if is_text(type_):
        return "text"
    if pa.types.is_integer(type_):
        return "number"
    return "bytes" if is_bytes(type_) else ""
