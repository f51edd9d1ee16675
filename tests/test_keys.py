"""The table of randomness: what a key is made of."""

import jax
import numpy as np
import pytest

from vilem_jax.keys import Purpose, fold_in, sample_keys

KEYS = jax.random.split(jax.random.key(0), 3)


def test_numbers_of_purposes_are_fixed():
    """They are part of the keys: other numbers would change a resumed run."""
    assert [purpose.name for purpose in sorted(Purpose)] == [
        "FLIP",
        "AUGMENT",
        "EDIT",
        "DROPOUT",
    ]
    assert sorted(Purpose) == [0, 1, 2, 3]


@pytest.mark.parametrize("purpose", Purpose)
def test_number_is_folded_into_each_key(purpose):
    for key, found in zip(KEYS, fold_in(KEYS, purpose), strict=True):
        expected = jax.random.key_data(jax.random.fold_in(key, int(purpose)))
        np.testing.assert_array_equal(jax.random.key_data(found), expected)


def test_no_two_samples_share_a_key():
    keys = sample_keys(jax.random.key(0), np.int32(3), np.arange(50))
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 50
