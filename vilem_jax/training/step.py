"""One training step: `update(state, preprocess(editor, batch, key))`, pure.

Order, as in MoCo and ALBEF: clamp the temperature, momentum update with the parameters
as they are, momentum keys of the whole batch, losses and gradients, AdamW, enqueue.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import ROWS, WHOLE, Layout, one_device
from vilem_jax.editing.editor import FrozenEditor, edit_captions
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.models.layers import dropout_seeds
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vision import normalize
from vilem_jax.objectives import contrastive, editing
from vilem_jax.training import augment
from vilem_jax.training.gradients import make_gradients
from vilem_jax.training.losses import Contrast, Samples
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def make_preprocess(
    config: Config, editor_graph: nnx.GraphDef | None, *, pad_id: int, mask_id: int
) -> Callable[[FrozenEditor, dict[str, jax.Array], jax.Array], Samples]:
    """`preprocess(editor, batch, keys)`: augments, normalises and edits.

    Args:
      editor_graph: of the masked-language model; None where it has nothing to edit.
      pad_id, mask_id: of the vocabulary.
    """
    edit = make_edit(config, editor_graph, pad_id=pad_id, mask_id=mask_id)

    def preprocess(editor, batch, keys) -> Samples:
        def purpose(which):
            return fold_in(keys, int(which))

        tokens = batch["tokens"]
        has_side = editor.tables.is_side[tokens].any(axis=1)
        may_flip = ~has_side | (not config.augment.flip_spares_sides)
        images = augment.augment(
            batch["pixels"],
            purpose(Purpose.FLIP),
            purpose(Purpose.AUGMENT),
            config.augment,
            may_flip=may_flip,
        )
        return Samples(
            pixels=normalize(images, config.augment),
            tokens=tokens,
            attention_mask=make_attention_mask(tokens, pad_id),
            is_editable=editor.tables.is_editable[tokens],
            edits=edit(editor, batch, purpose(Purpose.EDIT)),
            dropout_seeds=dropout_seeds(purpose(Purpose.DROPOUT)),
            image_id=batch["image_id"],
        )

    return preprocess


def make_edit(
    config: Config, editor_graph: nnx.GraphDef | None, *, pad_id: int, mask_id: int
) -> Callable[[FrozenEditor, dict[str, jax.Array], jax.Array], editing.Edits | None]:
    """`edit(editor, batch, keys)`: by the editor, or as they came with the batch.

    None where no proofreading loss is on.
    """

    def by_editor(editor, batch, keys):
        return edit_captions(
            editor_graph,
            editor,
            batch["tokens"],
            keys,
            config.editor,
            mask_id=mask_id,
            pad_id=pad_id,
        )

    def prepared(editor, batch, keys):
        chosen = editing.ChosenPositions(batch["edit_positions"], batch["is_edit"])
        return editing.apply_edits(batch["tokens"], chosen, batch["edit_tokens"])

    if not config.loss.has_proofreading:
        return lambda editor, batch, keys: None
    return prepared if config.editor.edit_table else by_editor


def make_update(
    config: Config, schedule: Callable, layout: Layout | None = None
) -> Callable[[TrainState, Samples], tuple[TrainState, Metrics]]:
    """`update(state, samples)`: everything of a step that needs no randomness but
    dropout's. A step whose loss, gradient or update is not finite changes counters
    alone.

    Args:
      layout: of the run on its devices; None: all on one.
    """
    gradients = make_gradients(config, layout)
    optimizer = make_optimizer(config.optimizer)
    loss = config.loss

    def update(state: TrainState, samples: Samples):
        params = {
            **state.params,
            "temperature": jnp.clip(
                state.params["temperature"], loss.min_temperature, loss.max_temperature
            ),
        }
        momentum_params = contrastive.momentum_update(
            state.momentum_params, params, loss.momentum
        )
        grads, sums, contrast = gradients(params, momentum_params, state, samples)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        rate = schedule(state.step)
        proposed = dict(
            params=jax.tree.map(lambda p, u: p - rate * u, params, updates),
            momentum_params=momentum_params,
            opt_state=opt_state,
            **next_queues(state, contrast),
        )
        # A corrupt moment shows in the update alone, an infinite temperature not at
        # all: it was clamped.
        update_norm = optax.tree.norm(updates)
        temperature = state.params["temperature"]
        is_finite = jnp.isfinite(
            jnp.stack([sums["loss"], grad_norm, update_norm, temperature])
        ).all()
        new_state = keep_if_finite(state, is_finite, proposed)
        metrics = step_metrics(sums, samples, config) | {
            "temperature": params["temperature"],
            "queue_fill": new_state.queue_count / max(loss.queue_length, 1),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "learning_rate": rate,
            "skipped_total": new_state.skipped_total,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return update


def next_queues(state: TrainState, contrast: Contrast) -> dict[str, jax.Array | None]:
    """The queues with the keys of this step, by the names of `TrainState`."""
    newest = {
        "image_queue": contrast.image_keys,
        "text_queue": contrast.text_keys,
        "queue_image_ids": contrast.image_ids,
    }
    queues = {
        name: None if keys is None else contrastive.enqueue(getattr(state, name), keys)
        for name, keys in newest.items()
    }
    length, num_new = state.image_queue.shape[0], contrast.image_keys.shape[0]
    return queues | {"queue_count": jnp.minimum(state.queue_count + num_new, length)}


def keep_if_finite(state, is_finite: jax.Array, proposed: dict):
    """The next state: `proposed` fields where `is_finite`, else the old ones, bitwise.

    `step` and the counters of skipped steps advance in any case.
    """
    kept = {
        name: jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), value, getattr(state, name)
        )
        for name, value in proposed.items()
    }
    return dataclasses.replace(
        state,
        step=state.step + 1,
        skipped_total=state.skipped_total + ~is_finite,
        skipped_in_a_row=jnp.where(is_finite, 0, state.skipped_in_a_row + 1),
        **kept,
    )


def step_metrics(sums: Metrics, samples: Samples, config: Config) -> Metrics:
    """The losses, and F1, accuracy and spread from the summed counts."""
    batch_size = samples.tokens.shape[0]
    metrics = {name: value for name, value in sums.items() if name.startswith("loss")}
    for branch in ("local", "global"):
        if f"{branch}_found" in sums:
            found, said = sums[f"{branch}_found"], sums[f"{branch}_said"]
            wrong = sums[f"{branch}_wrong"]
            metrics[f"{branch}_detect_f1"] = 2 * found / jnp.maximum(said + wrong, 1)
        if f"{branch}_hits" in sums:
            num_edits = jnp.maximum(samples.edits.is_edit.sum(), 1)
            metrics[f"{branch}_correct_top1"] = sums[f"{branch}_hits"] / num_edits
    if samples.edits is not None:
        metrics["edits_per_caption"] = samples.edits.is_edit.sum() / batch_size
    mean = sums["embedding_sum"] / batch_size
    variance = sums["embedding_square_sum"] / batch_size - jnp.square(mean)
    metrics["embedding_std"] = jnp.sqrt(jnp.maximum(variance, 0.0)).mean()
    return metrics


def make_train_step(
    config: Config,
    schedule: Callable,
    editor_graph: nnx.GraphDef | None,
    *,
    pad_id: int,
    mask_id: int,
    layout: Layout | None = None,
) -> Callable:
    """`train_step(state, editor, batch, key) -> (state, metrics)`, to be jitted."""
    layout = layout or one_device()
    # Each device prepares its own rows: left to itself, the compiler would gather the
    # logits of all words for top-k, gigabytes at full size.
    preprocess = layout.on_each_device(
        make_preprocess(config, editor_graph, pad_id=pad_id, mask_id=mask_id),
        in_specs=(WHOLE, ROWS, ROWS),
        out_specs=ROWS,
    )
    update = make_update(config, schedule, layout)

    def train_step(state, editor, batch, key):
        keys = sample_keys(key, state.step, batch["sample_id"])
        state, metrics = update(state, preprocess(editor, batch, keys))
        return state, metrics | {"corrupt_images": batch["is_corrupt"].sum()}

    return train_step
