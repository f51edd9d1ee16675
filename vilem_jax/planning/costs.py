"""FLOPs of a training step by part, from the config alone.

Matrix products are counted, 2 FLOP for a multiply-add, as is customary; LayerNorm,
softmax, GELU, dropout, augmentation and AdamW are not. The counts follow the switches
of `config.compute`, `config.loss` and `config.editor`; tests hold them to within half
a percent of the compiled step. All numbers are of one image-caption pair.
"""

import dataclasses
from dataclasses import dataclass

from vilem_jax.config.schema import Config, TextConfig, VisionConfig
from vilem_jax.models.vilem import level_of_layer
from vilem_jax.planning.abstract import uses_editor


@dataclass(frozen=True)
class Part:
    """A named part of the step, such as the local branch, and its FLOP per pair."""

    name: str
    forward: float
    backward: float = 0.0  # with the forward work that `compute.recompute` repeats

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one forward pass of one pair through some layers.

    The kinds are apart because their backward passes differ: a product with frozen
    parameters has one gradient, one of two activations always has two.
    """

    linear: float = 0.0  # activations x parameters
    mixing: float = 0.0  # activations x activations: attention
    unread: float = 0.0  # of `linear`: its result is not read in the backward pass

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.linear + other.linear,
            self.mixing + other.mixing,
            self.unread + other.unread,
        )

    def __mul__(self, number: int) -> "Work":
        return Work(self.linear * number, self.mixing * number, self.unread * number)

    @property
    def forward(self) -> float:
        """FLOP, as of all properties here."""
        return 2.0 * (self.linear + self.mixing)

    @property
    def backward(self) -> float:
        """Gradients of both factors of every product."""
        return 2.0 * self.forward

    @property
    def backward_frozen(self) -> float:
        """The backward pass through parameters that do not train."""
        return 2.0 * (self.linear + 2.0 * self.mixing)

    def recomputed(self, config: Config) -> float:
        """What the backward pass computes again if `compute.recompute`."""
        return self.forward - 2.0 * self.unread if config.compute.recompute else 0.0


def step_costs(config: Config) -> list[Part]:
    """The parts of a step of `config.task`, in FLOP per pair."""
    if config.task == "editor":
        # Training always masks the positions together.
        editor = dataclasses.replace(config.editor, masking="together")
        work = _editor_pass(dataclasses.replace(config, editor=editor))
        return [Part("editor, forward and backward", work.forward, work.backward)]
    loss = config.loss
    # What locked layers compute once, for the online and the momentum model.
    locked = {
        "locked ViT layers, forward": _locked_vit(config),
        "locked text layers, forward": _locked_text(config),
    }
    parts = [Part(name, work.forward) for name, work in locked.items() if work.linear]
    momentum = _vit(config, with_levels=False)
    parts += [_image_tower(config), Part("momentum ViT, forward", momentum.forward)]
    if _is_cross(config):
        momentum = _vit(config, with_levels=loss.has_local)
        parts.append(Part("momentum ViT, seen by the text", momentum.forward))
    parts += [_clean_text(config), *_branches(config)]
    if uses_editor(config):
        name = f"editor, frozen, with its head at {config.editor.max_edits} places"
        parts.append(Part(name, _editor_pass(config).forward))
    parts += [
        Part("momentum text, forward", _clean_pass(config).forward),
        _contrast(config),
    ]
    if num_heads := sum("detect" in tasks for tasks in loss.trained.values()):
        width = config.model.text.width
        head = Work(config.data.text_length * (width**2 + 2 * width))
        work = head * (num_heads * (2 if _is_cross(config) else 1))
        backward = work.backward
        if "detect" in loss.trained.get("global", ()) and _is_constant(config):
            backward -= 2.0 * config.data.text_length * width**2
        parts.append(Part("detection heads, all words", work.forward, backward))
    return parts


def flops(config: Config) -> float:
    """FLOP per pair, forward and backward."""
    return sum(part.total for part in step_costs(config))


def without_savings(config: Config) -> Config:
    """The config of the same step with nothing saved and nothing computed twice.

    Goals refer to its FLOPs: a step that saves work must not count as a slower one.
    """
    compute = dataclasses.replace(
        config.compute,
        recompute=False,
        cls_only_last_layer=False,
        joint_text_pass=False,
        editor_at_positions=False,
    )
    return dataclasses.replace(config, compute=compute)


def vit_stops_at_cls(config: Config, *, with_levels: bool) -> bool:
    """Whether the last ViT block computes [CLS] alone: no loss reads its patches."""
    levels = level_of_layer(config.model) if with_levels else ()
    is_read = config.model.vision.num_layers in levels
    return config.compute.cls_only_last_layer and not is_read


# ---- layers and towers ----


def _layers(
    tower: TextConfig | VisionConfig, num: int, length: int, num_last: int | None = None
) -> Work:
    """`num` transformer layers on `length` positions.

    Args:
      num_last: positions that the last layer computes, if not all.
    """
    if num == 0:
        return Work()
    whole = _layer(tower, length, length)
    return whole * (num - 1) + _layer(tower, length, num_last or length)


def _layer(tower: TextConfig | VisionConfig, length: int, num_queries: int) -> Work:
    width, inner = tower.width, tower.mlp_width
    # Queries and output, keys and values, and the two products of the MLP.
    linear = 2 * num_queries * width**2 + 2 * length * width**2
    linear += 2 * num_queries * width * inner
    # A ViT block ends with a product that is added to the stream: the backward pass
    # does not read it. A text layer ends with a LayerNorm, whose backward pass does.
    unread = num_queries * width * inner if isinstance(tower, VisionConfig) else 0
    return Work(linear, 2 * num_queries * length * width, unread)


def _first_inputs(text: TextConfig, length: int, num_queries: int) -> float:
    """FLOP of the gradient of a layer's input by queries, keys and values.

    The first text layer that trains after locked ones does not need it.
    """
    return 2.0 * (num_queries + 2 * length) * text.width**2


def _patch_embedding(config: Config) -> int:
    vision = config.model.vision
    return vision.num_patches * 3 * vision.patch_size**2 * vision.width


def _vit(config: Config, *, with_levels: bool) -> Work:
    """The ViT with its projection, without what is locked."""
    vision = config.model.vision
    num = vision.num_layers - vision.num_locked_layers
    num_last = 1 if vit_stops_at_cls(config, with_levels=with_levels) else None
    blocks = _layers(vision, num, vision.num_patches + 1, num_last)
    projection = vision.width * config.model.embedding_width
    embedding = 0 if vision.has_locked else _patch_embedding(config)
    return blocks + Work(embedding + projection)


def _locked_vit(config: Config) -> Work:
    """The locked embedding and blocks."""
    vision = config.model.vision
    if not vision.has_locked:
        return Work()
    is_whole = vision.num_trained_layers == 0
    stops = is_whole and vit_stops_at_cls(config, with_levels=config.loss.has_local)
    length, num_last = vision.num_patches + 1, 1 if stops else None
    blocks = _layers(vision, vision.num_locked_layers, length, num_last)
    return blocks + Work(_patch_embedding(config))


def _image_tower(config: Config) -> Part:
    vision, name = config.model.vision, "online ViT, forward and backward"
    work = _vit(config, with_levels=config.loss.has_local)
    if vision.num_trained_layers == 0:  # its projection alone has a gradient
        return Part(name, work.forward, work.forward)
    if vision.has_locked:  # the first LayerNorm needs gradients all the same
        return Part(name, work.forward, work.backward + work.recomputed(config))
    # Pixels need no gradient, only the kernel of the patch embedding does; and the
    # embedding is not recomputed.
    embedding = 2.0 * _patch_embedding(config)
    backward = work.backward - embedding
    if config.compute.recompute:
        backward += work.recomputed(config) - embedding
    return Part(name, work.forward, backward)


def _clean_pass(config: Config, *, may_stop: bool = True) -> Work:
    """The clean caption through all layers that train, and its projection.

    Args:
      may_stop: whether the last layer may compute [CLS] alone.
    """
    text = config.model.text
    num_last = 1 if may_stop and config.compute.cls_only_last_layer else None
    num = text.num_layers - text.num_locked_layers
    layers = _layers(text, num, config.data.text_length, num_last)
    return layers + Work(text.width * config.model.embedding_width)


def _locked_text(config: Config) -> Work:
    """The clean caption through the layers that are locked."""
    text = config.model.text
    stops = config.compute.cls_only_last_layer and text.num_trained_layers == 0
    num_last = 1 if stops else None
    return _layers(text, text.num_locked_layers, config.data.text_length, num_last)


def _clean_text(config: Config) -> Part:
    model, loss = config.model, config.loss
    text, name = model.text, f"clean text, {model.text.num_layers} layers"
    is_joint = config.compute.joint_text_pass and loss.has_global
    is_joint = is_joint and not text.has_locked
    # Layers that the global branch shares compute all positions.
    shares_all = model.num_proofread_layers == model.text.num_layers
    may_stop = not (is_joint and shares_all) or _is_cross(config)
    work = _clean_pass(config, may_stop=may_stop)
    if text.num_trained_layers == 0:  # its projection alone has a gradient
        return Part(name, work.forward, work.forward)
    backward = work.backward + work.recomputed(config)
    if text.has_locked:
        length, stops = config.data.text_length, config.compute.cls_only_last_layer
        num_queries = 1 if stops and text.num_trained_layers == 1 else length
        backward -= _first_inputs(text, length, num_queries)
    return Part(name, work.forward, backward)


# ---- proofreading ----


def _branches(config: Config) -> list[Part]:
    """The local and the global branch, those that have a loss."""
    model, length = config.model, config.data.text_length
    num, vision, text = model.num_proofread_layers, model.vision, model.text
    layers = _layers(text, num, length)
    parts = []
    if config.loss.has_local:
        keys = 2 * vision.num_patches * vision.width * text.width  # and values
        mixing = 2 * length * vision.num_patches * text.width
        cross = Work(2 * length * text.width**2 + keys, mixing)
        work = layers + cross * num
        # Patches of locked blocks need no gradient.
        constant = [b for b in level_of_layer(model) if b <= vision.num_locked_layers]
        saved = _saved_by_locked_text(config, has_cross=True)
        saved += 2.0 * keys * len(constant)
        name = f"local branch: {num} layers, cross-attention, word head"
        parts.append(_branch(config, "local", name, work, saved, keys * num))
    if config.loss.has_global:
        saved = _saved_by_locked_text(config, has_cross=False)
        if vision.width != text.width:
            into_text = Work(vision.width * text.width)  # h^v into the text's width
            layers += into_text
            saved += into_text.forward if vision.num_trained_layers == 0 else 0.0
        name = f"global branch: {num} layers, word head"
        parts.append(_branch(config, "global", name, layers, saved, 0.0))
    return parts


def _saved_by_locked_text(config: Config, *, has_cross: bool) -> float:
    """FLOP of a branch's backward pass that locked layers of the text do not need."""
    text, length = config.model.text, config.data.text_length
    num_locked = min(text.num_locked_layers, config.model.num_proofread_layers)
    layer = _layer(text, length, length)
    saved = num_locked * (layer.backward - layer.backward_frozen)
    first = _first_inputs(text, length, length)
    if has_cross and num_locked:
        # Before the first cross-attention nothing has a gradient, nor has its input.
        attention = Work(4 * length * text.width**2, layer.mixing)
        return saved + attention.backward_frozen + 2.0 * length * text.width**2
    if has_cross:
        return first if text.has_locked else 0.0
    if text.has_locked and not _feels_image(config):
        saved += num_locked * layer.backward_frozen
        saved += 0.0 if _is_constant(config) else first
    return saved


