"""The masked-language model: its savings are exact, its decoder is tied."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.models.editor import MaskedLanguageModel


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
