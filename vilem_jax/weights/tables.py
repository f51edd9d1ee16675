"""Tables of names: a foreign checkpoint's tensors to our tree of parameters, and back.

A format is a list of entries. Every tensor of a file is used once or dropped on
purpose, and every leaf of our tree is filled once. Anything else is an error that names
it: a converter that skips unknown names fails silently.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from flax.nnx.traversals import flatten_mapping, unflatten_mapping

from vilem_jax.config.schema import ComputeConfig, TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.weights.folders import Stored, Tensors

TreePath = tuple[str | int, ...]
HEADS_OF_WIDTH = {1280: 16, 1408: 16}  # ViT-H and -g; all others have heads of 64
MAX_NAMED = 5  # names in an error before the rest is counted


class Form(NamedTuple):
    """How an array changes on its way into our tree, and back on its way out."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    name: str  # in the checkpoint
    path: TreePath  # in our tree
    form: Form
    part: tuple[int, int] = (0, 1)  # (2, 3): the last third of the tensor's rows


def _patches_to_rows(kernel: np.ndarray) -> np.ndarray:
    """Convolution [W, 3, P, P] -> [P * P * 3, W]: pixels row by row, channels last."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _rows_to_patches(rows: np.ndarray) -> np.ndarray:
    side = math.isqrt(rows.shape[0] // 3)
    return rows.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


SAME = Form(lambda array: array, lambda array: array)
TRANSPOSED = Form(np.transpose, np.transpose)  # torch keeps a linear map as [out, in]
PATCHES = Form(_patches_to_rows, _rows_to_patches)
FIRST_OF_ONE = Form(lambda array: array[0], lambda array: array[None])
# Positions of a DeiT: [1, 2 + P, W], the second that of its distillation token.
DISTILLED = Form(
    lambda array: np.delete(array[0], 1, axis=0),
    lambda rows: np.insert(rows, 1, 0.0, axis=0)[None],
)
FIRST_OF_ONE_TWICE = Form(lambda array: array[0, 0], lambda array: array[None, None])


def linear(name: str, path: TreePath) -> list[Entry]:
    return [
        Entry(f"{name}.weight", (*path, "kernel"), TRANSPOSED),
        Entry(f"{name}.bias", (*path, "bias"), SAME),
    ]


def thirds(name: str, path: TreePath, parts: Sequence[str]) -> list[Entry]:
    """One linear map that was stored for three: [3 * out, in] -> three of ours."""
    return [
        entry._replace(part=(number, len(parts)))
        for number, part in enumerate(parts)
        for entry in linear(name, (*path, part))
    ]


def layer_norm(name: str, path: TreePath) -> list[Entry]:
    return [
        Entry(f"{name}.weight", (*path, "scale"), SAME),
        Entry(f"{name}.bias", (*path, "bias"), SAME),
    ]


def moved(table: Iterable[Entry], name: str, path: TreePath) -> list[Entry]:
    """`table` with `name` in front of each name and `path` of each path."""
    return [e._replace(name=f"{name}{e.name}", path=(*path, *e.path)) for e in table]


def depth(names: Iterable[str], layer: str) -> int:
    """Number of layers: one more than the largest N in "{layer}N"."""
    pattern = re.compile(re.escape(layer) + r"(\d+)[./]")
    found = (pattern.match(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def shape_of(files: Tensors, name: str, *, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that determines one of the model's.

    Raises:
      UserError: it is missing, or has another number of axes.
    """
    if name not in files.names:
        raise UserError(f"{files.path} lacks the tensor {name}")
    shape = files.shape(name)
    if len(shape) != rank:
        raise UserError(
            f"the tensor {files.stored[name].name} in {files.path} is {list(shape)}: "
            f"{rank} axes are expected"
        )
    return shape


