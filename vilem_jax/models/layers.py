"""The pieces both towers are made of: linear maps, norms, attention, dropout."""

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config import ComputeConfig

NORMAL_INIT = nnx.initializers.normal(0.02)  # BERT's and ViT's
MASKED = -1e30  # a logit that softmax turns into exactly 0 in float32 and bfloat16


def activation(name: str):
    """`gelu` is the exact one of BERT and ViT; JAX's own default is the tanh form."""
    return lambda x: jax.nn.gelu(x, approximate=name == "gelu_tanh")


def linear(in_width: int, out_width: int, compute: ComputeConfig, rngs: nnx.Rngs):
    return nnx.Linear(
        in_width,
        out_width,
        kernel_init=NORMAL_INIT,
        dtype=jnp.dtype(compute.dtype),
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def layer_norm(width: int, eps: float, compute: ComputeConfig, rngs: nnx.Rngs):
    """Statistics in float32, by the two-pass variance: the fast one loses digits."""
    return nnx.LayerNorm(
        width,
        epsilon=eps,
        dtype=jnp.dtype(compute.dtype),
        param_dtype=jnp.float32,
        use_fast_variance=False,
        rngs=rngs,
    )


def fold_in(keys: jax.Array | None, number: int) -> jax.Array | None:
    """Per-sample keys [B] for one purpose or layer; None (no dropout) stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def dropout(values: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Dropout with one key a sample, so that microbatches and devices change nothing.

    Args:
      values: [B, ...].
      keys: typed keys [B], or None for no dropout.
      rate: probability of a zero, rounded to 1/65536: 16 random bits decide an element,
        which halves the work of the random generator.
    """
    if keys is None or rate == 0.0:
        return values
    threshold = round(rate * 2**16)
    bits = jax.vmap(lambda key: jax.random.bits(key, values.shape[1:], jnp.uint16))(
        keys
    )
    scale = jnp.asarray(2**16 / (2**16 - threshold), values.dtype)
    return jnp.where(bits >= threshold, values * scale, jnp.zeros((), values.dtype))


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
    key_here: jax.Array | None = None,
    dropout_keys: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Softmax attention with dropout on the probabilities, as BERT has it.

    Args:
      query: [B, L, H, D].
      key, value: [B, S, H, D].
      key_here: bool [B, S], False at padding; None where all are real.
      dropout_keys: one key a sample, or None.

    Returns:
      [B, L, H, D]; the softmax runs in float32.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "blhd,bshd->bhls", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * scale
    if key_here is not None:
        logits = jnp.where(key_here[:, None, None, :], logits, MASKED)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    probabilities = dropout(probabilities, dropout_keys, dropout_rate)
    return jnp.einsum("bhls,bshd->blhd", probabilities, value)


class MLP(nnx.Module):
    """Two linear maps with an activation between: [..., W] -> [..., W]."""

    def __init__(self, width, mlp_width, activation_name, compute, *, rngs):
        self.expand = linear(width, mlp_width, compute, rngs)
        self.contract = linear(mlp_width, width, compute, rngs)
        self.activation_name = activation_name

    def __call__(self, hidden):
        return self.contract(activation(self.activation_name)(self.expand(hidden)))


class Transform(nnx.Module):
    """BERT's prediction-head transform: linear, activation, LayerNorm."""

    def __init__(self, width, eps, activation_name, compute, *, rngs):
        self.dense = linear(width, width, compute, rngs)
        self.norm = layer_norm(width, eps, compute, rngs)
        self.activation_name = activation_name

    def __call__(self, hidden):
        return self.norm(activation(self.activation_name)(self.dense(hidden)))


def at_places(values: jax.Array, places: jax.Array) -> jax.Array:
    """values [B, L, ...] at places [B, K] -> [B, K, ...]."""
    index = places.reshape(places.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def word_logits(
    hidden: jax.Array, word_embedding: jax.Array, bias: jax.Array
) -> jax.Array:
    """The decoder tied to the word embeddings: [B, K, W] -> float32 [B, K, V]."""
    product = jnp.einsum(
        "bkw,vw->bkv",
        hidden,
        word_embedding.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return product + bias[None, None, :]
