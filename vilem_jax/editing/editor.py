"""Edits captions into plausible wrong ones with the frozen editor, Sec. 3.2.1.

Training edits every batch with it, and stored edits for evaluation are made with it.
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
    *,
    pad_id: int,
    mask_id: int,
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
    is_editable = editor.tables.is_editable[tokens]
    position_keys = fold_in(keys, POSITIONS_PURPOSE)
    chosen = editing.choose_positions(position_keys, is_editable, config)
    model = nnx.merge(graphdef, editor.params)
    logits = _logits_at(model, tokens, chosen, config, pad_id, mask_id)
    original = layers.at_positions(tokens, chosen.positions)
    allowed = editing.candidate_logits(logits, original, editor.tables, config)
    token_keys = fold_in(keys, TOKENS_PURPOSE)
    sampled, has_candidate = editing.sample_tokens(token_keys, allowed, config)
    # The filters of `candidate_logits` may leave nothing: such a position is no edit.
    chosen = chosen._replace(is_edit=chosen.is_edit & has_candidate)
    return editing.apply_edits(tokens, chosen, sampled)


def _logits_at(
    model: MaskedLanguageModel,
    tokens: jax.Array,
    chosen: editing.ChosenPositions,
    config: EditorConfig,
    pad_id: int,
    mask_id: int,
) -> jax.Array:
    """The editor's logits at the chosen positions, float32 [B, K, V].

    All positions are masked together; with masking="one_by_one" each is masked alone
    and the other tokens stay original, in K passes.
    """
    attention_mask = make_attention_mask(tokens, pad_id)
    if config.masking == "together":
        masked = editing.mask_positions(tokens, chosen, mask_id)
        return model.logits_at(masked, attention_mask, chosen.positions)

    def alone(position_and_edit: tuple[jax.Array, jax.Array]) -> jax.Array:
        position, is_edit = position_and_edit  # [B], [B]
        one = editing.ChosenPositions(position[:, None], is_edit[:, None])
        masked = editing.mask_positions(tokens, one, mask_id)
        return model.logits_at(masked, attention_mask, one.positions)[:, 0]

    # A loop, not a vmap: K passes at once would need K times the memory.
    logits = jax.lax.map(alone, (chosen.positions.T, chosen.is_edit.T))  # [K, B, V]
    return jnp.swapaxes(logits, 0, 1)


def editor_graph(config: Config) -> nnx.GraphDef:
    """The graph of the masked-language model, without its arrays."""

    def build() -> MaskedLanguageModel:
        return MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(build), nnx.Param)[0]
