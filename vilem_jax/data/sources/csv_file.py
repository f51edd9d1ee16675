"""A table in CSV or TSV with images in a folder or a zip, as a source."""

from collections.abc import Iterator

from vilem_jax.config.sources import CsvConfig, TableConfig
from vilem_jax.data.sources.annotations import Row, plain_rows, take_split
from vilem_jax.data.sources.columns import find_columns
from vilem_jax.data.sources.json_file import FileSource
from vilem_jax.errors import UserError
from vilem_jax.parsing import Records, parse_csv, read_text

_TAB = (".tsv", ".tab")


class CsvSource(FileSource):
    """One row a caption; rows of one image are one image.

    Args:
      config: `path` of the table; `images`, a folder or zip, by default the zip or
        the folder that holds the table; `split`; `num_images`; `delimiter`; and the
        columns, which are found by their usual names.

    Raises:
      UserError: as `parse_csv`, `find_columns` and `open_images`; no such split; no
        image has a caption.
    """

    def __init__(self, config: CsvConfig):
        path = config.path
        delimiter = config.delimiter or ("\t" if path.endswith(_TAB) else ",")
        if len(delimiter) != 1:
            raise UserError(
                f"source {config.name!r}: delimiter={delimiter!r} must be one character"
            )
        rows = csv_rows(path, config, delimiter)
        super().__init__(config, config.images, take_split(path, rows, config.split))


def csv_rows(path: str, config: TableConfig, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a table.

    Raises:
      UserError: as `read_text`, `parse_csv`, `find_columns` and `plain_rows`; it has no
        rows.
    """
    names, found = parse_csv(read_text(path, "table"), path, delimiter)
    if len(names) == 1 and (others := [c for c in ",;\t|" if c in names[0]]):
        raise UserError(
            f"{path} has one column, {names[0]!r}: set `delimiter` to {others[0]!r}"
        )
    columns = find_columns(path, names, config)
    lines, rows = [], []
    for line, row in found:
        lines.append(line)
        # An empty cell is no id, though an empty text is one in JSON.
        rows.append({n: c for n, c in row.items() if c or n != columns.image_id})
    if not rows:
        raise UserError(f"{path} holds no rows: there is only the line of columns")
    return plain_rows(path, Records(rows, lines), columns)
