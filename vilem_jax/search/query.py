"""Search images by words, by an image, or by vectors.

searcher = Searcher("images.index", vilem_jax.load("RUN"))
searcher.by_words(["a dog on grass"], top_k=5)    # [[Hit(path, score), ...]]
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vilem_jax.api import ImageInput, Model
from vilem_jax.errors import UserError
from vilem_jax.search.exact import put_on_devices
from vilem_jax.search.vectors import Vectors, open_vectors


class Hit(NamedTuple):
    path: Path  # or the name of an image that is no file of its own
    score: float  # cosine, -1..1


class Searcher:
    """Embeddings on the devices, ready for any number of searches.

    Args:
      vectors: a file of `vilem index`, a folder of `vilem embed`, or opened `Vectors`.
      model: of the embeddings; None if only `by_vectors` will be called.

    Raises:
      UserError: no embeddings there, or another model's.
    """

    def __init__(self, vectors: Vectors | str | Path, model: Model | None):
        if not isinstance(vectors, Vectors):
            vectors = open_vectors(vectors)
        self.vectors, self.model = vectors, model
        if model is not None:
            self.vectors.check_model(model.fingerprint)
        self.search = put_on_devices(self.vectors.parts)

    def by_words(
        self, words: Iterable[str] | str, *, top_k: int = 10
    ) -> list[list[Hit]]:
        """The images that fit each of these texts best, the best first.

        Raises:
          UserError: no text, or one without a word that the model knows; top_k below 1.
        """
        words = [words] if isinstance(words, str) else list(words)
        _check_words(self._model(), words)
        return self.by_vectors(self._model().encode_text(words), top_k=top_k)

    def by_image(self, image: ImageInput, *, top_k: int = 10) -> list[Hit]:
        """The images most like this one, which is found too if it is among them."""
        (hits,) = self.by_vectors(self._model().encode_image(image), top_k=top_k)
        return hits

    def by_vectors(self, queries: np.ndarray, *, top_k: int = 10) -> list[list[Hit]]:
        """As `by_words`, for embeddings float32 [Q, E], unit rows."""
        path_of = self.vectors.path
        found = self.search.top(queries, top_k)
        return [
            [
                Hit(path_of(int(row)), float(score))
                for row, score in zip(*hits, strict=True)
            ]
            for hits in zip(found.rows, found.scores, strict=True)
        ]

    def _model(self) -> Model:
        if self.model is None:
            raise UserError("to search by words or images, give the model as well")
        return self.model


def _check_words(model: Model, texts: list[str]) -> None:
    if not texts:
        raise UserError("there are no words to search for")
    for text in texts:
        if not model.knows_a_word(text):
            raise UserError(f"there is no word in {text!r} that the model knows")


def search(
    index: Vectors | str | Path,
    model: Model,
    *,
    words: str | None = None,
    image: ImageInput | None = None,
    top_k: int = 10,
) -> list[Hit]:
    """One search with a `Searcher`: the images that fit best, the best first.

    Args:
      index: see `Searcher`.
      words: what to search for; or
      image: an image to compare with; exactly one of the two.

    Raises:
      UserError: the index is of another model; both or neither of words and image;
        top_k below 1.
    """
    if (words is None) == (image is None):
        raise UserError("search by words or by an image: give one of the two")
    if words is not None:  # checked before the index is read
        _check_words(model, [words])
    if top_k < 1:
        raise UserError(f"top_k is {top_k}: ask for 1 or more images")
    searcher = Searcher(index, model)
    if image is not None:
        return searcher.by_image(image, top_k=top_k)
    return searcher.by_words(words or "", top_k=top_k)[0]
