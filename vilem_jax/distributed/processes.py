"""Many processes as one program: how they join, agree and leave.

One process for each host (or GPU) runs the same command. Only process 0 writes files
and prints. A decision that depends on one process is broadcast to all: a process that
takes another branch would leave the others waiting in a collective.
"""

import contextlib
import json
import os
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from vilem_jax.distributed.launcher import Membership
from vilem_jax.errors import Interrupted, UserError
from vilem_jax.files import reason
from vilem_jax.progress import silence

# A process without a heartbeat for this time is lost, and the others leave. Well below
# a minute, but longer than the network usually stalls.
HEARTBEAT_SECONDS = 30
# For all processes to start: the hosts of a pod may start minutes apart.
BEGIN_SECONDS = 300
# At the end: process 0 may still write while the others wait.
END_SECONDS = 300
SEE_SECONDS = 30  # until a file of process 0 is visible over NFS

# Exit codes of `vilem`; launch/ restarts a run after EXIT_LOST.
EXIT_USER, EXIT_LOST = 2, 3

# The status codes of XLA's errors if another process is lost; which one depends on the
# collective library and on the call. The others (such as RESOURCE_EXHAUSTED and
# INVALID_ARGUMENT) would come again after a restart.
_LOST_STATUS = {
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "UNAVAILABLE",
    "UNKNOWN",
}

Value = TypeVar("Value")


class AllProcessesError(UserError):
    """A UserError that all processes raise; only process 0 prints it."""


# ---- joining and leaving ----


@contextlib.contextmanager
def distributed(membership: Membership | None) -> Iterator[None]:
    """Runs the block as one of several processes, or alone if `membership` is None.

    An error in the block ends this process at once, without waiting for the others,
    which notice within `HEARTBEAT_SECONDS`.
    """
    if membership is None:
        yield
        return
    # Errors do not return to the caller: a normal exit would wait for processes that
    # wait for this one.
    try:
        _join(membership)
        try:
            yield
        except SystemExit:  # not an error: all processes exit
            jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()
    except SystemExit:
        raise
    except BaseException as error:
        _leave(error)


def _join(membership: Membership) -> None:
    # JAX's handler would take SIGTERM away from the training loop, which saves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **membership.arguments,
            initialization_timeout=BEGIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise UserError(
            f"cannot join the other processes ({membership.found_by}): "
            f"{reason(error)}; name them with --coordinator, --num-processes and "
            "--process-id, or train in one process with --distributed=off"
        ) from error
    if not is_process_0():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        silence()
    elif is_multi_process():
        _report(
            f"{num_processes()} processes with {jax.device_count()} devices "
            f"({membership.found_by})"
        )


def _leave(error: BaseException) -> NoReturn:
    """Reports an error and ends the process."""
    if isinstance(error, UserError):
        code = EXIT_USER
        if is_process_0() or not isinstance(error, AllProcessesError):
            _report(str(error))
    elif isinstance(error, KeyboardInterrupt):
        code = error.code if isinstance(error, Interrupted) else 130
        _report("interrupted")
    else:
        code = 1
        traceback.print_exception(error)
        if may_have_lost_process(error):
            code = EXIT_LOST
            _report(
                "JAX failed, perhaps because another process is gone or out of reach; "
                "rerun the same command on all of them to resume from the newest "
                "checkpoint"
            )
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _report(sentence: str) -> None:
    sender = ""
    if not is_process_0():
        sender = f"process {jax.process_index()} on {socket.gethostname()}: "
    print(f"vilem: {sender}{sentence}", file=sys.stderr, flush=True)


def may_have_lost_process(error: BaseException) -> bool:
    """Whether a lost process can be the cause of an error, by XLA's status code."""
    # Reading the result of a failed computation raises a plain ValueError, which begins
    # with the status code like a JaxRuntimeError.
    is_from_xla = isinstance(error, jax.errors.JaxRuntimeError) or (
        type(error) is ValueError
    )
    status = str(error).partition(":")[0]
    return is_multi_process() and is_from_xla and status in _LOST_STATUS


# ---- which process this is ----


def num_processes() -> int:
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_multi_process() -> bool:
    return num_processes() > 1


