"""Whether this process is one of several, by its environment; imports no JAX.

Where a launcher says so JAX finds the rest by itself (`jax.distributed`); a laptop, a
notebook or an interactive allocation with one task stays alone.
"""

import glob
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject

Switch = Literal["auto", "on", "off"]
SWITCHES: tuple[Switch, ...] = ("auto", "on", "off")

# As the environment spells what the flags say.
ADDRESS, COUNT, NUMBER = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_SECONDS = 3


@dataclass(frozen=True)
class Membership:
    """How to join the other processes."""

    found_by: str  # for people
    arguments: JsonObject  # of `jax.distributed.initialize`


def find_membership(
    switch: Switch,
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    count_tpu_hosts: Callable[[], int] | None = None,
) -> Membership | None:
    """This process's membership in several; None if it is alone.

    Args:
      switch: "auto" looks at the environment, "on" insists, "off" stays alone.
      environment: as `os.environ`.
      coordinator: HOST:PORT of process 0; with the next two, or none of them.
      count_tpu_hosts: of the slice this machine belongs to; asks Google's metadata.

    Raises:
      UserError: a part of the three is missing or no number, or a launcher is there
        that JAX cannot read.
    """
    flags = (coordinator, num_processes, process_id)
    if switch == "off":
        if any(value is not None for value in flags):
            raise UserError(
                "--distributed=off contradicts --coordinator, --num-processes and "
                "--process-id: leave it out, or them"
            )
        return None
    named = _named(environment, *flags)
    if named is not None:
        return named if named.arguments["num_processes"] > 1 else None
    found = (
        _open_mpi(environment)
        or _slurm(environment)
        or _tpu(environment, count_tpu_hosts or _count_tpu_hosts)
        or _kubernetes(environment)
    )
    if found is None and switch == "on":
        return Membership("--distributed=on", {})
    return found


def _named(environment, coordinator, num_processes, process_id) -> Membership | None:
    # An address alone in the environment is for JAX's own detection.
    by_flags = any(value is not None for value in (coordinator, num_processes))
    by_flags = by_flags or process_id is not None
    if not (by_flags or COUNT in environment or NUMBER in environment):
        return None
    given = {
        f"--coordinator ({ADDRESS})": coordinator or environment.get(ADDRESS),
        f"--num-processes ({COUNT})": _first(num_processes, environment.get(COUNT)),
        f"--process-id ({NUMBER})": _first(process_id, environment.get(NUMBER)),
    }
    missing = [name for name, value in given.items() if value in (None, "")]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be given too: the coordinator, the number "
            "of processes and the number of this one belong together"
        )
    address, count, number = given.values()
    if not str(address).rpartition(":")[2].isdecimal() or ":" not in str(address):
        raise UserError(
            f"the coordinator {address} has no port: say HOST:PORT, any free port of "
            "the host of process 0"
        )
    count, number = _whole(count, COUNT), _whole(number, NUMBER)
    if not number < count:
        raise UserError(
            f"process {number} of {count}: processes are counted from 0 to {count - 1}"
        )
    arguments = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        # Else a launcher around it would choose the devices.
        "cluster_detection_method": "deactivate",
    }
    return Membership(f"coordinator {address}", arguments)


def _first(*values):
    return next((value for value in values if value is not None), None)


def _whole(value: int | str, name: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise UserError(f"{name}={value} is not a whole number")
    return number


def _open_mpi(environment) -> Membership | None:
    if _count(environment.get("OMPI_COMM_WORLD_SIZE")) < 2:
        return None
    if "OMPI_MCA_orte_hnp_uri" in environment:  # up to Open MPI 4
        return Membership("Open MPI", {})
    if importlib.util.find_spec("mpi4py"):
        return Membership("Open MPI", {"cluster_detection_method": "mpi4py"})
    raise UserError(
        "Open MPI 5 does not say where its processes run: install mpi4py, or set "
        f"{ADDRESS}, {COUNT} and {NUMBER}, or train in one process with "
        "--distributed=off"
    )


def _slurm(environment) -> Membership | None:
    """A task of an `srun` with several; SLURM_NTASKS is set in batch scripts and
    interactive shells too, which are no tasks of it."""
    count = _count(environment.get("SLURM_STEP_NUM_TASKS"))
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if count < 2 or any(name not in environment for name in needed):
        return None
    arguments: JsonObject = {"num_processes": count}
    devices = _slurm_devices(environment, count)
    if devices is not None:
        arguments["local_device_ids"] = devices
    return Membership("SLURM", arguments)


def _slurm_devices(environment, num_tasks: int) -> list[int] | None:
    """Which of the GPUs it sees are this task's; None leaves one for each to JAX."""
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    num_seen = len([name for name in seen.split(",") if name.strip()])
    is_alone = num_tasks == _count(environment.get("SLURM_STEP_NUM_NODES"))
    if is_alone and num_seen:
        return list(range(num_seen))  # JAX would take the first alone
    if num_seen == 1:  # bound to its own: JAX would count on, from 0
        return [0]
    return None


def _tpu(environment, count_hosts: Callable[[], int]) -> Membership | None:
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
    num_slices = _count(environment.get("MEGASCALE_NUM_SLICES"))
    if len(names.split(",")) > 1 or num_slices > 1:
        return Membership("TPU slice", {})
    if names or "TPU_SKIP_MDS_QUERY" in environment:  # one host, as GKE says
        return None
    return Membership("TPU slice", {}) if count_hosts() > 1 else None


def _count_tpu_hosts() -> int:
    """Hosts of this TPU VM's slice; 0 on any other machine, without asking anybody."""
    has_chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not has_chips or not importlib.util.find_spec("libtpu"):
        return 0
    question = urllib.request.Request(
        f"{_METADATA}worker-network-endpoints", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(question, timeout=_METADATA_SECONDS) as answer:
            return len(answer.read().decode().split(","))
    except (OSError, urllib.error.URLError):
        return 0


def _kubernetes(environment) -> Membership | None:
    """A pod of an indexed Job; others (a notebook, a server) stay alone."""
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment):
        return None
    if not importlib.util.find_spec("kubernetes"):
        raise UserError(
            "this is a pod of an indexed Kubernetes job: install jax[k8s], which asks "
            f"Kubernetes for the others, or set {ADDRESS}, {COUNT} and {NUMBER}, or "
            "train in one process with --distributed=off"
        )
    return Membership("Kubernetes", {})


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
