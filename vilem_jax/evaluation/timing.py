"""The time that each stage of an evaluation takes, and the device.

encoder = encoder.timed()
...
metrics["measured"] = measured(encoder)
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vilem_jax.evaluation.encoding import Encoder

# In the order of the report. The times of the towers exclude compilation and the first
# run of each shape, which are "warm_up".
STAGES = (
    "read_images",
    "encode_images",
    "tokenize",
    "encode_texts",
    "proofread",
    "similarity",
    "ranking",
    "warm_up",
)


class Stopwatch:
    """Seconds of wall clock by stage, added up over any number of measurements."""

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def in_order(self) -> dict[str, float]:
        """Seconds of the stages that were measured, in the order of `STAGES`."""
        return {stage: round(s, 6) for stage, s in self.seconds.items() if s}


@contextlib.contextmanager
def measure(clock: Stopwatch | None, stage: str) -> Iterator[None]:
    """Adds what the block takes to `stage` of the clock, if there is one."""
    start = time.perf_counter()
    yield
    if clock:
        clock.seconds[stage] += time.perf_counter() - start


def measured(encoder: "Encoder") -> dict:
    """The settings of an `Encoder` that affect time, and the seconds of each stage.

    Returns:
      {"image_size" (pixels), "dtype", "device", "batch_size", "seconds": {stage:
      seconds}, "scores_on"}. `encode_images` and `encode_texts` hold the towers alone,
      with the copies to and from the device; `read_images` is the wait for files and
      decoding; `warm_up` is the compilation and one run of each shape.
    """
    return {
        "image_size": encoder.image_size,
        "dtype": encoder.config.compute.dtype,
        "device": device_name(),
        "batch_size": encoder.batch_size,
        "scores_on": "host, NumPy, summed in float64",
        "seconds": encoder.clock.in_order() if encoder.clock else {},
    }


def device_name() -> str:
    """The first device of JAX, in words: "NVIDIA H200", "CPU with 2 cores"."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"CPU with {os.cpu_count()} cores"
    return device.device_kind
