"""The order of a run's samples, as values: another order breaks every resumed run.

The values may come from another version of Grain or NumPy as well as from our own code.
If one of these tests fails, runs that were begun before cannot be resumed bit for bit:
keep the old order, or say so in CHANGELOG.md.
"""

import jax
import numpy as np
import pytest

from tests.data.test_batches import Numbers, Unreadable
from vilem_jax.config.schema import Config, DataConfig, TrainConfig
from vilem_jax.data import batches
from vilem_jax.data.batches import BatchMaker, _rng
from vilem_jax.data.corpus import Corpus, Item, _shuffle
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


class Uneven(Numbers):
    """Images with one, two, three, one, ... captions."""

    def caption_counts(self):
        return 1 + np.arange(len(self)) % 3


def test_pairs_of_uneven_images_are_counted_in_order():
    corpus = Corpus([Uneven(7)])
    expected = [
        (image, caption) for image in range(7) for caption in range(image % 3 + 1)
    ]
    items = [Item(0, index, 0) for index in range(corpus.num_pairs)]
    assert [corpus.pair_of(item, 0.9) for item in items] == expected


@pytest.mark.parametrize(
    "fraction, expected",
    [(0.0, 0), (0.33, 0), (0.34, 1), (0.66, 1), (0.67, 2), (0.99, 2)],
)
def test_captions_at_random_are_equally_likely(fraction, expected):
    corpus = Corpus([Uneven(7)], unit="one_at_random")
    assert corpus.pair_of(Item(0, 5, 0), fraction) == (5, expected)


class OneRow:
    """A tokenizer of captions that nobody reads."""

    def encode(self, captions, length):
        return np.zeros((len(captions), length), np.int32)


def test_random_numbers_of_a_row_are_of_its_source_item_and_visit(monkeypatch):
    """Not of its step, nor of the image that replaces a corrupt one."""
    corpus, used = Corpus([Numbers(3, 1), Unreadable(3, {1})]), []
    monkeypatch.setattr(batches, "_rng", lambda *key: used.append(key) or _rng(*key))
    config = Config(
        seed=5, train=TrainConfig(batch_size=6), data=DataConfig(text_length=6)
    )
    maker = BatchMaker(config, corpus, OneRow(), image_size=8)
    maker(0), maker(1), maker(2)
    items = [corpus.item(position, 5) for position in range(18)]
    assert set(used) == {
        (purpose, 5, item.source, item.index, item.visit)
        for item in items
        for purpose in (1, 2)  # caption, crop
    }
