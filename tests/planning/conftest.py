"""The tiny step, compiled once for the tests that read its program."""

import pytest

from tests.tiny import tiny_config
from vilem_jax.distributed.mesh import one_device
from vilem_jax.planning import compiled, hlo


@pytest.fixture(scope="session")
def tiny_program() -> tuple[str, hlo.Program]:
    layout = one_device()
    text = compiled.lower_step(tiny_config(), layout).compile().as_text()
    return text, hlo.read(text)
