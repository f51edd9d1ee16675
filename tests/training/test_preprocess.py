"""From a batch of the reader to samples: keys of each purpose, masks, ids."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.tiny import PAD, tiny_batch, tiny_config, token_tables
from vilem_jax.editing.editor import FrozenEditor
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.training import step

BATCH = tiny_batch() | {"image_id": np.arange(100, 116, dtype=np.int32)}
KEYS = sample_keys(jax.random.key(0), 3, BATCH["sample_id"])


@pytest.fixture
def seen(monkeypatch):
    """What augmentation, editing and the samples got, without their work."""
    seen = {}

    def augment(pixels, flip_keys, op_keys, config, *, may_flip):
        seen.update({Purpose.FLIP: flip_keys, Purpose.AUGMENT: op_keys})
        return pixels

    def edit_captions(graph, editor, tokens, keys, config):
        seen[Purpose.EDIT] = keys

    monkeypatch.setattr(step, "augment", augment)
    monkeypatch.setattr(step, "edit_captions", edit_captions)
    preprocess = step.make_preprocess(tiny_config(), nnx.graphdef(nnx.Dict()))
    seen["samples"] = preprocess(FrozenEditor({}, token_tables()), BATCH, KEYS)
    return seen


def test_each_random_choice_has_the_keys_of_its_purpose(seen):
    seen[Purpose.DROPOUT] = seen["samples"].dropout_seeds
    for purpose in Purpose:
        found, expected = seen[purpose], jax.random.key_data(fold_in(KEYS, purpose))
        if purpose != Purpose.DROPOUT:
            found = jax.random.key_data(found)
        np.testing.assert_array_equal(found, expected, err_msg=purpose.name)


def test_masks_and_ids_are_those_of_the_batch(seen):
    samples, tokens = seen["samples"], BATCH["tokens"]
    np.testing.assert_array_equal(samples.tokens, tokens)
    np.testing.assert_array_equal(samples.attention_mask, tokens != PAD)
    is_editable = np.asarray(token_tables().is_editable)[tokens]
    np.testing.assert_array_equal(samples.is_editable, is_editable)
    assert (is_editable != (tokens != PAD)).any()
    np.testing.assert_array_equal(samples.image_id, BATCH["image_id"])
