"""Positions and tokens of edits: properties over many random captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import (
    CLS,
    FIRST_PIECE,
    FIRST_WORD,
    MASK,
    PAD,
    SEP,
    VOCABULARY,
    token_tables,
)
from vilem_jax.config.schema import EditorConfig
from vilem_jax.objectives import editing

BATCH, LENGTH = 512, 24


@pytest.fixture(scope="module")
def tokens():
    """Captions of 0 to 22 tokens, a few of them punctuation; the first has no word."""
    rng = np.random.default_rng(0)
    tokens = np.full((BATCH, LENGTH), PAD, np.int32)
    for row in range(BATCH):
        count = row % (LENGTH - 1)
        tokens[row, : count + 2] = [CLS, *rng.integers(5, VOCABULARY, count), SEP]
    return tokens


@pytest.fixture(scope="module")
def is_editable(tokens):
    return np.asarray(token_tables().is_editable)[tokens]


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), BATCH)


def positions_of(is_editable, config, seed=0):
    chosen = jax.jit(lambda k, w: editing.choose_positions(k, w, config))(
        keys(seed), is_editable
    )
    return editing.ChosenPositions(*map(np.asarray, chosen))


@pytest.mark.parametrize("max_edits", [1, 8, 40])
@pytest.mark.parametrize("edit_rate", [0.0, 0.15, 1.0])
def test_positions_are_editable_at_least_one_and_at_most_k(
    is_editable, edit_rate, max_edits
):
    config = EditorConfig(edit_rate=edit_rate, max_edits=max_edits)
    chosen = positions_of(is_editable, config)
    assert chosen.positions.shape == (BATCH, min(max_edits, LENGTH))
    for row in range(BATCH):
        positions = chosen.positions[row][chosen.is_edit[row]]
        num_editable = is_editable[row].sum()
        assert len(set(chosen.positions[row])) == chosen.positions.shape[1]
        assert is_editable[row][positions].all()
        assert min(1, num_editable) <= len(positions) <= min(max_edits, num_editable)
        # The edited positions come first.
        assert chosen.is_edit[row][: len(positions)].all()
        if edit_rate == 0.0:
            assert len(positions) == min(1, num_editable)
        if edit_rate == 1.0:
            assert len(positions) == min(max_edits, num_editable)


def test_edit_rate_0_and_min_edits_0_edit_nothing(is_editable):
    chosen = positions_of(is_editable, EditorConfig(edit_rate=0.0, min_edits=0))
    assert not chosen.is_edit.any()


def test_15_percent_of_the_tokens_are_edited():
    everywhere = np.ones((BATCH, LENGTH), bool)
    config = EditorConfig(min_edits=0, max_edits=LENGTH)
    edits = sum(
        positions_of(everywhere, config, seed).is_edit.sum() for seed in range(8)
    )
    tries = 8 * BATCH * LENGTH
    error = np.sqrt(0.15 * 0.85 / tries)
    assert abs(edits / tries - 0.15) < 4 * error


def test_limits_of_edits_favor_no_position():
    """Keeping at most K, or at least one, favors no position."""
    everywhere = np.ones((BATCH, LENGTH), bool)
    for config in (EditorConfig(edit_rate=1.0, max_edits=6), EditorConfig(edit_rate=0)):
        counts = np.zeros(LENGTH)
        for seed in range(8):
            chosen = positions_of(everywhere, config, seed)
            counts += np.bincount(chosen.positions[chosen.is_edit], minlength=LENGTH)
        expected = counts.sum() / LENGTH
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def edited(tokens, config, seed=1):
    """(edits, candidate logits) with a random editor's scores."""
    tables = token_tables()
    rng = np.random.default_rng(seed)

    def run(tokens, all_keys, logits):
        is_editable = tables.is_editable[tokens]
        chosen = editing.choose_positions(all_keys, is_editable, config)
        original = jnp.take_along_axis(tokens, chosen.positions, axis=1)
        allowed = editing.candidate_logits(logits, original, tables, config)
        words, has_candidate = editing.sample_tokens(all_keys, allowed, config)
        chosen = chosen._replace(is_edit=chosen.is_edit & has_candidate)
        return editing.apply_edits(tokens, chosen, words), allowed

    num_positions = min(config.max_edits, LENGTH)
    logits = 3 * rng.normal(size=(BATCH, num_positions, VOCABULARY)).astype(np.float32)
    edits, allowed = jax.jit(run)(tokens, keys(seed), logits)
    return editing.Edits(*map(np.asarray, edits)), np.asarray(allowed)


