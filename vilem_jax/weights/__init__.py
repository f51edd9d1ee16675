"""Foreign checkpoints in and out: one file a format, each a table of names."""

from vilem_jax.weights.folders import read_folder, sha256
from vilem_jax.weights.formats.huggingface_bert import (
    load_masked_language_model,
    load_mlm_head,
    load_text,
    read_text_config,
    save_masked_language_model,
    save_text,
)
from vilem_jax.weights.formats.huggingface_vit import (
    load_vision,
    read_vision_config,
    save_vision,
)
from vilem_jax.weights.tables import merge_into

__all__ = [
    "load_masked_language_model",
    "load_mlm_head",
    "load_text",
    "load_vision",
    "merge_into",
    "read_folder",
    "read_text_config",
    "read_vision_config",
    "save_masked_language_model",
    "save_text",
    "save_vision",
    "sha256",
]
