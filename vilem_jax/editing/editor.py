"""The frozen editor at work: captions in, plausible wrong captions out, Sec. 3.2.1.

Training edits every batch with this, and evaluation makes its stored edits with it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import Config, EditorConfig
from vilem_jax.keys import fold_in
from vilem_jax.models import layers
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params
from vilem_jax.objectives import editing

POSITIONS_PURPOSE, TOKENS_PURPOSE = 0, 1  # what a caption's key is folded with


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenEditor:
    """The editor's arrays: an argument of the step, never in a state or checkpoint."""

    params: Params  # of a `MaskedLanguageModel`
    tables: editing.TokenTables


def edit_captions(
    graphdef: nnx.GraphDef,
    editor: FrozenEditor,
    tokens: jax.Array,
    keys: jax.Array,
    config: EditorConfig,
    *,
    pad_id: int,
    mask_id: int,
) -> editing.Edits:
    """Replaces some words of each caption by what the editor finds likely there.

    A caption's edits depend on its own tokens and key alone.

    Args:
      graphdef: of the `MaskedLanguageModel` whose parameters `editor` holds.
      tokens: int32 [B, L], clean captions.
      keys: typed keys [B], one a caption.

    Returns:
      Edits that differ from `tokens` exactly where `edit_here`. A caption without a
      word, or without a candidate for its positions, comes back as it was.
    """
    is_editable = editor.tables.is_editable[tokens]
    position_keys = fold_in(keys, POSITIONS_PURPOSE)
    chosen = editing.choose_positions(position_keys, is_editable, config)
    model = nnx.merge(graphdef, editor.params)
    logits = _logits_at(model, tokens, chosen, config, pad_id, mask_id)
    original = layers.at_positions(tokens, chosen.positions)
    allowed = editing.candidate_logits(logits, original, editor.tables, config)
    token_keys = fold_in(keys, TOKENS_PURPOSE)
    words, has_candidate = editing.sample_tokens(token_keys, allowed, config)
    chosen = chosen._replace(is_edit=chosen.is_edit & has_candidate)
    return editing.apply_edits(tokens, chosen, words)


def _logits_at(
    model: MaskedLanguageModel,
    tokens: jax.Array,
    chosen: editing.ChosenPositions,
    config: EditorConfig,
    pad_id: int,
    mask_id: int,
) -> jax.Array:
    """The editor's scores at the positions, float32 [B, K, V].

    All positions are masked together; with masking="one_by_one" each is masked alone
    and the other words stay original, in K passes.
    """
    attention_mask = make_attention_mask(tokens, pad_id)
    if config.masking == "together":
        masked = editing.mask_positions(tokens, chosen, mask_id)
        return model.logits_at(masked, attention_mask, chosen.positions)

    def alone(position_and_edit):
        position, is_edit = position_and_edit  # [B], [B]
        one = editing.ChosenPositions(position[:, None], is_edit[:, None])
        masked = editing.mask_positions(tokens, one, mask_id)
        return model.logits_at(masked, attention_mask, one.positions)[:, 0]

    logits = jax.lax.map(alone, (chosen.positions.T, chosen.is_edit.T))  # [K, B, V]
    return jnp.swapaxes(logits, 0, 1)


def editor_graph(config: Config) -> nnx.GraphDef:
    """The masked-language model without its arrays."""

    def build():
        return MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(build), nnx.Param)[0]
