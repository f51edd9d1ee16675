"""The images of a benchmark, by the file names in its annotations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vilem_jax.data.sources.image_files import open_images
from vilem_jax.data.sources.missing import there_is
from vilem_jax.errors import UserError


class NamedImages:
    """Images in a folder or zip, for `Encoder.encode_images`.

    Args:
      path: the folder or zip.
      names: file names of all the images; each must exist.
      data: what messages call the data set.
      advice: ends the sentence on missing images.

    Raises:
      UserError: no such folder; images that are missing, counted.
    """

    def __init__(
        self, path: str | Path, names: Sequence[str], data: str, advice: str = ""
    ):
        self.name = data
        self._files = open_images(path, names)
        missing = [name for name in names if not self._files.exists(name)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(names)} images of {data} are missing in "
                f"{path}, the first is {missing[0]}"
                f"{there_is(self._files.near(missing[0]))}{advice}"
            )

    def image_name(self, name: str, /) -> str:
        return name

    def read_image(self, name: str, /) -> bytes | np.ndarray:
        return self._files.read(name)
