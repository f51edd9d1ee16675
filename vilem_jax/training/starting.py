"""What a run starts from: final settings and pretrained weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vilem_jax.config.freeze import to_dict, validate
from vilem_jax.config.schema import AugmentConfig, Config, ModelConfig
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.loading import check_edits, needs_edits
from vilem_jax.models.attention_kernel import resolve_here, with_attention
from vilem_jax.progress import notify
from vilem_jax.runs.origin import complete_model, read_origin_config
from vilem_jax.runs.workdir import CONFIG_FILE, read_config
from vilem_jax.training.fitting import fit_to_data
from vilem_jax.weights import starts
from vilem_jax.weights.tables import merge_into


def complete(config: Config, workdir: Path) -> Config:
    """`config` with what other files decide: shapes, and the digests of the editor.

    A resumed run keeps the shapes and the attention kernel that it stored, so the
    folders that it started from need not exist any more. All other settings come from
    `config`.

    Raises:
      UserError: a folder or hub name that cannot be read; an editor or edit table that
        is missing, or whose digest is not the one in `config.editor`; a kernel that the
        devices do not have.
    """
    # Of a run that is resumed; its folders of origin may be gone.
    stored = read_config(workdir) if (workdir / CONFIG_FILE).exists() else None
    config = fit_to_data(config, stored)
    config = dataclasses.replace(
        config,
        model=in_shape(config.model, stored and stored.model),
        augment=_as_learnt(config, stored),
        editor=check_edits(config) if needs_edits(config) else config.editor,
    )
    if stored and config.compute.attention == "auto":
        config = with_attention(config, stored.compute.attention)
    validate(config)
    # Before anything is compiled: the kernel itself would fail while tracing.
    return resolve_here(config)


def in_shape(
    model: ModelConfig,
    stored: ModelConfig | None = None,
    *,
    reads: Callable[[str, str], bool] = lambda name, key: True,
) -> ModelConfig:
    """`model` in the shapes of what it starts from.

    Args:
      stored: that of the run that is resumed, which keeps its shapes.
      reads: (name, key of the config) -> whether this origin is read.
    """
    if model.start_from and reads(model.start_from, "model.start_from"):
        model = complete_model(model, stored)
    text, vision, pickle = model.text, model.vision, model.allow_pickle
    name = text.start_from
    if name and stored and stored.text.start_from == name:
        text = dataclasses.replace(
            stored.text,
            dropout_rate=text.dropout_rate,
            num_trained_layers=text.num_trained_layers,
        )
    elif name and reads(name, "model.text.start_from"):
        text = starts.read_text_config(name, text, allow_pickle=pickle)
    name = vision.start_from
    if name and stored and stored.vision.start_from == name:
        vision = dataclasses.replace(
            stored.vision,
            image_size=vision.image_size,
            num_trained_layers=vision.num_trained_layers,
        )
    elif name and reads(name, "model.vision.start_from"):
        vision = starts.read_vision_config(name, vision, allow_pickle=pickle)
    return dataclasses.replace(model, text=text, vision=vision)


def _as_learnt(config: Config, stored: Config | None) -> AugmentConfig:
    """`config.augment`, with mean and std of what the image tower has learnt from.

    They are the origin's if they are at their defaults; others stay.

    Args:
      stored: of the run that is resumed, whose origin may be gone.
    """
    augment, model, default = config.augment, config.model, AugmentConfig()
    if (augment.mean, augment.std) != (default.mean, default.std):
        return augment
    start = None
    if stored and _image_origin(stored.model) == _image_origin(model):
        start = stored.augment
    elif model.start_from:
        start = read_origin_config(model.start_from).augment
    elif config.task == "vilem" and model.vision.start_from:
        name, allow_pickle = model.vision.start_from, model.allow_pickle
        start = starts.read_vision_start(name, allow_pickle=allow_pickle)
    if start is None:
        return augment
    return dataclasses.replace(augment, mean=start.mean, std=start.std)


def _image_origin(model: ModelConfig) -> tuple[str, str]:
    return model.start_from, model.vision.start_from


def must_agree(
    config: Config, corpus: Corpus, tokenizer: Tokenizer
) -> dict[str, object]:
    """What must be equal on all processes, by a name for the error message."""
    return {
        "settings": to_dict(config),
        "training data": (
            corpus.epoch_length,
            [(source.name, len(source)) for source in corpus.sources],
        ),
        "vocabulary": tokenizer.pieces,
    }


def pretrained(config: Config, params: dict) -> dict:
    """Random `params` of a `ViLEM`, with the pretrained towers put in.

    The heads' transforms start from the masked-language head if the text checkpoint has
    one.
    """
    text, vision = config.model.text, config.model.vision
    allow_pickle = config.model.allow_pickle
    for name, tower in (("text", text), ("vision", vision)):
        if tower.has_locked and not tower.start_from:
            key = f"config.model.{name}.num_trained_layers={tower.num_trained_layers}"
            notify(f"{key} locks random weights: config.model.{name}.start_from is ''")
    if text.start_from:
        origin = text.start_from
        subtree, head = starts.load_text(origin, text, allow_pickle=allow_pickle)
        params = merge_into(params, subtree, at=("text",), origin=origin)
        if head is not None:
            params = _start_heads(params, head, origin)
    if vision.start_from:
        origin = vision.start_from
        subtree = starts.load_vision(origin, vision, allow_pickle=allow_pickle)
        params = merge_into(params, subtree, at=("vision",), origin=origin)
        start = starts.read_vision_start(origin, allow_pickle=allow_pickle)
        if start and start.note:
            notify(f"{origin}: {start.note}")
    return params


def _start_heads(params: dict, head: dict, origin: str) -> dict:
    # Naming a masked token and correcting an edited one are nearly the same task.
    for name in ("local_head", "global_head"):
        if name in params:
            started = {
                "detect_transform": head["transform"],
                "correct_transform": head["transform"],
                "correct_bias": head["bias"],
            }
            params = merge_into(params, started, at=(name,), origin=origin)
    return params


def pretrained_editor(config: Config, params: dict) -> dict:
    """Random `params` of a `MaskedLanguageModel`, with the pretrained BERT put in.

    A BertModel has no masked-language head; the head is then random.
    """
    text = config.model.text
    if not text.start_from:
        return params
    tower, head = starts.load_text(
        text.start_from, text, allow_pickle=config.model.allow_pickle
    )
    subtree = {"text": tower} | (head or {})
    return merge_into(params, subtree, origin=text.start_from)
