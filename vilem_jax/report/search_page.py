"""The result of a search as a file: JSON for programs, or a page with the images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vilem_jax.data.images import ImageError, decode
from vilem_jax.errors import UserError
from vilem_jax.files import MAX_IMAGE_BYTES, read_input, write_bytes, write_json
from vilem_jax.report.html import image_uri
from vilem_jax.search.query import Hit
from vilem_jax.templates import render_template

FORMATS = (".json", ".html")


def check_format(out: str | Path) -> None:
    """Raises UserError if the ending of `out` is none of `FORMATS`."""
    if Path(out).suffix.lower() not in FORMATS:
        raise UserError(f"--out={out} must end with {' or '.join(FORMATS)}")


def write_hits(
    out: str | Path,
    hits: Sequence[Hit],
    *,
    index: str,
    words: str | None,
    image: str | None,
) -> None:
    """Writes the result of a search by `words` or by an `image`.

    JSON: {"index", "words", "image", "hits": [{"path", "score"}]}. HTML: one page that
    holds the images, for as many hits as are files that can be read.
    """
    check_format(out)
    if Path(out).suffix.lower() == ".json":
        rows = [{"path": str(hit.path), "score": hit.score} for hit in hits]
        found = {"index": index, "words": words, "image": image, "hits": rows}
        write_json(out, found)
        return
    page = render_template(
        "report/search.html.j2",
        title=words or f"Images like {image}",
        index=index,
        query_image=_pixels(Path(image)) if image else None,
        hits=[(hit, _pixels(hit.path)) for hit in hits],
        image_uri=image_uri,
    )
    write_bytes(out, page.encode("utf-8", "backslashreplace"))


def _pixels(path: Path) -> np.ndarray | None:
    """The image; None if it is no file of its own, or gone since it was encoded."""
    try:
        return decode(read_input(path.expanduser(), MAX_IMAGE_BYTES))
    except (OSError, ImageError):
        return None
