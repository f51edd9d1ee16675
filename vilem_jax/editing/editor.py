"""The frozen editor at work: captions in, plausible wrong captions out, Sec. 3.2.1.

Training edits every batch with this, and evaluation makes its stored edits with it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import Config, EditorConfig
from vilem_jax.keys import fold_in
from vilem_jax.models import layers
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.text import is_real_token
from vilem_jax.objectives import editing

PLACES_PURPOSE, WORDS_PURPOSE = 0, 1  # what a caption's key is folded with


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenEditor:
    """The editor's arrays: an argument of the step, never in a state or checkpoint."""

    params: dict[str, Any]  # of a `MaskedLanguageModel`
    tables: editing.WordTables


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
      word, or without a candidate for its places, comes back as it was.
    """
    is_word = editor.tables.is_word[tokens]
    place_keys = fold_in(keys, PLACES_PURPOSE)
    chosen = editing.choose_places(place_keys, is_word, config)
    model = nnx.merge(graphdef, editor.params)
    logits = _logits_at(model, tokens, chosen, config, pad_id, mask_id)
    original = layers.at_places(tokens, chosen.places)
    allowed = editing.candidate_logits(logits, original, editor.tables, config)
    word_keys = fold_in(keys, WORDS_PURPOSE)
    words, has_candidate = editing.sample_words(word_keys, allowed, config)
    chosen = chosen._replace(is_edit=chosen.is_edit & has_candidate)
    return editing.apply_edits(tokens, chosen, words)


def _logits_at(
    model: MaskedLanguageModel,
    tokens: jax.Array,
    chosen: editing.Places,
    config: EditorConfig,
    pad_id: int,
    mask_id: int,
) -> jax.Array:
    """The editor's scores at the places, float32 [B, K, V].

    All places are masked together; with masking="one_by_one" each is masked alone and
    the other words stay original, in K passes.
    """
    is_token = is_real_token(tokens, pad_id)
    if config.masking == "together":
        masked = editing.mask_places(tokens, chosen, mask_id)
        return model.logits_at(masked, is_token, chosen.places)

    def alone(place_and_edit):
        place, is_edit = place_and_edit  # [B], [B]
        one = editing.Places(place[:, None], is_edit[:, None])
        masked = editing.mask_places(tokens, one, mask_id)
        return model.logits_at(masked, is_token, one.places)[:, 0]

    logits = jax.lax.map(alone, (chosen.places.T, chosen.is_edit.T))  # [K, B, V]
    return jnp.swapaxes(logits, 0, 1)


def editor_graph(config: Config) -> nnx.GraphDef:
    """The masked-language model without its arrays."""

    def build():
        return MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(build), nnx.Param)[0]
