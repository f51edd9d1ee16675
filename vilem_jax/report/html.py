"""One self-contained HTML page from a `Report`: images inside, no script."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from vilem_jax.files import write_bytes
from vilem_jax.report.charts import line_chart
from vilem_jax.report.content import Report
from vilem_jax.templates import render_template

MAX_SIDE = 320  # pixels of an embedded image; the page shows them smaller


def write_report(report: Report, path: str | Path) -> None:
    """Writes the page, whole or not at all."""
    write_bytes(path, render(report).encode())


def render(report: Report) -> str:
    """The page as text."""
    return render_template(
        "report/report.html.j2",
        title=report.title,
        report=report,
        image_uri=image_uri,
        line_chart=line_chart,
    )


def image_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data URI: PNG or JPEG, whichever is smaller."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        file = io.BytesIO()
        image.save(file, kind, **options)
        encoded[kind] = file.getvalue()
    # Drawings are smaller as PNG, photographs as JPEG.
    kind = min(encoded, key=lambda kind: len(encoded[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
