"""Which data a run has read: counts, and a checksum of the names of the images."""

import hashlib

from vilem_jax.data.corpus import Corpus
from vilem_jax.data.sources.packed_text import PackedSource, PackedTexts
from vilem_jax.data.sources.source import Source, caption_counts
from vilem_jax.typing import JsonObject


def fingerprints(corpus: Corpus) -> dict[str, JsonObject]:
    """{source: {"images", "captions", "names_sha256"}}, names in their order."""
    return {
        source.name: {
            "images": len(source),
            "captions": int(caption_counts(source).sum()),
            "names_sha256": _names_sha256(source),
        }
        for source in corpus.sources
    }


def _names_sha256(source: Source) -> str:
    number = len(source)
    if isinstance(source, PackedSource):  # millions of names: as they are stored
        names = source.names
    else:
        names = PackedTexts(source.image_name(index) for index in range(number))
    letters, ends = names.arrays()
    ends = ends[:number]
    sha = hashlib.sha256(letters[: ends[-1]].tobytes())
    sha.update(ends.astype("<i8").tobytes())
    return sha.hexdigest()
