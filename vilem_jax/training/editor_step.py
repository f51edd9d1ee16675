"""Training the editor: BERT learns to name masked tokens of captions (task="editor").

A BERT without a masked-language head, or none at all, becomes the editor this way; the
text tower can start from the same weights, as the paper starts both from BERT.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
from vilem_jax.training.state import State, initial_fields
from vilem_jax.training.step import Batch, Metrics, apply_gradients


class MaskingTables(NamedTuple):
    """What masking reads of the vocabulary."""

    vocabulary: editing.TokenTables
    editable: jax.Array | np.ndarray  # int32 [W], the tokens that are


def masking_tables(tables: editing.TokenTables) -> MaskingTables:
    return MaskingTables(tables, np.flatnonzero(tables.is_editable).astype(np.int32))


def init_editor_params(config: Config, key: jax.Array) -> Params:
    model = MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(key))
    params = nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
    return with_init_std(params, config.model.init_std)


def init_editor_state(config: Config, params: Params) -> State:
    return State(**initial_fields(config, params, params))


def make_editor_step(
    config: Config, schedule: Callable
) -> Callable[[State, MaskingTables, Batch, jax.Array], tuple[State, Metrics]]:
    """`step(state, tables, batch, key)`: mask tokens, name them, optimizer."""
    graph = editor_graph(config)
    optimizer = make_optimizer(config.optimizer)

    def loss_of(params, tokens, pad_id, masked, chosen, seeds):
        model = nnx.merge(graph, params)
        attention_mask = make_attention_mask(tokens, pad_id)
        logits = model.logits_at(masked, attention_mask, chosen.positions, seeds=seeds)
        correction = _masked_labels(tokens, chosen)
        # The editor's config has no microbatches: this is the whole batch's count.
        num_masked = jnp.maximum(chosen.is_edit.sum(), 1)
        loss = proofreading.correction_sum(logits, correction) / num_masked
        return loss, proofreading.correction_hits(logits, correction) / num_masked

    def step(state: State, tables: MaskingTables, batch: Batch, key: jax.Array):
        tokens = batch["tokens"]
        keys = sample_keys(key, state.step, batch["sample_id"])
        is_editable = tables.vocabulary.is_editable[tokens]
        chosen = editing.choose_positions(
            fold_in(keys, Purpose.EDIT), is_editable, config.editor
        )
        # The purposes are those of ViLEM's step; AUGMENT is free here: no images.
        mask_keys = fold_in(keys, Purpose.AUGMENT)
        masked = mask_tokens(mask_keys, tokens, chosen, tables, config.editor.mask_rate)
        seeds = dropout_seeds(fold_in(keys, Purpose.DROPOUT))
        (loss, top1), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, tokens, tables.vocabulary.pad_id, masked, chosen, seeds
        )
        rate = schedule(state.step)
        state, metrics = apply_gradients(
            state, state.params, grads, loss, optimizer, rate
        )
        return state, metrics | {"loss": loss, "masked_top1": top1}

    return step


def mask_tokens(
    keys: jax.Array,
    tokens: jax.Array,
    chosen: editing.ChosenPositions,
    tables: MaskingTables,
    mask_rate: float,
) -> jax.Array:
    """BERT's rule: of the chosen tokens most become [MASK], some stay, some change.

    Those that stay matter: if nothing else distinguishes two words (the color of an
    object that may have any), a BERT that only fills masks forgets which one it read,
    and the tied embeddings of such words become one.

    Args:
      keys: typed keys [B].
      tokens: int32 [B, L].
      mask_rate: share of [MASK]; half of the rest stay, half become any token.

    Returns:
      int32 [B, L].
    """
    shape = chosen.positions.shape[1:]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2, *shape)))(keys)
    outcome, which = uniform[:, 0], uniform[:, 1]  # [B, K] each
    index = jnp.floor(which * len(tables.editable)).astype(jnp.int32)
    original = jnp.take_along_axis(tokens, chosen.positions, axis=1)
    changed = jnp.asarray(tables.editable)[index]  # may be the original, as in BERT
    # outcome < mask_rate: [MASK]; of the rest, one half stays and one half changes.
    shown = jnp.where(outcome < (1.0 + mask_rate) / 2, original, changed)
    shown = jnp.where(outcome < mask_rate, tables.vocabulary.mask_id, shown)
    return editing.apply_edits(tokens, chosen, shown.astype(tokens.dtype)).tokens


def make_masked_accuracy(config: Config) -> Callable:
    """`accuracy(editor, tokens, key) -> (hits, masked)`: masked tokens named right.

    Which tokens are masked depends on the row's index and the key alone.
    """
    graph = editor_graph(config)

    def accuracy(editor: FrozenEditor, tokens: jax.Array, key: jax.Array):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(tokens.shape[0]))
        tables = editor.tables
        is_editable = tables.is_editable[tokens]
        chosen = editing.choose_positions(keys, is_editable, config.editor)
        masked = editing.mask_positions(tokens, chosen, tables.mask_id)
        attention_mask = make_attention_mask(tokens, tables.pad_id)
        model = nnx.merge(graph, editor.params)
        logits = model.logits_at(masked, attention_mask, chosen.positions)
        hits = proofreading.correction_hits(logits, _masked_labels(tokens, chosen))
        return hits, chosen.is_edit.sum()

    return accuracy


def _masked_labels(tokens: jax.Array, chosen: editing.ChosenPositions) -> jax.Array:
    """The token at each chosen position, int32 [B, K]; IGNORE at the others."""
    # Only which positions are edited matters here, not with what.
    edits = editing.apply_edits(tokens, chosen, chosen.positions)
    return editing.correction_labels(tokens, edits)
