"""Eqs. (5), (10), (12), (13) and Table 5's rows, with a stub instead of the towers.

The stub returns stored embeddings and logits, so that a double loop can follow.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilem_jax.config.schema import ComputeConfig, LossConfig, ModelConfig
from vilem_jax.models.layers import for_site
from vilem_jax.models.vilem import ProofreadLogits
from vilem_jax.objectives import editing, proofreading
from vilem_jax.training import losses

BATCH, LENGTH, POSITIONS, WORDS, WIDTH, QUEUE = 6, 5, 2, 7, 4, 3
TEMPERATURE = 0.2
BRANCHES = ("local", "global")
SWITCHES = [f"{branch}_{task}" for branch in BRANCHES for task in ("detect", "correct")]


@dataclasses.dataclass
class Stub:
    """What `losses` asks of a ViLEM; answers depend on who reads and what is seen."""

    name: str
    arrays: dict
    temperature = jnp.full((), TEMPERATURE)
    compute = ComputeConfig()
    config = ModelConfig()

    def image_features(self, pixels, *, with_levels, started):
        return StubFeatures(self.name)

    def project_image(self, features):
        return self.arrays["image"]

    def encode_text(self, tokens, attention_mask, *, seeds=None, started=None):
        return self.arrays["text"]

    def image_global(self, features):
        return features.seen_by

    def proofread_local(self, tokens, attention_mask, image_levels, *, seeds=None):
        return self.name, image_levels

    def proofread_global(self, tokens, attention_mask, image_global, *, seeds=None):
        return self.name, image_global

    def encode_and_proofread_global(
        self, tokens, edited, attention_mask, image_global, *, seeds
    ):
        return self.arrays["text"], (self.name, image_global)

    def local_logits(self, hidden, positions):
        return self.arrays["/".join(("local", *hidden))]

    def global_logits(self, hidden, positions):
        return self.arrays["/".join(("global", *hidden))]


@dataclasses.dataclass
class StubFeatures:
    seen_by: str

    @property
    def levels(self):
        return self.seen_by


jax.tree_util.register_dataclass(StubFeatures, [], ["seen_by"])


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)

    def unit(rows):
        values = rng.normal(size=(rows, WIDTH))
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        return values.astype(np.float32)

    arrays = {"image": unit(BATCH), "text": unit(BATCH)}
    for branch, reader, seen in itertools.product(
        BRANCHES, *2 * [("online", "momentum")]
    ):
        arrays[f"{branch}/{reader}/{seen}"] = ProofreadLogits(
            rng.normal(size=(BATCH, LENGTH, 2)).astype(np.float32),
            rng.normal(size=(BATCH, POSITIONS, WORDS)).astype(np.float32),
        )
    tokens = rng.integers(0, WORDS, (BATCH, LENGTH)).astype(np.int32)
    is_editable = rng.random((BATCH, LENGTH)) < 0.8
    is_editable[:, :POSITIONS] = True
    is_editable[-1] = False  # a caption with nothing to edit
    num_edits = np.array([1, 2, 2, 1, 2, 0])
    chosen = editing.ChosenPositions(
        jnp.tile(jnp.arange(POSITIONS), (BATCH, 1)),
        jnp.asarray(np.arange(POSITIONS) < num_edits[:, None]),
    )
    edits = editing.apply_edits(
        jnp.asarray(tokens), chosen, (tokens[:, :POSITIONS] + 1) % WORDS
    )
    samples = losses.Samples(
        jnp.zeros((BATCH, 1)),
        tokens,
        tokens >= 0,
        jnp.asarray(is_editable),
        edits,
        None,
    )
    keys = losses.Keys(unit(BATCH), unit(BATCH), None)
    queues = unit(QUEUE), unit(QUEUE), jnp.asarray(2), None
    return arrays, samples, (keys, queues), num_edits


def batch_loss(case, loss: LossConfig, rows=slice(None), stub=Stub):
    """The loss of some rows of the batch and its parts."""
    arrays, samples, (keys, queues), _ = case
    part = jax.tree.map(lambda x: np.asarray(x)[rows], samples)
    part_arrays = jax.tree.map(lambda x: x[rows], arrays)
    return losses.batch_loss(
        {},
        part,
        np.arange(BATCH)[rows],
        build=lambda params: stub("online", part_arrays),
        # No arrays: neither its embeddings nor its heads may be asked for.
        momentum_model=stub("momentum", {}),
        keys=keys,
        shared=losses.Shared(*queues, losses.batch_counts(samples)),
        config=loss,
        num_groups=1,
    )


def sums_of(case, loss: LossConfig, rows=slice(None)):
    """`batch_loss`, its parts by their metric's name."""
    total, sums = batch_loss(case, loss, rows)
    by_name = {"loss": total, "loss_i2t": sums.i2t, "loss_t2i": sums.t2i}
    for branch, of_branch in sums.branches.items():
        for task in ("detect", "correct"):
            if getattr(of_branch, task) is not None:
                by_name[f"loss_{branch}_{task}"] = getattr(of_branch, task)
    return total, by_name


