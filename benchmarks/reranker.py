"""The cross-encoder that evaluate.py times: it re-ranks as ALBEF's evaluation does.

It has random weights and is no part of the package: the upper half of BERT's layers,
each with cross-attention on all tokens of the image, and a head that decides whether
image and text match. A query is a text with k images; a pair costs the same if an image
is the query.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.models import layers
from vilem_jax.models.text import TextLayer


class Fusion(nnx.Module):
    """The layers that fuse image and text, and the matching head."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        text, compute = config.model.text, config.compute
        self.layers = nnx.List(
            TextLayer(text, config.model.vision.width, compute, rngs=rngs)
            for _ in range(text.num_layers // 2)
        )
        self.match = layers.linear(text.width, 2, compute, rngs)

    def scores(self, hidden, attention_mask, patches) -> jax.Array:
        """[k, L, W], bool [k, L] and image tokens [k, P + 1, W'] -> float32 [k].

        Keys and values of the images are computed for each pair, as ALBEF does.
        """
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, patches=patches)
        return self._score(hidden)

    def keys_and_values(self, patches) -> list[tuple[jax.Array, jax.Array]]:
        """Per layer, what can be cached of image tokens [N, P + 1, W']."""
        cross = [layer.cross_attention for layer in self.layers]
        return [
            tuple(
                layers.split_heads(part(patches), attention.num_heads)
                for part in (attention.key, attention.value)
            )
            for attention in cross
        ]

    def cached_scores(self, hidden, attention_mask, cached) -> jax.Array:
        """`scores` with given keys and values, [k, P + 1, H, D] per layer."""
        for layer, (key, value) in zip(self.layers, cached, strict=True):
            hidden = layer.attention(hidden, hidden, context_mask=attention_mask)
            cross = layer.cross_attention
            query = layers.split_heads(cross.query(hidden), cross.num_heads)
            mixed = layers.masked_attention(query, key, value)
            mixed = cross.output(layers.merge_heads(mixed))
            hidden = cross.norm(hidden + mixed)
            hidden = layer.norm(hidden + layer.mlp(hidden))
        return self._score(hidden)

    def _score(self, hidden) -> jax.Array:
        logits = self.match(hidden[:, 0]).astype(jnp.float32)
        return jax.nn.softmax(logits, axis=-1)[:, 1]


@dataclass(frozen=True)
class Reranker:
    """Compiled re-ranking of one query at a time, over a pool of images."""

    recomputed: Callable[[jax.Array, jax.Array], jax.Array]  # text, candidates -> [k]
    cached: Callable[[jax.Array, jax.Array], jax.Array]
    text: jax.Array  # [L, W], hidden states of a caption after the lower layers


def make_reranker(config: Config, pool: int) -> Reranker:
    """Random weights, a text, and the tokens of `pool` images, on the device."""
    graph, params = nnx.split(Fusion(config, rngs=nnx.Rngs(0)), nnx.Param)
    dtype = config.compute.dtype
    vision, text = config.model.vision, config.model.text
    shape = (pool, vision.num_patches + 1, vision.width)
    patches = jax.random.normal(jax.random.key(1), shape, dtype)
    shape = (config.data.text_length, text.width)
    hidden = jax.random.normal(jax.random.key(2), shape, dtype)

    def fusion(params):
        return nnx.merge(graph, params)

    def paired(hidden, candidates):
        hidden = jnp.broadcast_to(hidden[None], (len(candidates), *hidden.shape))
        return hidden, jnp.ones(hidden.shape[:2], bool)

    @jax.jit
    def recomputed(params, patches, hidden, candidates):
        pairs = paired(hidden, candidates)
        return fusion(params).scores(*pairs, patches[candidates])

    @jax.jit
    def cached(params, cache, hidden, candidates):
        chosen = jax.tree.map(lambda part: part[candidates], cache)
        return fusion(params).cached_scores(*paired(hidden, candidates), chosen)

    cache = jax.jit(lambda p, x: fusion(p).keys_and_values(x))(params, patches)
    return Reranker(
        lambda hidden, candidates: recomputed(params, patches, hidden, candidates),
        lambda hidden, candidates: cached(params, cache, hidden, candidates),
        hidden,
    )
