"""All losses of a part of the batch, from one pass of each tower: Eqs. (3)-(13)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import Config
from vilem_jax.models.layers import for_site
from vilem_jax.models.vilem import ViLEM
from vilem_jax.objectives import contrastive, editing, proofreading

CLEAN, LOCAL, GLOBAL, MOMENTUM = range(4)  # dropout streams of the text tower


class Samples(NamedTuple):
    """What the device works on; every array has the batch, or a part, first."""

    pixels: jax.Array  # [B, R, R, 3], augmented and normalised
    tokens: jax.Array  # int32 [B, L]
    attention_mask: jax.Array  # bool [B, L], False at padding
    is_editable: jax.Array  # bool [B, L], what may be edited and is judged
    edits: editing.Edits | None  # None where no proofreading loss is on
    dropout_seeds: jax.Array | None  # uint32 [B, 2]; None turns dropout off
    image_id: jax.Array | None = None  # int32 [B], needed with positives="image"


class Contrast(NamedTuple):
    """What every part of the batch contrasts itself with; no gradient."""

    image_keys: jax.Array  # [B, E], the whole global batch, unit rows
    text_keys: jax.Array  # [B, E]
    image_queue: jax.Array  # [Q, E]
    text_queue: jax.Array  # [Q, E]
    queue_count: jax.Array  # int32
    soft_weight: jax.Array  # alpha now
    image_ids: jax.Array | None = None  # int32 [B]; None: a sample's own key alone
    queue_image_ids: jax.Array | None = None  # int32 [Q]


class Denominators(NamedTuple):
    """Counts over the whole batch, at least 1: sums divided by them are the losses."""

    samples: int
    words: jax.Array
    edits: jax.Array


class Shared(NamedTuple):
    """What every part of a batch shares, whichever device or microbatch it is in."""

    contrast: Contrast
    counts: Denominators
    proofread_ramp: jax.Array | float = 1.0  # so much of lambda_1 and lambda_2 counts


def denominators(samples: Samples) -> Denominators:
    num_editable = jnp.maximum(samples.is_editable.sum(), 1)
    num_edits = 0 if samples.edits is None else samples.edits.is_edit.sum()
    return Denominators(
        samples.tokens.shape[0], num_editable, jnp.maximum(num_edits, 1)
    )


def loss_sums(
    model: ViLEM,
    momentum_model: ViLEM,
    samples: Samples,
    row: jax.Array,
    shared: Shared,
    config: Config,
    num_groups: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The part of every loss that these samples contribute; parts add up.

    Args:
      model: what gets gradients.
      momentum_model: read by pairing="cross" alone.
      samples: b rows of the batch.
      row: int32 [b], their rows in the global batch.
      shared: of the batch they are rows of.
      num_groups: see `contrastive.info_nce`.

    Returns:
      Eq. (13) of these samples, and sums by name (losses, counts, moments).
    """
    features = model.image_features(samples.pixels, with_levels=config.loss.has_local)
    image_embedding = model.project_image(features)
    text_embedding, proofread = _text_passes(
        model, momentum_model, samples, features, config
    )
    sums = _contrast_sums(
        image_embedding, text_embedding, model, row, shared.contrast, config, num_groups
    )
    sums = {name: value / shared.counts.samples for name, value in sums.items()}
    total = (sums["loss_i2t"] + sums["loss_t2i"]) / 2
    for branch, weight in (
        ("local", config.loss.local_weight),
        ("global", config.loss.global_weight),
    ):
        if branch not in proofread:
            continue
        branch_sums = _proofread_sums(
            branch, proofread[branch], samples, shared.counts, config
        )
        for task in ("detect", "correct"):
            if getattr(config.loss, f"{branch}_{task}"):
                loss = branch_sums[f"loss_{branch}_{task}"]
                total += shared.proofread_ramp * weight * loss
        sums |= branch_sums
    sums["embedding_sum"] = image_embedding.sum(axis=0)
    sums["embedding_square_sum"] = jnp.square(image_embedding).sum(axis=0)
    return total, sums | {"loss": total}


def _contrast_sums(image, text, model, row, contrast, config, num_groups):
    """Eqs. (3), (4), summed over the samples."""
    is_soft = config.loss.soft_target_weight > 0

    def one_way(embedding, keys, queue, own_keys):
        return contrastive.info_nce(
            embedding,
            keys,
            queue,
            model.temperature[...],
            row=row,
            queue_count=contrast.queue_count,
            num_groups=num_groups,
            image_ids=contrast.image_ids,
            queue_image_ids=contrast.queue_image_ids,
            own_keys=own_keys if is_soft else None,
            soft_weight=contrast.soft_weight,
        ).sum()

    image_keys, text_keys = contrast.image_keys, contrast.text_keys
    return {
        "loss_i2t": one_way(image, text_keys, contrast.text_queue, image_keys),
        "loss_t2i": one_way(text, image_keys, contrast.image_queue, text_keys),
    }


