"""ViLEM: two towers, their projections, the proofreading heads and the temperature."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, ModelConfig
from vilem_jax.models import layers
from vilem_jax.models.text import TextTower
from vilem_jax.models.vision import ImageFeatures, StartedImage, VisionTower
from vilem_jax.typing import PyTree


def level_of_layer(config: ModelConfig) -> tuple[int, ...]:
    """Eq. (11): the 1-based ViT block that each of the M_1 layers attends to.

    l_m = floor(N / M_1) (m - 1) + 1 for m = 1 .. M_1; with `levels="last"` all attend
    to the last block (Table 7 D).
    """
    depth, m1 = config.vision.num_layers, config.num_proofread_layers
    if config.levels == "last":
        return (depth,) * m1
    return tuple(depth // m1 * m + 1 for m in range(m1))  # m from 0


class ProofreadLogits(NamedTuple):
    detect: jax.Array  # [B, L, 2] float32; class 1 is "original", the paper's 1
    correct: jax.Array  # [B, K, V] float32


class ProofreadHead(nnx.Module):
    """Is each token the original, and which token belongs at the edited positions."""

    def __init__(self, config, compute, *, rngs):
        # Both tasks have BERT's transform: both can start from a pretrained one.
        self.detect_transform = layers.Transform(config, compute, rngs=rngs)
        self.detect = layers.linear(config.width, 2, compute, rngs)
        self.correct_transform = layers.Transform(config, compute, rngs=rngs)
        self.correct_bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(self, hidden, positions, token_embedding) -> ProofreadLogits:
        """hidden [B, L, W]; the vocabulary is scored at positions [B, K] only."""
        detect = self.detect(self.detect_transform(hidden)).astype(jnp.float32)
        # [B, K, V] instead of [B, L, V]: the largest array of the step by far.
        chosen = self.correct_transform(layers.at_positions(hidden, positions))
        bias = self.correct_bias[...]
        correct = layers.vocab_logits(chosen, token_embedding, bias)
        return ProofreadLogits(detect, correct)


class ViLEM(nnx.Module):
    """The trained network. Arrays in, arrays out; no loss and no training state."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, *, rngs):
        vision, text = config.vision, config.text
        self.vision = VisionTower(vision, compute, rngs=rngs)
        self.text = TextTower(
            text,
            compute,
            num_cross_layers=config.num_proofread_layers,
            image_width=vision.width,
            rngs=rngs,
        )
        embedding = config.embedding_width
        self.image_projection = layers.linear(vision.width, embedding, compute, rngs)
        self.text_projection = layers.linear(text.width, embedding, compute, rngs)
        self.local_head = ProofreadHead(text, compute, rngs=rngs)
        # None: the global branch uses the local one's.
        own = config.heads == "separate"
        self.global_head = ProofreadHead(text, compute, rngs=rngs) if own else None
        # h^v is added to token embeddings, so it must have their width.
        global_map = None
        if vision.width != text.width:
            global_map = layers.linear(vision.width, text.width, compute, rngs)
        self.global_map = global_map
        temperature = jnp.asarray(config.initial_temperature, jnp.float32)
        self.temperature = nnx.Param(temperature)
        self.config, self.compute = config, compute

    def image_features(
        self,
        pixels: jax.Array,
        *,
        with_levels: bool = True,
        started: StartedImage | None = None,
    ) -> ImageFeatures:
        """One ViT pass that serves all losses; pixels [B, R, R, 3], normalized.

        Args:
          started: of `start_image`, which is then not repeated.
        """
        if started is None:
            started = self.start_image(pixels, with_levels=with_levels)
        return self.vision.finish(started, levels=self._levels(with_levels))

    def start_image(self, pixels: jax.Array, *, with_levels: bool) -> StartedImage:
        """What the locked layers of the ViT make of pixels [B, R, R, 3]."""
        return self.vision.start(pixels, levels=self._levels(with_levels))

    def _levels(self, with_levels: bool) -> tuple[int, ...]:
        return level_of_layer(self.config) if with_levels else ()

    def project_image(self, features: ImageFeatures) -> jax.Array:
        """z^v: float32 [B, E], unit rows."""
        return unit_rows(self.image_projection(features.class_feature))

    def project_text(self, class_feature: jax.Array) -> jax.Array:
        """z^t: [B, W] -> float32 [B, E], unit rows."""
        return unit_rows(self.text_projection(class_feature))

    def encode_image(self, pixels: jax.Array) -> jax.Array:
        """Pixels [B, R, R, 3] -> float32 [B, E], unit rows."""
        return self.project_image(self.image_features(pixels, with_levels=False))

    def map_image(self, pixels: jax.Array) -> jax.Array:
        """`encode_image` without unit length: the frames of a video are averaged in it.

        Pixels [B, R, R, 3] -> float32 [B, E].
        """
        features = self.image_features(pixels, with_levels=False)
        return self.image_projection(features.class_feature).astype(jnp.float32)

    def encode_text(
        self, tokens, attention_mask, *, seeds=None, started: jax.Array | None = None
    ) -> jax.Array:
        """int32 [B, L], bool [B, L] -> float32 [B, E], unit rows.

        Args:
          started: of `TextTower.start`, which is then not repeated.
        """
        if started is None:
            started = self.text.start(tokens, attention_mask, seeds=seeds)
        return self.project_text(self.text.finish(started, attention_mask, seeds=seeds))

    def image_global(self, features: ImageFeatures) -> jax.Array:
        """h^v as it is added to token embeddings: [B, W] in the text tower's width."""
        is_normed = self.config.global_feature == "normed"
        feature = features.class_feature if is_normed else features.raw_class_feature
        return feature if self.global_map is None else self.global_map(feature)

    def proofread_local(self, tokens, attention_mask, image_levels, *, seeds=None):
        """The first M_1 layers with cross-attention: edited tokens -> [B, L, W]."""
        hidden = self.text.embed(tokens, seeds=seeds)
        m1 = self.config.num_proofread_layers
        return self.text.run(
            hidden, attention_mask, stop=m1, image_levels=image_levels, seeds=seeds
        )

    def proofread_global(self, tokens, attention_mask, image_global, *, seeds=None):
        """The first M_1 layers with h^v [B, W] added to each token -> [B, L, W]."""
        hidden = self.text.embed(tokens, image_global=image_global, seeds=seeds)
        m1 = self.config.num_proofread_layers
        return self.text.run(hidden, attention_mask, stop=m1, seeds=seeds)

    def encode_and_proofread_global(
        self, tokens, edited_tokens, attention_mask, image_global, *, seeds=(None, None)
    ) -> tuple[jax.Array, jax.Array]:
        """`encode_text(tokens)` and `proofread_global(edited)` in one pass of 2B rows.

        Both run the first M_1 layers without cross-attention. Stacking along a new axis
        keeps the two rows of a sample on its device; concatenating would move them.

        Returns:
          text_embedding [B, E], and the proofread hidden states [B, L, W].
        """
        m1 = self.config.num_proofread_layers
        clean_seeds, global_seeds = seeds
        clean = self.text.embed(tokens, seeds=clean_seeds)
        edited = self.text.embed(
            edited_tokens, image_global=image_global, seeds=global_seeds
        )
        both_seeds = None if clean_seeds is None else _interleave(*seeds)
        # One large matrix product is faster than two of half its rows.
        hidden = self.text.run(
            _interleave(clean, edited),
            _interleave(attention_mask, attention_mask),
            stop=m1,
            seeds=both_seeds,
        )
        clean, proofread = hidden[0::2], hidden[1::2]  # [B, L, W] each
        if m1 < self.config.text.num_layers:
            stops = self.compute.cls_only_last_layer
            clean = self.text.run(
                clean, attention_mask, start=m1, cls_only=stops, seeds=clean_seeds
            )
        return self.project_text(clean[:, 0]), proofread

    def local_logits(self, hidden: jax.Array, positions: jax.Array) -> ProofreadLogits:
        return self.local_head(hidden, positions, self._decoder())

    def global_logits(self, hidden: jax.Array, positions: jax.Array) -> ProofreadLogits:
        head = self.local_head if self.global_head is None else self.global_head
        return head(hidden, positions, self._decoder())

    def _decoder(self) -> jax.Array:
        """[V, W], the token embeddings: correction's output matrix, tied as in BERT."""
        embedding = self.text.embedding.words[...]
        if self.config.decoder_trains_embeddings:
            return embedding
        return jax.lax.stop_gradient(embedding)


