"""The arguments of a step as shapes and dtypes: no data, no weights, no memory."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vilem_jax.config.schema import Config
from vilem_jax.editing.editor import frozen_config
from vilem_jax.editing.loading import needs_edits
from vilem_jax.models.vilem import Params
from vilem_jax.objectives.editing import TokenTables
from vilem_jax.training import editor_step
from vilem_jax.training.state import State


def uses_editor(config: Config) -> bool:
    """Whether the step edits captions; with an edit table they come edited."""
    return needs_edits(config) and not config.editor.edit_table


def batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of `data/batches.py`, [B, ...] by name."""
    size, side = config.train.batch_size, config.model.vision.image_size

    def rows(dtype: DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    arrays = {
        "tokens": rows(jnp.int32, config.data.text_length),
        "sample_id": rows(jnp.int32),
        "image_id": rows(jnp.int32),
        "is_corrupt": rows(jnp.bool_),
    }
    if config.task == "editor":  # reads no image
        return arrays | {"pixels": rows(jnp.uint8, 0, 0, 3)}
    if config.loss.has_proofreading and config.editor.edit_table:
        edited = rows(jnp.int32, config.editor.max_edits)
        is_edit = rows(jnp.bool_, config.editor.max_edits)
        arrays |= {"edit_positions": edited, "edit_tokens": edited, "is_edit": is_edit}
    return arrays | {"pixels": rows(jnp.uint8, side, side, 3)}


def tables(config: Config) -> TokenTables:
    """With any ids: they change no shape."""
    size = config.model.text.vocab_size
    return jax.eval_shape(
        lambda: TokenTables(*[jnp.zeros(size, bool)] * 3, pad_id=0, mask_id=1)
    )


def editor_config(config: Config) -> Config:
    """Of the frozen editor, in the shape of the text tower, as in the paper."""
    return frozen_config(config, config.model.text)


def editor_params(config: Config) -> Params:
    """Of a `MaskedLanguageModel`; with `task="editor"` those that train."""
    config = editor_config(config)
    return jax.eval_shape(
        lambda key: editor_step.init_editor_params(config, key), jax.random.key(0)
    )


def editor_state(config: Config) -> State:
    params = editor_params(config)
    return jax.eval_shape(lambda p: editor_step.init_editor_state(config, p), params)


def masking_tables(config: Config) -> editor_step.MaskingTables:
    """Of a vocabulary in which all but the five special tokens are editable."""
    size = config.model.text.vocab_size - 5
    editable = jax.eval_shape(lambda: jnp.zeros(size, jnp.int32))
    return editor_step.MaskingTables(tables(config), editable)
