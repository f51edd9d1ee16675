"""What a run reports while it runs: JSON lines, TensorBoard events, a progress bar.

Two files, one object a line with its `step`: `metrics.jsonl` holds what the seed
decides, `timing.jsonl` what the wall clock says. A run that was killed and resumed
leaves the same `metrics.jsonl` as an uninterrupted one, byte for byte (on one kind of
machine): `cmp A/metrics.jsonl B/metrics.jsonl` is a test.
"""

import contextlib
import json
import math
import numbers
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vilem_jax.distributed.processes import is_process_0
from vilem_jax.files import reason, replace_file
from vilem_jax.runs.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

Record = dict[str, Any]
Hook = Callable[[int, Record], None]


def notify(message: str) -> None:
    """A sentence on stderr, above the progress bar where there is one; of several
    processes the first one says it."""
    from tqdm import tqdm

    if is_process_0():
        tqdm.write(f"vilem: {message}", file=sys.stderr)


class MetricsLog:
    """The run's records, in every file and log.

    Write a step's records before saving its checkpoint: records of later steps are
    dropped on resuming, those up to the checkpoint are taken as complete. Of several
    processes the first one writes, and calls the hooks.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start_step: int = 0,
        tensorboard: bool = True,
        hooks: Sequence[Hook] = (),
    ):
        """
        Args:
          start_step: the step of the checkpoint that the run resumes from. Records of
            later steps and half-written lines go; 0, a run from its beginning, empties
            the files.
          hooks: each is called with (step, flat record) after every write; this is
            where Weights & Biases fits: `lambda step, r: wandb.log(r, step=step)`.
        """
        folder = Path(workdir)
        self._writes, self._events = is_process_0(), None
        if not self._writes:
            return
        self._metrics = _Lines(folder / METRICS_FILE, start_step)
        self._timing = _Lines(folder / TIMING_FILE, start_step)
        if tensorboard:
            self._events = EventFile(folder / TENSORBOARD_FOLDER, start_step=start_step)
        self._hooks = tuple(hooks)
        self._events_failed = False

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        timing: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores a record at once.

        Args:
          step: steps taken so far.
          metrics: numbers, arrays of one number, texts, or mappings of them, whose
            names are joined by "/". Floats keep every bit.
          timing: likewise, for what is not the same in the next run.
        """
        if not self._writes:
            return
        fixed, timed = flat_record(metrics), flat_record(timing or {})
        for lines, record in ((self._metrics, fixed), (self._timing, timed)):
            if record:
                lines.write({"step": step} | record)
        together = fixed | timed
        self._write_events(step, together)
        for hook in self._hooks:
            hook(step, together)

    def _write_events(self, step: int, record: Record) -> None:
        scalars = {k: v for k, v in record.items() if isinstance(v, int | float)}
        if not self._events or not scalars or self._events_failed:
            return
        try:
            self._events.write(step, scalars)
        except OSError as error:  # half an event ends the file for its readers
            self._events_failed = True
            notify(f"no more TensorBoard events: {reason(error)}; training continues")

    def close(self) -> None:
        for lines in (self._metrics, self._timing) if self._writes else ():
            lines.close()
        if self._events:
            self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def flat_record(values: Mapping[str, Any], prefix: str = "") -> Record:
    """{"i2t": {"r1": array(3.0)}} as {"i2t/r1": 3.0}: plain Python values."""
    record: Record = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            record |= flat_record(value, f"{prefix}{name}/")
        else:
            record[f"{prefix}{name}"] = _plain(value)
    return record


def read_records(file: str | os.PathLike) -> list[Record]:
    """The records of a .jsonl file of ours, oldest first; [] where there is none."""
    try:
        lines = Path(file).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    records = (_parse(line) for line in lines)
    return [
        {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in r.items()}
        for r in records
        if r is not None
    ]


