"""Microbatches of like length: every row once, and no longer than it needs to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import BATCH, LENGTH, tiny_config, tiny_samples, tiny_state
from vilem_jax.training import length_buckets
from vilem_jax.training.gradients import map_microbatches, split, unsplit
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.step import make_update


def lengths_of(samples) -> np.ndarray:
    return np.asarray(samples.attention_mask).sum(axis=-1)


@pytest.mark.parametrize("num_parts", [1, 4, BATCH])
def test_buckets_hold_the_sorted_rows(num_parts):
    samples = tiny_samples(0)
    arrange, put_back = length_buckets.arrangement(samples, num_parts)
    parts = split(arrange(samples), num_parts)
    in_order = lengths_of(parts).max(axis=1)
    assert (np.diff(in_order) >= 0).all()
    assert in_order[0] == np.sort(lengths_of(samples))[BATCH // num_parts - 1]
    rows = split(arrange(jnp.arange(BATCH)), num_parts)
    np.testing.assert_array_equal(put_back(unsplit(rows)), np.arange(BATCH))


@pytest.mark.parametrize(
    "longest, expected", [(4, 5), (5, 5), (6, 8), (8, 8), (9, LENGTH), (LENGTH, LENGTH)]
)
def test_texts_are_as_short_as_possible(longest, expected):
    samples = tiny_samples(0)
    attention_mask = jnp.arange(LENGTH)[None, :] < jnp.full((BATCH, 1), 3)
    attention_mask = attention_mask.at[7].set(jnp.arange(LENGTH) < longest)

    def padded_length(samples):
        return jnp.asarray(samples.tokens.shape[1])

    run = length_buckets.on_shortest(padded_length, (5, 8))
    assert run(samples._replace(attention_mask=attention_mask)) == expected


def test_cutting_removes_only_padding():
    samples = tiny_samples(0)
    short = length_buckets.cut(samples, LENGTH - 1)
    for name in ("tokens", "attention_mask", "is_editable"):
        whole, part = getattr(samples, name), getattr(short, name)
        np.testing.assert_array_equal(part, whole[:, :-1])
    assert short.edits.tokens.shape == short.edits.edit_here.shape == short.tokens.shape
    assert length_buckets.cut(samples, 3).edits.positions.max() == 2
    np.testing.assert_array_equal(short.edits.is_edit, samples.edits.is_edit)
    assert length_buckets.cut(samples._replace(edits=None), 5).edits is None


@pytest.mark.parametrize("lengths, expected", [((), 0), ((8,), 2)])
def test_step_branches_on_the_lengths(lengths, expected):
    """Once for the momentum keys, once for losses and gradients."""
    config = tiny_config(compute={"text_lengths": lengths})
    update = make_update(config, make_schedule(config.optimizer, 10))
    traced = jax.make_jaxpr(update)(tiny_state(config), tiny_samples(0))
    assert str(traced).count("branches=(") == expected


@pytest.mark.parametrize("num_parts", [1, 4])
def test_results_come_in_the_order_of_the_rows(num_parts):
    """Sorted by length on the way: else keys would belong to other samples."""
    config = tiny_config(
        train={"num_microbatches": num_parts}, compute={"text_lengths": (8,)}
    )
    samples = tiny_samples(0)._replace(image_id=jnp.arange(BATCH))
    found = map_microbatches(lambda part: part.image_id, (samples,), config)
    np.testing.assert_array_equal(found, np.arange(BATCH))
