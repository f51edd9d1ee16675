"""The pieces both towers are made of: linear maps, norms, attention, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig, VisionConfig
from vilem_jax.masking import NEG_INF

INIT_STD = 0.02  # BERT's and ViT's; `with_init_std` scales what is drawn with it
NORMAL_INIT = nnx.initializers.normal(INIT_STD)
# 2^32 over the golden ratio, the increment of SplitMix: spreads counters over 32 bits.
GOLDEN = np.uint32(0x9E3779B9)


def with_init_std(params: dict, std: float) -> dict:
    """New parameters with the kernels scaled from N(0, 0.02) to N(0, std).

    A std of 0 means 1 / sqrt(inputs) for each kernel, which keeps the variance of
    activations in narrow layers. Embeddings, biases and norms are not scaled, and
    cross-attention is not either: a small new residual branch disturbs the layers of a
    pretrained BERT least.
    """

    def scaled(path, value):
        names = [entry.key for entry in path]
        if names[-1] != "kernel" or "cross_attention" in names:
            return value
        # Kernels are [inputs, outputs], so shape[0] is the fan-in.
        return value * ((std or value.shape[0] ** -0.5) / INIT_STD)

    return jax.tree.map_with_path(scaled, params)


def activation(name: str):
    """`gelu` is the exact one of BERT and ViT; JAX's own default is the tanh form."""
    return lambda x: jax.nn.gelu(x, approximate=name == "gelu_tanh")


def linear(in_width: int, out_width: int, compute: ComputeConfig, rngs: nnx.Rngs):
    return nnx.Linear(
        in_width,
        out_width,
        kernel_init=NORMAL_INIT,
        # Computed in `dtype`; stored, and updated by the optimizer, in float32.
        dtype=jnp.dtype(compute.dtype),
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def layer_norm(
    tower: TextConfig | VisionConfig, compute: ComputeConfig, rngs: nnx.Rngs
):
    """Statistics in float32, by the two-pass variance: the fast one loses digits."""
    return nnx.LayerNorm(
        tower.width,
        epsilon=tower.layer_norm_eps,
        dtype=jnp.dtype(compute.dtype),
        param_dtype=jnp.float32,
        use_fast_variance=False,
        rngs=rngs,
    )


def dropout_seeds(keys: jax.Array | None) -> jax.Array | None:
    """Typed keys [B] -> uint32 [B, 2], the seeds of dropout's masks."""
    return None if keys is None else jax.random.key_data(keys)


def for_site(seeds: jax.Array | None, number: int) -> jax.Array | None:
    """The seeds [B, 2] of one layer or one dropout in it; None (off) stays None."""
    if seeds is None:
        return None
    # number + 1, so that site 0 differs from the seeds themselves.
    first = _mixed(seeds[:, 0] + jnp.uint32(number + 1) * GOLDEN)
    return jnp.stack([first, _mixed(seeds[:, 1] ^ first)], axis=1)


def dropout(values: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """Dropout with one seed per sample, independent of microbatches and devices.

    The mask is an integer hash of (seed, index along each axis): a few operations that
    fuse with what follows. JAX's own threefry, with a key per sample, is 20 rounds per
    element and made up most of the step's compile time on a CPU. An element has the
    same mask in a longer or shorter array, so padding and [CLS]-only layers do not
    change it either.

    Args:
      values: [B, ...], at least two axes.
      seeds: uint32 [B, 2], or None for no dropout.
      rate: probability of a zero, to 32 bits.
    """
    if seeds is None or rate == 0.0:
        return values
    first, second = seeds[:, 0], seeds[:, 1]
    # One hash per axis: an axis of size n turns [...] into [..., n].
    for size in values.shape[1:-1]:
        first = _mixed(_along_new_axis(first, size))
        second = _mixed(second[..., None] ^ first)
    # The last axis, by far the largest array, costs one hash instead of two.
    bits = _mixed(_along_new_axis(first, values.shape[-1])) ^ second[..., None]
    is_kept = bits >= jnp.uint32(rate * 2**32)
    # Inverted dropout: evaluation, without it, needs no factor.
    scale = jnp.asarray(1.0 / (1.0 - rate), values.dtype)
    return jnp.where(is_kept, values * scale, jnp.zeros((), values.dtype))


def _along_new_axis(seeds: jax.Array, size: int) -> jax.Array:
    """uint32 [...] -> [..., size]: a seed per index, SplitMix's sequence."""
    steps = jnp.arange(size, dtype=jnp.uint32) * GOLDEN
    return seeds[..., None] + jnp.expand_dims(steps, range(seeds.ndim))


def _mixed(bits: jax.Array) -> jax.Array:
    """MurmurHash3's finalizer: every input bit changes half of the output bits."""
    # Shifts and multipliers are those of fmix32 in the reference implementation.
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def split_heads(values: jax.Array, num_heads: int) -> jax.Array:
    """[B, L, W] -> [B, L, H, W / H]."""
    return values.reshape(*values.shape[:-1], num_heads, -1)


def merge_heads(values: jax.Array) -> jax.Array:
    """[B, L, H, W / H] -> [B, L, W]."""
    return values.reshape(*values.shape[:-2], -1)


def masked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_mask: jax.Array | None = None,
    dropout_seeds: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Softmax attention with dropout on the probabilities, as BERT has it.

    Args:
      query: [B, L, H, D].
      key, value: [B, S, H, D].
      key_mask: bool [B, S], False at padding; None if there is none.
      dropout_seeds: uint32 [B, 2], or None.

    Returns:
      [B, L, H, D]; the softmax runs in float32.
    """
    scale = query.shape[-1] ** -0.5
    # Accumulated and normalized in float32, also when the towers compute in bfloat16.
    logits = jnp.einsum(
        "blhd,bshd->bhls", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * scale  # [B, H, L, S]
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, NEG_INF)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    # `jax.nn.dot_product_attention` has no dropout here, which BERT trains with.
    probabilities = dropout(probabilities, dropout_seeds, dropout_rate)
    return jnp.einsum("bhls,bshd->blhd", probabilities, value)


class MLP(nnx.Module):
    """Two linear maps with an activation between them: [..., W] -> [..., W]."""

    def __init__(self, config: TextConfig | VisionConfig, compute, *, rngs):
        self.expand = linear(config.width, config.mlp_width, compute, rngs)
        self.contract = linear(config.mlp_width, config.width, compute, rngs)
        self.activation_name = config.activation

    def __call__(self, hidden):
        return self.contract(activation(self.activation_name)(self.expand(hidden)))


class Transform(nnx.Module):
    """BERT's prediction-head transform: linear, activation, LayerNorm."""

    def __init__(self, config: TextConfig, compute, *, rngs):
        self.dense = linear(config.width, config.width, compute, rngs)
        self.norm = layer_norm(config, compute, rngs)
        self.activation_name = config.activation

    def __call__(self, hidden):
        return self.norm(activation(self.activation_name)(self.dense(hidden)))


def at_positions(values: jax.Array, positions: jax.Array) -> jax.Array:
    """values [B, L, ...] at positions [B, K] -> [B, K, ...]."""
    # [B, K, 1, ...]: take_along_axis broadcasts over the axes after the second.
    index = positions.reshape(positions.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def vocab_logits(
    hidden: jax.Array, token_embedding: jax.Array, bias: jax.Array
) -> jax.Array:
    """The decoder tied to the token embeddings: [B, K, W] -> float32 [B, K, V]."""
    product = jnp.einsum(
        "bkw,vw->bkv",
        hidden,
        token_embedding.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return product + bias[None, None, :]
