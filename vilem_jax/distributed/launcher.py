"""Whether the environment makes this process one of several; does not import JAX.

If a launcher started several processes, JAX finds the rest (`jax.distributed`). A
laptop, a notebook or an interactive allocation with one task stays one process.
"""

import glob
import importlib.util
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject

Switch = Literal["auto", "on", "off"]
SWITCHES: tuple[Switch, ...] = get_args(Switch)

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
NUMBER = "JAX_PROCESS_ID"
# The options that take the place of these environment variables.
_OPTIONS = {ADDRESS: "--coordinator", COUNT: "--num-processes", NUMBER: "--process-id"}

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_SECONDS = 3

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Membership:
    """How to join the other processes."""

    found_by: str  # the launcher, for messages
    arguments: JsonObject  # of `jax.distributed.initialize`


def find_membership(
    switch: Switch,
    environment: Environment,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Membership | None:
    """The membership of this process among several, or None if it is alone.

    Args:
      switch: "auto" decides by the environment, "on" always joins, "off" never.
      environment: as `os.environ`.
      coordinator: HOST:PORT of process 0. It and the next two are given together.

    Raises:
      UserError: if one of the three is missing or invalid, or JAX cannot read the
        launcher.
    """
    options = {ADDRESS: coordinator, COUNT: num_processes, NUMBER: process_id}
    has_options = any(value is not None for value in options.values())
    if switch == "off":
        if has_options:
            raise UserError(
                "--distributed=off contradicts --coordinator, --num-processes and "
                "--process-id: leave it out, or them"
            )
        return None
    # If only the address is in the environment, JAX's own detection uses it.
    if has_options or COUNT in environment or NUMBER in environment:
        explicit = _explicit(environment, options)
        return explicit if explicit.arguments["num_processes"] > 1 else None
    found = (
        _open_mpi(environment)
        or _slurm(environment)
        or _tpu(environment)
        or _kubernetes(environment)
    )
    if found is None and switch == "on":
        return Membership("--distributed=on", {})
    return found


def _explicit(
    environment: Environment, options: Mapping[str, str | int | None]
) -> Membership:
    """By options, or else by their environment variables, which are the keys."""
    given = {
        name: environment.get(name) if value in (None, "") else value
        for name, value in options.items()
    }
    missing = [f"{_OPTIONS[n]} ({n})" for n, v in given.items() if v in (None, "")]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be given too: the coordinator, the number "
            "of processes and the number of this one belong together"
        )
    address = str(given[ADDRESS])
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise UserError(
            f"the coordinator {address} has no port: say HOST:PORT, any free port of "
            "the host of process 0"
        )
    count, number = (_natural(str(given[name]), name) for name in (COUNT, NUMBER))
    if not number < count:
        raise UserError(
            f"process {number} of {count}: processes are counted from 0 to {count - 1}"
        )
    arguments = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        # Otherwise a launcher that JAX detects would select the devices.
        "cluster_detection_method": "deactivate",
    }
    return Membership(f"coordinator {address}", arguments)


def _natural(value: str, name: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise UserError(f"{name}={value} is not a whole number")
    return number


def _open_mpi(environment: Environment) -> Membership | None:
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


def _slurm(environment: Environment) -> Membership | None:
    """A task of an `srun` with several tasks.

    SLURM_NTASKS does not decide: batch scripts and interactive shells have it too.
    """
    count = _count(environment.get("SLURM_STEP_NUM_TASKS"))
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if count < 2 or any(name not in environment for name in needed):
        return None
    # By JAX's default each task takes one GPU: the one with its index.
    arguments: JsonObject = {"num_processes": count}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    num_visible = sum(1 for name in visible.split(",") if name.strip())
    has_node = count == _count(environment.get("SLURM_STEP_NUM_NODES"))
    if num_visible == 1 or (has_node and num_visible):  # bound by SLURM, or all GPUs
        arguments["local_device_ids"] = list(range(num_visible))
    return Membership("SLURM", arguments)


def _tpu(environment: Environment) -> Membership | None:
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
    num_slices = _count(environment.get("MEGASCALE_NUM_SLICES"))
    if len(names.split(",")) > 1 or num_slices > 1:
        return Membership("TPU slice", {})
    if names or "TPU_SKIP_MDS_QUERY" in environment:  # one host, by GKE
        return None
    return Membership("TPU slice", {}) if _count_tpu_hosts() > 1 else None


def _count_tpu_hosts() -> int:
    """Hosts of the slice of this TPU VM; 0 on other machines, without a request.

    JAX asks the same server, but only in `jax.distributed.initialize`. That fails if no
    server answers, and on a slice of one host it would start a coordinator at a fixed
    port, where a second run on the host fails.
    """
    has_chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not has_chips or not importlib.util.find_spec("libtpu"):
        return 0
    request = urllib.request.Request(
        f"{_METADATA}worker-network-endpoints", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as response:
            return len(response.read().decode().split(","))
    except OSError:  # includes URLError
        return 0


def _kubernetes(environment: Environment) -> Membership | None:
    """A pod of an indexed Job; other pods (a notebook, a server) stay alone."""
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
