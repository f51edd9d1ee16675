"""The speed of a matrix product and of a copy (G0), to compare other speeds with."""

import time
from collections.abc import Callable

import reporting

LABELS = {"matmul_tflops": "matmul, TFLOP/s", "copy_tb_s": "copy, TB/s"}


def spreads(rounds: list[dict]) -> dict[str, dict]:
    """Spreads over rounds that each hold the ceilings of `of_jax` or `of_torch`."""
    return {name: reporting.spread([each[name] for each in rounds]) for name in LABELS}


def rows(found: dict[str, dict]) -> list[list[str]]:
    """The result of `spreads` as rows of a table."""
    return [[LABELS[name], reporting.cell(each)] for name, each in found.items()]


def of_jax(options, dtype: str) -> dict[str, float]:
    """The ceilings by the names of `LABELS`.

    Args:
      options: those of `shapes.add_options`.
    """
    import jax
    import jax.numpy as jnp

    side, size = options.matmul, int(options.copy * 1e9 / 4)
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    x, negate = jnp.ones(size, jnp.float32), jax.jit(jnp.negative)
    product = _best_seconds(lambda: jax.block_until_ready(multiply(a, a)))
    copy = _best_seconds(lambda: jax.block_until_ready(negate(x)))
    return _metrics(side, product, size, copy)


def of_torch(options) -> dict[str, float]:
    """The same by torch; bfloat16 on CUDA, float32 on a CPU."""
    import torch

    device, side, size = options.device, options.matmul, int(options.copy * 1e9 / 4)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.ones(size, device=device)

    def multiply():
        torch.matmul(a, a)
        wait_for_torch(device)

    def negate():
        torch.neg(x)
        wait_for_torch(device)

    return _metrics(side, _best_seconds(multiply), size, _best_seconds(negate))


def wait_for_torch(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _metrics(side: int, product: float, size: int, copy: float) -> dict[str, float]:
    """From seconds; a copy reads and writes `size` float32 numbers."""
    tflops = 2 * side**3 / product / 1e12
    return {"matmul_tflops": tflops, "copy_tb_s": 2 * 4 * size / copy / 1e12}


def _best_seconds(once: Callable[[], object]) -> float:
    """The best of five runs."""
    once()  # not timed: it may compile
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
