"""A model that needs no weights: images are their mean colour, captions their words.

It gives evaluations a right answer that a reader can check by looking.
"""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from vilem_jax.config.schema import (
    ComputeConfig,
    Config,
    ModelConfig,
    TextConfig,
    VisionConfig,
)
from vilem_jax.evaluation.encoding import Encoder

COLOURS = {"red": 1, "green": 2, "blue": 3}
WORD = 4  # any other word


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


def colour_encoder(text_length=12):
    """Frames are mean colours too, but not of unit length."""

    def texts(params, tokens):
        rows = np.zeros((len(tokens), 3))
        for row, caption in zip(rows, tokens, strict=True):
            for position, token in enumerate(caption[caption > 0]):
                if token < WORD:  # earlier words weigh more
                    row[token - 1] += 1 / (1 + position)
        return unit(rows)

    def frames(params, pixels):
        return pixels.mean(axis=(1, 2))

    vision = VisionConfig(image_size=8, patch_size=8)
    config = Config(
        model=ModelConfig(vision=vision, text=TextConfig(max_positions=40)),
        compute=ComputeConfig(dtype="float32"),
    )
    return Encoder(
        config=config,
        params={},
        tokenizer=ColourTokenizer(),
        text_length=text_length,
        batch_size=4,
        programs={
            "images": lambda params, pixels: unit(pixels.mean(axis=(1, 2))),
            "frames": frames,
            "texts": texts,
        },
    )


def colour_model():
    """What `api.load` returns, as far as evaluations look at it."""
    return SimpleNamespace(encoder=colour_encoder())


def unit(rows):
    rows = rows + 1e-6
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_image(path, colour):
    """A PNG of one colour, for any file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path, format="PNG")