def _text_passes(model, momentum_model, samples, features, config: Config):
    """Every use of the text tower.

    Returns:
      text_embedding [b, E], and by branch a list of logits (one, or with
      pairing="cross" two whose losses are averaged).
    """
    loss = config.loss
    stream_seeds = [for_site(samples.dropout_seeds, stream) for stream in range(4)]
    is_cross = loss.pairing == "cross" and loss.has_proofreading
    proofread = {}
    if loss.has_global and not is_cross and config.compute.joint_text_pass:
        text_embedding, hidden = model.encode_and_proofread_global(
            samples.tokens,
            samples.edits.tokens,
            samples.attention_mask,
            model.image_global(features),
            seeds=(stream_seeds[CLEAN], stream_seeds[GLOBAL]),
        )
        proofread["global"] = [model.global_logits(hidden, samples.edits.positions)]
    else:
        text_embedding = model.encode_text(
            samples.tokens, samples.attention_mask, seeds=stream_seeds[CLEAN]
        )
    pairs = [(model, features)]
    if is_cross:
        # The text tower reads the momentum image, the momentum tower the image.
        slow = momentum_model.image_features(samples.pixels, with_levels=loss.has_local)
        pairs = [(model, jax.lax.stop_gradient(slow)), (momentum_model, features)]
    for branch, is_on, stream in (
        ("local", loss.has_local, LOCAL),
        ("global", loss.has_global, GLOBAL),
    ):
        if is_on and branch not in proofread:
            proofread[branch] = [
                _branch_logits(
                    branch, reader, seen, model, samples, stream_seeds[stream]
                )
                for reader, seen in pairs
            ]
    return text_embedding, proofread


def _branch_logits(branch, reader: ViLEM, seen, model: ViLEM, samples, seeds):
    """`reader` proofreads what `seen` shows; the heads are always the online ones."""
    edits = samples.edits
    if branch == "local":
        hidden = reader.proofread_local(
            edits.tokens, samples.attention_mask, seen.levels, seeds=seeds
        )
        return model.local_logits(hidden, edits.positions)
    hidden = reader.proofread_global(
        edits.tokens, samples.attention_mask, reader.image_global(seen), seeds=seeds
    )
    return model.global_logits(hidden, edits.positions)


def _proofread_sums(branch, all_logits, samples, counts, config: Config):
    """Eqs. (8), (9) of one branch, and what its F1 and accuracy are made of."""
    is_original = editing.detection_labels(samples.edits)
    correction = editing.correction_labels(samples.tokens, samples.edits)
    reduction = config.loss.detect_reduction
    texts = counts.words if reduction == "mean" else counts.samples
    detect = correct = 0.0
    for logits in all_logits:
        detect += proofreading.detection_sum(
            logits.detect, is_original, samples.is_editable, reduction
        )
        correct += proofreading.correction_sum(logits.correct, correction)
    logits, sums = all_logits[0], {}
    if getattr(config.loss, f"{branch}_correct"):
        sums[f"{branch}_hits"] = proofreading.correction_hits(
            logits.correct, correction
        )
        sums[f"loss_{branch}_correct"] = correct / (len(all_logits) * counts.edits)
    if getattr(config.loss, f"{branch}_detect"):
        found = proofreading.detection_counts(
            logits.detect, is_original, samples.is_editable
        )
        sums |= {f"{branch}_{name}": count for name, count in found.items()}
        sums[f"loss_{branch}_detect"] = detect / (len(all_logits) * texts)
    return sums


def momentum_keys(
    momentum_model: ViLEM, samples: Samples, *, has_dropout: bool
) -> tuple[jax.Array, jax.Array]:
    """z^v^ and z^t^ of these samples: [b, E] twice, no gradient.

    Dropout only where `has_dropout` (ALBEF leaves it on).
    """
    seeds = for_site(samples.dropout_seeds, MOMENTUM) if has_dropout else None
    image_keys = momentum_model.encode_image(samples.pixels)
    text_keys = momentum_model.encode_text(
        samples.tokens, samples.attention_mask, seeds=seeds
    )
    return jax.lax.stop_gradient((image_keys, text_keys))
