"""Many processes as one program: how they find each other, agree, and leave.

One process a host (or a GPU) runs the same command. The first of them, process 0,
alone writes and talks; what is decided on the way is decided for all, since a process
that goes another way leaves the others waiting.
"""

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from vilem_jax.distributed.launcher import Membership
from vilem_jax.errors import UserError

# A process that was not heard of for so long is gone, and the others leave: well
# within a minute, and long for a stall of the network.
HEARTBEAT_SECONDS = 30
# Until all processes have begun: hosts of a pod may come minutes apart.
BEGIN_SECONDS = 300
# At the end the first may still write, while the others wait for it.
END_SECONDS = 300
SEE_SECONDS = 30  # a file of process 0 may take so long to be seen over NFS

EXIT_USER, EXIT_LOST = 2, 3  # what `vilem` ends with; the second: others are gone

Value = TypeVar("Value")

# What XLA and its libraries say where another process is gone or out of reach.
_LOST = (
    "gloo",
    "nccl",
    "connection",
    "coordination",
    "heartbeat",
    "barrier",
    "unavailable",
    "deadline_exceeded",
    "aborted",
    "peer",
)


class AllProcessesError(UserError):
    """A UserError that all processes raise alike: process 0 reports it."""


# ---- joining and leaving ----


@contextlib.contextmanager
def joined(membership: Membership | None) -> Iterator[None]:
    """The block, as one of several processes; unchanged if `membership` is None.

    An error inside ends this process at once, without waiting for the others, which
    notice within `HEARTBEAT_SECONDS`.

    Raises:
      UserError: the others cannot be reached.
    """
    if membership is None:
        yield
        return
    # From here on nothing returns to the caller but success: leaving in the usual
    # way would wait for processes that wait for this one.
    try:
        _join(membership)
        try:
            yield
        except SystemExit:  # no error: all leave so
            jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()
    except SystemExit:
        raise
    except BaseException as error:
        _leave(error)


def _join(membership: Membership) -> None:
    # Its handler would take SIGTERM away from the loop that saves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **membership.arguments,
            initialization_timeout=BEGIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot join the other processes ({membership.found_by}): "
            f"{first_line[:300]}; name them with --coordinator, --num-processes and "
            "--process-id, or train in one process with --distributed=off"
        ) from error
    if not is_process_0():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    elif is_multi_process():
        print(
            f"vilem: {num_processes()} processes with {jax.device_count()} devices "
            f"({membership.found_by})",
            file=sys.stderr,
        )


