"""Unit rows of noise, as embeddings and keys are."""

import numpy as np


def unit_rows(rng, count, width):
    rows = rng.normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contrast_arrays(*, batch, queue, width):
    """What `info_nce` compares: float64, by the names of its arguments."""
    rng = np.random.default_rng(0)
    sizes = {"embedding": batch, "keys": batch, "own_keys": batch, "queue": queue}
    return {name: unit_rows(rng, size, width) for name, size in sizes.items()}
