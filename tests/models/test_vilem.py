"""The whole network: levels, joint and separate text passes, heads, projections."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import ModelConfig, TextConfig, VisionConfig
from vilem_jax.models.vilem import ViLEM, level_of_layer, unit_rows
from vilem_jax.models.vision import ImageFeatures


@pytest.mark.parametrize(
    ("depth", "m1", "levels"),
    [
        (12, 6, (1, 3, 5, 7, 9, 11)),  # as printed in the paper
        (7, 4, (1, 2, 3, 4)),  # the floor
        (12, 12, tuple(range(1, 13))),
        (12, 5, (1, 3, 5, 7, 9)),
        (6, 3, (1, 3, 5)),
        (4, 1, (1,)),
    ],
)
def test_levels_follow_eq_11(depth, m1, levels):
    config = ModelConfig(vision=VisionConfig(num_layers=depth), num_proofread_layers=m1)
    assert level_of_layer(config) == levels
    last = dataclasses.replace(config, levels="last")
    assert level_of_layer(last) == (depth,) * m1


@pytest.mark.parametrize("m1", [2, 3])
@pytest.mark.parametrize("has_dropout", [False, True])
def test_joint_text_pass_equals_two_passes(
    m1, has_dropout, build, model_config, tokens, seeds, assert_close
):
    config = dataclasses.replace(model_config, num_proofread_layers=m1)
    model = build(ViLEM, config)
    ids, attention_mask = tokens
    edited = jnp.where(attention_mask, (ids + 3) % 23, 0)
    clean_seeds = seeds if has_dropout else None
    global_seeds = seeds + 7 if has_dropout else None

    image = jax.random.normal(jax.random.key(0), (4, 8))

    @jax.jit
    def run(image):
        joint = model.encode_and_proofread_global(
            ids, edited, attention_mask, image, seeds=(clean_seeds, global_seeds)
        )
        embedding = model.encode_text(ids, attention_mask, seeds=clean_seeds)
        hidden = model.proofread_global(
            edited, attention_mask, image, seeds=global_seeds
        )
        return joint, (embedding, hidden)

    joint, separate = run(image)
    if m1 == 3 and has_dropout:
        # No layer is left to compute [CLS] alone, so it has dropout at all positions,
        # other than the last layer of `encode_text`.
        joint, separate = joint[1], separate[1]
    assert_close(joint, separate)


def test_proofreading_trains_only_the_first_layers(build, model_config, tokens):
    """Both branches reach the first M_1 layers; the local one their cross-attention."""
    model = build(ViLEM, model_config)
    graph, params = nnx.split(model, nnx.Param)
    ids, attention_mask = tokens
    patches = jax.random.normal(jax.random.key(0), (4, 5, 8))

    def loss(params, branch):
        model = nnx.merge(graph, params)
        if branch == "local":
            hidden = model.proofread_local(ids, attention_mask, [patches, patches])
        else:
            hidden = model.proofread_global(ids, attention_mask, patches[:, 0])
        return jnp.square(hidden[..., 0]).sum()

    def reached(grads):
        """By layer: whether its MLP, and its cross-attention, gets a gradient."""
        layers = grads["text"]["layers"]
        return {
            number: [
                bool(jnp.abs(layer[part][inner]["kernel"]).max() > 0)
                for part, inner in (("mlp", "expand"), ("cross_attention", "query"))
                if part in layer
            ]
            for number, layer in layers.items()
        }

    for branch, crosses in (("local", True), ("global", False)):
        grads = jax.jit(jax.grad(loss), static_argnums=1)(params, branch)
        assert reached(nnx.to_pure_dict(grads)) == {
            0: [True, crosses],
            1: [True, crosses],
            2: [False],
        }


def test_recomputing_changes_no_gradient(
    build, model_config, tokens, pixels, assert_close
):
    ids, attention_mask = tokens
    config = dataclasses.replace(
        model_config,
        vision=dataclasses.replace(model_config.vision, num_layers=2),
        text=dataclasses.replace(model_config.text, num_layers=1),
        num_proofread_layers=1,
    )
    grads = []
    for recompute in (False, True):
        model = build(ViLEM, config, recompute=recompute)
        graph, params = nnx.split(model, nnx.Param)

        def loss(params, graph=graph):
            model = nnx.merge(graph, params)
            features = model.image_features(pixels)
            hidden = model.proofread_local(ids, attention_mask, features.levels)
            logits = model.local_logits(hidden, jnp.ones((4, 2), jnp.int32))
            return logits.detect[..., 0].sum() + logits.correct[..., 0].sum()

        grads.append(nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    assert_close(*grads)


def test_heads_are_separate_or_shared(build, model_config, tokens):
    hidden = jax.random.normal(jax.random.key(0), (4, 7, 8))
    positions = jnp.array([[1, 2], [0, 1], [3, 3], [6, 5]])
    separate = build(ViLEM, model_config)
    local = jax.jit(separate.local_logits)(hidden, positions)
    assert local.detect.shape == (4, 7, 2) and local.correct.shape == (4, 2, 23)
    assert local.correct.dtype == local.detect.dtype == jnp.float32
    other = jax.jit(separate.global_logits)(hidden, positions)
    assert float(jnp.abs(other.correct - local.correct).max()) > 0.1
    shared = build(ViLEM, dataclasses.replace(model_config, heads="shared"))
    assert shared.global_head is None
    np.testing.assert_array_equal(
        jax.jit(shared.global_logits)(hidden, positions).correct,
        jax.jit(shared.local_logits)(hidden, positions).correct,
    )


@pytest.mark.parametrize("branch", ["local", "global"])
def test_decoder_trains_the_embeddings_if_configured(build, model_config, branch):
    hidden = jax.random.normal(jax.random.key(0), (4, 7, 8))
    positions = jnp.array([[1, 2], [0, 1], [3, 3], [6, 5]])
    scores, grads = [], []
    for trains in (True, False):
        config = dataclasses.replace(model_config, decoder_trains_embeddings=trains)
        graph, params = nnx.split(build(ViLEM, config), nnx.Param)

        def score(params, graph=graph):
            logits = getattr(nnx.merge(graph, params), f"{branch}_logits")
            return logits(hidden, positions).correct[..., 3].sum()

        value, grad = jax.jit(jax.value_and_grad(score))(params)
        scores.append(float(value))
        grads.append(nnx.to_pure_dict(grad))
    assert scores[0] == scores[1]
    words = [grad["text"]["embedding"]["words"] for grad in grads]
    assert jnp.abs(words[0][3]).max() > 0.1 and not words[1].any()
    head = f"{branch}_head"
    jax.tree.map(np.testing.assert_array_equal, grads[0][head], grads[1][head])


def test_global_feature_is_normed_raw_or_mapped(build, model_config):
    normed, raw = jax.random.normal(jax.random.key(0), (2, 4, 8))
    features = ImageFeatures(normed, raw, ())
    model = build(ViLEM, model_config)
    np.testing.assert_array_equal(model.image_global(features), normed)
    unnormed = dataclasses.replace(model_config, global_feature="unnormed")
    model = build(ViLEM, unnormed)
    np.testing.assert_array_equal(model.image_global(features), raw)
    text = dataclasses.replace(model_config.text, width=12)
    wider = build(ViLEM, dataclasses.replace(model_config, text=text))
    assert wider.image_global(features).shape == (4, 12)


def test_embeddings_are_unit_rows(build, model_config, tokens, pixels):
    model = build(ViLEM, model_config)
    for rows in (
        jax.jit(model.encode_image)(pixels),
        jax.jit(model.encode_text)(*tokens),
    ):
        assert rows.shape == (4, 6) and rows.dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-6)


def test_zero_row_gives_no_nan():
    rows = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit_rows(rows), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit_rows(x)[:, 0].sum())(rows)
    assert np.isfinite(gradient).all()


def test_the_papers_network_traces():
    """Defaults, as shapes only: ViT-B/16 and BERT-base with 6 cross-attentions."""
    from vilem_jax.config.schema import ComputeConfig

    model = nnx.eval_shape(
        lambda: ViLEM(ModelConfig(), ComputeConfig(), rngs=nnx.Rngs(0))
    )
    _, params = nnx.split(model, nnx.Param)
    tree = nnx.to_pure_dict(params)
    crosses = [n for n, layer in tree["text"]["layers"].items() if len(layer) == 4]
    assert crosses == list(range(6))
    assert tree["vision"]["position_embedding"].shape == (257, 768)
    assert tree["text"]["embedding"]["words"].shape == (TextConfig().vocab_size, 768)


def test_projections_read_the_normed_features(build, model_config, monkeypatch):
    model = build(ViLEM, model_config)
    normed, raw = jax.random.normal(jax.random.key(0), (2, 4, 8))
    features = ImageFeatures(normed, raw, ())
    monkeypatch.setattr(ViLEM, "image_features", lambda *_, **__: features)

    def by_hand(projection, values):
        kernel, bias = projection.kernel[...], projection.bias[...]
        return np.float64(values) @ np.float64(kernel) + np.float64(bias)

    image = by_hand(model.image_projection, normed)
    text = by_hand(model.text_projection, normed)
    np.testing.assert_allclose(model.map_image(raw), image, rtol=1e-5, atol=1e-6)
    for found, expected in (
        (model.encode_image(raw), image),
        (model.project_text(normed), text),
    ):
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("branch", ["local", "global"])
def test_branch_and_task_have_their_own_transform(build, model_config, branch):
    model = build(ViLEM, model_config)
    hidden = jax.random.normal(jax.random.key(0), (4, 7, 8))
    found = getattr(model, f"{branch}_logits")(hidden, jnp.ones((4, 1), jnp.int32))
    head = getattr(model, f"{branch}_head")
    detect = head.detect(head.detect_transform(hidden))
    words = model.text.embedding.words[...]
    correct = head.correct_transform(hidden[:, 1:2]) @ words.T
    np.testing.assert_allclose(found.detect, detect, rtol=1e-5, atol=1e-5)
    correct = correct + head.correct_bias[...][None, None]
    np.testing.assert_allclose(found.correct, correct, rtol=1e-5, atol=1e-5)


def test_unit_rows_of_bfloat16_are_float32():
    assert unit_rows(jnp.ones((1, 3), jnp.bfloat16)).dtype == jnp.float32
