"""The editor's training: its loss by hand, that it learns, and its accuracy."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import (
    MASK,
    PAD,
    tiny_batch,
    tiny_config,
    token_tables,
)
from vilem_jax.distributed.mesh import (
    Layout,
    make_mesh,
    put_batch,
    put_replicated,
)
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.objectives import editing
from vilem_jax.training import editor_step
from vilem_jax.training.compile import compile_step

CONFIG = tiny_config(
    task="editor",
    model={"text": {"dropout_rate": 0.0}},
    editor={"edit_rate": 0.3, "mask_rate": 1.0},
    optimizer={"learning_rate": 3e-3},
)
KEY = jax.random.key(5)


@cache
def compiled_step(config):
    step = jax.jit(
        editor_step.make_editor_step(
            config, lambda step: config.optimizer.learning_rate
        )
    )
    tables = editor_step.masking_tables(token_tables())
    return lambda state, batch, key: step(state, tables, batch, key)


@cache
def params():
    return jax.jit(lambda k: editor_step.init_editor_params(CONFIG, k))(
        jax.random.key(0)
    )


def new_state():
    return editor_step.init_editor_state(CONFIG, params())


@pytest.fixture(scope="module")
def batch():
    return {k: v for k, v in tiny_batch().items() if k in ("tokens", "sample_id")}


def masked_words(batch, step):
    """(masked captions, positions, is_edit, original words) of a step, by hand."""
    keys = sample_keys(KEY, jnp.asarray(step), batch["sample_id"])
    keys = fold_in(keys, Purpose.EDIT)
    tokens = np.array(batch["tokens"])
    is_editable = token_tables().is_editable[tokens]
    chosen = editing.choose_positions(keys, is_editable, CONFIG.editor)
    positions, is_edit = np.asarray(chosen.positions), np.asarray(chosen.is_edit)
    masked = tokens.copy()
    for row in range(len(tokens)):
        masked[row, positions[row][is_edit[row]]] = MASK
    return masked, positions, is_edit, np.take_along_axis(tokens, positions, axis=1)


def test_loss_is_the_cross_entropy_of_masked_tokens(batch):
    state, metrics = compiled_step(CONFIG)(new_state(), batch, KEY)
    masked, positions, is_edit, original = masked_words(batch, 0)
    model = nnx.merge(editor_graph(CONFIG), params())
    run = jax.jit(lambda t, p: model.logits_at(t, jnp.not_equal(t, PAD), p))
    logits = np.asarray(run(masked, positions), float)
    loss, hits = [], []
    for i, k in zip(*np.nonzero(is_edit), strict=True):
        scores = logits[i, k] - logits[i, k].max()
        label = original[i, k]
        loss.append(np.log(np.exp(scores).sum()) - scores[label])
        hits.append((scores >= scores[label]).sum() == 1)
    assert len(loss) > 10
    np.testing.assert_allclose(metrics["loss"], np.mean(loss), rtol=1e-5)
    np.testing.assert_allclose(metrics["masked_top1"], np.mean(hits), rtol=1e-6)
    assert state.step == 1 and metrics["learning_rate"] == np.float32(3e-3)


@pytest.mark.parametrize("mask_rate", [0.8, 1.0, 0.0])
def test_chosen_tokens_are_masked_kept_or_changed(mask_rate):
    """BERT's 80, 10 and 10 %, and the other words as they were."""
    count, length = 400, 10
    words = np.flatnonzero(token_tables().is_editable)
    tokens = np.random.default_rng(0).choice(words, (count, length)).astype(np.int32)
    positions = editing.ChosenPositions(
        jnp.tile(jnp.arange(length), (count, 1)),
        jnp.tile(jnp.arange(length) % 2 == 0, (count, 1)),
    )
    keys = jax.random.split(KEY, count)
    tables = editor_step.masking_tables(token_tables())
    hidden = jax.jit(
        lambda k, t, p: editor_step.mask_tokens(k, t, p, tables, mask_rate)
    )(keys, tokens, positions)
    hidden = np.asarray(hidden)
    np.testing.assert_array_equal(hidden[:, 1::2], tokens[:, 1::2])
    old, new = tokens[:, ::2].ravel(), hidden[:, ::2].ravel()
    changed = new[(new != MASK) & (new != old)]
    assert set(changed) <= set(words)
    if mask_rate == 0.8:
        assert len(set(changed)) > 0.8 * len(words)
    if mask_rate == 0.0:
        assert set(changed) == set(words)
    # "Any word" is now and then the same word.
    changed_rate = (1 - mask_rate) / 2 * (1 - 1 / len(words))
    for found, rate in (
        ((new == MASK).mean(), mask_rate),
        (len(changed) / len(new), changed_rate),
    ):
        assert abs(found - rate) <= 4 * np.sqrt(rate * (1 - rate) / len(new))


