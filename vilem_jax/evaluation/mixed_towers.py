"""Online and momentum towers scored against each other.

The score of an image and a caption is the mean of two cosines: online caption with
momentum image, momentum caption with online image. These are the pairs that
`config.loss.pairing="cross"` trains. It is the product of two unit rows of twice the
width, [momentum, online] of the image with [online, momentum] of the caption, each
divided by the root of 2: so all that takes embeddings takes these.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vilem_jax.evaluation.encoding import Encoder
from vilem_jax.models.vilem import Params


def mixed_encoder(online: Encoder, momentum_params: Params) -> Encoder:
    """`online` with embeddings [N, 2E] of both towers; it proofreads as before.

    Args:
      momentum_params: the tree of `online.params`.
    """

    def both(
        program: Callable, first: str, second: str, root: float = 2**0.5
    ) -> Callable:
        def run(params, rows):
            parts = [program(params[weights], rows) for weights in (first, second)]
            return jnp.concatenate(parts, axis=-1) / root

        return jax.jit(run)

    def online_only(program: Callable) -> Callable:
        return lambda params, *rows: program(params["online"], *rows)

    programs = {name: online_only(run) for name, run in online.programs.items()}
    programs["images"] = both(online.programs["images"], "momentum", "online")
    # Frames are averaged first; each half of the mean then gets its length.
    programs["frames"] = both(online.programs["frames"], "momentum", "online", 1.0)
    programs["texts"] = both(online.programs["texts"], "online", "momentum")
    params = {"online": online.params, "momentum": jax.device_put(momentum_params)}
    return dataclasses.replace(
        online, params=params, programs=programs, parts=2, warm=set()
    )
