"""Edits captions into plausible wrong ones with the frozen editor, Sec. 3.2.1.

Training edits every batch with it, and stored edits for evaluation are made with it.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import Config, EditorConfig, TextConfig
from vilem_jax.keys import fold_in
from vilem_jax.models import layers
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params
from vilem_jax.objectives import editing

# Folded into a caption's key: the choice of positions and that of tokens must not share
# random numbers.
POSITIONS_PURPOSE, TOKENS_PURPOSE = 0, 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenEditor:
    """The editor's arrays: an argument of the step, in no state or checkpoint."""

    params: Params  # of a `MaskedLanguageModel`
    tables: editing.TokenTables


def edit_captions(
    graphdef: nnx.GraphDef,
    editor: FrozenEditor,
    tokens: jax.Array,
    keys: jax.Array,
    config: EditorConfig,
) -> editing.Edits:
    """Replaces some tokens of each caption by others that the editor finds likely.

    A caption's edits depend only on its own tokens and key.

    Args:
      graphdef: of the `MaskedLanguageModel` whose parameters `editor` holds.
      tokens: int32 [B, L], clean captions.
      keys: typed keys [B], one per caption.

    Returns:
      Edits that differ from `tokens` exactly at `edit_here`. A caption without an
      editable token, or without a candidate for its positions, is unchanged.
    """
    tables = editor.tables
    is_editable = tables.is_editable[tokens]
    position_keys = fold_in(keys, POSITIONS_PURPOSE)
    chosen = editing.choose_positions(position_keys, is_editable, config)
    model = nnx.merge(graphdef, editor.params)
    attention_mask = make_attention_mask(tokens, tables.pad_id)

    def logits_at(chosen: editing.ChosenPositions) -> jax.Array:
        masked = editing.mask_positions(tokens, chosen, tables.mask_id)
        return model.logits_at(masked, attention_mask, chosen.positions)

    if config.masking == "together":
        logits = logits_at(chosen)  # float32 [B, K, V]
    else:
        # Each position is masked alone, and the other tokens stay original: K passes.
        # A loop, not a vmap: K passes at once would need K times the memory.
        each = jax.tree.map(lambda rows: rows.T[..., None], chosen)  # K times [B, 1]
        logits = jnp.swapaxes(jax.lax.map(logits_at, each)[:, :, 0], 0, 1)
    original = layers.at_positions(tokens, chosen.positions)
    allowed = editing.candidate_logits(logits, original, tables, config)
    token_keys = fold_in(keys, TOKENS_PURPOSE)
    sampled, has_candidate = editing.sample_tokens(token_keys, allowed, config)
    # The filters of `candidate_logits` may leave nothing: such a position is no edit.
    chosen = chosen._replace(is_edit=chosen.is_edit & has_candidate)
    return editing.apply_edits(tokens, chosen, sampled)


def frozen_config(config: Config, text: TextConfig) -> Config:
    """The config of a frozen editor with the shape `text`: it has no dropout."""
    model = dataclasses.replace(
        config.model, text=dataclasses.replace(text, dropout_rate=0.0)
    )
    # Without gradients, recomputation would only cost time.
    compute = dataclasses.replace(config.compute, recompute=False)
    return dataclasses.replace(config, model=model, compute=compute)


def editor_graph(config: Config) -> nnx.GraphDef:
    """The graph of the masked-language model, without its arrays."""

    def build() -> MaskedLanguageModel:
        return MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(build), nnx.Param)[0]
