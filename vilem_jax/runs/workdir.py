"""A run's folder: its settings, logs and checkpoints.

RUN/config.json       format_version, and the frozen config; written when the run starts
RUN/command.txt       the command lines that started it, one per line
RUN/data.json         which training data it reads (data/fingerprint.py)
RUN/error.txt         the error that ended the last start, if one did
RUN/metrics.jsonl     one record per line (metrics.py)
RUN/timing.jsonl      what depends on the wall clock (metrics.py)
RUN/tensorboard/      both, as TensorBoard events (tensorboard.py)
RUN/checkpoints/STEP  the state, written by Orbax (checkpoints.py)
RUN/editor/           of an editor's run, at its end: what config.editor.path names
RUN/.lock             while a process trains: which (locks.py)
"""

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from vilem_jax.config.freeze import differences, freeze, to_dict
from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError
from vilem_jax.files import check_format_version, reason, replace_file, write_errors
from vilem_jax.parsing import decode, parse_json
from vilem_jax.typing import JsonObject

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1  # of all files of the folder
COMMAND_FILE = "command.txt"
DATA_FILE = "data.json"
ERROR_FILE = "error.txt"
LOCK_FILE = ".lock"
EDITOR_FOLDER = "editor"
_LATER = ("metrics.jsonl", "checkpoints")  # written after CONFIG_FILE


def check_workdir(workdir: str | os.PathLike, config: Config) -> bool:
    """Whether the folder already holds this run; writes nothing.

    Raises:
      UserError: if it holds a run with other settings (every difference is listed), or
        a run's files without its settings.
    """
    folder = Path(workdir)
    holds_run = (folder / CONFIG_FILE).exists()
    if holds_run:
        changed = differences(read_config(folder), config)
        if changed:
            raise UserError(
                f"{folder} holds a run with other settings: {'; '.join(changed)}; "
                "choose another --workdir, or the settings that the run started with"
            )
    elif found := [name for name in _LATER if (folder / name).exists()]:
        raise UserError(
            f"{folder} holds {' and '.join(found)} of a run, but no {CONFIG_FILE}: "
            "restore it, or choose another --workdir"
        )
    return holds_run


def claim_workdir(workdir: str | os.PathLike, config: Config) -> bool:
    """Creates the folder and stores `config` in it, or resumes the run that it holds.

    Returns:
      True if the folder already held this run. Settings that may change on resuming
      (more steps, for example) are then updated.

    Raises:
      UserError: as `check_workdir`, or if the folder cannot be written to.
    """
    folder = Path(workdir)
    holds_run = check_workdir(folder, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"format_version": FORMAT_VERSION, **to_dict(config)}
        replace_file(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to the work directory {folder}: {reason(error)}"
        ) from error
    return holds_run


def note_command(workdir: str | os.PathLike) -> None:
    """Adds this program's command line to `COMMAND_FILE`, if it is not there yet.

    Raises:
      UserError: if it cannot be written.
    """
    commands = read_commands(workdir)
    now = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    if now in commands:
        return
    file = Path(workdir) / COMMAND_FILE
    with write_errors(file):
        replace_file(file, "\n".join([*commands, now]) + "\n")


def program() -> str:
    """How to call this `vilem` again: its path, where the shell would not find it."""
    called = Path(sys.argv[0])
    if called.name != "vilem" or not called.is_file():
        return "vilem"
    found = shutil.which("vilem")
    if found and Path(found).samefile(called):
        return "vilem"
    path = os.path.relpath(called)
    return str(called.absolute()) if path.startswith("..") else path


def note_data(workdir: str | os.PathLike, data: JsonObject) -> list[str]:
    """Stores the fingerprints of the training data; returns the sources that changed.

    Raises:
      UserError: if they cannot be written.
    """
    before, file = read_data(workdir), Path(workdir) / DATA_FILE
    with write_errors(file):
        replace_file(file, json.dumps(data, indent=2, ensure_ascii=True) + "\n")
    return [name for name in data if before.get(name, data[name]) != data[name]]


def read_data(workdir: str | os.PathLike) -> JsonObject:
    """{source: fingerprint} of a run's training data; {} if there is none."""
    try:
        found = json.loads((Path(workdir) / DATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_commands(workdir: str | os.PathLike) -> list[str]:
    """The command lines that started and resumed a run; [] if there are none."""
    try:
        content = (Path(workdir) / COMMAND_FILE).read_bytes()
    except OSError:
        return []
    return content.decode("utf-8", "surrogateescape").splitlines()


@contextlib.contextmanager
def noting_errors(workdir: str | os.PathLike) -> Iterator[None]:
    """Stores the error that ends the block, a start of the run, for `read_error`."""
    file = Path(workdir) / ERROR_FILE
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if (Path(workdir) / CONFIG_FILE).exists():
            with contextlib.suppress(OSError):  # of a full disk, perhaps
                replace_file(file, f"{type(error).__name__}: {reason(error)}\n")
        raise


def read_error(workdir: str | os.PathLike) -> str:
    """The error that ended the last start of a run; "" if none did."""
    with contextlib.suppress(OSError):
        return (Path(workdir) / ERROR_FILE).read_text(encoding="utf-8").strip()
    return ""


def read_config(workdir: str | os.PathLike) -> Config:
    """The settings of the run in `workdir`.

    Raises:
      UserError: if there is no run, its config.json is corrupt, or another release
        wrote it.
    """
    file = Path(workdir) / CONFIG_FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{workdir} holds no run: {CONFIG_FILE} cannot be read there "
            f"({reason(error)}); give the --workdir of a `vilem train`, or the folder "
            "of a `vilem weights export --format=vilem`"
        ) from error
    settings = parse_json(decode(content), file)
    if not isinstance(settings, dict):
        raise UserError(f"{file} is not the settings of a run: it is not an object")
    version = settings.pop("format_version", None)
    rebuild = "choose another --workdir to train again"
    # Without a version it may be another program's file: `freeze` names its first
    # unknown key, which helps more than the missing version.
    if version is not None:
        check_format_version(version, FORMAT_VERSION, Path(workdir), rebuild)
    try:
        config = freeze(settings)
    except UserError as error:
        raise UserError(f"{file} is not the settings of a run: {error}") from error
    check_format_version(version, FORMAT_VERSION, Path(workdir), rebuild)
    return config
