"""A model that needs no weights: images are their mean colour, captions their words.

It gives evaluations a right answer that can be told by looking.
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
from PIL import Image

from vilem_jax.evaluation.timing import Stopwatch, measure

COLOURS = {"red": 1, "green": 2, "blue": 3}
WORD = 4  # any other word


@dataclasses.dataclass(frozen=True)
class ColourEncoder:
    image_size: int = 8
    batch_size: int = 4
    dtype: str = "float32"
    parts: int = 1
    clock: Stopwatch | None = None

    def timed(self, clock):
        return dataclasses.replace(self, clock=clock)

    def encode_images(self, pixels):
        rows = np.stack([image.mean(axis=(0, 1)) for image in pixels])
        with measure(self.clock, "encode_images"):
            return unit(rows)

    def encode_texts(self, tokens):
        rows = np.zeros((len(tokens), 3))
        with measure(self.clock, "encode_texts"):
            for row, caption in zip(rows, tokens, strict=True):
                for place, token in enumerate(caption[caption > 0]):
                    if token < WORD:  # earlier words weigh more
                        row[token - 1] += 1 / (1 + place)
            return unit(rows)


class ColourTokenizer:
    vocabulary = SimpleNamespace(is_editable=np.arange(WORD + 1) > 0)
    cleaning = "albef"
    keeps_sep = True

    def encode(self, captions, length):
        tokens = np.zeros((len(captions), length), np.int32)
        for row, caption in zip(tokens, captions, strict=True):
            words = caption.split()[:length]
            row[: len(words)] = [COLOURS.get(word, WORD) for word in words]
        return tokens


def colour_model():
    """What `api.load` gives, as far as evaluations look at it."""
    config = SimpleNamespace(
        model=SimpleNamespace(text=SimpleNamespace(max_positions=40)),
        evaluation=SimpleNamespace(text_length=12),
    )
    return SimpleNamespace(
        encoder=ColourEncoder(), tokenizer=ColourTokenizer(), config=config
    )


def unit(rows):
    rows = rows + 1e-6
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_image(path, colour):
    """A PNG of one colour, whatever the file is called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path, format="PNG")