@pytest.mark.parametrize("sampling", ["likely", "uniform", "vocabulary"])
@pytest.mark.parametrize("keep_pieces", [True, False])
def test_edits_change_exactly_the_chosen_tokens(
    tokens, is_editable, sampling, keep_pieces
):
    config = EditorConfig(sampling=sampling, keep_pieces=keep_pieces)
    edits, _ = edited(tokens, config)
    # Different exactly where edited.
    np.testing.assert_array_equal(edits.tokens != tokens, edits.edit_here)
    for row in range(BATCH):
        positions = edits.positions[row][edits.is_edit[row]]
        assert set(positions) == set(np.flatnonzero(edits.edit_here[row]))
        assert len(positions) <= config.max_edits
        assert len(positions) >= min(1, is_editable[row].sum())
    old, new = tokens[edits.edit_here], edits.tokens[edits.edit_here]
    assert is_editable[edits.edit_here].all()
    assert (new >= FIRST_WORD).all()  # no special token, [UNK] or punctuation
    same_kind = (old >= FIRST_PIECE) == (new >= FIRST_PIECE)
    assert same_kind.all() == keep_pieces


def test_caption_without_editable_tokens_is_unchanged(tokens, is_editable):
    edits, _ = edited(tokens, EditorConfig(edit_rate=1.0))
    without = ~is_editable.any(axis=1)
    assert without.sum() >= BATCH // LENGTH
    np.testing.assert_array_equal(edits.tokens[without], tokens[without])
    assert not edits.edit_here[without].any() and not edits.is_edit[without].any()


def test_sampled_tokens_are_among_the_top_candidates(tokens):
    config = EditorConfig(num_candidates=3)
    for sampling in ("likely", "uniform"):
        edits, allowed = edited(
            tokens, EditorConfig(num_candidates=3, sampling=sampling)
        )
        words = np.take_along_axis(edits.tokens, edits.positions, axis=1)
        rows = np.argwhere(edits.is_edit)
        ranks = [
            np.sum(allowed[i, k] > allowed[i, k, words[i, k]]) for i, k in rows.tolist()
        ]
        assert max(ranks) == config.num_candidates - 1
    edits, allowed = edited(tokens, EditorConfig(sampling="vocabulary"))
    words = edits.tokens[edits.edit_here]
    assert len(set(words)) > 0.9 * (VOCABULARY - FIRST_WORD)


@pytest.mark.parametrize("sampling", ["likely", "uniform", "vocabulary"])
def test_tokens_are_sampled_at_the_expected_rates(sampling):
    """By softmax among the top, equally among the top, or equally among all words."""
    config = EditorConfig(sampling=sampling, num_candidates=4)
    # Each candidate is 1.6 times as likely as the next.
    scores = -0.5 * np.arange(VOCABULARY, dtype=np.float32)
    original = FIRST_WORD + 1  # would be among the best
    logits = np.broadcast_to(scores, (BATCH, 8, VOCABULARY))
    tables = token_tables()

    def draw(all_keys):
        old = jnp.full((BATCH, 8), original)
        allowed = editing.candidate_logits(logits, old, tables, config)
        return editing.sample_tokens(all_keys, allowed, config)[0]

    drawn = np.concatenate([jax.jit(draw)(keys(seed)).ravel() for seed in range(4)])
    expected = np.zeros(VOCABULARY)
    candidates = [w for w in range(FIRST_WORD, FIRST_PIECE) if w != original]
    if sampling != "vocabulary":
        candidates = candidates[:4]
    expected[candidates] = np.exp(scores[candidates]) if sampling == "likely" else 1.0
    expected *= len(drawn) / expected.sum()
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert not counts[expected == 0].any()
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()


def test_masks_are_at_the_chosen_positions(tokens, is_editable):
    chosen = positions_of(is_editable, EditorConfig())
    masked = np.asarray(editing.mask_positions(jnp.asarray(tokens), chosen, MASK))
    here = np.zeros(tokens.shape, bool)
    for row in range(BATCH):
        here[row, chosen.positions[row][chosen.is_edit[row]]] = True
    np.testing.assert_array_equal(masked, np.where(here, MASK, tokens))


def test_edits_of_a_caption_do_not_depend_on_the_batch(tokens):
    config = EditorConfig()
    part = jax.jit(
        lambda k, w: editing.choose_positions(k, w, config),
    )(keys()[100:103], token_tables().is_editable[tokens[100:103]])
    whole = positions_of(np.asarray(token_tables().is_editable)[tokens], config)
    np.testing.assert_array_equal(whole.positions[100:103], part.positions)
    np.testing.assert_array_equal(whole.is_edit[100:103], part.is_edit)
