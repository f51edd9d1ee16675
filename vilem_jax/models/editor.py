"""The masked-language model that edits captions, and that `task="editor"` trains."""

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig
from vilem_jax.models import layers
from vilem_jax.models.text import TextTower


class MaskedLanguageModel(nnx.Module):
    """BertForMaskedLM: a BERT and the head that names the masked token."""

    def __init__(self, config: TextConfig, compute: ComputeConfig, *, rngs):
        self.text = TextTower(config, compute, rngs=rngs)
        self.transform = layers.Transform(config, compute, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))
        self.compute = compute

    def logits_at(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        positions: jax.Array,
        *,
        seeds=None,
    ) -> jax.Array:
        """Logits of the vocabulary at the positions, float32 [B, K, V].

        Args:
          tokens: int32 [B, L], [MASK] at the positions.
          attention_mask: bool [B, L], False at padding.
          positions: int32 [B, K], positions to fill.
          seeds: dropout seeds uint32 [B, 2], or None.
        """
        hidden = self.text.embed(tokens, seeds=seeds)
        last = len(self.text.layers) - 1
        if self.compute.editor_at_positions:
            # Exact: no other position of the last layer is read. K is about L / 4.
            hidden = self.text.run(hidden, attention_mask, stop=last, seeds=seeds)
            seeds = layers.for_site(seeds, last)
            hidden = self.text.layers[last](
                hidden, attention_mask, positions=positions, seeds=seeds
            )
        else:
            hidden = self.text.run(hidden, attention_mask, seeds=seeds)
            hidden = layers.at_positions(hidden, positions)
        embedding = self.text.embedding.words[...]  # the decoder is tied to it
        return layers.vocab_logits(self.transform(hidden), embedding, self.bias[...])
