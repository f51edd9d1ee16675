"""Which column of a table holds the images, captions, splits and ids."""

from collections.abc import Sequence

from vilem_jax.config.sources import TableConfig
from vilem_jax.data.sources.annotations import Columns
from vilem_jax.errors import UserError

# The usual names; case, spaces, "_" and "-" do not count.
_IMAGE = ("image", "imagepath", "imagefile", "imagename", "img", "filepath", "filename")
_IMAGE += ("file", "path")
_CAPTION = ("caption", "captions", "text", "title", "sentence", "sentences", "comment")
_CAPTION += ("description",)
_SPLIT = ("split",)
_ID = ("imageid", "imgid")


def find_columns(path: object, names: Sequence[str], config: TableConfig) -> Columns:
    """The columns among `names`: those that `config` names, or of the usual names.

    Args:
      path: of the table, for messages.

    Raises:
      UserError: a column that `config` names is missing; no column, or more than one,
        has one of the usual names for images, or for captions.
    """

    def find(field: str, usual: Sequence[str], *, needed: bool) -> str:
        wanted = getattr(config, field)
        if wanted in names:
            return wanted
        if wanted:
            raise UserError(f"{path} has no column {wanted!r}: set `{field}` to {has}")
        found = [name for name in names if _plain(name) in usual]
        if len(found) == 1 or not needed:
            return found[0] if found else ""
        what = field.partition("_")[0]
        why = f"both {found[0]!r} and {found[1]!r} may be" if found else "no column is"
        raise UserError(
            f"{path}: {why} known as that of the {what}s: set `{field}` to {has}"
        )

    has = f"one of {', '.join(names) or 'none'}"
    return Columns(
        image=find("image_column", _IMAGE, needed=True),
        caption=find("caption_column", _CAPTION, needed=True),
        split=find("split_column", _SPLIT, needed=False),
        image_id=find("id_column", _ID, needed=False),
    )


def _plain(name: str) -> str:
    return name.lower().translate(dict.fromkeys(map(ord, "_- ")))
