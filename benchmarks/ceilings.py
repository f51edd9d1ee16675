"""What a matrix product reaches here: the ceiling beside which a figure stands."""

import time
from collections.abc import Callable


def jax_tflops(side: int, dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    return _best_tflops(side, lambda: jax.block_until_ready(multiply(a, a)))


def torch_tflops(side: int, device: str) -> float:
    """bfloat16 on CUDA, float32 on a CPU."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.randn(side, side, device=device, dtype=dtype)

    def once():
        a @ a
        wait_for_torch(device)

    return _best_tflops(side, once)


def wait_for_torch(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _best_tflops(side: int, once: Callable[[], object]) -> float:
    """Of five, the best."""
    once()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e12
