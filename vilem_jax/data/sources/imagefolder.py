"""A folder with images and their metadata, as Hugging Face's imagefolder."""

from collections.abc import Iterator
from pathlib import Path

from vilem_jax.config.sources import ImageFolderConfig
from vilem_jax.data.sources.annotations import Row, plain_rows, take_split
from vilem_jax.data.sources.columns import find_columns
from vilem_jax.data.sources.csv_file import csv_rows
from vilem_jax.data.sources.json_file import FileSource
from vilem_jax.errors import UserError
from vilem_jax.parsing import read_json, records_of

_FILES = ("metadata.jsonl", "metadata.csv")


class ImageFolderSource(FileSource):
    """Captions of metadata.jsonl or metadata.csv, in the folder and in those in it.

    A row names an image beside its metadata file. Its split is its column `split`, or
    else the first folder of the image's path.

    Args:
      config: `path`, the folder or its metadata file; `split`; `num_images`; and the
        columns, which are found by their usual names (`file_name` and `text`).

    Raises:
      UserError: there is no such folder or no metadata in it; as `find_columns`,
        `plain_rows` and `open_images`; no such split; no image has a caption.
    """

    def __init__(self, config: ImageFolderConfig):
        path = Path(config.path).expanduser()
        root = path.parent if path.name in _FILES else path
        files = [path] if path.name in _FILES else _metadata_files(path)
        rows = (row for file in files for row in _rows(root, file, config))
        super().__init__(config, root, take_split(path, rows, config.split))


def _metadata_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder with images and {_FILES[0]}")
    found = []
    for below in (folder, *sorted(d for d in folder.iterdir() if d.is_dir())):
        here = [below / name for name in _FILES if (below / name).exists()]
        if len(here) > 1:
            raise UserError(f"{below} holds {' and '.join(_FILES)}: remove one of them")
        found += here
    if not found:
        raise UserError(
            f"{folder} holds no {' or '.join(_FILES)}, nor do the folders in it: write "
            'one with a line {"file_name": "0.jpg", "text": "a caption"} for each'
        )
    return found


def _rows(root: Path, file: Path, config: ImageFolderConfig) -> Iterator[Row]:
    folder = file.parent.relative_to(root).as_posix()
    for name, captions, split in _rows_of(file, config):
        whole = name if folder == "." else f"{folder}/{name}"
        first, slash, _ = whole.partition("/")
        yield whole, captions, split or (first if slash else None)


def _rows_of(file: Path, config: ImageFolderConfig) -> Iterator[Row]:
    if file.suffix == ".csv":
        return csv_rows(str(file), config)
    records = records_of(read_json(file, "metadata"))
    if not records or not isinstance(records[0], dict):
        raise UserError(f"{file} does not hold objects, one a line")
    columns = find_columns(file, list(records[0]), config)
    return plain_rows(file, records, columns)