def _leave(error: BaseException) -> None:
    """Says what happened and ends the process; never returns."""
    code = 1
    if isinstance(error, UserError):
        code = EXIT_USER
        if is_process_0() or not isinstance(error, AllProcessesError):
            _report(str(error))
    elif isinstance(error, KeyboardInterrupt):
        code = 130
        _report("interrupted")
    elif is_lost(error):
        code = EXIT_LOST
        _report(
            "another process is gone or out of reach, so this one exits; rerun the "
            "same command on all of them to resume from the newest checkpoint"
        )
    else:
        traceback.print_exception(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _report(sentence: str) -> None:
    who = ""
    if jax.distributed.is_initialized() and not is_process_0():
        who = f"process {jax.process_index()} on {socket.gethostname()}: "
    print(f"vilem: {who}{sentence}", file=sys.stderr, flush=True)


def is_lost(error: BaseException) -> bool:
    """Whether an error of JAX means that another process cannot be reached."""
    if not isinstance(error, RuntimeError | ValueError) or not is_multi_process():
        return False
    text = str(error).lower()
    return "resource_exhausted" not in text and any(word in text for word in _LOST)


# ---- who is who ----


def num_processes() -> int:
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_multi_process() -> bool:
    return num_processes() > 1


def is_process_0() -> bool:
    """Whether this process writes and talks: process 0, or the only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


# ---- agreeing; every function below must be called by all processes ----


def broadcast(value: Any) -> Any:
    """Process 0's `value` (what JSON can hold) on every process."""
    if not is_multi_process():
        return value
    content = json.dumps(value).encode() if is_process_0() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Few lengths, since each is a program of its own.
    rows = np.zeros(max(64, 1 << (length - 1).bit_length()), np.uint8)
    if is_process_0():
        rows[:length] = np.frombuffer(content, np.uint8)
    gathered = np.asarray(multihost_utils.broadcast_one_to_all(rows))
    return json.loads(gathered.astype(np.uint8)[:length].tobytes())


def all_gather(number: int) -> list[int]:
    """Everybody's `number` (below 2**31), by process."""
    if not is_multi_process():
        return [number]
    gathered = multihost_utils.process_allgather(np.int32(number))
    return np.asarray(gathered).reshape(-1).tolist()


def on_process_0(action: Callable[[], object]) -> None:
    """Process 0 runs `action` alone; the others wait until it is done.

    Raises:
      UserError: the action's, on every process.
    """
    trouble = None
    if is_process_0():
        try:
            action()
        except UserError as error:
            if not is_multi_process():
                raise
            trouble = str(error)
    trouble = broadcast(trouble)
    if trouble is not None:
        raise AllProcessesError(trouble)


def raise_on_all(action: Callable[[], Value], kind: type[Exception]) -> Value:
    """`action()`; where it raises a `kind` on one process, it is raised on all."""
    error, result = None, None
    try:
        result = action()
    except kind as raised:
        error = raised
    failed = all_gather(int(error is not None))
    if error is not None:
        raise error
    if any(failed):
        raise kind(f"process {failed.index(1)} found it so")
    return result


def check_same(values: Mapping[str, object]) -> None:
    """That every process holds equal `values`, by what a person calls them.

    Raises:
      UserError: the first that differs, and on which processes.
    """
    import zlib

    for name, value in values.items():
        digests = all_gather(zlib.crc32(repr(value).encode()) >> 1)
        others = [i for i, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise AllProcessesError(
                f"{_named(others)} other {name} than process 0: start all processes "
                "with one command, on the same files"
            )


def check_shared(folder: Path) -> None:
    """That process 0's `folder` is everybody's.

    Raises:
      UserError: some do not see what process 0 writes there.
    """
    if not is_multi_process():
        return
    mark = folder / broadcast(f".shared-{os.getpid()}-{time.time_ns()}")
    on_process_0(mark.touch)
    sees = _appears(mark)
    blind = [i for i, sees_it in enumerate(all_gather(int(sees))) if not sees_it]
    on_process_0(lambda: mark.unlink(missing_ok=True))
    if blind:
        raise AllProcessesError(
            f"{_named(blind)} another work directory {folder} than process 0: it must "
            "lie on a disk that all hosts share (NFS, Lustre, Filestore)"
        )


def _appears(file: Path) -> bool:
    end = time.monotonic() + SEE_SECONDS
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # makes NFS look again
    return True


def _named(processes: Sequence[int]) -> str:
    names = ", ".join(map(str, processes))
    return f"process {names} has" if len(processes) == 1 else f"processes {names} have"


class DelayedSums:
    """Sums of small numbers over all processes, returned one call later.

    Nobody waits for a vote: its sum is computed behind the step that was started
    before it, and read when the next step has been started. Alone, at once.
    """

    def __init__(self, rows: NamedSharding, whole: NamedSharding):
        """
        Args:
          rows, whole: the batch's sharding and the replicated one of the training
            mesh, so that no other group of its devices has to be set up.
        """
        self._before: jax.Array | None = None
        if not is_multi_process():
            return
        self._rows = rows
        self._add = jax.jit(lambda votes: votes.sum(0), out_shardings=whole)
        self._num_rows = len(self._rows.addressable_devices)

    def sums(self, *votes: int) -> tuple[int, ...]:
        """The sums of the `votes` of the last call; 0 at the first."""
        if not is_multi_process():
            return votes
        rows = np.zeros((self._num_rows, len(votes)), np.int32)
        rows[0] = votes
        before, self._before = (
            self._before,
            self._add(jax.make_array_from_process_local_data(self._rows, rows)),
        )
        if before is None:
            return (0,) * len(votes)
        return tuple(np.asarray(before).tolist())


# ---- sharing work ----


def rows_here(sharding: NamedSharding, num_rows: int) -> tuple[int, ...]:
    """Which rows of a global array [num_rows, ...] lie on this process's devices, in
    the order that `make_array_from_process_local_data` expects."""
    slices = sharding.addressable_devices_indices_map((num_rows,)).values()
    rows = {row for (part,) in slices for row in range(*part.indices(num_rows))}
    return tuple(sorted(rows))


def part(count: int) -> list[int]:
    """This process's share of `count` items: as many on each, the last one repeated
    where they do not divide; for `gather`."""
    if not is_multi_process():
        return list(range(count))
    each = -(-count // num_processes())
    start = jax.process_index() * each
    return [min(row, count - 1) for row in range(start, start + each)]


def gather(rows: np.ndarray, count: int) -> np.ndarray:
    """What each process made of its `part(count)`, together: [count, ...]."""
    if not is_multi_process():
        return rows
    parts = np.asarray(multihost_utils.process_allgather(rows))
    return parts.reshape(-1, *rows.shape[1:])[:count]
