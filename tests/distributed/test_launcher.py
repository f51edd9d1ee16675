"""Which environments mean several processes, and how JAX is then called."""

import importlib.util

import pytest

from vilem_jax.distributed import launcher, processes
from vilem_jax.distributed.launcher import find_membership
from vilem_jax.errors import UserError

TASK = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "a[1-4]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "32",
    "SLURM_NTASKS": "32",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
NAMED = {
    "JAX_COORDINATOR_ADDRESS": "a1:6002",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


def nobody():
    raise AssertionError("nobody is to be asked for a slice here")


def membership(environment, switch="auto", *, tpu_hosts=lambda: 0, **flags):
    return find_membership(switch, environment, count_tpu_hosts=tpu_hosts, **flags)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"},  # in an sbatch script
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty, interactive
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a notebook in a cluster
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"MEGASCALE_NUM_SLICES": "1", "TPU_WORKER_HOSTNAMES": "a"},
        {"JAX_COORDINATOR_ADDRESS": "a1:6002"},
        NAMED | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_alone(environment):
    assert membership(environment) is None
    assert membership(environment | TASK | NAMED, "off") is None


def test_a_laptop_asks_nobody(monkeypatch):
    monkeypatch.setattr(launcher.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(launcher.urllib.request, "urlopen", nobody)
    assert find_membership("auto", {}) is None


def test_a_tpu_vm_asks_for_its_slice(monkeypatch):
    assert membership({}, tpu_hosts=lambda: 4).found_by == "TPU slice"
    assert membership({}, tpu_hosts=lambda: 1) is None
    assert membership({"TPU_WORKER_HOSTNAMES": "a,b"}, tpu_hosts=nobody).arguments == {}
    slices = {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}
    assert membership(slices, tpu_hosts=nobody).found_by == "TPU slice"


@pytest.mark.parametrize(
    "change, devices",
    [
        ({}, None),  # each its own, by its number on the node: JAX does so
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, None),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [0]),  # bound by SLURM
        (
            {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_NUM_TASKS": "4"},
            [0, 1, 2, 3],  # a process a node has them all
        ),
        ({"SLURM_STEP_NUM_TASKS": "4"}, None),
    ],
)
def test_slurm_and_its_gpus(change, devices):
    found = membership(TASK | change)
    assert found.found_by == "SLURM"
    expected = {"num_processes": int((TASK | change)["SLURM_STEP_NUM_TASKS"])}
    if devices is not None:
        expected["local_device_ids"] = devices
    assert found.arguments == expected


def test_open_mpi(monkeypatch):
    four = {"OMPI_COMM_WORLD_SIZE": "4"}
    found = membership(four | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"})
    assert found.found_by == "Open MPI" and found.arguments == {}
    have(monkeypatch, "mpi4py")
    assert membership(four).arguments == {"cluster_detection_method": "mpi4py"}
    have(monkeypatch)
    with pytest.raises(UserError, match="install mpi4py, or set JAX_COORDINATOR"):
        membership(four)


def test_kubernetes(monkeypatch):
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
    have(monkeypatch, "kubernetes")
    assert membership(pod).found_by == "Kubernetes"
    have(monkeypatch)
    with pytest.raises(UserError, match=r"install jax\[k8s\].*--distributed=off"):
        membership(pod)
    assert membership(pod | NAMED).found_by == "coordinator a1:6002"
    assert membership(pod, "off") is None


def have(monkeypatch, *packages):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in packages else None
    )


def test_named_by_flags_or_environment():
    expected = {
        "coordinator_address": "a1:6002",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    flags = {"coordinator": "a1:6002", "num_processes": 4, "process_id": 3}
    assert membership({}, **flags).arguments == expected
    assert membership(NAMED).arguments == expected
    assert membership(NAMED | TASK).arguments == expected  # what is said goes before
    assert membership(NAMED, process_id=0).arguments == expected | {"process_id": 0}


@pytest.mark.parametrize(
    "environment, flags, words",
    [
        ({}, {"coordinator": "a:1"}, "--num-processes .* and --process-id .* must be"),
        ({}, {"process_id": 0}, "--coordinator .* and --num-processes .* must be"),
        ({"JAX_PROCESS_ID": "1"}, {}, "JAX_COORDINATOR_ADDRESS"),
        (NAMED | {"JAX_COORDINATOR_ADDRESS": "a1"}, {}, "a1 has no port"),
        (NAMED | {"JAX_PROCESS_ID": "four"}, {}, "JAX_PROCESS_ID=four is not a whole"),
        (NAMED | {"JAX_PROCESS_ID": "4"}, {}, "process 4 of 4: .* from 0 to 3"),
        (NAMED, {"process_id": -1}, "JAX_PROCESS_ID=-1"),
    ],
)
def test_half_a_membership_is_refused(environment, flags, words):
    with pytest.raises(UserError, match=words):
        membership(environment, **flags)


def test_off_contradicts_a_membership():
    with pytest.raises(UserError, match="--distributed=off contradicts"):
        membership({}, "off", num_processes=2)


def test_on_leaves_the_search_to_jax():
    found = membership({}, "on")
    assert found.arguments == {} and membership(TASK, "on").found_by == "SLURM"


def test_alone_nothing_is_joined_and_everything_is_decided_here():
    with processes.joined(None):
        assert processes.is_process_0() and not processes.is_multi_process()
        assert processes.broadcast({"a": 1}) == {"a": 1} and processes.all_gather(
            7
        ) == [7]
        assert processes.part(3) == [0, 1, 2]
        votes = processes.DelayedSums(None, None)
        assert votes.sums(1, 0) == (1, 0)
    with pytest.raises(KeyError):  # no error is turned into another
        processes.on_process_0(lambda: {}["missing"])
    with pytest.raises(UserError, match=r"^as it was$"):
        processes.on_process_0(fails)
    with pytest.raises(OSError, match=r"^as it was$"):
        processes.raise_on_all(lambda: fails(OSError), OSError)


def fails(kind=UserError):
    raise kind("as it was")


@pytest.mark.parametrize(
    "count, processes, parts",
    [
        (5, 2, [[0, 1, 2], [3, 4, 4]]),
        (4, 2, [[0, 1], [2, 3]]),
        (1, 3, [[0], [0], [0]]),
        (4, 3, [[0, 1], [2, 3], [3, 3]]),
    ],
)
def test_parts_are_of_one_size_and_hold_all(monkeypatch, count, processes, parts):
    monkeypatch.setattr(processes, "num_processes", lambda: processes)
    for index, expected in enumerate(parts):
        monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)
        assert processes.part(count) == expected
    together = [row for rows in parts for row in rows][:count]
    assert together == list(range(count))


@pytest.mark.parametrize(
    "words, is_lost",
    [
        (
            "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]",
            True,
        ),
        ("NCCL operation ncclAllReduce failed: unhandled system error", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("RESOURCE_EXHAUSTED: out of memory in gloo", False),
        ("INVALID_ARGUMENT: shapes differ", False),
    ],
)
def test_a_lost_process_is_no_other_error(monkeypatch, words, is_lost):
    error = RuntimeError(words)
    assert not processes.is_lost(error)  # alone there is nobody to lose
    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    assert processes.is_lost(error) == is_lost