def log_softmax(logits, label):
    logits = np.asarray(logits, np.float64)
    return logits[label] - np.log(np.exp(logits).sum())


def align(embedding, keys, queue):
    """Eqs. (3), (4), two rows of the queue being valid."""
    loss = 0.0
    for i in range(BATCH):
        others = np.concatenate([keys, queue[:2]]).astype(np.float64)
        loss -= log_softmax(others @ embedding[i].astype(np.float64) / TEMPERATURE, i)
    return loss / BATCH


def detection(case, logits):
    """Eq. (8): mean over texts of the sum over words."""
    _, samples, _, num_edits = case
    loss = 0.0
    for i, j in zip(*np.nonzero(samples.is_editable), strict=True):
        is_original = 0 if j < num_edits[i] else 1
        loss -= log_softmax(logits.detect[i, j], is_original)
    return loss / BATCH


def correction(case, logits):
    """Eq. (9): mean over the edited words of the batch."""
    _, samples, _, num_edits = case
    loss = 0.0
    for i in range(BATCH):
        for k in range(num_edits[i]):
            loss -= log_softmax(logits.correct[i, k], samples.tokens[i, k])
    return loss / num_edits.sum()


# Who reads, and who saw the image.
PAIRS = {
    "online": ["online/online"],
    "cross": ["online/momentum", "momentum/online"],
}


def expected(case, branch, task, pairing="online"):
    one = {"detect": detection, "correct": correction}[task]
    logits = [case[0][f"{branch}/{pair}"] for pair in PAIRS[pairing]]
    return sum(one(case, each) for each in logits) / len(logits)


@pytest.mark.parametrize("on", list(itertools.product([False, True], repeat=4)))
def test_total_equals_loops_for_every_row_of_table_5(case, on):
    """Eq. (13) with each of the four losses on or off."""
    switches = dict(zip(SWITCHES, on, strict=True))
    total, sums = sums_of(case, LossConfig(**switches))
    arrays, _, (keys, queues), _ = case
    i2t = align(arrays["image"], keys.text, queues[1])
    t2i = align(arrays["text"], keys.image, queues[0])
    np.testing.assert_allclose(sums["loss_i2t"], i2t, rtol=1e-6)
    np.testing.assert_allclose(sums["loss_t2i"], t2i, rtol=1e-6)
    wanted = (i2t + t2i) / 2
    for switch, is_on in switches.items():
        branch, task = switch.split("_")
        assert (f"loss_{switch}" in sums) == is_on
        if is_on:
            loss = expected(case, branch, task)
            np.testing.assert_allclose(sums[f"loss_{switch}"], loss, rtol=1e-6)
            wanted += {"local": 0.8, "global": 0.2}[branch] * loss
    np.testing.assert_allclose(total, wanted, rtol=1e-6)


def test_cross_pairing_averages_both_pairings(case):
    _, sums = sums_of(case, LossConfig(pairing="cross"))
    for switch in SWITCHES:
        loss = expected(case, *switch.split("_"), pairing="cross")
        np.testing.assert_allclose(sums[f"loss_{switch}"], loss, rtol=1e-6)


def test_metrics_of_cross_pairing_are_of_the_online_text_tower(case):
    """Its logits come first; those of the momentum text tower count in the loss."""
    arrays, samples, *_ = case
    _, sums = batch_loss(case, LossConfig(pairing="cross"))
    correction = editing.correction_labels(samples.tokens, samples.edits)
    is_original = editing.detection_labels(samples.edits)
    for branch in BRANCHES:
        logits = [arrays[f"{branch}/{pair}"] for pair in PAIRS["cross"]]
        counts = [
            proofreading.detection_counts(x.detect, is_original, samples.is_editable)
            for x in logits
        ]
        hits = proofreading.correction_hits(logits[0].correct, correction)
        found = sums.branches[branch]
        assert counts[0] != counts[1] and found.detection == counts[0]
        assert found.correct_hits == hits


