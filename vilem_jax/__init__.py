"""ViLEM: a dual encoder for image-text retrieval that learns detail by proofreading.

A frozen BERT edits captions into plausible wrong ones; the first layers of the text
tower, shown the image, must find each wrong word and correct it. For retrieval the
towers stay apart, so search costs what any dual encoder costs.

Shape letters, used everywhere:

  B  batch             L  text length (tokens)     P  patches of an image
  E  embedding width   W  model width              H  attention heads
  Q  queue length      V  vocabulary               K  edits per caption, at most
  R  image side (pixels)

Paper symbol -> name in the code:

  z^v, z^t     image_embedding, text_embedding [B, E]
  z^v^, z^t^   image_keys, text_keys [B, E] (momentum towers)
  theta^, m    momentum_params, momentum
  Q^v, Q^t     image_queue, text_queue [Q, E]; N_q: queue_length
  tau          temperature
  t^edit, e_i  edits.tokens [B, L], edits.edit_here [B, L]
  y^det        is_original [B, L] (the paper's 1)
  y^cor        correction [B, K], IGNORE where the paper says "none"
  M_1, N, l_m  num_proofread_layers, vision.num_layers, image_levels
  h^v, H^v     image_global [B, W], image_levels, M_1 arrays [B, P, W]
  L_EML, L_EMG loss_local, loss_global, weighted by local_weight, global_weight
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line asks for the version, and not for JAX
    from vilem_jax.api import Model

__version__ = "0.1.0"


def load(
    path: str | Path,
    weights: Literal["online", "momentum", "mixed"] = "online",
    *,
    batch_size: int | None = None,
    step: Literal["last", "best"] = "last",
) -> "Model":
    """The trained model `path` (a run, an exported folder, a hub name): `api.Model`.

    Arguments and errors are those of `vilem_jax.api.load`.
    """
    from vilem_jax import api

    return api.load(path, weights, batch_size=batch_size, step=step)
