"""The masked-language model: its savings are exact, its decoder is tied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.models import layers
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.text import EMBEDDING_SITE


def test_logits_at_positions_equal_those_of_all_positions(
    build, text_config, tokens, assert_close
):
    ids, attention_mask = tokens
    positions = jnp.array([[1, 4, 0], [1, 0, 6], [2, 2, 3], [5, 4, 3]])
    results = []
    for at_positions in (True, False):
        editor = build(
            MaskedLanguageModel, text_config, editor_at_positions=at_positions
        )
        results.append(jax.jit(editor.logits_at)(ids, attention_mask, positions))
    assert results[0].shape == (4, 3, 23) and results[0].dtype == jnp.float32
    assert_close(*results)


def test_decoder_is_tied_to_the_embeddings(build, text_config, tokens):
    ids, attention_mask = tokens
    text = (ids, attention_mask, jnp.zeros((4, 1), jnp.int32))
    editor = build(MaskedLanguageModel, text_config)
    graph, params = nnx.split(editor)
    run = jax.jit(lambda params: nnx.merge(graph, params).logits_at(*text))
    before = run(params)
    words = params["text"]["embedding"]["words"]
    unused = next(word for word in range(23) if word not in np.asarray(ids))
    words[...] = words[...].at[unused].multiply(2.0)
    after = run(params)
    bias = editor.bias[...][unused]
    np.testing.assert_allclose(
        after[..., unused] - bias, 2 * (before[..., unused] - bias), rtol=1e-5
    )


@pytest.mark.parametrize("at_positions", [True, False])
def test_each_layer_has_its_own_dropout(
    build, text_config, tokens, seeds, monkeypatch, at_positions
):
    seen = []

    def record(values, seeds, rate):
        seen.append(np.asarray(seeds))
        return values

    monkeypatch.setattr(layers, "dropout", record)
    editor = build(MaskedLanguageModel, text_config, editor_at_positions=at_positions)
    editor.logits_at(*tokens, jnp.ones((4, 1), jnp.int32), seeds=seeds)
    # The embedding's, and of each layer attention's two and the MLP's.
    assert len(seen) == 1 + 3 * 3
    np.testing.assert_array_equal(seen[0], layers.for_site(seeds, EMBEDDING_SITE))
    for number, found in enumerate(seen[3::3]):
        expected = layers.for_site(layers.for_site(seeds, number), 2)
        np.testing.assert_array_equal(found, expected)
