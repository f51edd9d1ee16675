"""One interface for every place that image-caption pairs come from."""

from typing import Protocol, runtime_checkable

import numpy as np

from vilem_jax.config.schema import SourceConfig
from vilem_jax.errors import UserError


@runtime_checkable
class Source(Protocol):
    """Images with their captions: one record an image, read in any order.

    A source travels to worker processes by pickle, so it opens files lazily. It may
    also have `caption_counts() -> int64 [N]`, where that is faster than asking for the
    captions of every image, and `notes`, sentences on what was found wrong with the
    files when it was opened.
    """

    name: str

    def __len__(self) -> int:
        """Number of images."""

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of image `index`, raw text."""

    def image_name(self, index: int) -> str:
        """Names image `index` in messages: a file, a member, an id."""

    def read_image(self, index: int) -> bytes | np.ndarray:
        """Image `index`: the bytes of its file, or uint8 [H, W, 3].

        Raises:
          OSError: it is missing or cannot be read.
        """


def open_source(config: SourceConfig) -> Source:
    """Opens the source that `config` describes.

    Raises:
      UserError: a file or folder is missing, empty, or of another layout; a split that
        the data does not have.
    """
    if config.num_images < 0:
        raise UserError(f"source {config.name!r}: num_images={config.num_images} < 0")
    if config.kind == "scenes":
        from vilem_jax.data.scenes.source import ScenesSource

        return ScenesSource(
            split=config.split or "train",
            seed=config.seed,
            num_images=config.num_images,
            name=config.name,
        )
    if not config.path:
        raise UserError(
            f"source {config.name!r} of kind {config.kind!r} needs a `path`"
        )
    if config.kind == "json":
        from vilem_jax.data.sources.json_file import JsonSource

        return JsonSource(config)
    if config.kind == "tfds":
        from vilem_jax.data.sources.tfds import TfdsSource

        return TfdsSource(config)
    if config.kind == "webdataset":
        from vilem_jax.data.sources.webdataset import WebDatasetSource

        return WebDatasetSource(config)
    raise UserError(f"source {config.name!r}: kind {config.kind!r} is not known")


def caption_counts(source: Source) -> np.ndarray:
    """Number of captions of each image of `source`, int64 [N]."""
    if hasattr(source, "caption_counts"):
        return np.asarray(source.caption_counts(), np.int64)
    counts = (len(source.captions(i)) for i in range(len(source)))
    return np.fromiter(counts, np.int64, len(source))