def _feels_image(config: Config) -> bool:
    """Whether h^v, which the global branch adds to tokens, has a gradient."""
    vision, text = config.model.vision, config.model.text
    return vision.num_trained_layers != 0 or vision.width != text.width


def _is_constant(config: Config) -> bool:
    """Whether nothing below the heads of the global branch trains."""
    all_locked = (
        config.model.text.num_locked_layers >= config.model.num_proofread_layers
    )
    return all_locked and not _feels_image(config)


def _branch(
    config: Config, branch: str, name: str, work: Work, saved: float, keys: float
) -> Part:
    """A branch with its vocabulary head; with pairing="cross" it runs twice.

    Args:
      saved: FLOP of the backward pass that locked parameters do not need.
      keys: multiply-adds of the keys and values that are made from image patches.
    """
    head, text = Work(), config.model.text
    if "correct" in config.loss.trained[branch]:
        num_edits = config.editor.max_edits
        head = _vocab_head(config, num_edits)
        if text.has_locked or not config.model.decoder_trains_embeddings:
            saved += 2.0 * num_edits * text.width * text.vocab_size
        if branch == "global" and _is_constant(config):
            saved += 2.0 * num_edits * text.width**2
    forward, again = work.forward + head.forward, work.recomputed(config)
    backward = work.backward + head.backward + again - saved
    if not _is_cross(config):
        return Part(name, forward, backward)
    # One pass needs no gradient of the image, the other none of the text's parameters.
    backward += work.backward_frozen + head.backward + again - saved
    return Part(f"{name}, twice", 2.0 * forward, backward - 2.0 * keys)


