"""Towers as StableHLO by `jax.export`, for CPU, CUDA and TPU at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export

from vilem_jax.errors import UserError
from vilem_jax.export.towers import Tower, free_rows
from vilem_jax.typing import JsonObject

PLATFORMS = ("cpu", "cuda", "tpu")
ENDING = "stablehlo"


def check_installed() -> None:
    """Raises UserError if the package that writes such files is missing."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise UserError(
            "StableHLO files need the package flatbuffers: pip install flatbuffers"
        ) from error


def describe() -> JsonObject:
    """What a reader of the files must know; JSON-ready."""
    return {
        "kind": ENDING,
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
        "calling_convention": jax.export.maximum_supported_calling_convention_version,
    }


def to_bytes(tower: Tower) -> bytes:
    """The tower with its weights, lowered for all of PLATFORMS."""
    # Full float32 products: GPUs and TPUs would round them to 10 or 7 bits by default.
    with jax.default_matmul_precision("highest"):
        export = jax.export.export(jax.jit(tower.function), platforms=PLATFORMS)
        return bytes(export(free_rows(tower)).serialize())


def runner(content: bytes) -> Callable[[Any], Any]:
    """rows -> embeddings, by the file's content."""
    return jax.export.deserialize(bytearray(content)).call
