"""The learning-rate schedule, AdamW or Muon, and which parameters decay."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vilem_jax.config.schema import OptimizerConfig


def make_schedule(
    config: OptimizerConfig, num_steps: int, steps_per_epoch: int = 0
) -> Callable[[jax.Array], jax.Array]:
    """step (0-based) -> learning rate: linear warm-up, then a cosine to the final rate.

    Step s < warmup_steps gets learning_rate (s + 1) / warmup_steps, so that no step is
    spent at 0. With decay_per="epoch" the cosine moves at the start of each epoch.
    """
    warmup = config.warmup_steps
    span = max(num_steps - warmup, 1)  # of the cosine

    def learning_rate(step: jax.Array) -> jax.Array:
        since = step - warmup
        if config.decay_per == "epoch" and steps_per_epoch:
            # ALBEF's schedulers step once an epoch.
            since = step // steps_per_epoch * steps_per_epoch - warmup
        progress = jnp.clip(since / span, 0.0, 1.0)
        height = config.learning_rate - config.final_learning_rate
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        decayed = config.final_learning_rate + height * cosine
        warming = config.learning_rate * (step + 1) / max(warmup, 1)
        return jnp.where(step < warmup, warming, decayed)

    return learning_rate


def decays(path: tuple, value: jax.Array, config: OptimizerConfig) -> bool:
    """Whether weight decay applies to this parameter: matrices, but not positions.

    ALBEF's lineage decays [CLS], the positions and the temperature too: a switch.
    """
    # Paths of dicts have `key`, of lists `idx`; the last entry is a name here.
    name = str(getattr(path[-1], "key", path[-1]))
    if name in ("class_token", "position_embedding", "positions", "temperature"):
        return config.decays_all_but_biases_and_norms
    return value.ndim >= 2  # no biases, no norms


def takes_muon(path: tuple, value: jax.Array) -> bool:
    """Whether Muon updates this parameter: a kernel between hidden layers.

    Not the first kernel, of pixels, nor the last, of two logits: their rows or columns
    are not directions of one space. Embedding tables are not kernels.
    """
    names = [str(getattr(entry, "key", entry)) for entry in path]
    is_kernel = names[-1] == "kernel" and value.ndim == 2
    return is_kernel and names[-2] not in ("patch_embedding", "detect")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer without its learning rate: the step scales by -learning_rate(step).

    The rate follows the step counter of the state, which advances on skipped steps
    too; the optimizer's own counter corrects the bias of its moments and does not.
    """

    def mask(params):
        return jax.tree.map_with_path(partial(decays, config=config), params)

    # Of the whole gradient, before the moments see it.
    norm = config.clip_norm
    clip = optax.clip_by_global_norm(norm) if norm else optax.identity()
    adam = scale_by_adam(config)
    return optax.chain(
        clip,
        adam if config.name == "adamw" else _muon_and(adam, config.muon_rms),
        # Decoupled: added to the direction, so it scales with the learning rate.
        optax.add_decayed_weights(config.weight_decay, mask=mask),
    )


def scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's direction, in optax's state, with bias corrections exact in float32.

    optax computes 1 - 0.999 ** count in float32, whose first value is wrong in its
    fifth digit, and so were the first updates: 100 times the rounding of the rest.
    """
    b1, b2, eps = config.beta1, config.beta2, config.eps

    def update(updates, state, params=None):
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(
            lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates
        )
        mu_share, nu_share = _one_minus_power(b1, count), _one_minus_power(b2, count)
        direction = jax.tree.map(
            lambda m, v: m / mu_share / (jnp.sqrt(v / nu_share) + eps), mu, nu
        )
        return direction, optax.ScaleByAdamState(count, mu, nu)

    init = optax.scale_by_adam(b1=b1, b2=b2, eps=eps).init
    return optax.GradientTransformation(init, update)


def _muon_and(
    adam: optax.GradientTransformation, rms: float
) -> optax.GradientTransformation:
    """Muon for the kernels between hidden layers, `adam` for the rest.

    Muon (Jordan et al. 2024) updates along the nearest orthogonal matrix of a kernel's
    momentum, so that weak directions of a gradient count as much as strong ones. Times
    sqrt(longer side), its entries have a root mean square of 1 for any shape; at an
    `rms` of 0.2 they are about as large as Adam's, and one learning rate and decay suit
    both (Liu et al. 2025, arXiv:2502.16982).
    """

    def kinds(params):
        is_muon = jax.tree.map_with_path(takes_muon, params)
        return jax.tree.map(lambda muon: "muon" if muon else "adam", is_muon)

    def dimensions(kernels):  # plain matrices; Adam's parameters are masked out
        return jax.tree.map(lambda kernel: MuonDimensionNumbers(), kernels)

    def scaled(update, _):
        return rms * math.sqrt(max(update.shape)) * update

    direction = scale_by_muon(weight_dimension_numbers=dimensions)
    muon = optax.chain(direction, optax.stateless_with_tree_map(scaled))
    return optax.partition({"muon": muon, "adam": adam}, kinds)


def _one_minus_power(beta: float, count: jax.Array) -> jax.Array:
    """1 - beta ** count, without the cancellation."""
    # expm1 of the exact logarithm: no digits are lost for beta near 1.
    log_beta = math.log(beta) if beta > 0.0 else -math.inf
    return -jnp.expm1(count * log_beta)
