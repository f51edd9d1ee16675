"""Which environments mean several processes, and how JAX is then called."""

import importlib.util

import pytest
from jax.errors import JaxRuntimeError

from vilem_jax.distributed import launcher, processes
from vilem_jax.distributed.launcher import find_membership
from vilem_jax.distributed.mesh import make_mesh, replicated
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


def no_request(*_, **__):
    raise AssertionError("there must be no request to the metadata server")


def member(environment, switch="auto", **options):
    """The membership that must be found."""
    found = find_membership(switch, environment, **options)
    assert found is not None
    return found


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
def test_one_process_has_no_membership(environment):
    assert find_membership("auto", environment) is None
    assert find_membership("off", environment | TASK | NAMED) is None


def test_a_laptop_makes_no_request(monkeypatch):
    monkeypatch.setattr(launcher.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(launcher.urllib.request, "urlopen", no_request)
    assert find_membership("auto", {}) is None


def test_a_tpu_vm_requests_the_size_of_its_slice(monkeypatch):
    monkeypatch.setattr(launcher, "_count_tpu_hosts", lambda: 4)
    assert member({}).found_by == "TPU slice"
    monkeypatch.setattr(launcher, "_count_tpu_hosts", lambda: 1)
    assert find_membership("auto", {}) is None
    monkeypatch.setattr(launcher, "_count_tpu_hosts", no_request)
    assert member({"TPU_WORKER_HOSTNAMES": "a,b"}).arguments == {}
    slices = {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}
    assert member(slices).found_by == "TPU slice"


@pytest.mark.parametrize(
    "change, devices",
    [
        ({}, None),  # JAX's default: one GPU for each task of the node
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, None),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [0]),  # bound by SLURM
        (
            {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_NUM_TASKS": "4"},
            [0, 1, 2, 3],  # one process for each node has all GPUs
        ),
        ({"SLURM_STEP_NUM_TASKS": "4"}, None),
    ],
)
def test_a_slurm_task_has_its_gpus(change, devices):
    found = member(TASK | change)
    assert found.found_by == "SLURM"
    expected = {"num_processes": int((TASK | change)["SLURM_STEP_NUM_TASKS"])}
    if devices is not None:
        expected["local_device_ids"] = devices
    assert found.arguments == expected


def test_open_mpi_is_found(monkeypatch):
    four = {"OMPI_COMM_WORLD_SIZE": "4"}
    found = member(four | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"})
    assert found.found_by == "Open MPI" and found.arguments == {}
    have(monkeypatch, "mpi4py")
    assert member(four).arguments == {"cluster_detection_method": "mpi4py"}
    have(monkeypatch)
    with pytest.raises(UserError, match="install mpi4py, or set JAX_COORDINATOR"):
        member(four)


def test_a_kubernetes_job_is_found(monkeypatch):
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
    have(monkeypatch, "kubernetes")
    assert member(pod).found_by == "Kubernetes"
    have(monkeypatch)
    with pytest.raises(UserError, match=r"install jax\[k8s\].*--distributed=off"):
        member(pod)
    assert member(pod | NAMED).found_by == "coordinator a1:6002"
    assert find_membership("off", pod) is None


def have(monkeypatch, *packages):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in packages else None
    )


def test_options_and_environment_name_the_processes():
    expected = {
        "coordinator_address": "a1:6002",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    options = {"coordinator": "a1:6002", "num_processes": 4, "process_id": 3}
    assert member({}, **options).arguments == expected
    assert member(NAMED).arguments == expected
    assert member(NAMED | TASK).arguments == expected  # explicit values come first
    assert member(NAMED, process_id=0).arguments == expected | {"process_id": 0}


@pytest.mark.parametrize(
    "environment, options, words",
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
def test_incomplete_options_raise(environment, options, words):
    with pytest.raises(UserError, match=words):
        member(environment, **options)


def test_off_contradicts_options():
    with pytest.raises(UserError, match="--distributed=off contradicts"):
        find_membership("off", {}, num_processes=2)


def test_on_leaves_detection_to_jax():
    found = member({}, "on")
    assert found.arguments == {} and member(TASK, "on").found_by == "SLURM"


def test_a_single_process_decides_alone():
    with processes.distributed(None):
        assert processes.is_process_0() and not processes.is_multi_process()
        assert processes.broadcast({"a": 1}) == {"a": 1}
        assert processes.all_gather(7) == [7]
        assert processes.local_items(3) == [0, 1, 2]
        whole = replicated(make_mesh(1))
        assert processes.DelayedSums(whole, whole).sums(1, 0) == (1, 0)
    with pytest.raises(KeyError):  # the error itself, not another
        processes.on_process_0(lambda: {}["missing"])
    with pytest.raises(UserError, match=r"^as it was$"):
        processes.on_process_0(fails)
    with pytest.raises(OSError, match=r"^as it was$"):
        processes.raise_on_all(lambda: fails(OSError), OSError)


def fails(kind=UserError):
    raise kind("as it was")


@pytest.mark.parametrize(
    "count, num_processes, shares",
    [
        (5, 2, [[0, 1, 2], [3, 4, 4]]),
        (4, 2, [[0, 1], [2, 3]]),
        (1, 3, [[0], [0], [0]]),
        (4, 3, [[0, 1], [2, 3], [3, 3]]),
    ],
)
def test_shares_have_one_length_and_cover_all(
    monkeypatch, count, num_processes, shares
):
    monkeypatch.setattr(processes, "num_processes", lambda: num_processes)
    for index, expected in enumerate(shares):
        monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)
        assert processes.local_items(count) == expected
    together = [item for share in shares for item in share][:count]
    assert together == list(range(count))


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed"), True),
        (JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce failed"), True),
        (JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), True),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory in gloo"), False),
        (JaxRuntimeError("INVALID_ARGUMENT: shapes differ"), False),
        (ValueError("the connection was aborted by a peer"), False),
        (RuntimeError("UNKNOWN: not an error of JAX"), False),
    ],
)
def test_the_status_code_decides_whether_a_process_may_be_lost(
    monkeypatch, error, expected
):
    assert not processes.may_have_lost_process(error)  # there is only one process
    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    assert processes.may_have_lost_process(error) == expected


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed"), 3),
        (ValueError("a bug"), 1),
    ],
)
def test_leaving_prints_the_traceback(monkeypatch, capsys, error, code):
    class ExitError(Exception):
        pass

    def leave(given):
        raise ExitError(given)

    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    monkeypatch.setattr(processes.os, "_exit", leave)
    try:
        raise error
    except ValueError as raised:
        with pytest.raises(ExitError) as exit_code:
            processes._leave(raised)
    assert exit_code.value.args == (code,)
    errors = capsys.readouterr().err
    assert "Traceback" in errors and str(error) in errors
    assert ("rerun the same command" in errors) == (code == 3)
