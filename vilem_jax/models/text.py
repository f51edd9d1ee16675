"""The text tower: a BERT whose first layers can look at an image.

`encode` runs all layers on the clean caption, without cross-attention. For proofreading
the first M_1 layers run on the edited caption, with the image added to the token
embeddings (global) or by cross-attention (local).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig
from vilem_jax.models import layers

EMBEDDING_SITE = 1000  # of dropout; no layer has this number


class Attention(nnx.Module):
    """Attention with its residual and LayerNorm, BERT's post-norm order."""

    def __init__(self, config: TextConfig, context_width, compute, *, rngs):
        width = config.width
        self.query = layers.linear(width, width, compute, rngs)
        self.key = layers.linear(context_width, width, compute, rngs)
        self.value = layers.linear(context_width, width, compute, rngs)
        self.output = layers.linear(width, width, compute, rngs)
        self.norm = layers.layer_norm(config, compute, rngs)
        self.num_heads, self.dropout_rate = config.num_heads, config.dropout_rate

    def __call__(self, hidden, context, *, context_mask=None, seeds=None):
        """Queries of hidden [B, L, W], keys of context [B, S, W'].

        Args:
          context_mask: bool [B, S], False at padding; None if there is none.
          seeds: dropout seeds uint32 [B, 2], or None.
        """
        query, key, value = (  # [B, L or S, H, W / H]
            layers.split_heads(part, self.num_heads)
            for part in (self.query(hidden), self.key(context), self.value(context))
        )
        mixed = layers.masked_attention(
            query,
            key,
            value,
            key_mask=context_mask,
            dropout_seeds=layers.for_site(seeds, 0),
            dropout_rate=self.dropout_rate,
        )
        mixed = self.output(layers.merge_heads(mixed))
        mixed = layers.dropout(mixed, layers.for_site(seeds, 1), self.dropout_rate)
        # BERT normalizes after the residual sum, the ViT before attention.
        return self.norm(hidden + mixed)


class TextLayer(nnx.Module):
    """Self-attention, cross-attention if it has one and is given patches, MLP."""

    def __init__(
        self, config: TextConfig, image_width, compute, *, is_locked=False, rngs
    ):
        own = _without_dropout(config) if is_locked else config
        self.attention = Attention(own, config.width, compute, rngs=rngs)
        # Its keys and values have the width of the patches. It always trains.
        cross = None
        if image_width is not None:
            cross = Attention(config, image_width, compute, rngs=rngs)
        self.cross_attention = cross
        self.mlp = layers.MLP(config, compute, rngs=rngs)
        self.norm = layers.layer_norm(config, compute, rngs)
        self.dropout_rate = own.dropout_rate

    def __call__(
        self, hidden, attention_mask, *, patches=None, positions=None, seeds=None
    ):
        """One layer.

        Args:
          hidden: [B, L, W].
          attention_mask: bool [B, L], False at padding.
          patches: [B, P, W'] for cross-attention; None turns it off.
          positions: int32 [B, K]: compute these positions alone, [B, K, W].
          seeds: dropout seeds uint32 [B, 2], or None.
        """
        # Keys and values come from all positions, also if few positions are computed.
        context = hidden
        if positions is not None:
            hidden = layers.at_positions(hidden, positions)
        own_seeds = layers.for_site(seeds, 0)
        hidden = self.attention(
            hidden, context, context_mask=attention_mask, seeds=own_seeds
        )
        if patches is not None:
            if self.cross_attention is None:
                raise ValueError("this layer has no cross-attention for patches")
            own_seeds = layers.for_site(seeds, 1)
            # Every patch is real: no mask.
            hidden = self.cross_attention(hidden, patches, seeds=own_seeds)
        # Sites 0, 1, 2 of this layer; each `Attention` splits its own again.
        expanded = self.mlp(hidden)
        expanded = layers.dropout(
            expanded, layers.for_site(seeds, 2), self.dropout_rate
        )
        return self.norm(hidden + expanded)


class TextEmbedding(nnx.Module):
    """Tokens, positions and token type 0, then LayerNorm and dropout."""

    def __init__(self, config: TextConfig, compute: ComputeConfig, *, rngs):
        def table(rows):
            return nnx.Param(layers.NORMAL_INIT(rngs.params(), (rows, config.width)))

        self.words = table(config.vocab_size)  # BERT's word_embeddings
        self.positions = table(config.max_positions)
        self.token_types = table(config.num_token_types)
        self.norm = layers.layer_norm(config, compute, rngs)
        self.dropout_rate = config.dropout_rate

    def __call__(self, tokens, *, seeds=None):
        """int32 [B, L] -> [B, L, W]; a ValueError if L exceeds the position table."""
        # Indexing past the table would clamp to its last row, silently.
        length, limit = tokens.shape[1], self.positions[...].shape[0]
        if length > limit:
            raise ValueError(f"{length} tokens a text, but only {limit} positions")
        summed = (
            self.words[...][tokens]
            + self.positions[...][None, :length]
            # BERT's second segment is never used: a caption is one text.
            + self.token_types[...][None, :1]
        )
        return layers.dropout(self.norm(summed), seeds, self.dropout_rate)


