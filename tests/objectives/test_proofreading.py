"""Eqs. (6)-(9) and the counts against double loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilem_jax.objectives import editing, proofreading

RTOL = 1e-6
BATCH, LENGTH, POSITIONS, WORDS = 5, 7, 3, 11


@pytest.fixture
def case():
    """Logits, and edits at one to three positions; the last text has none."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, WORDS, (BATCH, LENGTH))
    is_editable = rng.random((BATCH, LENGTH)) < 0.7
    is_editable[:, :3] = True
    positions = np.array([rng.permutation(3) for _ in range(BATCH)])
    is_edit = np.arange(POSITIONS) < np.array([[1], [3], [2], [1], [0]])
    words = (tokens[np.arange(BATCH)[:, None], positions] + 1) % WORDS
    chosen = editing.ChosenPositions(jnp.asarray(positions), jnp.asarray(is_edit))
    return {
        "tokens": tokens,
        "is_editable": is_editable,
        "chosen": chosen,
        "edits": editing.apply_edits(jnp.asarray(tokens), chosen, jnp.asarray(words)),
        "edited_at": [set(p[e]) for p, e in zip(positions, is_edit, strict=True)],
        "detect": 3 * rng.normal(size=(BATCH, LENGTH, 2)),
        "correct": 3 * rng.normal(size=(BATCH, POSITIONS, WORDS)),
    }


def log_probability(logits, label):
    return np.log(np.exp(logits[label]) / sum(np.exp(score) for score in logits))


def test_detection_labels_are_0_exactly_where_edited(case):
    """Eq. (6)."""
    labels = np.asarray(editing.detection_labels(case["edits"]))
    for i in range(BATCH):
        for j in range(LENGTH):
            assert labels[i, j] == (0 if j in case["edited_at"][i] else 1)


def test_correction_labels_are_the_original_tokens(case):
    """Eq. (7): t_ij where edited, none elsewhere."""
    labels = np.asarray(editing.correction_labels(case["tokens"], case["edits"]))
    for i in range(BATCH):
        for k in range(POSITIONS):
            position = int(case["edits"].positions[i, k])
            if position in case["edited_at"][i]:
                assert labels[i, k] == case["tokens"][i, position]
            else:
                assert labels[i, k] == editing.IGNORE


@pytest.mark.parametrize("reduction", ["sum", "per_edit", "mean"])
def test_detection_sum_equals_loops(case, reduction):
    """Eq. (8): -log P of the right verdict, over the words of each text."""
    expected = 0.0
    for i in range(BATCH):
        text = 0.0
        for j in range(LENGTH):
            if case["is_editable"][i, j]:
                is_original = 0 if j in case["edited_at"][i] else 1
                text -= log_probability(case["detect"][i, j], is_original)
        if reduction == "per_edit":
            text /= max(len(case["edited_at"][i]), 1)
        expected += text
    with jax.enable_x64(True):
        loss = proofreading.detection_sum(
            jnp.asarray(case["detect"]),
            editing.detection_labels(case["edits"]),
            jnp.asarray(case["is_editable"]),
            reduction,
        )
    np.testing.assert_allclose(loss, expected, rtol=RTOL)


def test_correction_sum_equals_loops(case):
    """Eq. (9): -log P of the original word, at edited positions alone."""
    expected = 0.0
    for i in range(BATCH):
        for k in range(POSITIONS):
            position = int(case["edits"].positions[i, k])
            if position in case["edited_at"][i]:
                original = case["tokens"][i, position]
                expected -= log_probability(case["correct"][i, k], original)
    with jax.enable_x64(True):
        loss = proofreading.correction_sum(
            jnp.asarray(case["correct"]),
            editing.correction_labels(jnp.asarray(case["tokens"]), case["edits"]),
        )
    np.testing.assert_allclose(loss, expected, rtol=RTOL)


def test_no_labels_give_loss_0_and_gradient_0(case):
    nothing = jnp.zeros((BATCH, LENGTH), bool)
    none = jnp.full((BATCH, POSITIONS), editing.IGNORE)

    def detection(logits, reduction):
        return proofreading.detection_sum(logits, ~nothing, nothing, reduction)

    for reduction in ("sum", "per_edit", "mean"):
        loss, gradient = jax.value_and_grad(detection)(
            jnp.asarray(case["detect"], jnp.float32), reduction
        )
        assert loss == 0 and not np.asarray(gradient).any()
    loss, gradient = jax.value_and_grad(proofreading.correction_sum)(
        jnp.asarray(case["correct"], jnp.float32), none
    )
    assert loss == 0 and not np.asarray(gradient).any()


def test_detection_counts_equal_loops(case):
    found = flagged = wrong = 0
    for i in range(BATCH):
        for j in range(LENGTH):
            if not case["is_editable"][i, j]:
                continue
            p_original = np.exp(log_probability(case["detect"][i, j], 1))
            found += p_original < 0.5 and j in case["edited_at"][i]
            flagged += p_original < 0.5
            wrong += j in case["edited_at"][i]
    counts = proofreading.detection_counts(
        jnp.asarray(case["detect"]),
        editing.detection_labels(case["edits"]),
        jnp.asarray(case["is_editable"]),
    )
    assert counts == (found, flagged, wrong)
    assert wrong == 7


def test_equal_logits_flag_nothing_and_bfloat16_is_summed_in_float32():
    logits = jnp.zeros((1, 2, 2), jnp.bfloat16)
    here, wrong = jnp.ones((1, 2), bool), jnp.zeros((1, 2), bool)
    assert proofreading.detection_counts(logits, wrong, here) == (0, 0, 2)
    loss = proofreading.detection_sum(logits, wrong, here, "sum")
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)


def test_correction_hits_count_ties_against_the_model(case):
    logits = np.round(case["correct"])  # so that there are ties
    labels = editing.correction_labels(jnp.asarray(case["tokens"]), case["edits"])
    expected = 0
    for i in range(BATCH):
        for k in range(POSITIONS):
            label = int(labels[i, k])
            if label != editing.IGNORE:
                expected += np.sum(logits[i, k] >= logits[i, k, label]) == 1
    hits = proofreading.correction_hits(jnp.asarray(logits), labels)
    assert hits == expected


def test_a_tie_with_the_best_logit_is_no_hit():
    logits = jnp.asarray([[[0.0, 2.0, 1.0], [0.0, 2.0, 2.0]], 2 * [[3.0, 1.0, 3.0]]])
    # Best alone; tied for the best; worst; not edited.
    labels = jnp.asarray([[1, 2], [1, editing.IGNORE]])
    assert proofreading.correction_hits(logits, labels) == 1