def test_masked_tokens_are_learned(batch):
    step, state = compiled_step(CONFIG), new_state()
    accuracy = jax.jit(editor_step.make_masked_accuracy(CONFIG))
    before = accuracy(FrozenEditor(state.params, token_tables()), batch["tokens"], KEY)
    first = None
    for _ in range(150):
        state, metrics = step(state, batch, KEY)
        first = first or float(metrics["loss"])
    after = accuracy(FrozenEditor(state.params, token_tables()), batch["tokens"], KEY)
    assert metrics["loss"] < 0.5 * first
    assert before[1] == after[1] > 10  # the same words were masked
    assert after[0] > 0.6 * after[1] and before[0] < 0.2 * before[1]


def test_batch_without_editable_tokens_has_loss_0(batch):
    tokens = np.full_like(batch["tokens"], PAD)
    empty = {**batch, "tokens": tokens}
    _, metrics = compiled_step(CONFIG)(new_state(), empty, KEY)
    assert metrics["loss"] == 0 and metrics["skipped_total"] == 0


@pytest.mark.parametrize("where", ["params", "moments"])
def test_nonfinite_step_is_skipped(batch, where):
    state = new_state()
    if where == "params":
        with_nan = {**state.params, "bias": state.params["bias"].at[40].set(jnp.nan)}
        state = dataclasses.replace(state, params=with_nan)
    else:
        opt_state = jax.tree.map(
            lambda x: x + jnp.nan if x.dtype == jnp.float32 else x, state.opt_state
        )
        state = dataclasses.replace(state, opt_state=opt_state)
    after, metrics = compiled_step(CONFIG)(state, batch, KEY)
    assert metrics["skipped_total"] == metrics["skipped_in_a_row"] == 1
    for name in ("params", "opt_state"):
        old, new = getattr(state, name), getattr(after, name)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_devices_change_nothing_with_dropout():
    config = tiny_config(task="editor", editor={"edit_rate": 0.3})
    found = []
    for num_devices in (1, 8):
        layout = Layout(make_mesh(num_devices))
        mesh = layout.mesh
        step = editor_step.make_editor_step(config, lambda step: 1e-3)
        step = compile_step(step, new_state(), layout)
        tables = editor_step.masking_tables(token_tables())
        tables = put_replicated(tables, mesh)
        state = put_replicated(new_state(), mesh)
        key, losses = put_replicated(KEY, mesh), []
        for number in range(3):
            batch = put_batch(tiny_batch(number), mesh)
            state, metrics = step(state, tables, batch, key)
            losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1
        found.append(losses)
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_step_masks_drops_and_learns_by_its_own_numbers(batch, monkeypatch):
    """Keys of each purpose, dropout in the model, the rate of the state's step."""
    seen = {}

    class Stub:
        def logits_at(self, tokens, attention_mask, positions, *, seeds):
            seen["seeds"] = seeds
            bias = params()["bias"][None, None]
            return jnp.broadcast_to(bias, (*positions.shape, bias.shape[-1]))

    def mask_tokens(keys, tokens, *_):
        seen["mask"] = jax.random.key_data(keys)
        return tokens

    monkeypatch.setattr(editor_step, "mask_tokens", mask_tokens)
    monkeypatch.setattr(editor_step.nnx, "merge", lambda *_: Stub())
    step = editor_step.make_editor_step(CONFIG, lambda step: 0.1 * (step + 1))
    state = dataclasses.replace(new_state(), step=jnp.asarray(4, jnp.int32))
    tables = editor_step.masking_tables(token_tables())
    _, metrics = step(state, tables, jax.tree.map(jnp.asarray, batch), KEY)
    keys = sample_keys(KEY, jnp.asarray(4), batch["sample_id"])
    for name, purpose in (("mask", Purpose.AUGMENT), ("seeds", Purpose.DROPOUT)):
        expected = jax.random.key_data(fold_in(keys, purpose))
        np.testing.assert_array_equal(seen[name], expected)
    np.testing.assert_allclose(metrics["learning_rate"], 0.5, rtol=1e-6)


def test_new_kernels_have_the_configured_std():
    """init_std=0 is 1 / sqrt(inputs)."""
    kernel = params()["text"]["layers"][0]["mlp"]["contract"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 64**-0.5, rtol=0.1)
