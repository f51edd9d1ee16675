"""What a run reports while it runs: JSON lines, TensorBoard events, a progress bar.

Two files, one object a line with its `step`: `metrics.jsonl` holds what the seed
decides, `timing.jsonl` what depends on the wall clock. A run that was killed and
resumed leaves the same `metrics.jsonl` as an uninterrupted one, byte for byte (on one
kind of machine): `cmp A/metrics.jsonl B/metrics.jsonl` is a test.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from pathlib import Path
from typing import Any

from vilem_jax.distributed.processes import is_process_0
from vilem_jax.files import reason, replace_file
from vilem_jax.progress import doing, in_words, notify, write_line
from vilem_jax.runs.tensorboard import EventFile
from vilem_jax.typing import JsonObject

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

Record = JsonObject  # plain Python values by flat names
Hook = Callable[[int, Record], None]


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Writes a run's records to its files, to TensorBoard and to hooks.

    Write a step's records before saving its checkpoint: on resuming, records of later
    steps are dropped, those up to the checkpoint are taken as complete. Only process 0
    writes and calls the hooks.
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
            later steps and half-written lines are removed; 0, a new run, empties the
            files.
          hooks: each is called with (step, flat record) after every write; for Weights
            & Biases, `lambda step, r: wandb.log(r, step=step)`.
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
        metrics: Mapping[str, object],
        timing: Mapping[str, object] | None = None,
    ) -> None:
        """Stores a record immediately.

        Args:
          step: steps taken so far.
          metrics: numbers, arrays of one number, texts, or mappings of them, whose
            names are joined by "/". Floats keep every bit.
          timing: likewise, for values that differ from run to run.
        """
        if not self._writes:
            return
        fixed, timed = flat_record(metrics), flat_record(timing or {})
        for lines, values in ((self._metrics, fixed), (self._timing, timed)):
            if values:
                lines.write({"step": step} | values)
        record = fixed | timed
        self._write_events(step, record)
        for hook in self._hooks:
            hook(step, record)

    def _write_events(self, step: int, record: Record) -> None:
        scalars = {k: v for k, v in record.items() if isinstance(v, int | float)}
        if not self._events or not scalars or self._events_failed:
            return
        try:
            self._events.write(step, scalars)
        # Readers stop at a half-written event, so later ones would never be seen.
        except OSError as error:
            self._events_failed = True
            notify(f"no more TensorBoard events: {reason(error)}; training continues")

    def close(self) -> None:
        for lines in (self._metrics, self._timing) if self._writes else ():
            lines.close()
        if self._events:
            self._events.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def flat_record(values: Mapping[str, object], prefix: str = "") -> Record:
    """{"i2t": {"r1": array(3.0)}} as {"i2t/r1": 3.0}: plain Python values."""
    record: Record = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            record |= flat_record(value, f"{prefix}{name}/")
        else:
            record[f"{prefix}{name}"] = _plain(value)
    return record


def read_records(file: str | os.PathLike) -> list[Record]:
    """The records of a .jsonl file of a run, oldest first; [] if there is no file."""
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


# JSON has no such numbers: parsers in other languages stop at a bare NaN. Python's json
# writes these names, here they are put in quotes.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _plain(value: Any) -> int | float | str | None:
    if hasattr(value, "item"):  # an array or NumPy scalar; raises for several numbers
        value = value.item()
    return value if isinstance(value, int | str | None) else float(value)


def _json_value(value: object) -> object:
    is_number = not isinstance(value, float) or math.isfinite(value)
    return value if is_number else json.dumps(value)


def _parse(line: bytes) -> Record | None:
    """The record of a complete line, None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if is_record else None


