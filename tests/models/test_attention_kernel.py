"""cuDNN's attention: when it is chosen, its padding, and the program for GPUs."""

import dataclasses
import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tiny
from vilem_jax.errors import UserError
from vilem_jax.models.attention_kernel import resolve_here
from vilem_jax.models.vision import VisionTower


def value_and_gradients(tower, pixels, levels):
    graph, params = nnx.split(tower, nnx.Param)

    def loss(params):
        features = nnx.merge(graph, params)(pixels, levels=levels)
        seen = sum(jnp.square(level).sum() for level in features.levels)
        return jnp.square(features.class_feature).sum() + seen

    return jax.jit(jax.value_and_grad(loss)), params


def padded(tower):
    """A tower for cuDNN, whose blocks compute by XLA: the padding alone is left."""
    assert tower.num_padding == 1  # of 4 patches and [CLS]
    for block in tower.blocks:
        block.implementation = "xla"
    return tower


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("levels", [(), (1, 2), (2, 3)], ids=str)
def test_padding_changes_no_value_and_no_gradient(
    build, vision_config, pixels, levels, scan
):
    """Level 3 is the last block, which is then computed whole, not for [CLS] alone."""
    compute = {"dtype": "float64", "scan_blocks": scan}
    with jax.enable_x64(True):
        found = []
        for attention in ("xla", "cudnn"):
            tower = build(VisionTower, vision_config, attention=attention, **compute)
            tower = padded(tower) if attention == "cudnn" else tower
            run, params = value_and_gradients(
                tower, jnp.asarray(pixels, jnp.float64), levels
            )
            found.append(run(jax.tree.map(lambda x: x.astype(jnp.float64), params)))
        (plain, plain_gradients), (ours, our_gradients) = found
        assert abs(ours - plain) <= 1e-12 * abs(plain)
        wanted = jax.tree.leaves(plain_gradients)
        largest = max(np.abs(leaf).max() for leaf in wanted)
        for mine, other in zip(jax.tree.leaves(our_gradients), wanted, strict=True):
            assert np.abs(mine - other).max() <= 1e-12 * largest


@pytest.mark.parametrize("num_trained", [-1, 0, 1])
def test_padding_in_float32(build, vision_config, pixels, num_trained):
    """Also if the pass is in two parts, of blocks that are locked and the others."""
    config = dataclasses.replace(vision_config, num_trained_layers=num_trained)
    found = []
    for attention in ("xla", "cudnn"):
        tower = build(VisionTower, config, attention=attention)
        tower = padded(tower) if attention == "cudnn" else tower
        run, params = value_and_gradients(tower, pixels, (1, 2))
        found.append(run(params))
    (plain, plain_gradients), (ours, our_gradients) = found
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
    for mine, other in zip(
        jax.tree.leaves(our_gradients), jax.tree.leaves(plain_gradients), strict=True
    ):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("cls_only", [True, False], ids=["cls only", "whole"])
def test_gradient_of_an_odd_number_of_tokens_is_lowered_for_gpus(
    build, vision_config, pixels, monkeypatch, cls_only
):
    """One call forward and one backward a block; JAX refuses odd lengths unpadded."""
    asked = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(asked, lambda: 91300)
    # Heads of 8 values: cuDNN's kernel refuses heads of 4.
    config = dataclasses.replace(vision_config, width=16)
    compute = {"dtype": "bfloat16", "cls_only_last_layer": cls_only}
    tower = build(VisionTower, config, attention="cudnn", **compute)
    run, params = value_and_gradients(tower, pixels, (1, 2))
    text = run.trace(params).lower(lowering_platforms=("cuda",)).as_text()
    num_full = config.num_layers - cls_only
    calls = Counter(re.findall(r"custom_call @__cudnn\$(\w+)", text))
    assert calls == {"fmhaSoftmax": num_full, "fmhaSoftmaxBackward": num_full}


def gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


CPU = SimpleNamespace(platform="cpu")


def with_settings(vision=None, **compute):
    config = tiny.tiny_config()
    model = config.model
    if vision:
        model = dataclasses.replace(
            model, vision=dataclasses.replace(model.vision, **vision)
        )
    compute = dataclasses.replace(config.compute, **compute)
    return dataclasses.replace(config, model=model, compute=compute)


@pytest.mark.parametrize(
    "device, settings, kernel",
    [
        (gpu("8.0"), {}, "cudnn"),
        (gpu("12.0"), {}, "cudnn"),
        (gpu("7.5"), {}, "xla"),
        (gpu("gfx90a"), {}, "xla"),  # AMD
        (gpu("9.0"), {"dtype": "float32"}, "xla"),
        (gpu("9.0"), {"vision": {"num_heads": 8}}, "xla"),  # of 4 values
        (CPU, {}, "xla"),
        (SimpleNamespace(platform="tpu"), {}, "xla"),
    ],
)
def test_auto_becomes_the_kernel_of_the_device(device, settings, kernel, monkeypatch):
    settings = {"dtype": "bfloat16", "attention": "auto", **settings}
    config = with_settings(**settings)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert resolve_here(config).compute.attention == kernel
    plain = with_settings(**{**settings, "attention": "xla"})
    assert resolve_here(plain) is plain


@pytest.mark.parametrize(
    "device, settings, words",
    [
        (CPU, {}, "NVIDIA GPUs, .* of kind 'cpu'"),
        (gpu("7.5"), {}, "8.0 or more, .* has 7.5"),
        (gpu("9.0"), {"dtype": "float32"}, "dtype is float32"),
        (gpu("9.0"), {"vision": {"num_heads": 8}}, "tower's have 4"),
    ],
)
def test_a_kernel_that_cannot_be_is_refused(device, settings, words, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    config = with_settings(**{"dtype": "bfloat16", "attention": "cudnn", **settings})
    with pytest.raises(UserError, match=f"attention='cudnn' .*{words}.* set it to"):
        resolve_here(config)