def _vocab_head(config: Config, positions: int) -> Work:
    """The transform and the decoder over the vocabulary."""
    text = config.model.text
    return Work(positions * text.width * (text.width + text.vocab_size))


def _editor_pass(config: Config) -> Work:
    """All passes of the masked-language model for one caption."""
    text, num_edits = config.model.text, config.editor.max_edits
    is_alone = config.editor.masking == "one_by_one"
    num_masked, num_passes = (1, num_edits) if is_alone else (num_edits, 1)
    num_last = num_masked if config.compute.editor_at_positions else None
    layers = _layers(text, text.num_layers, config.data.text_length, num_last)
    return (layers + _vocab_head(config, num_masked)) * num_passes


def _is_cross(config: Config) -> bool:
    return config.loss.pairing == "cross" and config.loss.has_proofreading


# ---- contrast ----


def _contrast(config: Config) -> Part:
    queue, batch = config.loss.queue_length, config.train.batch_size
    similarities = Work(2 * config.model.embedding_width * (batch + queue)).forward
    # Keys need no gradient. Soft targets are the similarities of the keys themselves.
    num_forward = 2 if config.loss.soft_target_weight > 0 else 1
    name = f"contrast against {queue:,} + {batch:,}"
    return Part(name, num_forward * similarities, similarities)