class _Lines:
    """A .jsonl file that is appended to.

    It has no buffer, so that lines survive `kill -9`. If the disk is full, lines are
    kept in memory until there is room.
    """

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
            # An unbuffered write may be short without raising.
            if self._file.write(text) != len(text):
                raise OSError("only a part of the record could be written")
        except OSError as error:
            self._file.truncate(end)  # removes the part
            why = reason(error)
            notify(f"{self._path} will be written later: {why}; training continues")
        else:
            self._waiting.clear()

    def close(self) -> None:
        if self._waiting:
            self._write_waiting()
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the complete records of steps up to `step`; 0 drops all."""
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
    """Measures throughput and the share of waiting between two records."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._restart()

    def _restart(self) -> None:
        self._start = self._now()
        self._waited = self._apart = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        start = self._now()
        yield
        self._waited += self._now() - start

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around everything that is not training, such as evaluation and saving."""
        start = self._now()
        yield
        self._apart += self._now() - start

    def lap(self, num_pairs: int) -> Record:
        """`pairs_per_second` and `input_wait`, the share of time from 0 to 1.

        Both are since the last lap, in which `num_pairs` were trained on. Call this
        after the device has finished: JAX returns from a step before it is computed.
        """
        spent = max(self._now() - self._start - self._apart, 1e-9)  # never 0
        lap = {
            "pairs_per_second": num_pairs / spent,
            "input_wait": min(self._waited / spent, 1.0),
        }
        self._restart()
        return lap


class Progress(AbstractContextManager["Progress"]):
    """A bar with loss, pairs/s and the time left; lines if stderr is not a terminal."""

    def __init__(
        self,
        num_steps: int,
        *,
        start_step: int = 0,
        seconds_between_lines: float = 5.0,
    ):
        from tqdm import tqdm

        self._num_steps, self._first, self._step = num_steps, start_step, start_step
        self._pause, self._parts = seconds_between_lines, []
        self._start, self._last_line = time.monotonic(), -math.inf
        self._stack = ExitStack()
        self._shows, self._bar = is_process_0(), None
        if self._shows and sys.stderr.isatty():
            self._bar = tqdm(
                total=num_steps,
                initial=start_step,
                desc="train",
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,  # steps with an evaluation take longer
            )
            self._stack.callback(self._bar.close)
        # For steps longer than the pause between two lines.
        self._stack.enter_context(doing(self._doing, is_named=True))

    def _doing(self) -> str:
        # After the last step is started, the host waits for it.
        number = min(self._step + 1, self._num_steps)
        return f"training, step {number} of {self._num_steps}"

    @contextmanager
    def taking_step(self) -> Iterator[None]:
        """Around the call of the step, which compiles it when it comes first."""
        is_first = self._step == self._first
        with doing("compiling the training step") if is_first else nullcontext():
            yield
        self._step += 1
        if self._bar is not None:
            self._bar.update()
        elif not is_first:
            self._print(is_due=False)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Shows `loss` and `pairs_per_second` of the newest record, if it has them."""
        self._parts = []
        if "loss" in metrics:
            self._parts.append(f"loss {float(metrics['loss']):.3f}")
        if "pairs_per_second" in metrics:
            self._parts.append(f"{float(metrics['pairs_per_second']):,.0f} pairs/s")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._parts))
        else:
            is_first = self._step == self._first + 1
            self._print(is_due=is_first or self._step >= self._num_steps)

    def _print(self, *, is_due: bool) -> None:
        """A line, if one is due or the last one is `seconds_between_lines` ago."""
        now = time.monotonic()
        if self._shows and (is_due or now - self._last_line >= self._pause):
            self._last_line = now
            progress = f"train {self._step}/{self._num_steps}"
            write_line(", ".join([progress, *self._parts, f"{self._time_left()} left"]))

    def _time_left(self) -> str:
        """Without the first step of this start, which was compiled."""
        done = self._step - self._first
        if done == 1:
            self._start = time.monotonic()
        if done < 2:
            return "unknown time"
        spent = time.monotonic() - self._start
        return in_words(spent / (done - 1) * (self._num_steps - self._step))

    def close(self) -> None:
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()