# JSON has no such numbers, and a reader in another language stops at a bare NaN.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _plain(value: Any) -> int | float | str | bool | None:
    if hasattr(value, "item"):  # an array or a NumPy scalar; raises above one number
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)


def _json_value(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _parse(line: bytes) -> Record | None:
    """The record of a whole line, None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if is_record else None


class _Lines:
    """A .jsonl file that is appended to, without buffer: what was written stays
    through `kill -9`. A full disk costs nothing but delay: lines wait for room."""

    def __init__(self, path: Path, start_step: int):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_after(path, start_step)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._waiting: list[bytes] = []

    def write(self, record: Record) -> None:
        values = {key: _json_value(value) for key, value in record.items()}
        line = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        self._waiting.append(line.encode())
        self._write_waiting()

    def _write_waiting(self) -> None:
        text = b"".join(self._waiting)
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(text) != len(text):
                raise OSError("the disk took only a part of the record")
        except OSError as error:
            self._file.truncate(end)
            notify(
                f"{self._path} waits to be written: {reason(error)}; training continues"
            )
        else:
            self._waiting.clear()

    def close(self) -> None:
        if self._waiting:
            self._write_waiting()
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Drops what is no whole record of a step up to `step`; 0 drops everything."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if step > 0 and (record := _parse(line)) and record["step"] <= step
    ]
    if len(kept) < len(lines):
        replace_file(path, b"".join(kept).decode())


class Clock:
    """Where the wall time between two records goes."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._begin()

    def _begin(self) -> None:
        self._began = self._now()
        self._waited = self._apart = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        began = self._now()
        yield
        self._waited += self._now() - began

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is no training: evaluation, saving."""
        began = self._now()
        yield
        self._apart += self._now() - began

    def lap(self, num_pairs: int) -> Record:
        """`pairs_per_second` and `input_wait` (share of the time, 0 to 1) since the
        last lap, in which `num_pairs` went by. Ask after the device has finished."""
        spent = max(self._now() - self._began - self._apart, 1e-9)
        lap = {
            "pairs_per_second": num_pairs / spent,
            "input_wait": min(self._waited / spent, 1.0),
        }
        self._begin()
        return lap


class Progress:
    """A bar with loss, pairs/s and the time left; plain lines where no person sits."""

    def __init__(
        self,
        num_steps: int,
        *,
        start_step: int = 0,
        label: str = "train",
        seconds_between_lines: float = 10.0,
    ):
        from tqdm import tqdm

        self._num_steps, self._first, self._step = num_steps, start_step, start_step
        self._label, self._pause = label, seconds_between_lines
        self._began, self._said = time.monotonic(), -math.inf
        self._bar = None
        self._shows = is_process_0()
        if self._shows and sys.stderr.isatty():
            self._bar = tqdm(
                total=num_steps,
                initial=start_step,
                desc=label,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def advance(self, num_steps: int = 1) -> None:
        self._step += num_steps
        if self._bar is not None:
            self._bar.update(num_steps)

    def show(self, metrics: Mapping[str, Any]) -> None:
        """`loss` and `pairs_per_second` of the newest record, those that are there."""
        parts = []
        if "loss" in metrics:
            parts.append(f"loss {float(metrics['loss']):.3f}")
        if "pairs_per_second" in metrics:
            parts.append(f"{float(metrics['pairs_per_second']):,.0f} pairs/s")
        if not self._shows:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts))
            return
        is_last = self._step >= self._num_steps
        if time.monotonic() - self._said < self._pause and not is_last:
            return
        self._said = time.monotonic()
        where = f"{self._label} {self._step}/{self._num_steps}"
        print(
            ", ".join([where, *parts, f"{self._time_left()} left"]),
            file=sys.stderr,
            flush=True,
        )

    def _time_left(self) -> str:
        done = self._step - self._first
        if not done:
            return "unknown time"
        spent = time.monotonic() - self._began
        return in_words(spent / done * (self._num_steps - self._step))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def in_words(seconds: float) -> str:
    """3700 as "1 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
