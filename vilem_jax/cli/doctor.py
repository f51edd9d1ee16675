"""`vilem doctor`: what this machine has, and why a run has stopped; never fails."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

from vilem_jax import __version__
from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What imports it, and the extra that has it.
_EXTRAS = {
    "av": ("video", "vilem evaluate video"),
    "faiss": ("search", "vilem vectors export"),
    "lancedb": ("search", "vilem vectors export"),
    "jax2onnx": ("onnx", "vilem weights export --format=onnx"),
    "onnxruntime": ("onnx", "vilem weights export --format=onnx"),
    "apache_beam": ("beam", "vilem data prepare --beam-runner"),
}


def add_verbs(verbs) -> None:
    doctor = verbs.add_parser(
        "doctor",
        run=_doctor,
        help="what this machine has and lacks; with --run: why did my run stop?",
        description="Versions, devices, memory, disk, caches, and what is missing. "
        "Prints no host names, user names or tokens.",
    )
    doctor.add_argument("--run", metavar="RUN", help="the work directory of a run")
    doctor.add_argument("--out", metavar="FILE.json", help="the same as JSON")


def _doctor(options: argparse.Namespace) -> None:
    from vilem_jax.files import check_writable, write_json

    if options.out:
        check_writable(options.out)
    found = {"machine": _machine()} if options.run is None else {}
    if options.run is not None:
        found["run"] = _run(Path(options.run))
    if options.out:
        write_json(options.out, found)
    for facts in found.values():
        for name, value in facts.items():
            for line in value if isinstance(value, list) else [value]:
                print(f"{name.replace('_', ' ')}: {line}")


def _machine() -> JsonObject:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = _devices()
    return {
        "vilem": __version__,
        "python": f"{platform.python_version()} on {platform.system()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "devices": devices,
        "cores": os.cpu_count(),
        "memory": f"{memory / 1e9:,.1f} GB",
        "disk": f"{shutil.disk_usage('.').free / 1e9:,.1f} GB free here",
        "caches": _caches(),
        "missing": _missing(devices),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(missing)"


def _devices() -> list[str]:
    try:
        import jax

        kinds = [f"{d.platform} {d.device_kind}" for d in jax.local_devices()]
    except Exception as error:  # of any driver
        from vilem_jax.files import reason

        return [f"none: {reason(error)}"]
    return [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]


def _caches() -> list[str]:
    """The variables that set a cache's folder; the folders have names of users."""
    names = ("HF_HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR")
    return [f"{name} is {'set' if name in os.environ else 'not set'}" for name in names]


def _missing(devices: list[str]) -> list[str]:
    lines = [
        f"{name}, for `{use}`: pip install 'vilem-jax[{extra}]'"
        for name, (extra, use) in _EXTRAS.items()
        if importlib.util.find_spec(name) is None
    ]
    has_gpu = any("cpu" not in device for device in devices)
    if shutil.which("nvidia-smi") and not has_gpu:
        way_out = "pip install 'vilem-jax[cuda]', and JAX_PLATFORMS not set to cpu"
        lines.insert(0, f"JAX does not use the GPU of this machine: {way_out}")
    return lines or ["nothing"]


def _run(run: Path) -> JsonObject:
    """Where a run is, why it stopped, and how it is resumed."""
    from vilem_jax.locks import check_free
    from vilem_jax.runs import checkpoints, metrics, workdir

    try:
        config = workdir.read_config(run)
    except UserError as error:
        return {"run": str(error)}
    records = metrics.read_records(run / metrics.METRICS_FILE)
    last = max((record["step"] for record in records), default=0)
    saved = checkpoints.finished_steps(run / checkpoints.CHECKPOINTS_FOLDER)
    newest = saved[-1] if saved else 0
    facts: JsonObject = {"last_logged_step": last, "last_checkpoint": newest}
    try:
        check_free(run / workdir.LOCK_FILE, run)
    except UserError:  # its message has the name of a host
        return facts | {"state": "a process is training there now"}
    total = config.train.num_steps
    if total:
        facts["steps"] = total
    if error := workdir.read_error(run):
        facts["stopped_by"] = error
    elif total and newest >= total:
        facts["state"] = "finished: measure it with `vilem evaluate`"
    elif last > newest:
        facts["stopped_by"] = f"a kill or a crash: the steps after {newest} are lost"
    else:
        facts["stopped_by"] = "its end, a signal or --max-hours: its last step is saved"
    resumes = f"resumes at step {newest}" if saved else "starts at step 0"
    commands = workdir.read_commands(run)
    if "state" not in facts and commands:
        facts["rerun"] = f"{commands[-1]} ({resumes})"
    return facts
