"""Bytes that a step holds on a chip: what lasts, and what each pair adds.

Activations are the values that the backward pass reads, in `compute.dtype`; what lives
for a moment is not among them, nor the padding of a chip's layout. So a share of the
memory stays free (`MARGIN`), and the compiler has the last word.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import Config, OptimizerConfig, TextConfig, VisionConfig
from vilem_jax.models.vilem import level_of_layer
from vilem_jax.planning import abstract
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.training.state import initial_params

MARGIN = 0.1  # of a chip's memory: fragments, what lives for a moment, the program
_FLOAT32 = 4


def parameters(config: Config) -> dict[str, int]:
    """How many parameters train, are momentum copies, or are the frozen editor's."""
    # Of the model alone, so that one tracing serves every batch and device.
    model = Config(model=config.model)
    if config.task == "editor":
        return {"trained": _num_of_editor(model)}
    trained = _num_of_vilem(model)
    editor = _num_of_editor(model) if abstract.uses_editor(config) else 0
    return {"trained": trained, "momentum": trained, "frozen editor": editor}


def _num_of_vilem(config: Config) -> int:
    return _size(_vilem_params(config))


@cache
def _num_of_editor(config: Config) -> int:
    return _size(abstract.editor_params(config))


@cache
def _vilem_params(config: Config) -> dict:
    return jax.eval_shape(lambda k: initial_params(config, k), jax.random.key(0))


@cache
def _num_of_moments(model: Config, optimizer: OptimizerConfig) -> int:
    """AdamW keeps two for each parameter, Muon one: what is not a counter."""
    is_editor = model.task == "editor"
    params = abstract.editor_params(model) if is_editor else _vilem_params(model)
    state = jax.eval_shape(make_optimizer(optimizer).init, params)
    return _size([m for m in jax.tree.leaves(state) if m.dtype == jnp.float32])


def state_bytes(config: Config, num_chips: int = 1) -> dict[str, int]:
    """What lasts through a step on a chip, of what `config.compute.sharding` splits its
    share; small arrays, which stay whole, are counted as split."""
    count = parameters(config)
    trained, editor = count["trained"], count.get("frozen editor", 0)
    copied = trained + count.get("momentum", 0) + editor
    half = _bytes_a_value(config)
    # A microbatch's gradients come beside the sum of those before.
    num_gradients = 2 if config.train.num_microbatches > 1 else 1
    splits = config.compute.sharding if config.task == "vilem" else "replicated"
    group = config.compute.fsdp_devices or num_chips
    params_here = group if splits == "fsdp" else 1
    moments_here = group if splits != "replicated" else 1
    momentum = count.get("momentum", 0)
    model = Config(model=config.model, task=config.task)
    moments = _num_of_moments(model, config.optimizer)
    held = {
        "parameters": _FLOAT32 * trained // params_here,
        "momentum parameters": _FLOAT32 * momentum // params_here,
        "optimizer's moments": _FLOAT32 * moments // moments_here,
        "frozen editor": _FLOAT32 * editor,
        "gradients": num_gradients * _FLOAT32 * trained,
        f"copies in {config.compute.dtype}": copied * half if half < _FLOAT32 else 0,
    }
    if splits == "fsdp":
        held["gathered towers"] = _FLOAT32 * (trained + momentum)
    if config.task == "vilem":
        width = config.model.embedding_width
        held["queues"] = 2 * _FLOAT32 * config.loss.queue_length * width
    return held


def batch_bytes(config: Config) -> int:
    """A pair of the whole batch on its chip: uint8 pixels, and float32 normalised."""
    if config.task == "editor":
        return 0
    return 3 * config.model.vision.image_size**2 * (1 + _FLOAT32)