class TextTower(nnx.Module):
    """BERT without a pooler; the first `num_cross_layers` can look at an image."""

    def __init__(
        self,
        config: TextConfig,
        compute: ComputeConfig,
        *,
        num_cross_layers: int = 0,
        image_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        own = _without_dropout(config) if config.has_locked else config
        self.embedding = TextEmbedding(own, compute, rngs=rngs)
        self.layers = nnx.List(
            TextLayer(
                config,
                image_width if number < num_cross_layers else None,
                compute,
                is_locked=number < config.num_locked_layers,
                rngs=rngs,
            )
            for number in range(config.num_layers)
        )
        self.config, self.compute = config, compute

    def embed(self, tokens, *, image_global=None, seeds=None):
        """Token embeddings [B, L, W], with the image's feature [B, W] added to each."""
        hidden = self.embedding(tokens, seeds=layers.for_site(seeds, EMBEDDING_SITE))
        if image_global is None:
            return hidden
        # Added after LayerNorm, at the input of the first layer: Sec. 3.2.2.
        return hidden + image_global.astype(hidden.dtype)[:, None, :]

    def run(
        self,
        hidden: jax.Array,
        attention_mask: jax.Array,
        *,
        start: int = 0,
        stop: int | None = None,
        image_levels: Sequence[jax.Array] | None = None,
        cls_only: bool = False,
        seeds: jax.Array | None = None,
    ) -> jax.Array:
        """Layers start..stop (0-based, stop excluded) on hidden [B, L, W].

        Args:
          attention_mask: bool [B, L], False at padding.
          image_levels: for each layer the patches [B, P, W'] of its cross-attention;
            None turns cross-attention off.
          cls_only: the last of these layers computes [CLS] alone: [B, 1, W].
          seeds: dropout seeds uint32 [B, 2]; None turns dropout off.
        """
        stop = len(self.layers) if stop is None else stop
        class_position = jnp.zeros((hidden.shape[0], 1), jnp.int32)
        for number in range(start, stop):
            run = partial(
                self.layers[number],
                patches=None if image_levels is None else image_levels[number],
                positions=class_position if cls_only and number == stop - 1 else None,
            )
            if self.compute.recompute:  # a function of arrays, the layer closed over
                run = jax.checkpoint(run)
            # The layer's own number, so that a pass in two parts (start) draws the same
            # dropout as one pass.
            own_seeds = layers.for_site(seeds, number)
            hidden = run(hidden, attention_mask, seeds=own_seeds)
        return hidden

    def encode(self, tokens, attention_mask, *, seeds=None) -> jax.Array:
        """All layers without cross-attention: [CLS] of the last layer, [B, W]."""
        started = self.start(tokens, attention_mask, seeds=seeds)
        return self.finish(started, attention_mask, seeds=seeds)

    def start(self, tokens, attention_mask, *, seeds=None) -> jax.Array:
        """The embedding and the locked layers, which need no gradient.

        [B, L, W], or [B, 1, W], [CLS] alone, if all layers are locked.
        """
        hidden = self.embed(tokens, seeds=seeds)
        stop, last = self.config.num_locked_layers, len(self.layers)
        if stop == 0:
            return hidden
        cls_only = self.compute.cls_only_last_layer and stop == last
        hidden = self.run(hidden, attention_mask, stop=stop, cls_only=cls_only)
        return hidden[:, :1] if stop == last else hidden

    def finish(self, started, attention_mask, *, seeds=None) -> jax.Array:
        """The other layers: [CLS] of the last one, [B, W]."""
        start = self.config.num_locked_layers
        if start == len(self.layers):
            return started[:, 0]
        # Nothing reads the other positions of the last layer. With the same in the ViT
        # this saves 6 % of the step's FLOPs at the paper's shape.
        cls_only = self.compute.cls_only_last_layer
        hidden = self.run(
            started, attention_mask, start=start, cls_only=cls_only, seeds=seeds
        )
        return hidden[:, 0]


def _without_dropout(config: TextConfig) -> TextConfig:
    """Of what is locked: it cannot overfit, and is the same in both models."""
    return replace(config, dropout_rate=0.0)


def make_attention_mask(tokens: jax.Array, pad_id: int) -> jax.Array:
    """bool [B, L]: everything but padding, [CLS] and [SEP] included."""
    return jnp.not_equal(tokens, pad_id)
