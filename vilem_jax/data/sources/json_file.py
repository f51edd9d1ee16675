"""Annotation files with images in a folder or a zip, as a source; JSON ones here."""

from pathlib import Path

from vilem_jax.config.sources import FileSourceConfig, JsonConfig
from vilem_jax.data.sources.annotations import Annotations, read_annotations
from vilem_jax.data.sources.image_files import open_images
from vilem_jax.data.sources.packed_text import PackedSource, pack_records
from vilem_jax.parsing import split_zip_path


class FileSource(PackedSource):
    """Captions of a file whose images are files beside it, and read on demand.

    Args:
      images: a folder or zip; "" for the zip or the folder that holds `config.path`.
      annotations: of `config.path`.

    Raises:
      UserError: as `open_images`; no image has a caption.
    """

    def __init__(
        self, config: FileSourceConfig, images: str | Path, annotations: Annotations
    ):
        captions_of, notes = annotations
        file, member = split_zip_path(config.path)
        names, end = list(captions_of), config.num_images or None
        self._images = open_images(
            images or (file if member else file.parent), names[:end]
        )
        for name, first in self._images.first_spellings(names).items():
            captions_of[first] += captions_of.pop(name)
        parts = [pack_records(list(captions_of.items())[:end])]
        super().__init__(config.name or file.stem, config.path, parts, notes=notes)

    def has_image(self, index: int) -> bool:
        """Whether the image's file exists; it may still be corrupt."""
        return self._images.exists(self.image_name(index))

    def near_image(self, index: int) -> str:
        """An image that the name of a missing one may mean, or ""."""
        return self._images.near(self.image_name(index))

    def read_image(self, index: int) -> bytes:
        return self._images.read(self.image_name(index))


class JsonSource(FileSource):
    """Captions of a JSON file (see `annotations`).

    Args:
      config: `path` of the annotations; `images`, a folder or zip, by default the zip
        or the folder that holds the annotations; `split`; `num_images`.

    Raises:
      UserError: as `read_annotations` and `open_images`; no image has a caption.
    """

    def __init__(self, config: JsonConfig):
        annotations = read_annotations(config.path, config.split)
        super().__init__(config, config.images, annotations)
