"""The step of a run, compiled from its settings alone, and what the compiler says.

No data, no weights, no accelerator: shapes come from the config. A TPU's compiler runs
on any Linux machine where libtpu is installed.
"""

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import (
    Layout,
    check_batch,
    make_layout,
    over_batch,
    replicated,
)
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.errors import UserError
from vilem_jax.files import reason
from vilem_jax.objectives.editing import TokenTables
from vilem_jax.planning import abstract, hlo
from vilem_jax.planning.devices import Device
from vilem_jax.training import editor_step
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.state import abstract_state, state_sharding
from vilem_jax.training.step import make_train_step

# Any token ids do: shapes do not depend on them.
PAD, MASK = 0, 1
ANY_STEPS = 100_000  # the schedule's; it is arithmetic on a scalar

# Away from Google's machines libtpu would ask their metadata server, and wait; and it
# locks out a second process, as if both were to use a chip.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # any: the topology is given
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class DoesNotFitError(UserError):
    """The compiler found no way to keep the step within a chip's memory."""

    def __init__(self, sentence: str, *, used: float, limit: float):
        super().__init__(sentence)
        self.used, self.limit = used, limit  # bytes


@dataclass(frozen=True)
class CompiledStep:
    """What the compiler says of one step, each figure of one device."""

    platform: str
    num_devices: int
    argument_bytes: int  # state, editor, batch
    output_bytes: int
    alias_bytes: int  # outputs written over donated arguments
    temporary_bytes: int  # activations, gradients, copies
    peak_bytes: int  # arguments, what outputs add to them, and temporaries
    program: hlo.Program
    lower_seconds: float
    compile_seconds: float


def devices_of(device: Device) -> list[jax.Device]:
    """The chips of a slice of TPUs, or so many processors of this machine.

    Raises:
      UserError: no compiler for it is here.
    """
    if device.topology:
        return topology_devices(device.topology)
    num_here = jax.device_count()
    if jax.default_backend() != "cpu" or num_here < device.num_chips:
        raise UserError(
            f"--compile for {device.name} compiles for this machine's processors, as "
            f"many as it has chips ({device.num_chips}): say JAX_PLATFORMS=cpu "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={device.num_chips}"
        )
    return jax.devices()[: device.num_chips]


def topology_devices(topology: str) -> list[jax.Device]:
    """The chips of a TPU topology such as "v5e:4x4", none of them here.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
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


def has_libtpu() -> bool:
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return True


def compile_ahead(config: Config, devices: Sequence[jax.Device]) -> CompiledStep:
    """Compiles the training step of `config` for these devices.

    Args:
      config: with the shapes of its towers; `train.batch_size` is of all devices.

    Raises:
      UserError: the batch does not divide, or the step does not fit the device.
    """
    layout = make_layout(config.compute, devices=devices)
    mesh = layout.mesh
    check_batch(config.train.batch_size, config.train.num_microbatches, mesh)
    began = time.monotonic()
    lowered = lower_step(config, layout)
    lowered_at = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=_options(mesh))
    except jax.errors.JaxRuntimeError as error:
        raise in_our_words(error) from error
    done = time.monotonic()
    memory = compiled.memory_analysis()
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledStep(
        platform=mesh.devices.flat[0].platform,
        num_devices=mesh.size,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes + kept + memory.temp_size_in_bytes,
        program=hlo.read(compiled.as_text()),
        lower_seconds=lowered_at - began,
        compile_seconds=done - lowered_at,
    )


def _options(mesh: Mesh) -> dict[str, object]:
    """On a CPU the program is read, never run: no time goes into machine code."""
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }


def lower_step(config: Config, layout: Layout):
    """The step of `training/tasks.py`, traced on shapes: a `jax.stages.Lowered`."""
    mesh = layout.mesh
    whole, rows = replicated(mesh), over_batch(mesh)
    schedule = make_schedule(config.optimizer, ANY_STEPS)
    state_and_step = _editor_step if config.task == "editor" else _vilem_step
    arguments, step = state_and_step(config, layout, schedule)
    shardings = {"state": whole, "editor": whole, "batch": rows, "key": whole}
    if config.task == "vilem":
        shardings["state"] = state_sharding(arguments["state"], layout)
    jitted = jax.jit(
        step,
        in_shardings=tuple(shardings[name] for name in arguments),
        out_shardings=(shardings["state"], whole),
        donate_argnames="state",
    )
    return jitted.lower(*arguments.values())


def _vilem_step(config, layout, schedule):
    editor, graph = FrozenEditor({}, abstract.tables(config)), None
    if abstract.uses_editor(config):
        graph = editor_graph(abstract.editor_config(config))
        editor = dataclasses.replace(editor, params=abstract.editor_params(config))
    step = make_train_step(
        config,
        schedule,
        graph,
        pad_id=PAD,
        mask_id=MASK,
        layout=layout,
    )
    arguments = {
        "state": abstract_state(config),
        "editor": editor,
        "batch": abstract.batch(config),
        "key": abstract.key(),
    }
    return arguments, step


def _editor_step(config, layout, schedule):
    is_editable = np.arange(config.model.text.vocab_size) > MASK
    tables = TokenTables(is_editable, ~is_editable, ~is_editable)
    step = editor_step.make_editor_step(
        config, schedule, tables, pad_id=PAD, mask_id=MASK
    )
    arguments = {
        "state": abstract.editor_state(config),
        "batch": abstract.batch(config),
        "key": abstract.key(),
    }
    return arguments, step


def in_our_words(error: Exception) -> UserError:
    """That the step is too large, if that is what the compiler says."""
    sentence = str(error)
    used = re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", sentence)
    if used:
        return DoesNotFitError(
            f"the step needs {used[1]}iB of a chip that has {used[2]}iB: use more "
            "microbatches, or config.compute.recompute=True",
            used=_bytes(used[1]),
            limit=_bytes(used[2]),
        )
    return UserError(f"the compiler refused the step: {reason(error)}")


def _bytes(text: str) -> float:
    powers = {"K": 1, "M": 2, "G": 3, "T": 4}
    return float(text.rstrip("KMGT")) * 1024.0 ** powers.get(text[-1], 0)
