"""What a step is given, as shapes alone: no data, no weights, no memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vilem_jax.config.schema import Config
from vilem_jax.objectives.editing import TokenTables
from vilem_jax.training import editor_step


def uses_editor(config: Config) -> bool:
    """Whether the step itself edits captions: edits prepared before come as data."""
    return (
        config.task == "vilem"
        and config.loss.has_proofreading
        and not config.editor.edit_table
    )


def batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """What `data/batches.py` yields: [B, ...] by name."""
    size, side = config.train.batch_size, config.model.vision.image_size

    def rows(dtype, *shape):
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    arrays = {
        "tokens": rows(jnp.int32, config.data.text_length),
        "sample_id": rows(jnp.int32),
        "image_id": rows(jnp.int32),
        "is_corrupt": rows(jnp.bool_),
    }
    if config.task == "editor":
        return arrays | {"pixels": rows(jnp.uint8, 0, 0, 3)}
    if config.loss.has_proofreading and config.editor.edit_table:
        num = config.editor.max_edits
        arrays |= {
            "edit_positions": rows(jnp.int32, num),
            "edit_tokens": rows(jnp.int32, num),
            "is_edit": rows(jnp.bool_, num),
        }
    return arrays | {"pixels": rows(jnp.uint8, side, side, 3)}


def key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def tables(config: Config) -> TokenTables:
    """Of the vocabulary."""
    size = config.model.text.vocab_size
    return jax.eval_shape(lambda: TokenTables(*[jnp.zeros(size, bool)] * 3))


def editor_config(config: Config) -> Config:
    """Of the frozen editor: a BERT in the shape of the text tower, which it is in the
    paper; no dropout, and nothing computed twice."""
    text = dataclasses.replace(config.model.text, dropout_rate=0.0)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, text=text),
        compute=dataclasses.replace(config.compute, recompute=False),
    )


def editor_params(config: Config) -> dict:
    """Of a `MaskedLanguageModel`; in `task="editor"` those that train."""
    own = editor_config(config)
    return jax.eval_shape(
        lambda k: editor_step.init_editor_params(own, k), jax.random.key(0)
    )


def editor_state(config: Config) -> editor_step.State:
    return jax.eval_shape(
        lambda k: editor_step.init_editor_state(
            config, editor_step.init_editor_params(config, k)
        ),
        jax.random.key(0),
    )


def masking_tables(config: Config) -> editor_step.MaskingTables:
    """Of a vocabulary in which all but the five special tokens are editable."""
    size = config.model.text.vocab_size
    is_editable = jax.ShapeDtypeStruct((size,), bool)
    return editor_step.MaskingTables(
        is_editable, jax.ShapeDtypeStruct((size - 5,), np.int32)
    )
