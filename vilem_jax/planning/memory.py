"""Bytes that a step holds on a chip: what lasts, and what each pair adds.

Activations are the values that the backward pass reads, in `compute.dtype`. Values that
live for a moment and the padding of a chip's layout are not counted. So a share of the
memory stays free (`MARGIN`), and the compiler has the last word.
"""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import Config, OptimizerConfig, TextConfig, VisionConfig
from vilem_jax.models.locked import split_params
from vilem_jax.models.vilem import Params, level_of_layer
from vilem_jax.planning import abstract
from vilem_jax.planning.costs import vit_stops_at_cls
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.training.state import init_params
from vilem_jax.typing import PyTree

MARGIN = 0.1  # of a chip's memory: fragments, short-lived values, the program
_FLOAT32 = 4


def parameters(config: Config) -> dict[str, int]:
    """How many parameters train, are locked, momentum copies, or the frozen editor's.

    "locked" is missing if none are.
    """
    # Of the model alone, so that it is traced once for every batch and device.
    model = Config(model=config.model, task=config.task)
    trained, locked = map(_size, _parts(model))
    if config.task == "editor":
        return {"trained": trained}
    editor = dataclasses.replace(model, task="editor")
    num_frozen = _size(_parts(editor)[0]) if abstract.uses_editor(config) else 0
    count = {"trained": trained, "momentum": trained, "frozen editor": num_frozen}
    return count | ({"locked": locked} if locked else {})


@cache
def _parts(model: Config) -> tuple[Params, Params]:
    """Shapes of the parameters that train in `model.task`, and of those locked."""
    if model.task == "editor":
        return abstract.editor_params(model), {}
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return split_params(params, model.model)


@cache
def _num_moments(model: Config, optimizer: OptimizerConfig) -> int:
    """Values in the optimizer's state: AdamW keeps two a parameter, Muon one."""
    state = jax.eval_shape(make_optimizer(optimizer).init, _parts(model)[0])
    # What is not float32 is a counter.
    return _size([m for m in jax.tree.leaves(state) if m.dtype == jnp.float32])


def state_bytes(config: Config, num_chips: int = 1) -> dict[str, int]:
    """Bytes that last through a step on one chip, by what they hold.

    Of what `config.compute.sharding` splits it is the chip's share. Small arrays, which
    stay whole, are counted as split.
    """
    count = parameters(config)
    trained, momentum = count["trained"], count.get("momentum", 0)
    editor, locked = count.get("frozen editor", 0), count.get("locked", 0)
    is_vilem = config.task == "vilem"
    sharding = config.compute.sharding if is_vilem else "replicated"
    group = config.compute.fsdp_devices or num_chips
    params_split = group if sharding == "fsdp" else 1
    moments_split = group if sharding != "replicated" else 1
    model = Config(model=config.model, task=config.task)
    moments = _num_moments(model, config.optimizer)
    # A microbatch's gradients stand beside the sum of the earlier ones.
    num_gradients = 2 if config.train.num_microbatches > 1 else 1
    is_copied = _bytes_a_value(config) < _FLOAT32
    copied = (trained + locked + momentum + editor) * _bytes_a_value(config)
    held = {
        "parameters": _FLOAT32 * (trained + locked) // params_split,
        "momentum parameters": _FLOAT32 * momentum // params_split,
        "optimizer's moments": _FLOAT32 * moments // moments_split,
        "frozen editor": _FLOAT32 * editor,
        "gradients": num_gradients * _FLOAT32 * trained,
        f"copies in {config.compute.dtype}": copied if is_copied else 0,
    }
    if sharding == "fsdp":
        held["gathered towers"] = _FLOAT32 * (trained + locked + momentum)
    if is_vilem:
        width = config.model.embedding_width
        held["queues"] = 2 * _FLOAT32 * config.loss.queue_length * width
    return held


def batch_bytes(config: Config) -> int:
    """Bytes per pair of the whole batch, in all its microbatches.

    They are pixels as uint8, and normalised as float32, and what locked layers make of
    image and caption, which the losses read after all keys are there.
    """
    if config.task == "editor":
        return 0
    vision, text = config.model.vision, config.model.text
    kept = _started(config, vision) + _started(config, text)
    levels = set(level_of_layer(config.model)) if config.loss.has_local else set()
    num_levels = sum(level <= vision.num_locked_layers for level in levels)
    kept += num_levels * vision.num_patches * vision.width
    pixels = 3 * vision.image_size**2 * (1 + _FLOAT32)
    return pixels + kept * _bytes_a_value(config)


def _started(config: Config, tower: VisionConfig | TextConfig) -> int:
    """Values that leave the locked layers: [CLS] alone if nothing follows."""
    if not tower.has_locked:
        return 0
    length = 1 if tower.num_trained_layers == 0 else _length(config, tower)
    return length * tower.width


