"""All losses of a part of the batch, from one pass of each tower: Eqs. (3)-(13).

Every loss is a sum over samples (texts, edits) with the count that divides it. Counts
are of the whole batch and known before it is cut into microbatches, so the losses of
the parts add up to the loss of the batch, for any number of parts and devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import LossConfig
from vilem_jax.models.layers import for_site
from vilem_jax.models.vilem import Params, ProofreadLogits, ViLEM
from vilem_jax.models.vision import ImageFeatures, StartedImage
from vilem_jax.objectives import contrastive, editing, proofreading

CLEAN, LOCAL, GLOBAL, MOMENTUM = range(4)  # dropout streams of the text tower


class Samples(NamedTuple):
    """What the device works on; every array has the batch, or a part, first."""

    pixels: jax.Array  # [B, R, R, 3], augmented and normalized
    tokens: jax.Array  # int32 [B, L]
    attention_mask: jax.Array  # bool [B, L], False at padding
    is_editable: jax.Array  # bool [B, L], tokens that may be edited and are judged
    edits: editing.Edits | None  # None if no proofreading loss is on
    dropout_seeds: jax.Array | None  # uint32 [B, 2]; None turns dropout off
    image_id: jax.Array | None = None  # int32 [B], needed with positives="image"


class LockedPass(NamedTuple):
    """What locked layers make of the samples, once for the online and momentum model.

    None for a tower without locked layers.
    """

    image: StartedImage | None = None
    text: jax.Array | None = None  # [B, L, W] or [B, 1, W], of the clean captions


NOTHING_LOCKED = LockedPass()


class Keys(NamedTuple):
    """Momentum embeddings that the batch is contrasted with; no gradient."""

    image: jax.Array  # [B, E], unit rows, the whole global batch
    text: jax.Array  # [B, E]
    image_ids: jax.Array | None  # int32 [B]; None: only a sample's own key is positive


class Counts(NamedTuple):
    """Counts over the whole batch, at least 1."""

    samples: int
    editable: jax.Array  # tokens that are judged
    edits: jax.Array


class Shared(NamedTuple):
    """What all parts of a batch share, on any device and in any microbatch."""

    image_queue: jax.Array  # [Q, E]
    text_queue: jax.Array  # [Q, E]
    queue_count: jax.Array  # int32
    queue_image_ids: jax.Array | None  # int32 [Q]
    counts: Counts
    soft_weight: jax.Array | float = 0.0  # alpha of ALBEF's soft targets, now
    proofread_ramp: jax.Array | float = 1.0  # factor of lambda_1 and lambda_2, now


class Mean(NamedTuple):
    """A sum over a part of the batch, and the whole batch's count that divides it."""

    sum: jax.Array
    divisor: jax.Array | int


class ProofreadSums(NamedTuple):
    """One branch; None for what it does not learn."""

    detect: Mean | jax.Array | None  # Eq. (8), as sums or its value
    correct: Mean | jax.Array | None  # Eq. (9), as sums or its value
    detection: proofreading.DetectionCounts | None
    correct_hits: jax.Array | None  # edits whose original token has the best logit


class LossSums(NamedTuple):
    """Losses and counts of a part of the batch; the parts add up."""

    i2t: Mean | jax.Array  # Eq. (3), as sums or its value
    t2i: Mean | jax.Array  # Eq. (4), as sums or its value
    branches: dict[str, ProofreadSums]  # the branches that are trained
    embedding: jax.Array  # [E], sum of z^v
    embedding_square: jax.Array  # [E], sum of its square


def batch_counts(samples: Samples) -> Counts:
    """The counts of the whole batch, which `samples` must be."""
    num_edits = 0 if samples.edits is None else samples.edits.is_edit.sum()
    return Counts(
        samples.tokens.shape[0],
        jnp.maximum(samples.is_editable.sum(), 1),
        jnp.maximum(num_edits, 1),
    )


