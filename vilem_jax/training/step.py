"""One training step: `update(state, preprocess(editor, batch, keys))`, pure.

Order, as in MoCo and ALBEF: clamp the temperature, momentum update with the parameters
as they are, momentum keys of the whole batch, losses and gradients, optimizer, enqueue.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import ROWS, WHOLE, Layout, one_device
from vilem_jax.editing.editor import FrozenEditor, edit_captions
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.models.layers import dropout_seeds
from vilem_jax.models.locked import join_params, split_params
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params
from vilem_jax.models.vision import normalize
from vilem_jax.objectives import contrastive, editing
from vilem_jax.training import losses
from vilem_jax.training.augment import augment
from vilem_jax.training.gradients import device_gradients
from vilem_jax.training.losses import LossSums, Samples
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.training.state import AnyState, TrainState
from vilem_jax.typing import PyTree

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: Config,
    schedule: Callable,
    editor_graph: nnx.GraphDef | None,
    *,
    layout: Layout | None = None,
) -> Callable:
    """`train_step(state, editor, batch, key) -> (state, metrics)`, to be compiled.

    Args:
      schedule: step -> learning rate.
      editor_graph: of the masked-language model; None if it has nothing to edit.
      layout: of the run on its devices; None: all on one.
    """
    layout = layout or one_device()
    # Each device prepares its own rows: left to itself, the compiler would all-gather
    # the logits of the whole vocabulary for top-k, gigabytes at full size.
    preprocess = layout.on_each_device(
        make_preprocess(config, editor_graph),
        in_specs=(WHOLE, ROWS, ROWS),
        out_specs=ROWS,
    )
    update = make_update(config, schedule, layout)

    def train_step(state: TrainState, editor: FrozenEditor, batch: Batch, key):
        # From (seed, step, sample id): on any number of devices a sample gets the same.
        keys = sample_keys(key, state.step, batch["sample_id"])
        state, metrics = update(state, preprocess(editor, batch, keys))
        return state, metrics | {"corrupt_images": batch["is_corrupt"].sum()}

    return train_step


# ---- preprocess: from a batch of the reader to what the towers take ----


def make_preprocess(
    config: Config, editor_graph: nnx.GraphDef | None
) -> Callable[[FrozenEditor, Batch, jax.Array], Samples]:
    """`preprocess(editor, batch, keys)`: augments, normalizes and edits."""
    edit = make_edit(config, editor_graph)

    def preprocess(editor: FrozenEditor, batch: Batch, keys: jax.Array) -> Samples:
        tokens, tables = batch["tokens"], editor.tables  # [B, L]
        # "left" and "right" would be wrong in a mirrored image.
        has_side = tables.is_side[tokens].any(axis=1)
        images = augment(
            batch["pixels"],
            fold_in(keys, Purpose.FLIP),
            fold_in(keys, Purpose.AUGMENT),
            config.augment,
            may_flip=~has_side | (not config.augment.flip_spares_sides),
        )
        return Samples(
            pixels=normalize(images, config.augment),
            tokens=tokens,
            attention_mask=make_attention_mask(tokens, tables.pad_id),
            is_editable=tables.is_editable[tokens],
            edits=edit(editor, batch, fold_in(keys, Purpose.EDIT)),
            dropout_seeds=dropout_seeds(fold_in(keys, Purpose.DROPOUT)),
            image_id=batch["image_id"],
        )

    return preprocess


def make_edit(
    config: Config, editor_graph: nnx.GraphDef | None
) -> Callable[[FrozenEditor, Batch, jax.Array], editing.Edits | None]:
    """`edit(editor, batch, keys)`: by the editor, or as they came with the batch.

    It returns None if no proofreading loss is on.
    """

    def edit(editor: FrozenEditor, batch: Batch, keys: jax.Array):
        if not config.loss.has_proofreading:
            return None
        tokens = batch["tokens"]
        if config.editor.edit_table or editor_graph is None:  # edited before the run
            chosen = editing.ChosenPositions(batch["edit_positions"], batch["is_edit"])
            return editing.apply_edits(tokens, chosen, batch["edit_tokens"])
        return edit_captions(editor_graph, editor, tokens, keys, config.editor)

    return edit


# ---- update: losses, gradients and the next state ----


def make_update(
    config: Config, schedule: Callable, layout: Layout | None = None
) -> Callable[[TrainState, Samples], tuple[TrainState, Metrics]]:
    """`update(state, samples)`: all of a step that needs no randomness but dropout's.

    A step whose loss, gradient or update is not finite changes nothing but counters.
    """
    layout = layout or one_device()
    optimizer = make_optimizer(config.optimizer)
    loss = config.loss

    def update(state: TrainState, samples: Samples) -> tuple[TrainState, Metrics]:
        temperature = state.params["temperature"]
        # Clamped here, not by a constraint in the optimizer, as in ALBEF.
        clamped = jnp.clip(temperature, loss.min_temperature, loss.max_temperature)
        # The differentiated argument; the locked part is the same in both models.
        before, locked = split_params(state.params, config.model)
        params = {**before, "temperature": clamped}
        # Eqs. (1), (2) before the keys: they come from the updated momentum model.
        momentum_params = contrastive.momentum_update(
            state.momentum_params, params, loss.momentum
        )

        # Plain `jit` would all-reduce the gradients of every microbatch.
        param_specs, locked_specs = map(layout.param_specs, (params, locked))
        grad_specs = layout.moment_specs(params)
        gradients = layout.on_each_device(
            partial(
                device_gradients,
                config=config,
                layout=layout,
                param_specs=param_specs,
                locked_specs=locked_specs,
                grad_specs=grad_specs,
            ),
            in_specs=(param_specs, param_specs, locked_specs, WHOLE, ROWS, ROWS),
            out_specs=(grad_specs, WHOLE, WHOLE),
        )
        row = jnp.arange(samples.tokens.shape[0])  # sharded like the samples
        shared = _shared(config, state, samples)
        grads, (total, sums), keys = gradients(
            params, momentum_params, locked, shared, samples, row
        )

        new_state, metrics = apply_gradients(
            dataclasses.replace(state, params=before),
            params,
            grads,
            # An infinite temperature shows nowhere else: it was clamped.
            jnp.stack([total, temperature]),
            optimizer,
            schedule(state.step),
            momentum_params=momentum_params,
            **next_queues(state, keys),
        )
        whole = join_params(new_state.params, locked)
        return dataclasses.replace(new_state, params=whole), metrics | {
            **step_metrics(total, sums, samples),
            "temperature": clamped,
            "queue_fill": new_state.queue_count / max(loss.queue_length, 1),
            "param_norm": optax.tree.norm(join_params(params, locked)),
        }

    return update


def _shared(config: Config, state: TrainState, samples: Samples) -> losses.Shared:
    # ALBEF raises alpha linearly during the first epoch.
    alpha = ramp(config.loss.soft_target_ramp_steps, state.step)
    return losses.Shared(
        image_queue=state.image_queue,
        text_queue=state.text_queue,
        queue_count=state.queue_count,
        queue_image_ids=state.queue_image_ids,
        counts=losses.batch_counts(samples),
        soft_weight=config.loss.soft_target_weight * alpha,
        proofread_ramp=ramp(config.loss.proofread_ramp_steps, state.step),
    )


def ramp(num_steps: int, step: jax.Array) -> jax.Array:
    """Rises linearly from 0 at step 0 to 1 at `num_steps`; 1 if that is 0."""
    return jnp.minimum(1.0, step / num_steps) if num_steps else jnp.ones(())


def next_queues(state: TrainState, keys: losses.Keys) -> dict[str, jax.Array | None]:
    """The queues with the keys of this step, by the names of `TrainState`."""
    newest = {
        "image_queue": keys.image,
        "text_queue": keys.text,
        "queue_image_ids": keys.image_ids,
    }
    # Enqueued after the losses: a positive is never in the queue.
    queues = {
        name: None if rows is None else contrastive.enqueue(getattr(state, name), rows)
        for name, rows in newest.items()
    }
    length, num_new = state.image_queue.shape[0], keys.image.shape[0]
    return queues | {"queue_count": jnp.minimum(state.queue_count + num_new, length)}


def apply_gradients(
    state: AnyState,
    params: Params,
    grads: Params,
    must_be_finite: jax.Array,
    optimizer: optax.GradientTransformation,
    rate: jax.Array,
    **proposed: PyTree,
) -> tuple[AnyState, Metrics]:
    """The end of every step: the optimizer, or nothing if a number is not finite.

    Args:
      params: those of the state, the temperature clamped.
      must_be_finite: the loss, and what else shows neither there nor in the norms.
      rate: the learning rate.
      proposed: other fields of the next state.

    Returns:
      the next state, whose `step` and counters of skipped steps advance in any case;
      of a skipped step all else is kept, bit for bit. Norms, rate and counters.
    """
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    # The rate follows `state.step`, which skipped steps advance too.
    proposed |= {
        "params": jax.tree.map(lambda p, u: p - rate * u, params, updates),
        "opt_state": opt_state,
    }
    # A corrupt moment shows in the update alone.
    norms = jnp.stack([grad_norm, optax.tree.norm(updates)])
    is_finite = jnp.isfinite(jnp.concatenate([jnp.ravel(must_be_finite), norms])).all()
    # Selected, not branched: both states are there anyway, and nothing is recompiled.
    kept = {
        name: jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), value, getattr(state, name)
        )
        for name, value in proposed.items()
    }
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        skipped_total=state.skipped_total + ~is_finite,
        skipped_in_a_row=jnp.where(is_finite, 0, state.skipped_in_a_row + 1),
        **kept,
    )
    return state, {
        "grad_norm": grad_norm,
        "learning_rate": rate,
        "skipped_total": state.skipped_total,
        "skipped_in_a_row": state.skipped_in_a_row,
    }


def step_metrics(total: jax.Array, sums: LossSums, samples: Samples) -> Metrics:
    """The losses, and F1, accuracy and spread from the counts of the whole batch."""
    metrics = {"loss": total, "loss_i2t": sums.i2t, "loss_t2i": sums.t2i}
    batch_size = samples.tokens.shape[0]
    num_edits = samples.edits.is_edit.sum() if samples.edits else 0
    for branch, of_branch in sums.branches.items():
        if of_branch.detection is not None:
            metrics[f"loss_{branch}_detect"] = of_branch.detect
            # F1 = 2 TP / (2 TP + FP + FN), with "wrong" as the positive class.
            found, flagged, wrong = of_branch.detection
            metrics[f"{branch}_detect_f1"] = 2 * found / jnp.maximum(flagged + wrong, 1)
        if of_branch.correct_hits is not None:
            metrics[f"loss_{branch}_correct"] = of_branch.correct
            top1 = of_branch.correct_hits / jnp.maximum(num_edits, 1)
            metrics[f"{branch}_correct_top1"] = top1
    if samples.edits is not None:
        metrics["edits_per_caption"] = num_edits / batch_size
    mean = sums.embedding / batch_size
    variance = sums.embedding_square / batch_size - jnp.square(mean)
    # 0 if all images of the batch have one embedding: collapse shows here.
    metrics["embedding_std"] = jnp.sqrt(jnp.maximum(variance, 0.0)).mean()
    return metrics
