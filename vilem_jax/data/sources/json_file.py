"""JSON annotations with images in a folder or a zip, as a source."""

from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.sources.annotations import read_annotations, split_zip_path
from vilem_jax.data.sources.image_files import open_images
from vilem_jax.data.sources.packed_text import PackedRecords
from vilem_jax.errors import UserError


class JsonSource:
    """Captions of a JSON file (see `annotations`), images read when asked for.

    Args:
      config: `path` of the annotations; `images`, a folder or zip, by default the zip
        or the folder that holds the annotations; `split`; `num_images`.

    Raises:
      UserError: as `read_annotations` and `open_images`.
    """

    def __init__(self, config: JsonConfig):
        file, member = split_zip_path(config.path)
        self.name = config.name or file.stem
        captions_of = read_annotations(config.path, config.split)
        records = list(captions_of.items())[: config.num_images or None]
        self._records = PackedRecords(records)
        if not len(self._records):
            raise UserError(f"{config.path}: no image has a caption")
        images = config.images or (file if member else file.parent)
        self._images = open_images(images, self._records.names)

    @property
    def notes(self) -> tuple[str, ...]:
        count = self._records.num_without_caption
        return (f"{count} images without a caption left out",) if count else ()

    def __len__(self) -> int:
        return len(self._records)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._records.captions(index)

    def caption_counts(self):
        return self._records.caption_counts()

    def image_name(self, index: int) -> str:
        return self._records.names[index]

    def has_image(self, index: int) -> bool:
        """Whether the image's file is there; it may still be corrupt."""
        return self._images.exists(self.image_name(index))

    def read_image(self, index: int) -> bytes:
        return self._images.read(self.image_name(index))