def batch_loss(
    params: Params,
    samples: Samples,
    row: jax.Array,
    locked: LockedPass = NOTHING_LOCKED,
    *,
    build: Callable[[Params], ViLEM],
    momentum_model: ViLEM,
    keys: Keys,
    shared: Shared,
    config: LossConfig,
    num_groups: int,
) -> tuple[jax.Array, LossSums]:
    """Eq. (13) of these samples: their part of the loss of the whole batch.

    Args:
      params: what gets gradients.
      samples: b rows of the batch.
      row: int32 [b], their rows in the global batch.
      locked: of `momentum_keys` of these samples.
      build: makes the model of `params`.
      momentum_model: read by pairing="cross" alone.
      num_groups: see `contrastive.info_nce`.

    Returns:
      the part, and what it is computed from; both add up over the parts.
    """
    # Modules exist inside the traced function alone; what is differentiated is a dict.
    model = build(params)
    # One ViT pass serves all losses.
    features = model.image_features(
        samples.pixels, with_levels=config.has_local, started=locked.image
    )
    image_embedding = model.project_image(features)
    text_embedding, logits = _text_passes(
        model, momentum_model, samples, features, locked, config
    )
    i2t, t2i = _contrastive_sums(
        image_embedding, text_embedding, model, row, keys, shared, config, num_groups
    )
    branches = {}
    if samples.edits is not None:
        for branch, tasks in config.trained.items():
            branches[branch] = _proofread_sums(
                logits[branch], samples, samples.edits, shared.counts, tasks, config
            )
    sums = LossSums(
        i2t=Mean(i2t, shared.counts.samples),
        t2i=Mean(t2i, shared.counts.samples),
        branches=branches,
        # First and second moment, for the spread of the embeddings over the batch.
        embedding=image_embedding.sum(axis=0),
        embedding_square=jnp.square(image_embedding).sum(axis=0),
    )
    # The only division by a count.
    losses = jax.tree.map(
        lambda x: x.sum / x.divisor if isinstance(x, Mean) else x,
        sums,
        is_leaf=lambda x: isinstance(x, Mean),
    )
    total = (losses.i2t + losses.t2i) / 2  # Eq. (5)
    weights = {"local": config.local_weight, "global": config.global_weight}
    for branch, of_branch in losses.branches.items():
        for loss in (of_branch.detect, of_branch.correct):
            if loss is not None:
                total += shared.proofread_ramp * weights[branch] * loss
    return total, losses


def _contrastive_sums(image, text, model, row, keys, shared, config, num_groups):
    """Eqs. (3), (4), each summed over the samples."""
    is_soft = config.soft_target_weight > 0

    def one_way(embedding, other_keys, queue, own_keys):
        return contrastive.info_nce(
            embedding,
            other_keys,
            queue,
            model.temperature[...],
            row=row,
            queue_count=shared.queue_count,
            num_groups=num_groups,
            image_ids=keys.image_ids,
            queue_image_ids=shared.queue_image_ids,
            own_keys=own_keys if is_soft else None,
            soft_weight=shared.soft_weight,
        ).sum()

    return (
        one_way(image, keys.text, shared.text_queue, keys.image),
        one_way(text, keys.image, shared.image_queue, keys.text),
    )