@pytest.mark.parametrize("pairing", ["online", "cross"])
@pytest.mark.parametrize("is_joint", [True, False])
def test_each_pass_of_the_text_tower_has_its_own_dropout(case, pairing, is_joint):
    arrays, samples, *others = case
    seeds = jnp.arange(2 * BATCH, dtype=jnp.uint32).reshape(BATCH, 2)
    samples = samples._replace(dropout_seeds=seeds)
    seen = []

    class Watched(Stub):
        compute = ComputeConfig(joint_text_pass=is_joint)

        def encode_text(self, *_, seeds, started):
            seen.append(("clean", seeds))
            return self.arrays["text"]

        def proofread_local(self, *others, seeds):
            seen.append(("local", seeds))
            return super().proofread_local(*others)

        def proofread_global(self, *others, seeds):
            seen.append(("global", seeds))
            return super().proofread_global(*others)

        def encode_and_proofread_global(self, *others, seeds):
            seen.extend(zip(("clean", "global"), seeds, strict=True))
            return super().encode_and_proofread_global(*others, seeds=seeds)

    case = (arrays, samples, *others)
    batch_loss(case, LossConfig(pairing=pairing), stub=Watched)
    used = {name: np.asarray(value) for name, value in seen}
    model = Watched("momentum", arrays)
    with_dropout = LossConfig(momentum_dropout=True)
    losses.momentum_keys(samples, model=model, config=with_dropout)
    used["momentum"] = np.asarray(seen[-1][1])
    for name, value in seen[:-1]:  # both pairings drop alike
        np.testing.assert_array_equal(value, used[name])
    rows = np.concatenate([used[n] for n in ("clean", "local", "global", "momentum")])
    assert len(np.unique(rows, axis=0)) == 4 * BATCH
    streams = {"clean": 0, "local": 1, "global": 2, "momentum": 3}
    for name, stream in streams.items():  # another order would break resumed runs
        np.testing.assert_array_equal(used[name], for_site(seeds, stream))


@pytest.mark.parametrize("pairing", ["online", "cross"])
@pytest.mark.parametrize("is_joint", [True, False])
def test_each_branch_reads_the_edited_text(case, pairing, is_joint):
    """And the heads its edited positions; the contrast the clean text."""
    _, samples, *_ = case
    edits, seen = samples.edits, {"clean": [], "edited": [], "positions": []}

    class Watched(Stub):
        compute = ComputeConfig(joint_text_pass=is_joint)

        def encode_text(self, tokens, *others, seeds, started):
            seen["clean"].append(tokens)
            return super().encode_text(tokens, *others)

        def proofread_local(self, tokens, *others, seeds):
            seen["edited"].append(tokens)
            return super().proofread_local(tokens, *others)

        def proofread_global(self, tokens, *others, seeds):
            seen["edited"].append(tokens)
            return super().proofread_global(tokens, *others)

        def encode_and_proofread_global(self, tokens, edited, *others, seeds):
            seen["clean"].append(tokens)
            seen["edited"].append(edited)
            return super().encode_and_proofread_global(
                tokens, edited, *others, seeds=seeds
            )

        def local_logits(self, hidden, positions):
            seen["positions"].append(positions)
            return super().local_logits(hidden, positions)

        def global_logits(self, hidden, positions):
            seen["positions"].append(positions)
            return super().global_logits(hidden, positions)

    batch_loss(case, LossConfig(pairing=pairing), stub=Watched)
    expected = {
        "clean": samples.tokens,
        "edited": edits.tokens,
        "positions": edits.positions,
    }
    assert (samples.tokens != edits.tokens).any()
    num_passes = 2 if pairing == "online" else 4
    assert len(seen["edited"]) == len(seen["positions"]) == num_passes
    for name, found in seen.items():
        for array in found:
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("reduction", ["sum", "per_edit", "mean"])
@pytest.mark.parametrize("pairing", ["online", "cross"])
def test_losses_of_microbatches_add_up(case, reduction, pairing):
    loss = LossConfig(detect_reduction=reduction, pairing=pairing)
    _, whole = sums_of(case, loss)
    _, first = sums_of(case, loss, slice(0, None, 2))
    _, second = sums_of(case, loss, slice(1, None, 2))
    for name, value in whole.items():
        np.testing.assert_allclose(
            first[name] + second[name], value, rtol=1e-6, atol=1e-6
        )


def test_detection_reductions_equal_loops(case):
    _, samples, _, num_edits = case
    logits = case[0]["local/online/online"]
    _, mean = sums_of(case, LossConfig(detect_reduction="mean"))
    wanted = detection(case, logits) * BATCH / np.sum(samples.is_editable)
    np.testing.assert_allclose(mean["loss_local_detect"], wanted, rtol=1e-6)
    _, per_edit = sums_of(case, LossConfig(detect_reduction="per_edit"))
    wanted = 0.0
    for i, j in zip(*np.nonzero(samples.is_editable), strict=True):
        label = 0 if j < num_edits[i] else 1
        wanted -= log_softmax(logits.detect[i, j], label) / max(num_edits[i], 1)
    np.testing.assert_allclose(per_edit["loss_local_detect"], wanted / BATCH, rtol=1e-6)


def test_batch_without_edits_has_loss_0(case):
    arrays, samples, contrast, _ = case
    nowhere = jnp.zeros_like(samples.is_editable)
    edits = samples.edits._replace(
        tokens=samples.tokens,
        edit_here=nowhere,
        is_edit=jnp.zeros_like(samples.edits.is_edit),
    )
    samples = samples._replace(is_editable=nowhere, edits=edits)
    _, sums = sums_of((arrays, samples, contrast, None), LossConfig())
    assert all(sums[f"loss_{switch}"] == 0 for switch in SWITCHES)
    assert np.isfinite(sums["loss"])
