"""Training the editor: BERT learns to name masked words of captions (task="editor").

A BERT without a masked-language head, or none at all, becomes the editor this way; the
text tower can start from the same weights, as the paper starts both from BERT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.layers import dropout_seeds, with_init_std
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params
from vilem_jax.objectives import editing, proofreading
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.training.step import keep_if_finite


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EditorState:
    """All that changes while an editor is trained."""

    step: jax.Array  # int32
    params: Params  # of a `MaskedLanguageModel`
    opt_state: Any
    skipped_total: jax.Array  # int32
    skipped_in_a_row: jax.Array  # int32


def initial_editor_params(config: Config, key: jax.Array) -> Params:
    model = MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(key))
    params = nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
    return with_init_std(params, config.model.init_std)


def initial_editor_state(config: Config, params: Params) -> EditorState:
    zero = jnp.zeros((), jnp.int32)
    return EditorState(
        step=zero,
        params=params,
        opt_state=make_optimizer(config.optimizer).init(params),
        skipped_total=zero,
        skipped_in_a_row=zero,
    )


def make_editor_step(
    config: Config,
    schedule: Callable,
    tables: editing.TokenTables,
    *,
    pad_id: int,
    mask_id: int,
) -> Callable:
    """`step(state, batch, key) -> (state, metrics)`: hide words, name them, AdamW."""
    graph = editor_graph(config)
    optimizer = make_optimizer(config.optimizer)
    words = np.flatnonzero(tables.is_editable).astype(np.int32)

    def loss_of(params, tokens, hidden, chosen, seeds):
        logits = nnx.merge(graph, params).logits_at(
            hidden, make_attention_mask(tokens, pad_id), chosen.positions, seeds=seeds
        )
        edits = editing.apply_edits(tokens, chosen, chosen.positions)
        correction = editing.correction_labels(tokens, edits)
        num = jnp.maximum(chosen.is_edit.sum(), 1)
        loss = proofreading.correction_sum(logits, correction) / num
        return loss, proofreading.correction_hits(logits, correction) / num

    def step(state: EditorState, batch, key):
        tokens = batch["tokens"]
        keys = sample_keys(key, state.step, batch["sample_id"])
        chosen = editing.choose_positions(
            fold_in(keys, Purpose.EDIT), tables.is_editable[tokens], config.editor
        )
        seeds = dropout_seeds(fold_in(keys, Purpose.DROPOUT))
        hidden = mask_tokens(
            fold_in(keys, Purpose.AUGMENT),
            tokens,
            chosen,
            words,
            config.editor.mask_rate,
            mask_id,
        )
        (loss, top1), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, tokens, hidden, chosen, seeds
        )
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = schedule(state.step)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        update_norm = optax.tree.norm(updates)
        is_finite = jnp.isfinite(jnp.stack([loss, grad_norm, update_norm])).all()
        state = keep_if_finite(
            state, is_finite, {"params": params, "opt_state": opt_state}
        )
        return state, {
            "loss": loss,
            "masked_top1": top1,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "skipped_total": state.skipped_total,
            "skipped_in_a_row": state.skipped_in_a_row,
        }

    return step


def mask_tokens(
    keys: jax.Array,
    tokens: jax.Array,
    chosen: editing.ChosenPositions,
    words: np.ndarray,
    mask_rate: float,
    mask_id: int,
) -> jax.Array:
    """BERT's rule: of the chosen words most become [MASK], some stay, some change.

    Those that stay matter: where nothing else tells two words apart (the colour of a
    thing that may have any), a BERT that only fills masks forgets which it read, and
    tied embeddings of such words become one.

    Args:
      keys: typed keys [B].
      tokens: int32 [B, L].
      words: int32 [W], all that may stand in a changed place.
      mask_rate: share of [MASK]; half of the rest stay, half become any word.

    Returns:
      int32 [B, L].
    """
    shape = chosen.positions.shape[1:]
    draw = jax.vmap(lambda key: jax.random.uniform(key, (2, *shape)))(keys)
    fate, which = draw[:, 0], draw[:, 1]
    number = jnp.floor(which * len(words)).astype(jnp.int32)
    original = jnp.take_along_axis(tokens, chosen.positions, axis=1)
    changed = jnp.asarray(words)[number]
    shown = jnp.where(fate < (1.0 + mask_rate) / 2, original, changed)
    shown = jnp.where(fate < mask_rate, mask_id, shown)
    return editing.apply_edits(tokens, chosen, shown.astype(tokens.dtype)).tokens


def make_masked_accuracy(config: Config, *, pad_id: int, mask_id: int) -> Callable:
    """`accuracy(editor, tokens, key) -> (hits, masked)`: masked words named right.

    The words that are masked depend on the row's number and the key alone.
    """
    graph = editor_graph(config)

    def accuracy(editor: FrozenEditor, tokens, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(tokens.shape[0]))
        is_editable = editor.tables.is_editable[tokens]
        chosen = editing.choose_positions(keys, is_editable, config.editor)
        masked = editing.mask_positions(tokens, chosen, mask_id)
        logits = nnx.merge(graph, editor.params).logits_at(
            masked, make_attention_mask(tokens, pad_id), chosen.positions
        )
        edits = editing.apply_edits(tokens, chosen, chosen.positions)
        correction = editing.correction_labels(tokens, edits)
        return (
            proofreading.correction_hits(logits, correction),
            chosen.is_edit.sum(),
        )

    return accuracy
