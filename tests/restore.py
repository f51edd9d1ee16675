"""The parameters of a run's checkpoint, for tests."""

from vilem_jax.runs.checkpoint_contents import FIELDS
from vilem_jax.runs.checkpoints import restore_fields


def restore_params(workdir, weights="online", shapes=None, *, step="last"):
    """NumPy arrays in nested dicts; `shapes`: the tree that they must have, or None."""
    field = FIELDS[weights]
    return restore_fields(workdir, {field: shapes}, step=step)[0][field]
