"""Shared by all tests: eight simulated CPU devices, and the folder of real data.

Programs are compiled without LLVM's optimizations: most of the tests' time is spent
compiling steps that then run for milliseconds.
"""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

# Before anything imports JAX, which reads both when it starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        # Two test processes on two cores: compiling parts in parallel only costs.
        "--xla_cpu_parallel_codegen_split_count=1",
        # A quarter less compile time; a newer jaxlib aborts on the unknown flag.
        "--xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.")
        else "",
        "--xla_force_host_platform_device_count=8",
    ]
).strip()

import jax

from vilem_jax import progress

ROOT = Path(__file__).resolve().parents[1]

# Tracing creates millions of objects that live on: Python's default frequency of
# garbage collection takes a fifteenth of the time of all tests.
gc.set_threshold(100_000, 50, 100)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


progress.SOON = 600.0  # seconds: what is printed does not depend on the machine's speed


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real data: VILEM_SHARED, or `shared` beside the checkout.

    Never part of the project; without it the tests that need it are skipped.
    """
    named = os.environ.get("VILEM_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder}/data is missing; set VILEM_SHARED")
    return folder


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that both processes end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def editor_run(tmp_path_factory):
    """(work directory, metrics) of a run with task="editor" of a few steps."""
    from tests.training.tiny_runs import run_settings, write_vocabulary
    from vilem_jax.config.freeze import freeze
    from vilem_jax.training.run import train

    folder = tmp_path_factory.mktemp("editor")
    settings = run_settings("editor", write_vocabulary(folder / "vocabulary"))
    return folder / "run", train(freeze(settings), folder / "run", num_devices=1)


@pytest.fixture(scope="session")
def editor_folder(editor_run):
    return editor_run[0] / "editor"


@pytest.fixture
def default_signals():
    """As a terminal sets them: `nohup` ignores SIGHUP, a background job SIGINT."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, interrupt)
