"""Our ViT against Hugging Face's, in float32: 1e-5 a block, 1e-4 a tower."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, VisionConfig
from vilem_jax.models.vision import VisionTower
from vilem_jax.weights import positions
from vilem_jax.weights.formats.huggingface_vit import (
    load_vision,
    read_vision_config,
    save_vision,
)

COMPUTE = ComputeConfig(dtype="float32")
SHAPES = (
    dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        image_size=24,
        patch_size=8,
    ),
    dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=80,
        layer_norm_eps=1e-6,
        hidden_act="gelu_new",
        image_size=16,
        patch_size=4,
    ),
    dict(
        hidden_size=40,
        num_hidden_layers=4,
        num_attention_heads=5,
        intermediate_size=64,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
        image_size=20,
        patch_size=10,
    ),
)


def vision_tower(folder, config):
    graph, _ = nnx.split(
        nnx.eval_shape(lambda: VisionTower(config, COMPUTE, rngs=nnx.Rngs(0))),
        nnx.Param,
    )
    params = jax.tree.map(jnp.asarray, load_vision(folder, config))
    return nnx.merge(graph, params)


def read_config(folder, shape):
    return read_vision_config(folder, VisionConfig(image_size=shape["image_size"]))


@functools.partial(jax.jit, static_argnums=0)
def run_block(graph, params, hidden):
    return nnx.merge(graph, params)(hidden)


@functools.partial(jax.jit, static_argnums=0)
def run_tower(graph, params, pixels):
    tower = nnx.merge(graph, params)
    levels = tuple(range(1, len(tower.blocks)))
    return tower._embed(pixels), tower(pixels, levels=levels)


def compare_tower(torch, record, relative_error, vit, tower, pixels):
    """Errors of the embedding, of each block, and of the whole tower."""
    blocks = getattr(vit, "layers", None)  # transformers 5
    blocks = vit.encoder.layer if blocks is None else blocks
    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        seen = record([*blocks, vit.layernorm], lambda: vit(pixel_values=given))
    errors = []
    for block, (hidden, result) in zip(tower.blocks, seen[:-1], strict=True):
        ours = run_block(*nnx.split(block), hidden)
        errors.append(relative_error(ours, result))
    embedded, features = run_tower(*nnx.split(tower), pixels)
    errors.append(relative_error(embedded, seen[0][0]))
    towers = [
        relative_error(features.class_feature, seen[-1][1][:, 0]),
        relative_error(features.raw_class_feature, seen[-1][0][:, 0]),
    ]
    for patches, (_, result) in zip(features.levels, seen[:-2], strict=True):
        towers.append(relative_error(patches, result[:, 1:]))
    return errors, towers


def random_pixels(shape):
    rng = np.random.default_rng(5)
    side = shape["image_size"]
    return rng.normal(size=(3, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_tower(number, torch, randomize, record, relative_error, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    shape = SHAPES[number]
    model = randomize(ViTForImageClassification(ViTConfig(**shape)), seed=number)
    model.save_pretrained(tmp_path)
    tower = vision_tower(tmp_path, read_config(tmp_path, shape))
    blocks, towers = compare_tower(
        torch, record, relative_error, model.vit, tower, random_pixels(shape)
    )
    assert max(blocks) <= 1e-5
    assert max(towers) <= 1e-4


@pytest.mark.parametrize(
    "mistake",
    [{"activation": "gelu_tanh"}, {"layer_norm_eps": 1e-6}, {"num_heads": 8}],
    ids=str,
)
def test_comparison_finds_a_mistake(
    mistake, torch, randomize, record, relative_error, tmp_path
):
    from transformers import ViTConfig, ViTModel

    model = randomize(ViTModel(ViTConfig(**SHAPES[0])), seed=0)
    model.save_pretrained(tmp_path)
    config = dataclasses.replace(read_config(tmp_path, SHAPES[0]), **mistake)
    blocks, _ = compare_tower(
        torch,
        record,
        relative_error,
        model,
        vision_tower(tmp_path, config),
        random_pixels(SHAPES[0]),
    )
    assert max(blocks) > 1e-5


def test_saved_folder_is_the_same_model_in_torch(randomize, tmp_path):
    from transformers import ViTConfig, ViTModel

    model = randomize(ViTModel(ViTConfig(**SHAPES[1]), add_pooling_layer=False), seed=1)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs", SHAPES[1])
    params = load_vision(tmp_path / "theirs", config)
    save_vision(tmp_path / "ours", params, config)
    again = ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    theirs, ours = model.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name].numpy(), array.numpy(), err_msg=name)
    assert read_config(tmp_path / "ours", SHAPES[1]) == config


@pytest.mark.parametrize(("old", "new"), [(3, 5), (6, 4), (14, 16), (2, 9)])
def test_positions_resize_as_torch_does(old, new, torch, relative_error):
    table = np.random.default_rng(old).normal(size=(old * old + 1, 7))
    table = table.astype(np.float32)
    grid = torch.from_numpy(table[1:].reshape(1, old, old, 7)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(new, new), mode="bicubic", align_corners=False
    )
    theirs = grid.permute(0, 2, 3, 1).reshape(new * new, 7).numpy()
    ours = positions.resize(table, new)
    np.testing.assert_array_equal(ours[0], table[0])
    assert relative_error(ours[1:], theirs) <= 1e-6