def num_heads(
    width: int, files: Tensors, base: VisionConfig | TextConfig, given: int = 0
) -> int:
    """Number of heads of a tower of this width, whose file does not name it.

    `given`, or else `base`'s, if it is as wide, or else that of published models.

    Raises:
      UserError: no published model has this width; `given` does not divide it.
    """
    if given and width % given:
        raise UserError(
            f"the tower in {files.path} is {width} wide and cannot have {given} heads: "
            "their number divides the width"
        )
    if given or base.width == width:
        return given or base.num_heads
    tower = "vision" if isinstance(base, VisionConfig) else "text"
    known = HEADS_OF_WIDTH.get(width, 0) or (0 if width % 64 else width // 64)
    if not known:
        raise UserError(
            f"{files.path} does not name how many heads its {tower} tower of width "
            f"{width} has: give it with --{tower}-heads, or in a config with "
            f"config.model.{tower}.width={width} and num_heads"
        )
    return known


def without(tree: Mapping, is_left_out: Callable[[TreePath], bool]) -> dict:
    """The tree without the leaves whose path `is_left_out`."""
    return unflatten_mapping({p: x for p, x in leaves(tree) if not is_left_out(p)})


def read_tree(
    table: Sequence[Entry], files: Tensors, *, dropped: Sequence[str], expected: Mapping
) -> dict:
    """Reads the tensors of `table` from `files` into a nested dict of float32 arrays.

    Args:
      table: one entry for each leaf of our tree; the parts of a tensor make it up.
      files: in the spelling of the table, see `spell`.
      dropped: names left out on purpose; one that ends with "." or "/" leaves out all
        below.
      expected: our tree, with leaves that have a `shape`.

    Raises:
      UserError: names that are unknown, missing, or of another shape.
    """
    _check_names(table, files, dropped)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(expected)}
    targets = [entry.path for entry in table]
    if sorted(map(str, targets)) != sorted(map(str, shapes)):  # our own mistake
        raise ValueError(f"the table does not fill {set(shapes) ^ set(targets)} once")
    found: dict[TreePath, np.ndarray] = {}
    for entry in table:
        name, (number, count) = entry.name, entry.part
        # An array that costs no memory, for the form to change.
        ours = np.broadcast_to(np.float32(0.0), shapes[entry.path])
        wanted = entry.form.write(ours).shape
        if count > 1:
            wanted = (wanted[0] * count, *wanted[1:])
        if files.shape(name) != wanted:
            raise UserError(
                f"the tensor {files.stored[name].name} in {files.path} is "
                f"{list(files.shape(name))}, but the configured model needs "
                f"{list(wanted)}: a checkpoint of another shape"
            )
        array = files.read(name)
        if count > 1:
            array = np.split(array, count)[number]
        # `ascontiguousarray` would turn a scalar into an array of one number.
        found[entry.path] = np.asarray(entry.form.read(array), order="C")
    return unflatten_mapping(found)


def write_tensors(table: Sequence[Entry], tree: Mapping) -> dict[str, np.ndarray]:
    """The other direction: our nested dict -> {checkpoint's name: float32 array}."""
    return {
        entry.name: np.asarray(
            entry.form.write(np.asarray(take(tree, entry.path), np.float32)), order="C"
        )
        for entry in table
    }


def merge_into(
    params: Mapping, subtree: Mapping, *, at: TreePath = (), origin: str = ""
) -> dict:
    """`params` with the leaves of `subtree` in place of its own below the path `at`.

    Leaves that `subtree` lacks stay as they are (a BERT has no cross-attention).
    Nothing is changed in place.

    Args:
      params: nested dict of arrays.
      subtree: nested dict of arrays, a part of the tree that `params` has at `at`.
      origin: the folder of the subtree, for the message.

    Raises:
      UserError: a leaf of another shape.
      KeyError: a leaf that `params` does not have.
    """
    merged = flatten_mapping(params)
    for below, leaf in leaves(subtree):
        path = (*at, *below)
        shape, wanted = tuple(np.shape(leaf)), tuple(merged[path].shape)
        if shape != wanted:
            raise UserError(
                f"{'.'.join(map(str, path))} is {list(shape)} in "
                f"{origin or 'the checkpoint'}, but the configured model needs "
                f"{list(wanted)}: a checkpoint of another shape"
            )
        merged[path] = leaf
    return unflatten_mapping(merged)


def spell(files: Tensors, prefixes: Sequence[tuple[str, str]] = ()) -> Tensors:
    """`files` in the spelling of a table: prefixes replaced, gamma and beta renamed.

    Args:
      prefixes: pairs (start of a name, its replacement); the first that fits is taken.

    Raises:
      UserError: two tensors have one name then.
    """
    spelt: dict[str, Stored] = {}
    for name, stored in files.stored.items():
        plain = replace_prefix(name, prefixes)
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight")
        plain = plain.replace("LayerNorm.beta", "LayerNorm.bias")
        if plain in spelt:
            raise UserError(
                f"{files.path} holds one tensor under two names, {spelt[plain].name} "
                f"and {name}: remove one"
            )
        spelt[plain] = stored
    return dataclasses.replace(files, stored=spelt)


def replace_prefix(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    old, new = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
    return new + name[len(old) :]


def shapes_of(module: Callable[..., nnx.Module], config: object) -> dict:
    """The tree of a module's parameters, shapes for leaves; costs no memory."""
    # `ComputeConfig` decides no shape.
    model = nnx.eval_shape(lambda: module(config, ComputeConfig(), rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def leaves(tree: Mapping) -> Iterable[tuple[TreePath, np.ndarray]]:
    return flatten_mapping(tree).items()


def take(tree: Mapping, path: TreePath) -> Any:
    return functools.reduce(operator.getitem, path, tree)


def is_dropped(name: str, dropped: Collection[str]) -> bool:
    return any(
        name == entry or (entry.endswith((".", "/")) and name.startswith(entry))
        for entry in dropped
    )


def _check_names(
    table: Sequence[Entry], files: Tensors, dropped: Sequence[str]
) -> None:
    known = {entry.name for entry in table}
    missing = known.difference(files.names)
    unknown = [
        stored.name
        for name, stored in files.stored.items()
        if name not in known and not is_dropped(name, dropped)
    ]
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if unknown:
        problems.append(f"holds {_some(unknown)}, which this model has no place for")
    if problems:
        raise UserError(
            f"{files.path} is not the model that its names and config.json describe: "
            "it " + " and ".join(problems)
        )


def _some(found: Iterable[str]) -> str:
    names = sorted(found)
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