def new_params(config: ModelConfig, compute: ComputeConfig, key: jax.Array) -> dict:
    """Random parameters of a `ViLEM`: N(0, init_std) matrices, zero biases; nested."""
    model = ViLEM(config, compute, rngs=nnx.Rngs(key))
    _, params = nnx.split(model, nnx.Param)
    return layers.with_init_std(nnx.to_pure_dict(params), config.init_std)


def unit_rows(values: jax.Array) -> jax.Array:
    """float32 [B, E] with rows of length 1; a zero row stays zero, with no NaN."""
    values = values.astype(jnp.float32)
    squared = jnp.sum(jnp.square(values), axis=-1, keepdims=True)
    # rsqrt of a maximum: the gradient at a zero row is 0 instead of NaN.
    return values * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """[B, ...] twice -> [2B, ...], the two rows of a sample side by side."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


Params = dict[str, PyTree]  # nested, float32


@cache
def model_graph(config: ModelConfig, compute: ComputeConfig) -> nnx.GraphDef:
    """The network without its arrays: `nnx.merge(graph, params)` is the model.

    `split` with Param alone raises if a module holds any other state, so the model is
    pure. Cached: the step, evaluation and encoders ask for the same graph.
    """
    model = nnx.eval_shape(lambda: ViLEM(config, compute, rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)[0]
