"""The text tower: padding, exact savings, dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.models import layers
from vilem_jax.models.text import Attention, TextTower, make_attention_mask


def encode(tower):
    return jax.jit(lambda ids, here, seeds: tower.encode(ids, here, seeds=seeds))


def test_padding_changes_nothing(build, text_config, tokens, assert_close):
    ids, attention_mask = tokens
    run = encode(build(TextTower, text_config))
    whole = run(ids, attention_mask, None)
    for row, length in ((1, 2), (2, 5)):
        cut = (ids[row : row + 1, :length], attention_mask[row : row + 1, :length])
        assert_close(run(*cut, None), whole[row : row + 1])
    # Nor do the tokens in the padding.
    noise = jnp.where(attention_mask, ids, 9)
    np.testing.assert_array_equal(run(noise, attention_mask, None), whole)
    np.testing.assert_array_equal(make_attention_mask(ids, 0), attention_mask)


def test_cls_only_last_layer_equals_the_whole_layer(
    build, text_config, tokens, assert_close
):
    ids, attention_mask = tokens
    on = encode(build(TextTower, text_config))(ids, attention_mask, None)
    off = encode(build(TextTower, text_config, cls_only_last_layer=False))
    assert_close(on, off(ids, attention_mask, None))


def test_dropout_of_a_sample_does_not_depend_on_the_batch(
    build, text_config, tokens, seeds, assert_close
):
    ids, attention_mask = tokens
    run = encode(build(TextTower, text_config))
    whole = run(ids, attention_mask, seeds)
    assert_close(run(ids[1:3], attention_mask[1:3], seeds[1:3]), whole[1:3])
    other = run(ids, attention_mask, seeds + 1)
    assert float(jnp.abs(other - whole).max()) > 1e-2
    assert float(jnp.abs(run(ids, attention_mask, None) - whole).max()) > 1e-2


def test_image_is_added_at_every_token(build, text_config, tokens, assert_close):
    """The global branch, Sec. 3.2.2: h^v at each token, not at [CLS] alone."""
    tower = build(TextTower, text_config)
    image = jax.random.normal(jax.random.key(0), (4, text_config.width))
    added = tower.embed(tokens[0], image_global=image) - tower.embed(tokens[0])
    assert_close(added, np.broadcast_to(image[:, None], added.shape))


def test_attention_drops_probabilities_and_its_output(
    build, text_config, tokens, seeds, assert_close
):
    """BERT's attention with both dropouts, in NumPy, with the same masks."""
    mask = np.asarray(tokens[1])
    attention = build(Attention, text_config, text_config.width)
    hidden = np.random.default_rng(4).normal(size=(4, 7, 8)).astype(np.float32)
    ours = attention(hidden, hidden, context_mask=tokens[1], seeds=seeds)

    def linear(part, values):
        return values @ np.float64(part.kernel[...]) + np.float64(part.bias[...])

    def dropped(values, site):
        ones = jnp.ones(values.shape)
        return values * layers.dropout(ones, layers.for_site(seeds, site), 0.2)

    query, key, value = (
        linear(part, hidden).reshape(4, 7, 2, 4)
        for part in (attention.query, attention.key, attention.value)
    )
    scores = np.exp(np.einsum("blhd,bshd->bhls", query, key) / 2.0)
    scores *= mask[:, None, None]
    probabilities = dropped(scores / scores.sum(axis=-1, keepdims=True), 0)
    mixed = np.einsum("bhls,bshd->blhd", probabilities, value).reshape(4, 7, 8)
    mixed = dropped(linear(attention.output, mixed), 1)
    assert_close(ours, attention.norm(jnp.asarray(hidden + mixed, jnp.float32)))


def test_no_two_dropouts_share_a_mask(build, text_config, tokens, seeds, monkeypatch):
    """Of the embedding, and in each layer of both attentions and the MLP."""
    seen = []

    def record(values, seeds, rate):
        seen.append(np.asarray(seeds))
        return values

    crossing = partial(TextTower, num_cross_layers=3, image_width=8)
    tower = build(crossing, text_config)
    monkeypatch.setattr(layers, "dropout", record)
    patches = jnp.ones((4, 5, 8))
    hidden = tower.embed(tokens[0], seeds=seeds)
    tower.run(hidden, tokens[1], image_levels=3 * [patches], seeds=seeds)
    assert len(seen) == 1 + 3 * 5
    assert len(np.unique(np.concatenate(seen), axis=0)) == 4 * len(seen)


def test_recomputing_changes_no_gradient(
    build, text_config, tokens, seeds, assert_close
):
    ids, attention_mask = tokens
    grads = []
    for recompute in (False, True):
        tower = build(TextTower, text_config, recompute=recompute)
        graph, params = nnx.split(tower, nnx.Param)

        def loss(params, graph=graph):
            tower = nnx.merge(graph, params)
            return jnp.square(tower.encode(ids, attention_mask, seeds=seeds)).sum()

        grads.append(nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    assert_close(*grads)


def test_layers_in_two_runs_equal_one_run(build, text_config, tokens, seeds):
    ids, attention_mask = tokens
    tower = build(TextTower, text_config)

    @jax.jit
    def run(ids, attention_mask, seeds):
        hidden = tower.embed(ids, seeds=seeds)
        whole = tower.run(hidden, attention_mask, seeds=seeds)
        first = tower.run(hidden, attention_mask, stop=2, seeds=seeds)
        return whole, tower.run(first, attention_mask, start=2, seeds=seeds)

    np.testing.assert_array_equal(*run(ids, attention_mask, seeds))


def test_too_long_text_is_refused(build, text_config):
    tower = build(TextTower, text_config)
    with pytest.raises(ValueError, match="11 tokens a text, but only 10 positions"):
        tower.embed(jnp.zeros((1, 11), jnp.int32))


def test_each_layer_attends_to_its_own_level(build, text_config, tokens, assert_close):
    """Self-attention, cross-attention, MLP: each adds to what came before it."""
    crossing = partial(TextTower, num_cross_layers=3, image_width=8)
    tower = build(crossing, text_config)
    levels = list(jax.random.normal(jax.random.key(0), (3, 4, 5, 8)))
    mask = tokens[1]

    @jax.jit
    def run(hidden):
        whole = tower.run(hidden, mask, image_levels=levels)
        for layer, patches in zip(tower.layers, levels, strict=True):
            hidden = layer.attention(hidden, hidden, context_mask=mask)
            hidden = layer.cross_attention(hidden, patches)
            hidden = layer.norm(hidden + layer.mlp(hidden))
        return whole, hidden

    assert_close(*run(tower.embed(tokens[0])))
