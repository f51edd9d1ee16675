"""The step of a run, compiled from its config alone: its memory, products, collectives.

No data, no weights, no accelerator: shapes come from the config. The compiler for TPUs
runs on any Linux machine with libtpu.
"""

import importlib.util
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import Layout, check_batch, make_layout
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.errors import UserError
from vilem_jax.files import reason
from vilem_jax.planning import abstract, hlo
from vilem_jax.planning.devices import Device
from vilem_jax.planning.gpu_targets import GPUS_A_HOST, TARGETS
from vilem_jax.training.compile import compile_step
from vilem_jax.training.editor_step import make_editor_step
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.state import abstract_state
from vilem_jax.training.step import make_train_step

ANY_STEPS = 100_000  # of the schedule; changes no shape

# Outside Google's cloud libtpu would wait for the metadata server. It also locks out a
# second process, as if both used a chip.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # any type: the topology is given
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


_COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # On a CPU the program is read, never run: its machine code may be slow.
    "cpu": {
        "xla_backend_optimization_level": "0",
        "xla_llvm_disable_expensive_passes": True,
    },
    # Kernels are chosen by trying them out on a GPU, and there is none.
    "gpu": {"xla_gpu_autotune_level": "0"},
}


class DoesNotFitError(UserError):
    """The step needs more than a chip's memory; `used` and `limit` are bytes."""

    def __init__(self, sentence: str, *, used: float, limit: float):
        super().__init__(sentence)
        self.used, self.limit = used, limit


@dataclass(frozen=True)
class CompiledStep:
    """A compiled step; its bytes and its program are those of one device."""

    num_devices: int
    argument_bytes: int  # state, editor, batch
    temporary_bytes: int  # activations, gradients, copies
    peak_bytes: int  # arguments, temporaries, and outputs without a donated buffer
    program: hlo.Program
    lower_seconds: float
    compile_seconds: float


def devices_of(device: Device) -> list:
    """The JAX devices to compile for.

    They are TPUs or GPUs that need not be here, or as many processors of this machine
    as the device has chips.

    Raises:
      UserError: there is no compiler for the device, or too few processors.
    """
    if device.topology:
        return _tpu_devices(device.topology)
    if can_compile_for(device):
        return _gpu_devices(device)
    if jax.default_backend() != "cpu" or jax.device_count() < device.num_chips:
        raise UserError(
            f"--compile for {device.name} compiles for this machine's processors, as "
            f"many as it has chips ({device.num_chips}): set JAX_PLATFORMS=cpu "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={device.num_chips}"
        )
    return jax.devices()[: device.num_chips]


def _tpu_devices(topology: str) -> list:
    from jax.experimental import topologies

    if not has_libtpu():
        raise UserError(
            f"compiling for {topology} needs libtpu, which runs on any Linux machine: "
            "pip install 'vilem-jax[tpu]'"
        )
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        raise UserError(f"libtpu knows no topology {topology!r}") from error
    return list(found.devices)


def _gpu_devices(device: Device) -> list:
    """GPUs of hosts of 8, as XLA describes them without a driver."""
    from jax.experimental import topologies

    hosts, rest = divmod(device.num_chips, GPUS_A_HOST)
    if hosts and rest:
        raise UserError(
            f"{device.name}: GPUs are compiled for in hosts of {GPUS_A_HOST}: name up "
            f"to {GPUS_A_HOST} of them, or a multiple, as {device.kind}-"
            f"{GPUS_A_HOST * (hosts + 1)}"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no driver
    found = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology=f"1x{hosts}x{GPUS_A_HOST}" if hosts else f"1x1x{rest}",
        target_config=TARGETS[device.kind].text(),
    )
    return list(found.devices)


def can_compile_for(device: Device) -> bool:
    """Whether this is a GPU whose description is known, and JAX's plug-in is there.

    The plug-in for CUDA 13 needs no GPU to compile.
    """
    has_plugin = importlib.util.find_spec("jax_cuda13_plugin") is not None
    return device.kind in TARGETS and has_plugin


def has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def compile_ahead(config: Config, devices: Sequence) -> CompiledStep:
    """Compiles the training step of `config` for JAX devices, without a run.

    Args:
      config: with the shapes of its towers; `train.batch_size` is of all devices.

    Raises:
      UserError: the batch does not divide, or the step does not fit the device.
    """
    layout = make_layout(config.compute, devices=devices)
    num_devices, train = layout.mesh.size, config.train
    check_batch(train.batch_size, train.num_microbatches, num_devices)
    start = time.monotonic()
    lowered = lower_step(config, layout)
    lowered_at = time.monotonic()
    platform = layout.mesh.devices.flat[0].platform
    try:
        compiled = lowered.compile(compiler_options=_COMPILER_OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
        raise compiler_error(error) from error
    compiled_at = time.monotonic()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise UserError(f"the compiler of {devices[0]} reports no memory or no program")
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledStep(
        num_devices=num_devices,
        argument_bytes=arguments,
        temporary_bytes=temporaries,
        peak_bytes=arguments + outputs + temporaries,
        program=hlo.read(text),
        lower_seconds=lowered_at - start,
        compile_seconds=compiled_at - lowered_at,
    )


def lower_step(config: Config, layout: Layout) -> jax.stages.Lowered:
    """The step of a run of `config.task`, traced on shapes."""
    schedule = make_schedule(config.optimizer, ANY_STEPS)
    if config.task == "editor":
        step = make_editor_step(config, schedule)
        state, frozen = abstract.editor_state(config), abstract.masking_tables(config)
    else:
        graph, params = None, {}
        if abstract.uses_editor(config):
            graph = editor_graph(abstract.editor_config(config))
            params = abstract.editor_params(config)
        step = make_train_step(config, schedule, graph, layout=layout)
        frozen = FrozenEditor(params, abstract.tables(config))
        state = abstract_state(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = compile_step(step, state, layout)
    traced = compiled.trace(state, frozen, abstract.batch(config), key)
    if layout.mesh.devices.flat[0].platform == "gpu":  # which may not be here
        return traced.lower(lowering_platforms=("cuda",))
    return traced.lower()


def compiler_error(error: Exception) -> UserError:
    """The compiler's error as a sentence; `DoesNotFitError` if it is about memory."""
    size = r"([\d.]+)([KMGT]?)"
    used = re.search(rf"Used {size} of {size} hbm", str(error))
    if not used:
        return UserError(f"the compiler refused the step: {reason(error)}")
    powers = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
    return DoesNotFitError(
        f"the step needs {used[1]}{used[2]}iB of a chip that has {used[3]}{used[4]}iB: "
        "use more microbatches, or config.compute.recompute=True",
        used=float(used[1]) * 1024.0 ** powers[used[2]],
        limit=float(used[3]) * 1024.0 ** powers[used[4]],
    )
