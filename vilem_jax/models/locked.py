"""Which parameters are locked: they keep their values, and only the others train.

`config.model.vision.num_trained_layers` and `config.model.text.num_trained_layers` lock
a tower, or all of it but its last layers. Projections, heads, cross-attention and the
temperature always train.

`params` is the whole tree everywhere. What belongs to training alone has the tree of
its trained part: gradients, the optimizer's moments and `momentum_params`, because the
momentum model shares the locked parameters.
"""

from flax.nnx.traversals import flatten_mapping, unflatten_mapping

from vilem_jax.config.schema import ModelConfig
from vilem_jax.models.vilem import Params


def has_locked(config: ModelConfig) -> bool:
    return config.vision.has_locked or config.text.has_locked


def is_locked(path: tuple[str | int, ...], config: ModelConfig) -> bool:
    """Whether the parameter at `path` of a `ViLEM` is locked."""
    if path[0] not in ("vision", "text"):
        return False
    tower = config.vision if path[0] == "vision" else config.text
    if not tower.has_locked or "cross_attention" in path:
        return False
    if path[1] in ("blocks", "layers"):
        return int(path[2]) < tower.num_locked_layers
    if path[1] == "norm":  # of the ViT: it follows the last block
        return tower.num_trained_layers == 0
    return True


def split_params(params: Params, config: ModelConfig) -> tuple[Params, Params]:
    """The trained and the locked part of the tree of a `ViLEM`, of any leaves."""
    if not has_locked(config):
        return params, {}
    parts: tuple[dict, dict] = {}, {}
    for path, leaf in flatten_mapping(params).items():
        parts[is_locked(path, config)][path] = leaf
    trained, locked = map(unflatten_mapping, parts)
    return trained, locked


def join_params(params: Params, part: Params) -> Params:
    """`params` with the leaves of `part`, which it may have or lack."""
    if not part:
        return params
    return unflatten_mapping({**flatten_mapping(params), **flatten_mapping(part)})
