"""Towers as ONNX by jax2onnx, checked in onnxruntime; the extra `[onnx]`."""

import importlib.metadata
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vilem_jax.errors import UserError
from vilem_jax.export.towers import Tower, free_rows
from vilem_jax.typing import JsonObject

ENDING = "onnx"
OPSET = 18  # of December 2022; the towers need nothing newer
INPUT = {"uint8": "pixels", "int32": "tokens"}
OUTPUT = "embedding"


def check_installed() -> tuple[ModuleType, ModuleType]:
    """(jax2onnx, onnxruntime), imported here alone; UserError if one is missing."""
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]  # an extra
        import onnxruntime  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise UserError(
            "ONNX files need jax2onnx and onnxruntime: pip install 'vilem-jax[onnx]'"
        ) from error
    return jax2onnx, onnxruntime


def describe() -> JsonObject:
    """What a reader of the files must know; JSON-ready."""
    return {
        "kind": ENDING,
        "opset": OPSET,
        "jax2onnx": importlib.metadata.version("jax2onnx"),
    }


def to_bytes(tower: Tower) -> bytes:
    """The tower with its weights, opset 18, free dimensions by name."""
    jax2onnx, _ = check_installed()
    # It warns of values without a type, which onnxruntime infers.
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model = jax2onnx.to_onnx(
            tower.function,
            [free_rows(tower)],
            model_name="vilem",
            opset=OPSET,
            input_names=[INPUT[tower.dtype]],
            output_names=[OUTPUT],
        )
    finally:
        logger.setLevel(before)
    return model.SerializeToString()


def runner(content: bytes) -> Callable[[Any], Any]:
    """rows -> embeddings, by onnxruntime on the CPU."""
    _, onnxruntime = check_installed()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda rows: session.run(None, {name: rows})[0]