def is_process_0() -> bool:
    """Whether this is process 0, or the only one: it writes files and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


# ---- agreeing: all processes must call each function below ----


def broadcast(value: Value) -> Value:
    """Process 0's `value`, which JSON can represent, on every process."""
    if not is_multi_process():
        return value
    content = json.dumps(value).encode() if is_process_0() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Powers of two, because each length is a program to compile.
    padded = np.zeros(max(64, 1 << (length - 1).bit_length()), np.uint8)
    if is_process_0():
        padded[:length] = np.frombuffer(content, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return json.loads(received.astype(np.uint8)[:length].tobytes())


def all_gather(number: int) -> list[int]:
    """The `number` (below 2**31) of each process."""
    if not is_multi_process():
        return [number]
    gathered = multihost_utils.process_allgather(np.int32(number))
    return np.asarray(gathered).reshape(-1).tolist()


def on_process_0(action: Callable[[], object]) -> None:
    """Runs `action` on process 0 only; all processes continue when it is done.

    Raises:
      UserError: if `action` raises one, on every process.
    """
    message = None
    if is_process_0():
        try:
            action()
        except UserError as error:
            if not is_multi_process():
                raise
            message = str(error)
    message = broadcast(message)
    if message is not None:
        raise AllProcessesError(message)


def raise_on_all(action: Callable[[], Value], kind: type[Exception]) -> Value:
    """`action()`; if it raises a `kind` on one process, all processes raise one."""
    try:
        result = action()
    except kind:
        all_gather(1)
        raise
    failed = all_gather(0)
    if any(failed):
        raise kind(f"process {failed.index(1)} found it so")
    return result


def check_same(values: Mapping[str, object]) -> None:
    """Checks that `values` are the same on every process.

    Args:
      values: by their name in the message.

    Raises:
      UserError: if one differs; it names the first, and the processes.
    """
    for name, value in values.items():
        digests = all_gather(zlib.crc32(repr(value).encode()) >> 1)
        _refuse_others(
            [digest != digests[0] for digest in digests],
            f"other {name} than process 0: start all processes with one command, on "
            "the same files",
        )


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same `folder`.

    Raises:
      UserError: if some do not see the files of process 0.
    """
    if not is_multi_process():
        return
    mark = folder / broadcast(f".shared-{os.getpid()}-{time.time_ns()}")
    on_process_0(mark.touch)
    is_missing = all_gather(int(not _appears(mark)))
    on_process_0(lambda: mark.unlink(missing_ok=True))
    _refuse_others(
        is_missing,
        f"another work directory {folder} than process 0: it must lie on a disk that "
        "all hosts share (NFS, Lustre, Filestore)",
    )


def _appears(file: Path) -> bool:
    end = time.monotonic() + SEE_SECONDS
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # refreshes the cache of NFS
    return True


def _refuse_others(is_other: Sequence[int], what: str) -> None:
    """Raises AllProcessesError if it is true of a process that it has `what`."""
    names = ", ".join(str(i) for i, is_one in enumerate(is_other) if is_one)
    if names:
        have = f"processes {names} have" if "," in names else f"process {names} has"
        raise AllProcessesError(f"{have} {what}")


class DelayedSums:
    """Sums of small integers over all processes, each returned one call later.

    So no process waits: the device computes a sum after the step that was started
    before, and the sum is read when the next step has been started. A single process
    gets its sums at once.
    """

    def __init__(self, over_batch: NamedSharding, replicated: NamedSharding):
        """
        Args:
          over_batch, replicated: shardings of the training mesh, so that no other group
            of devices is needed.
        """
        self._previous: jax.Array | None = None
        self._over_batch = over_batch
        self._sum = jax.jit(lambda rows: rows.sum(0), out_shardings=replicated)

    def sums(self, *numbers: int) -> tuple[int, ...]:
        """The sums of the `numbers` of the previous call; 0 at the first call."""
        if not is_multi_process():
            return numbers
        # One row for each device of this process; the numbers are in the first.
        num_devices = len(self._over_batch.addressable_devices)
        rows = np.zeros((num_devices, len(numbers)), np.int32)
        rows[0] = numbers
        batch = jax.make_array_from_process_local_data(self._over_batch, rows)
        previous, self._previous = self._previous, self._sum(batch)
        if previous is None:
            return (0,) * len(numbers)
        return tuple(np.asarray(previous).tolist())


# ---- sharing work ----


def local_rows(sharding: NamedSharding, num_rows: int) -> tuple[int, ...]:
    """The rows of a global array [num_rows, ...] on this process's devices, in the
    order that `make_array_from_process_local_data` expects."""
    indices = sharding.addressable_devices_indices_map((num_rows,)).values()
    rows = {row for index in indices if index for row in range(num_rows)[index[0]]}
    return tuple(sorted(rows))


def local_items(count: int) -> list[int]:
    """This process's share of `count` items, for `all_gather_rows`.

    All shares have the same length; the last item is repeated if it does not divide.
    """
    if not is_multi_process():
        return list(range(count))
    share = -(-count // num_processes())
    start = jax.process_index() * share
    return [min(item, count - 1) for item in range(start, start + share)]


def all_gather_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """The rows of all processes, each for its `local_items(count)`: [count, ...]."""
    if not is_multi_process():
        return rows
    gathered = np.asarray(multihost_utils.process_allgather(rows))
    return gathered.reshape(-1, *rows.shape[1:])[:count]
