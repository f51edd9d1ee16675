"""The order of a run's samples, as values: another order breaks every resumed run.

The values may come from another version of Grain or NumPy as well as from our own code.
If one of these tests fails, runs that were begun before cannot be resumed bit for bit:
keep the old order, or say so in CHANGELOG.md.
"""

import jax
import numpy as np
import pytest

from tests.data.test_batches import Numbers
from vilem_jax.data.batches import _rng
from vilem_jax.data.corpus import Corpus, _shuffle
from vilem_jax.keys import Purpose, fold_in, sample_keys


@pytest.mark.parametrize(
    "length, expected",
    [
        (10, [8, 2, 7, 4, 1]),
        (8192, [350, 4063, 2922, 4696, 7633]),  # the longest that NumPy permutes
        (8193, [6923, 3272, 1398, 5691, 7994]),  # Grain's cipher from here on
        (14_000_000, [7190712, 7865558, 4750108, 12618271, 6184943]),
        (2**31 - 1, [204453489, 1166124263, 854024535, 1795168330, 980692911]),
    ],
)
def test_permutations_are_those_of_the_first_version(length, expected):
    offsets = (0, 1, 2, length // 2, length - 1)
    assert [_shuffle(offset, length, (0, 1, 0)) for offset in offsets] == expected


def test_order_of_a_mixture_is_that_of_the_first_version():
    corpus = Corpus([Numbers(4), Numbers(3, 1, "more")], [1.0, 2.0])
    items = [corpus.item(position, 3) for position in range(14)]
    assert "".join(str(item.source) for item in items) == "10001101111110"
    assert "".join(str(item.index) for item in items) == "25121100201124"
    assert "".join(str(item.visit) for item in items) == "10001000012330"


def test_random_numbers_of_the_host_are_those_of_the_first_version():
    """They choose captions, crops and variants of edits."""
    found = [_rng(2, 0, 1, 5, 0).random(), _rng(1, 7, 0, 0, 3).random()]
    np.testing.assert_array_equal(found, [0.629889044100571, 0.19263875967615485])


def test_keys_of_the_device_are_those_of_the_first_version():
    """They choose flips, augmentations, edits and dropout."""
    keys = fold_in(sample_keys(jax.random.key(5), 3, np.arange(2)), Purpose.DROPOUT)
    np.testing.assert_array_equal(
        jax.random.key_data(keys), [[3632273441, 1495496529], [1534798976, 2413097242]]
    )
    bits = [jax.random.bits(key, dtype="uint32") for key in keys]
    np.testing.assert_array_equal(bits, [2252239042, 525369956])


def test_a_long_permutation_has_every_element_once():
    length = 8193  # the shortest that Grain permutes
    found = [_shuffle(offset, length, (0, 1, 0)) for offset in range(length)]
    assert sorted(found) == list(range(length))
