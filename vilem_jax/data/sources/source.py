"""The interface of all sources of image-caption pairs."""

from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Protocol, runtime_checkable

import numpy as np

from vilem_jax.config.sources import FileSourceConfig, SourceConfig
from vilem_jax.errors import UserError


@runtime_checkable
class Source(Protocol):
    """Images with their captions, one record per image, read in any order.

    A source is pickled to worker processes, so it opens files lazily. It may also have

      caption_counts() -> int64 [N]  if that is faster than reading all captions
      has_image(index) -> bool       if the image files may be missing
      notes: tuple[str, ...]         what was wrong with the files when it was opened
    """

    @property
    def name(self) -> str: ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of image `index`, raw text."""
        ...

    def image_name(self, index: int) -> str:
        """The file, archive member or id of image `index`, for messages."""
        ...

    def read_image(self, index: int) -> bytes | np.ndarray:
        """Image `index`: the bytes of its file, or uint8 [H, W, 3].

        Raises:
          OSError: it is missing or cannot be read.
        """
        ...


def open_source(config: SourceConfig) -> Source:
    """Opens the source that `config` describes.

    Raises:
      UserError: a file or folder is missing, empty, or of another layout; the data has
        no such split.
    """
    if config.num_images < 0:
        raise UserError(f"source {config.name!r}: num_images={config.num_images} < 0")
    if isinstance(config, FileSourceConfig) and not config.path:
        raise UserError(
            f"source {config.name!r} ({config.kind}) needs a `path`, as in --config."
            f"data.train.{config.name}.path=captions.json; to put a source of your own "
            "in its place, write config.data.train = {'mine': source(...)} in a config "
            "file, and the same for data.validation"
        )
    reader = "vilem_jax.data.sources.part:open_part" if config.part else config.reader
    return resolve_name(reader)(config)


def notes_of(sources: Iterable[Source]) -> list[str]:
    """What was wrong with the files of `sources`."""
    return [note for source in sources for note in getattr(source, "notes", ())]


def caption_counts(source: Source) -> np.ndarray:
    """Number of captions of each image of `source`, int64 [N]."""
    if counts := getattr(source, "caption_counts", None):
        return np.asarray(counts(), np.int64)
    counts = (len(source.captions(i)) for i in range(len(source)))
    return np.fromiter(counts, np.int64, len(source))
