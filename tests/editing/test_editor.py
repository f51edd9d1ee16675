"""Editing captions: exactly the chosen words, one caption at a time, both maskings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, EditorConfig, TextConfig
from vilem_jax.editing.editor import POSITIONS_PURPOSE, FrozenEditor, edit_captions
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.objectives import editing

PAD, CLS, SEP, MASK, COMMA = 0, 2, 3, 4, 5
FIRST_WORD, FIRST_PIECE, VOCABULARY = 6, 24, 30
LENGTH = 9


@pytest.fixture(scope="module")
def editor():
    config = TextConfig(
        vocab_size=VOCABULARY,
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        max_positions=16,
    )
    compute = ComputeConfig(dtype="float32")
    model = MaskedLanguageModel(config, compute, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model, nnx.Param)
    words = jnp.arange(VOCABULARY)
    tables = editing.TokenTables(
        is_editable=words >= FIRST_WORD,
        is_piece=words >= FIRST_PIECE,
        is_side=words < 0,
        pad_id=PAD,
        mask_id=MASK,
    )
    # Larger weights than at the start, so that the editor's favourites depend on text.
    params = jax.tree.map(lambda values: values * 10, nnx.to_pure_dict(state))
    return graphdef, FrozenEditor(params, tables)


def captions(num_captions=12, seed=0):
    rng = np.random.default_rng(seed)
    tokens = np.full((num_captions, LENGTH), PAD, np.int32)
    for row in tokens:
        length = rng.integers(0, LENGTH - 1)
        row[0], row[length + 1] = CLS, SEP
        row[1 : length + 1] = rng.integers(COMMA, VOCABULARY, length)
    tokens[0, :4] = [CLS, COMMA, SEP, PAD]
    tokens[0, 4:] = PAD
    return jnp.asarray(tokens)


def edit(editor, tokens, seed=0, **settings):
    settings = {"edit_rate": 0.5, "max_edits": 4, "num_candidates": 5} | settings
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(
        jnp.arange(tokens.shape[0])
    )
    config = EditorConfig(**settings)

    @jax.jit
    def run(frozen, tokens, keys):
        return edit_captions(editor[0], frozen, tokens, keys, config)

    return run(editor[1], tokens, keys), keys, config


@pytest.mark.parametrize("masking", ["together", "one_by_one"])
@pytest.mark.parametrize("sampling", ["likely", "uniform", "vocabulary"])
def test_captions_differ_exactly_at_edit_here(editor, masking, sampling):
    tokens = captions()
    edits, _, _ = edit(editor, tokens, masking=masking, sampling=sampling)
    before, after = np.asarray(tokens), np.asarray(edits.tokens)
    here = np.asarray(edits.edit_here)
    np.testing.assert_array_equal(before != after, here)
    assert (after[here] >= FIRST_WORD).all()
    assert ((after >= FIRST_PIECE) == (before >= FIRST_PIECE))[here].all()
    has_word = (before >= FIRST_WORD).any(axis=1)
    np.testing.assert_array_equal(here.any(axis=1), has_word)
    assert here.sum(axis=1).max() <= 4
    assert not has_word[0]


def test_edits_do_not_depend_on_the_batch(editor):
    tokens = captions()
    whole, keys, config = edit(editor, tokens)
    part = edit_captions(*editor, tokens[5:8], keys[5:8], config)
    np.testing.assert_array_equal(whole.tokens[5:8], part.tokens)


@pytest.mark.parametrize("masking", ["together", "one_by_one"])
def test_single_candidate_is_the_most_likely_allowed_token(editor, masking):
    """With one candidate nothing is random: a loop over captions gives the same."""
    tokens = captions(6, seed=1)
    edits, keys, config = edit(editor, tokens, masking=masking, num_candidates=1)
    model = nnx.merge(editor[0], editor[1].params)
    position_keys = jax.vmap(lambda key: jax.random.fold_in(key, POSITIONS_PURPOSE))(
        keys
    )
    is_editable = editor[1].tables.is_editable[tokens]
    chosen = editing.choose_positions(position_keys, is_editable, config)
    for row in range(tokens.shape[0]):
        clean = np.asarray(tokens[row])
        positions = np.asarray(chosen.positions[row])[np.asarray(chosen.is_edit[row])]
        expected = clean.copy()
        for position in positions:
            masked = clean.copy()
            masked[positions if masking == "together" else position] = MASK
            scores = model.logits_at(
                jnp.asarray(masked)[None],
                jnp.asarray(clean != PAD)[None],
                jnp.asarray([[position]]),
            )
            scores = np.array(scores[0, 0])
            scores[:FIRST_WORD] = -np.inf
            scores[clean[position]] = -np.inf
            is_piece = np.arange(VOCABULARY) >= FIRST_PIECE
            scores[is_piece != (clean[position] >= FIRST_PIECE)] = -np.inf
            expected[position] = scores.argmax()
        np.testing.assert_array_equal(edits.tokens[row], expected)


def test_positions_and_tokens_share_no_random_number(editor, monkeypatch):
    used = {}

    def watched(name):
        function = getattr(editing, name)

        def watch(keys, *others):
            used[name] = np.asarray(jax.random.key_data(keys))
            return function(keys, *others)

        return watch

    for name in ("choose_positions", "sample_tokens"):
        monkeypatch.setattr(editing, name, watched(name))
    tokens, keys = captions(3), jax.random.split(jax.random.key(0), 3)
    edit_captions(*editor, tokens, keys, EditorConfig())
    rows = np.concatenate([*used.values(), jax.random.key_data(keys)])
    assert len(np.unique(rows, axis=0)) == 9


def test_a_position_without_a_candidate_stays(editor):
    only = jnp.arange(VOCABULARY) == FIRST_WORD
    never = jnp.zeros_like(only)
    tables = editing.TokenTables(only, never, never, pad_id=PAD, mask_id=MASK)
    frozen = FrozenEditor(editor[1].params, tables)
    tokens = jnp.asarray([[CLS, FIRST_WORD, FIRST_WORD, SEP] + [PAD] * 5])
    edits = edit_captions(
        editor[0],
        frozen,
        tokens,
        jax.random.split(jax.random.key(0), 1),
        EditorConfig(edit_rate=1.0),
    )
    np.testing.assert_array_equal(edits.tokens, tokens)
    assert not edits.edit_here.any() and not edits.is_edit.any()