def _text_passes(
    model: ViLEM,
    momentum_model: ViLEM,
    samples: Samples,
    features: ImageFeatures,
    locked: LockedPass,
    config: LossConfig,
) -> tuple[jax.Array, dict[str, list[ProofreadLogits]]]:
    """Every use of the text tower.

    Returns:
      text_embedding [b, E], and the logits by branch (one, or with pairing="cross" two,
      whose losses are averaged).
    """
    tokens, mask, edits = samples.tokens, samples.attention_mask, samples.edits
    clean, local, global_ = (
        for_site(samples.dropout_seeds, stream) for stream in (CLEAN, LOCAL, GLOBAL)
    )
    if edits is None:
        encode = model.encode_text
        return encode(tokens, mask, seeds=clean, started=locked.text), {}
    # Which text tower reads the features of which image tower. The heads are always
    # those of `model`.
    pairs = [(model, features)]
    if config.pairing == "cross":
        # Each text tower reads the features of the other model's image tower.
        theirs = momentum_model.image_features(
            samples.pixels, with_levels=config.has_local, started=locked.image
        )
        pairs = [(model, jax.lax.stop_gradient(theirs)), (momentum_model, features)]
    logits = {}
    is_joint = config.pairing == "online" and model.compute.joint_text_pass
    # The clean pass of locked layers needs no gradient, the global branch does.
    is_joint = is_joint and not model.config.text.has_locked
    if config.has_global and is_joint:
        # The clean text and the global branch share layers without cross-attention.
        feature = model.image_global(features)
        text_embedding, hidden = model.encode_and_proofread_global(
            tokens, edits.tokens, mask, feature, seeds=(clean, global_)
        )
        logits["global"] = [model.global_logits(hidden, edits.positions)]
    else:
        text_embedding = model.encode_text(
            tokens, mask, seeds=clean, started=locked.text
        )
    if config.has_local:
        logits["local"] = []
        for tower, seen in pairs:
            hidden = tower.proofread_local(edits.tokens, mask, seen.levels, seeds=local)
            logits["local"].append(model.local_logits(hidden, edits.positions))
    if config.has_global and not is_joint:
        logits["global"] = []
        for tower, seen in pairs:
            feature = tower.image_global(seen)
            hidden = tower.proofread_global(edits.tokens, mask, feature, seeds=global_)
            logits["global"].append(model.global_logits(hidden, edits.positions))
    return text_embedding, logits


def _proofread_sums(
    logits: list[ProofreadLogits],
    samples: Samples,
    edits: editing.Edits,
    counts: Counts,
    tasks: tuple[str, ...],
    config: LossConfig,
) -> ProofreadSums:
    """Eqs. (8), (9) of one branch, and what its F1 and accuracy are computed from."""
    is_original = editing.detection_labels(edits)
    correction = editing.correction_labels(samples.tokens, edits)
    is_editable, reduction = samples.is_editable, config.detect_reduction
    detect = correct = detection = hits = None
    if "detect" in tasks:
        loss = jnp.zeros(())
        for one in logits:
            loss += proofreading.detection_sum(
                one.detect, is_original, is_editable, reduction
            )
        # The mean over pairings and over texts (or judged tokens) in one divisor.
        num_texts = counts.editable if reduction == "mean" else counts.samples
        detect = Mean(loss, len(logits) * num_texts)
        detection = proofreading.detection_counts(
            logits[0].detect, is_original, is_editable
        )
    if "correct" in tasks:
        loss = jnp.zeros(())
        for one in logits:
            loss += proofreading.correction_sum(one.correct, correction)
        correct = Mean(loss, len(logits) * counts.edits)
        # Accuracy of the first pairing, in which the online towers read.
        hits = proofreading.correction_hits(logits[0].correct, correction)
    return ProofreadSums(detect, correct, detection, hits)


def momentum_keys(
    samples: Samples, *, model: ViLEM, config: LossConfig
) -> tuple[jax.Array, jax.Array, LockedPass]:
    """z^v^ and z^t^ of these samples: [b, E] twice, no gradient.

    Args:
      model: the momentum model.

    Returns:
      with them what its locked layers computed, which are the online model's, too.
    """
    tokens, mask = samples.tokens, samples.attention_mask
    # ALBEF leaves dropout on here.
    has_dropout = config.momentum_dropout
    seeds = for_site(samples.dropout_seeds, MOMENTUM) if has_dropout else None
    image = text = None
    if model.config.vision.has_locked:
        image = model.start_image(samples.pixels, with_levels=config.has_local)
    if _keeps_text(model):
        text = model.text.start(tokens, mask)
    features = model.image_features(samples.pixels, with_levels=False, started=image)
    image_keys = model.project_image(features)
    text_keys = model.encode_text(tokens, mask, seeds=seeds, started=text)
    # [b, E] each; the optimizer never sees the momentum model.
    keys = jax.lax.stop_gradient((image_keys, text_keys))
    return *keys, LockedPass(image, text)


def _keeps_text(model: ViLEM) -> bool:
    """Whether the pass of locked text layers is kept for the losses."""
    text = model.config.text
    # Microbatches of other text lengths would have other shapes, but for [CLS] alone.
    is_whole = text.num_trained_layers == 0
    return text.has_locked and (is_whole or not model.compute.text_lengths)
