"""What a step computes, by part, from the config alone.

Counted are products of matrices, 2 FLOP for a multiply and an add, as everybody counts
them; LayerNorm, softmax, GELU, dropout, augmentation and AdamW are not. The counts
follow the switches of `config.compute`, `config.loss` and `config.editor`.
"""

import dataclasses
from dataclasses import dataclass

from vilem_jax.config.schema import Config, TextConfig, VisionConfig
from vilem_jax.models.vilem import level_of_layer


@dataclass(frozen=True)
class Part:
    """A part of the step, FLOP a pair."""

    name: str
    forward: float
    backward: float = 0.0  # what is computed again for it included

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one pass of a pair."""

    linear: float = 0.0  # activations x parameters
    mixing: float = 0.0  # activations x activations: attention
    # Of `linear`: what the backward pass needs no second time (see `recomputed`).
    last: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.linear + other.linear,
            self.mixing + other.mixing,
            self.last + other.last,
        )

    def __mul__(self, number: int) -> "Work":
        return Work(self.linear * number, self.mixing * number, self.last * number)

    @property
    def forward(self) -> float:
        return 2.0 * (self.linear + self.mixing)

    @property
    def backward(self) -> float:
        """Gradients of both factors of every product."""
        return 2.0 * self.forward

    @property
    def through(self) -> float:
        """The backward pass through parameters that do not train."""
        return 2.0 * (self.linear + 2.0 * self.mixing)

    @property
    def recomputed(self) -> float:
        """Forward again in the backward pass: all whose product somebody reads."""
        return self.forward - 2.0 * self.last


def step_costs(config: Config) -> list[Part]:
    """The parts of a step, FLOP a pair."""
    if config.task == "editor":
        return [_trained_editor(config)]
    parts = [
        _image_tower(config),
        Part("momentum ViT, forward", _vit(config, with_levels=False)[0].forward),
        _clean_text(config),
        *_branches(config),
        *_frozen_editor(config),
        Part("momentum text, forward", _encode(config).forward),
        _contrast(config),
        *_detection_heads(config),
    ]
    if _is_cross(config):
        slow = _vit(config, with_levels=config.loss.has_local)[0]
        parts.insert(2, Part("momentum ViT, seen by the text", slow.forward))
    return parts


def flops(config: Config) -> float:
    """FLOP a pair, forward and backward."""
    return sum(part.total for part in step_costs(config))


def without_savings(config: Config) -> Config:
    """The same step with nothing saved nor computed twice: what goals are measured by,
    so that saving work never counts as working less."""
    compute = dataclasses.replace(
        config.compute,
        recompute=False,
        cls_only_last_layer=False,
        joint_text_pass=False,
        editor_at_positions=False,
    )
    return dataclasses.replace(config, compute=compute)


# ---- pieces ----


def _layer(
    tower: TextConfig | VisionConfig, length: int, positions: int | None = None
) -> Work:
    """A transformer layer on `length` positions, or at `positions` of them alone."""
    asking = length if positions is None else positions
    width, inner = tower.width, tower.mlp_width
    linear = 2 * asking * width**2 + 2 * length * width**2
    linear += 2 * asking * width * inner
    is_vit = isinstance(tower, VisionConfig)
    # A ViT block ends with a product added to the stream: nothing reads it again. A
    # text layer ends with a LayerNorm, which does.
    last = asking * width * inner if is_vit else 0
    return Work(linear, 2 * asking * length * width, last)


def _cross_attention(config: Config) -> tuple[Work, float]:
    """Of a layer; and the multiply-adds of its keys and values."""
    text, vision, length = config.model.text, config.model.vision, _length(config)
    keys = 2 * vision.num_patches * vision.width * text.width
    work = Work(
        2 * length * text.width**2 + keys,
        2 * length * vision.num_patches * text.width,
    )
    return work, keys


def _vit(config: Config, *, with_levels: bool) -> tuple[Work, float]:
    """A pass of the ViT with its projection; and what its patch embedding takes."""
    vision = config.model.vision
    levels = level_of_layer(config.model) if with_levels else ()
    last = vision.num_layers
    cls_only = config.compute.cls_only_last_layer and last not in levels
    length = vision.num_patches + 1
    embedding = vision.num_patches * 3 * vision.patch_size**2 * vision.width
    work = _layer(vision, length) * (last - 1)
    work += _layer(vision, length, 1 if cls_only else None)
    projection = vision.width * config.model.embedding_width
    return work + Work(embedding + projection), embedding


def _image_tower(config: Config) -> Part:
    work, embedding = _vit(config, with_levels=config.loss.has_local)
    again = work.recomputed - 2.0 * embedding if config.compute.recompute else 0.0
    # Pixels need no gradient: the patch embedding has that of its kernel alone.
    backward = work.backward - 2.0 * embedding + again
    return Part("online ViT, forward and backward", work.forward, backward)


def _text_layers(config: Config, num: int, last_positions: int | None = None) -> Work:
    text, length = config.model.text, _length(config)
    if num == 0:
        return Work()
    return _layer(text, length) * (num - 1) + _layer(text, length, last_positions)


def _encode(config: Config, *, cls_only: bool = True) -> Work:
    """The clean caption through all layers, and its projection."""
    text = config.model.text
    cls_only = cls_only and config.compute.cls_only_last_layer
    layers = _text_layers(config, text.num_layers, 1 if cls_only else None)
    return layers + Work(text.width * config.model.embedding_width)


def _clean_text(config: Config) -> Part:
    is_joint = (
        config.compute.joint_text_pass
        and config.loss.has_global
        and not _is_cross(config)
    )
    # Layers that the global branch shares cannot stop at [CLS].
    shares_all = config.model.num_proofread_layers == config.model.text.num_layers
    work = _encode(config, cls_only=not (is_joint and shares_all))
    name = f"clean text, {config.model.text.num_layers} layers"
    return Part(name, work.forward, work.backward + _again(config, work))


def _again(config: Config, work: Work) -> float:
    return work.recomputed if config.compute.recompute else 0.0


def _branches(config: Config) -> list[Part]:
    num = config.model.num_proofread_layers
    vision, text = config.model.vision, config.model.text
    layers = _text_layers(config, num)
    parts = []
    if config.loss.has_local:
        cross, keys = _cross_attention(config)
        name = f"local branch: {num} layers, cross-attention, word head"
        parts.append(_branch(config, "local", name, layers + cross * num, keys * num))
    if config.loss.has_global:
        is_mapped = vision.width != text.width
        fitted = Work(vision.width * text.width) if is_mapped else Work()
        name = f"global branch: {num} layers, word head"
        parts.append(_branch(config, "global", name, layers + fitted, 0.0))
    return parts


def _branch(config: Config, branch: str, name: str, work: Work, keys: float) -> Part:
    """A branch with its head over words; with pairing="cross" it runs twice."""
    head, decoder = _word_head(config, branch)
    backward = work.backward + head.backward + _again(config, work)
    if not config.model.decoder_trains_embeddings:
        backward -= 2.0 * decoder
    if not _is_cross(config):
        return Part(name, work.forward + head.forward, backward)
    # Once the image needs no gradient, once the text's parameters do not.
    backward += work.through + head.backward + _again(config, work) - 2.0 * keys
    if not config.model.decoder_trains_embeddings:
        backward -= 2.0 * decoder
    return Part(f"{name}, twice", 2.0 * (work.forward + head.forward), backward)


def _word_head(config: Config, branch: str) -> tuple[Work, float]:
    """Transform and decoder at the edited positions; and the decoder's share."""
    if "correct" not in config.loss.trained[branch]:
        return Work(), 0.0
    return _words_at(config, config.editor.max_edits)


