"""Our towers against stored results of Hugging Face's, for machines without torch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig, VisionConfig
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.vision import VisionTower
from vilem_jax.weights.formats.huggingface_bert import (
    load_masked_language_model,
    read_text_config,
)
from vilem_jax.weights.formats.huggingface_vit import load_vision, read_vision_config

GOLDEN = Path(__file__).parents[1] / "golden"
COMPUTE = ComputeConfig(dtype="float32")


@pytest.fixture
def unpack(tmp_path):
    """`unpack(name)`: the stored arrays, and a folder with config and weights."""

    def unpack_file(name):
        stored = dict(np.load(GOLDEN / f"{name}.npz"))
        tensors = {
            key.removeprefix("weights/"): np.float32(value)
            for key, value in stored.items()
            if key.startswith("weights/")
        }
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(str(stored["config"]))
        return stored, tmp_path

    return unpack_file


def merged(build, params):
    graph, _ = nnx.split(nnx.eval_shape(build), nnx.Param)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


def test_bert(unpack, relative_error):
    stored, folder = unpack("bert")
    config = read_text_config(folder, TextConfig())
    model = merged(
        lambda: MaskedLanguageModel(config, COMPUTE, rngs=nnx.Rngs(0)),
        load_masked_language_model(folder, config),
    )

    @jax.jit
    def run(tokens, attention_mask):
        hidden = model.text.run(model.text.embed(tokens), attention_mask)
        positions = jnp.broadcast_to(jnp.arange(8), tokens.shape)
        return hidden, model.logits_at(tokens, attention_mask, positions)

    hidden, logits = run(stored["tokens"], stored["attention_mask"])
    assert relative_error(hidden, stored["hidden"]) <= 1e-5
    assert relative_error(logits, stored["logits"]) <= 1e-5


def test_vit(unpack, relative_error):
    stored, folder = unpack("vit")
    config = read_vision_config(folder, VisionConfig(image_size=8))
    tower = merged(
        lambda: VisionTower(config, COMPUTE, rngs=nnx.Rngs(0)),
        load_vision(folder, config),
    )
    features = jax.jit(tower)(np.float32(stored["pixels"]))
    assert relative_error(features.class_feature, stored["class_feature"]) <= 1e-5