def activation_bytes(config: Config) -> dict[str, float]:
    """Bytes per pair of a microbatch that are kept for the backward pass, by part."""
    model, loss, text = config.model, config.loss, config.model.text
    num, layer = model.num_proofread_layers, layer_bytes(config, text)
    num_trained = text.num_layers - text.num_locked_layers
    clean = _kept(config, [layer] * num_trained, text)
    # Logits over the vocabulary at the edited positions, and their softmax.
    logits = 2 * _FLOAT32 * config.editor.max_edits * text.vocab_size
    if config.task == "editor":
        return {"text": clean, "word logits": logits}
    held = {"ViT": _vit(config), "clean text": clean}
    if loss.has_local:
        layers = [layer + _cross_attention(config)] * num
        held["local branch"] = _kept(config, layers, text)
    if loss.has_global:
        held["global branch"] = _kept(config, [layer] * num, text)
    held["word logits"] = logits * sum("correct" in t for t in loss.trained.values())
    held["similarities"] = 2 * _FLOAT32 * (config.train.batch_size + loss.queue_length)
    return held


def largest_microbatch(config: Config, memory: float, num_chips: int) -> int:
    """Pairs that a chip of `memory` bytes can take at once; 0: not even the state."""
    a_chip = math.ceil(config.train.batch_size / num_chips)
    state = sum(state_bytes(config, num_chips).values())
    free = (1.0 - MARGIN) * memory - state - a_chip * batch_bytes(config)
    return max(0, math.floor(free / sum(activation_bytes(config).values())))


def microbatches_needed(config: Config, largest: int, num_chips: int) -> int | None:
    """The fewest microbatches that fit and divide the batch; None if none do."""
    a_chip, remainder = divmod(config.train.batch_size, num_chips)
    if remainder or largest < 1:
        return None
    fitting = (n for n in range(1, a_chip + 1) if a_chip % n == 0)
    return next((n for n in fitting if a_chip // n <= largest), None)


# ---- layers, bytes per pair ----


def _bytes_a_value(config: Config) -> int:
    return 2 if config.compute.dtype == "bfloat16" else _FLOAT32


def _length(config: Config, tower: VisionConfig | TextConfig) -> int:
    is_vit = isinstance(tower, VisionConfig)
    return tower.num_patches + 1 if is_vit else config.data.text_length


def _vit(config: Config) -> float:
    vision = config.model.vision
    cls_only = vit_stops_at_cls(config, with_levels=config.loss.has_local)
    layers = [layer_bytes(config, vision)] * (vision.num_layers - 1)
    layers.append(layer_bytes(config, vision, cls_only=cls_only))
    if vision.has_locked:
        return _kept(config, layers[vision.num_locked_layers :], vision)
    patches = 3 * vision.patch_size**2 * vision.num_patches * _bytes_a_value(config)
    return patches + _kept(config, layers, vision)


def layer_bytes(
    config: Config, tower: VisionConfig | TextConfig, *, cls_only: bool = False
) -> float:
    """Bytes per pair that a layer keeps, with all its values.

    They are its input, LayerNorms, queries, keys, values, attention, and the MLP before
    and after its activation.
    """
    length = _length(config, tower)
    num_queries = 1 if cls_only else length
    values = 4 * length * tower.width
    values += num_queries * (4 * tower.width + 2 * tower.mlp_width)
    size = values * _bytes_a_value(config)
    # The text's attention has dropout on its probabilities: it is never fused.
    can_fuse = isinstance(tower, VisionConfig) and not cls_only
    if can_fuse and config.compute.attention == "cudnn":
        return size
    return size + _attention(config, tower, num_queries, length)


def _cross_attention(config: Config) -> float:
    text, length = config.model.text, config.data.text_length
    patches = config.model.vision.num_patches
    values = 4 * length * text.width + 2 * patches * text.width
    return values * _bytes_a_value(config) + _attention(config, text, length, patches)


def _attention(
    config: Config, tower: VisionConfig | TextConfig, num_queries: int, num_keys: int
) -> int:
    """Probabilities of attention that is not fused: in float32 and in `dtype`."""
    a_probability = _FLOAT32 + _bytes_a_value(config)
    return tower.num_heads * num_queries * num_keys * a_probability


def _kept(
    config: Config, layers: list[float], tower: VisionConfig | TextConfig
) -> float:
    """All of the layers; with `recompute` their inputs, and all of one layer."""
    if not config.compute.recompute or not layers:
        return sum(layers)
    inputs = len(layers) * _length(config, tower) * tower.width
    return inputs * _bytes_a_value(config) + max(layers)


def _size(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