def _words_at(config: Config, positions: int) -> tuple[Work, float]:
    text = config.model.text
    decoder = positions * text.width * text.vocab_size
    return Work(positions * text.width**2 + decoder), decoder


def _detection_heads(config: Config) -> list[Part]:
    text = config.model.text
    trained = [b for b, tasks in config.loss.trained.items() if "detect" in tasks]
    if not trained:
        return []
    one = Work(_length(config) * (text.width**2 + 2 * text.width))
    work = one * (len(trained) * (2 if _is_cross(config) else 1))
    return [Part("detection heads, all words", work.forward, work.backward)]


def _editor_pass(config: Config) -> Work:
    positions = config.editor.max_edits
    is_alone = config.editor.masking == "one_by_one"
    at_once = 1 if is_alone else positions
    is_short = config.compute.editor_at_positions
    num = config.model.text.num_layers
    layers = _text_layers(config, num, at_once if is_short else None)
    return (layers + _words_at(config, at_once)[0]) * (positions if is_alone else 1)


def _frozen_editor(config: Config) -> list[Part]:
    if not config.loss.has_proofreading or config.editor.edit_table:
        return []
    name = f"editor, frozen, with its head at {config.editor.max_edits} positions"
    return [Part(name, _editor_pass(config).forward)]


def _trained_editor(config: Config) -> Part:
    together = dataclasses.replace(config.editor, masking="together")
    work = _editor_pass(dataclasses.replace(config, editor=together))
    return Part("editor, forward and backward", work.forward, work.backward)


def _contrast(config: Config) -> Part:
    keys = config.train.batch_size + config.loss.queue_length
    similarities = Work(2 * config.model.embedding_width * keys)
    # Keys need no gradient. Soft targets are similarities of the keys themselves.
    num_forward = 2 if config.loss.soft_target_weight > 0 else 1
    return Part(
        f"contrast against {config.loss.queue_length:,} + {config.train.batch_size:,}",
        num_forward * similarities.forward,
        similarities.forward,
    )


def _is_cross(config: Config) -> bool:
    return config.loss.pairing == "cross" and config.loss.has_proofreading


def _length(config: Config) -> int:
    return config.data.text_length
