"""A tiny model, a tiny vocabulary and a source of four images."""

import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import (
    ComputeConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
)
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from vilem_jax.evaluation.encoding import make_encoder
from vilem_jax.models.vilem import ViLEM

WORDS = "a red blue green big small dog cat circle square on the left of and ##s"


class FourImages:
    """A source in memory: noise, and two or one captions an image."""

    name = "four"
    said = (
        ("a red dog on the left", "a dog"),
        ("a small blue cat and a dog",),
        ("the big green circle", "a circle on a square"),
        ("a blue square", "small dogs"),
    )

    def __len__(self):
        return len(self.said)

    def captions(self, index):
        return self.said[index]

    def image_name(self, index):
        return f"{index}.png"

    def read_image(self, index):
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def source():
    return FourImages()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces = [*SPECIAL_TOKENS, *WORDS.split()]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def config(tokenizer):
    vision = VisionConfig(
        image_size=16, patch_size=8, width=16, num_layers=2, num_heads=2, mlp_width=16
    )
    text = TextConfig(
        vocab_size=tokenizer.vocabulary.size,
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=16,
        max_positions=16,
    )
    return Config(
        model=ModelConfig(
            vision=vision, text=text, embedding_width=8, num_proofread_layers=1
        ),
        compute=ComputeConfig(dtype="float32"),
        evaluation=EvaluationConfig(batch_size=4, text_length=12),
    )


@pytest.fixture(scope="session")
def model(config):
    return ViLEM(config.model, config.compute, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def encoder(model, config, tokenizer):
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return make_encoder(config, params, tokenizer)