def activation_bytes(config: Config) -> dict[str, float]:
    """What a pair of a microbatch keeps for the backward pass."""
    text, num = config.model.text, config.model.num_proofread_layers
    clean = [text_layer(config) for _ in range(text.num_layers)]
    if config.task == "editor":
        return {"text": _kept(config, clean, text), "word logits": _logits(config)}
    loss = config.loss
    held = {"ViT": _vit(config), "clean text": _kept(config, clean, text)}
    if loss.has_local:
        layers = [text_layer(config) + _cross_attention(config) for _ in range(num)]
        held["local branch"] = _kept(config, layers, text)
    if loss.has_global:
        held["global branch"] = _kept(config, clean[:num], text)
    num_heads = sum("correct" in tasks for tasks in loss.trained.values())
    held["word logits"] = num_heads * _logits(config)
    keys = config.train.batch_size + loss.queue_length
    held["similarities"] = 2 * _FLOAT32 * keys
    return held


def largest_microbatch(config: Config, memory: float, num_chips: int) -> int:
    """Pairs that a chip of `memory` bytes can take at once; 0: not even the state."""
    a_chip = math.ceil(config.train.batch_size / num_chips)
    state = sum(state_bytes(config, num_chips).values())
    lasting = state + a_chip * batch_bytes(config)
    free = (1.0 - MARGIN) * memory - lasting
    return max(0, math.floor(free / sum(activation_bytes(config).values())))


def microbatches_needed(config: Config, largest: int, num_chips: int) -> int | None:
    """The fewest microbatches that fit and divide the batch; None where none do."""
    if config.train.batch_size % num_chips or largest < 1:
        return None
    a_chip = config.train.batch_size // num_chips
    fitting = (n for n in range(1, a_chip + 1) if a_chip % n == 0)
    return next((n for n in fitting if a_chip // n <= largest), None)


# ---- pieces, bytes a pair ----


def _bytes_a_value(config: Config) -> int:
    return 2 if config.compute.dtype == "bfloat16" else _FLOAT32


def _vit(config: Config) -> float:
    vision = config.model.vision
    levels = level_of_layer(config.model) if config.loss.has_local else ()
    last = vision.num_layers
    cls_only = config.compute.cls_only_last_layer and last not in levels
    layers = [vision_layer(config) for _ in range(last - 1)]
    layers.append(vision_layer(config, cls_only=cls_only))
    patches = 3 * vision.patch_size**2 * vision.num_patches * _bytes_a_value(config)
    return patches + _kept(config, layers, vision)


def vision_layer(config: Config, *, cls_only: bool = False) -> float:
    """Of a ViT block: its input, LayerNorms, queries, keys, values, attention and MLP
    before and after its activation."""
    vision = config.model.vision
    length = vision.num_patches + 1
    asking = 1 if cls_only else length
    values = 4 * length * vision.width + asking * (4 * vision.width)
    values += 2 * asking * vision.mlp_width
    is_fused = config.compute.attention == "cudnn" and not cls_only
    return values * _bytes_a_value(config) + (
        0 if is_fused else _probabilities(config, vision, asking, length)
    )


def text_layer(config: Config) -> float:
    """Of a text layer: the same values, with the LayerNorms behind."""
    text, length = config.model.text, config.data.text_length
    values = length * (8 * text.width + 2 * text.mlp_width)
    return values * _bytes_a_value(config) + _probabilities(
        config, text, length, length
    )


def _cross_attention(config: Config) -> float:
    text, length = config.model.text, config.data.text_length
    patches = config.model.vision.num_patches
    values = 4 * length * text.width + 2 * patches * text.width
    return values * _bytes_a_value(config) + _probabilities(
        config, text, length, patches
    )


def _probabilities(config, tower: VisionConfig | TextConfig, rows, columns) -> float:
    """Of attention that is not fused: float32, and as they are multiplied."""
    return tower.num_heads * rows * columns * (_FLOAT32 + _bytes_a_value(config))


def _logits(config: Config) -> float:
    """Scores of all words at the edited positions, and their softmax."""
    return 2 * _FLOAT32 * config.editor.max_edits * config.model.text.vocab_size


def _kept(config: Config, layers: list[float], tower) -> float:
    """All of the layers; with recompute their inputs, and the whole of one layer."""
    if not config.compute.recompute:
        return sum(layers)
    is_vit = isinstance(tower, VisionConfig)
    length = tower.num_patches + 1 if is_vit else config.data.text_length
    return len(layers) * length * tower.width * _bytes_a_value(config) + max(layers)


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
