"""The program that trains; reads top to bottom.

config -> mesh -> data -> model and state -> jit -> restore or start -> loop -> finish.
Several processes run this same code (distributed/processes.py): each reads its rows of
a batch, process 0 writes, and what ends the loop ends it at the same step for all.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from vilem_jax import locks
from vilem_jax.config.schema import Config
from vilem_jax.data.batches import Batches, BatchMaker, open_corpus
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.fingerprint import fingerprints
from vilem_jax.data.sources.source import notes_of
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.distributed import processes
from vilem_jax.distributed.mesh import (
    check_batch,
    device_put,
    make_layout,
    over_batch,
    put_batch,
    put_replicated,
    replicated,
)
from vilem_jax.editing.loading import open_edits
from vilem_jax.progress import doing, notify, silence
from vilem_jax.runs.best import KeepBest, mean_recall
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.metrics import Clock, MetricsLog, Progress
from vilem_jax.runs.origin import TOKENIZER_FOLDER
from vilem_jax.runs.trained_model import has_tokenizer, open_tokenizer
from vilem_jax.runs.workdir import (
    LOCK_FILE,
    check_workdir,
    claim_workdir,
    note_command,
    note_data,
)
from vilem_jax.training import starting
from vilem_jax.training.compile import compile_step
from vilem_jax.training.final_scores import last_validation, score_test, was_finished
from vilem_jax.training.fitting import check_against_data
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.state import state_sharding, with_shardings
from vilem_jax.training.tasks import make_task
from vilem_jax.typing import PyTree

RESUME = "rerun the same command to resume"


def train(
    config: Config,
    workdir: str | Path,
    *,
    max_hours: float | None = None,
    dry_run: bool = False,
    stop_code: int = 0,
    num_devices: int | None = None,
    hooks: Sequence[Callable] = (),
    at_end: Callable[[], object] = lambda: None,
) -> dict:
    """Trains until the config's last step, or resumes the run in `workdir`.

    Args:
      max_hours: after this wall time the run saves and leaves, to be resumed.
      stop_code: if not 0, SystemExit with it ends a run that was stopped before its
        last step, so that a scheduler starts it again.
      dry_run: compile, take one step on the first batch, write nothing.
      num_devices: how many of the devices to use; None uses all.
      hooks: called with (step, record) for each record, see `MetricsLog`.
      at_end: called by all processes if all steps are done, now or before.

    Returns:
      the last evaluation's metrics, {} if none was due; also of a run that is finished
      already, which this leaves as it is.

    Raises:
      UserError: settings, data, weights or a work directory that do not fit.
    """
    folder = Path(workdir)
    started = time.monotonic()
    if not processes.is_process_0():
        silence()

    # ---- settings and mesh ----
    with doing("reading the settings"):
        config = starting.complete(config, folder)
    layout = make_layout(config.compute, num_devices)
    mesh, batch_size = layout.mesh, config.train.batch_size
    check_batch(batch_size, config.train.num_microbatches, mesh.size)

    # ---- data ----
    with doing("reading the training data"):
        tokenizer = open_tokenizer(config, folder)
        corpus = open_corpus(config.data)
        _report_notes(corpus)
        edits = open_edits(config, corpus, tokenizer)
    num_steps, steps_per_epoch = _count_steps(config, corpus)

    # ---- model and state: pure functions, and how their arrays are sharded ----
    # Processes that differ would wait for each other forever, or train on other data.
    processes.check_same(starting.must_agree(config, corpus, tokenizer))
    if not dry_run:
        processes.on_process_0(lambda: check_workdir(folder, config))
        if processes.broadcast(was_finished(config, folder, num_steps)):
            at_end()
            return last_validation(folder)
    schedule = make_schedule(config.optimizer, num_steps, steps_per_epoch)
    with doing("loading the models and the validation data"):
        task = make_task(config, layout, tokenizer, schedule, folder)
    # One key for the whole run: the step folds in its number and each sample's id.
    key = put_replicated(jax.random.key(config.seed), mesh)
    frozen = put_replicated(task.frozen, mesh)
    # Shapes alone, no memory: what is sharded, compiled and restored follows from them.
    shapes = jax.eval_shape(lambda k: task.init_state(task.init_params(k)), key)
    shardings = state_sharding(shapes, layout)

    # ---- jit ----
    step_fn = compile_step(task.step, shapes, layout)
    # Whole on every process, so that pretrained weights can be put in on the host.
    init_params = jax.jit(task.init_params, out_shardings=replicated(mesh))
    init_state = jax.jit(task.init_state, out_shardings=shardings)

    # ---- batches: a pure function of the seed and the step ----
    rows = processes.local_rows(over_batch(mesh), batch_size)
    make_batch = BatchMaker(config, corpus, tokenizer, task.image_size, edits, rows)

    def state_of_step_0() -> PyTree:
        with doing("creating the model"):
            return init_state(*task.load_weights(init_params(key)))

    if dry_run:
        with Batches(make_batch) as reader, doing("taking one step"):
            batch = put_batch(next(reader), mesh)
            _, metrics = step_fn(state_of_step_0(), frozen, batch, key)
            return _report_dry_run(metrics, num_steps)

    # ---- work directory: once everything is there that the run needs ----
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stop = enter(_stop_signal())
        processes.on_process_0(lambda: _claim(enter, folder, config, tokenizer, corpus))
        processes.check_shared(folder)

        # ---- restore, or pretrained weights, or random ones ----
        checkpoints = enter(Checkpoints(folder, keep=config.checkpoint.keep))
        best = enter(KeepBest(folder)) if config.checkpoint.keep_best else None
        with doing("restoring the newest checkpoint"):
            restored = checkpoints.restore_latest(with_shardings(shapes, shardings))
        if restored is None:
            state, first_step = state_of_step_0(), 0
        else:
            # Orbax's arrays may share memory with its reader; the state is donated.
            state, first_step = device_put(restored[0], shardings), restored[1]
            notify(f"resuming at step {first_step}")
        events = config.log.tensorboard
        log = MetricsLog(folder, start_step=first_step, tensorboard=events, hooks=hooks)
        enter(log)
        # No position of the reader is stored: its batches follow from seed and step.
        reader = enter(Batches(make_batch, first_step))
        progress = enter(Progress(num_steps, start_step=first_step))

        # ---- loop ----
        clock, monitor = Clock(), _Monitor(config)
        # What ends the loop on one process ends it on all, one step later.
        sums = processes.DelayedSums(over_batch(mesh), replicated(mesh))
        step = last_logged = saved_step = first_step
        last_metrics, trouble, (stopped, late) = {}, None, sums.sums(stop(), False)
        while step < num_steps and not (stopped or late or trouble):
            with clock.waiting():  # `input_wait` of the log
                batch = next(reader)
            with progress.taking_step():
                state, metrics = step_fn(state, frozen, put_batch(batch, mesh), key)
            step += 1
            # Waits for the step before this one: the device is never idle.
            trouble = monitor.trouble_before(step, metrics)
            if step == first_step + 1:
                progress.show(jax.device_get(metrics))

            if step % config.log.every_steps == 0 or step == num_steps:
                record = jax.device_get(metrics)  # waits for this step
                lap = clock.lap((step - last_logged) * batch_size)
                lap |= monitor.corrupt_since_start(record)
                log.write(step, record, lap)
                progress.show(record | lap)
                last_logged = step
            if _is_due(step, num_steps, config.evaluation.every_steps):
                with clock.apart(), doing("scoring validation"):
                    last_metrics = task.evaluate(state)
                    _log_validation(step, last_metrics, state, log, best)
            if _is_due(step, num_steps, config.checkpoint.every_steps):
                with clock.apart(), doing("saving a checkpoint"):
                    checkpoints.save(step, state)
                    saved_step = step
            is_late = max_hours and time.monotonic() - started > 3600 * max_hours
            stopped, late = sums.sums(stop(), bool(is_late))

        # ---- finish ----
        trouble = trouble or monitor.trouble_before(step + 1, {})
        # Also after trouble: the last finite state is worth keeping.
        with doing("saving the last checkpoint"):
            if step > saved_step:
                checkpoints.save(step, state)
            checkpoints.wait()
        if trouble:
            raise processes.AllProcessesError(trouble)
        if step < num_steps:
            why = f"{max_hours} hours are over, " if late else ""
            notify(f"{why}stopped at step {step} of {num_steps}: {RESUME}")
            if stop_code:
                raise SystemExit(stop_code)
        else:
            with doing("finishing"):
                task.finish(state)
                score_test(config, folder, task, state, step)
    if step >= num_steps:
        at_end()
    return last_metrics


def _report_notes(corpus: Corpus) -> None:
    for source in corpus.sources:
        for note in notes_of([source]):
            notify(f"{source.name}: {note}")


def _count_steps(config: Config, corpus: Corpus) -> tuple[int, int]:
    """The steps of the run, and of an epoch."""
    steps_per_epoch = max(corpus.epoch_length // config.train.batch_size, 1)
    num_steps = config.train.steps_of(corpus.epoch_length)
    check_against_data(config, corpus, num_steps)
    return num_steps, steps_per_epoch


def _log_validation(
    step: int, metrics: dict, state: PyTree, log: MetricsLog, best: KeepBest | None
) -> None:
    """Logs the metrics, and keeps the weights if they are the best so far."""
    record: dict[str, object] = {"validation": metrics}
    if best:
        record["validation/mean_recall"] = mean_recall(metrics)
    log.write(step, record)
    if best:
        best.update(step, processes.broadcast(mean_recall(metrics)), state)


def _claim(
    enter: Callable, folder: Path, config: Config, tokenizer: Tokenizer, corpus: Corpus
) -> None:
    """On process 0; it is the only writer as long as what it has entered is open."""
    enter(locks.only_writer(folder / LOCK_FILE, folder))
    claim_workdir(folder, config)
    note_command(folder)
    for name in note_data(folder, fingerprints(corpus)):
        notify(f"the data of {name} has changed since this run began")
    if not has_tokenizer(folder):  # another program may be reading it
        tokenizer.save(folder / TOKENIZER_FOLDER)


def _is_due(step: int, num_steps: int, every: int) -> bool:
    """Every so many steps, and at the end."""
    return step == num_steps or (every > 0 and step % every == 0)


def _report_dry_run(metrics: dict, num_steps: int) -> dict:
    metrics = {name: float(value) for name, value in metrics.items()}
    notify(f"a dry run: one of {num_steps} steps taken, loss {metrics['loss']:.3f}")
    return metrics


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that returns whether a signal came; the loop then saves."""
    received, numbers = [], [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` sets it
        numbers.append(signal.SIGHUP)
    try:
        before = {
            number: signal.signal(number, lambda n, _: received.append(n))
            for number in numbers
        }
    except ValueError:  # not in the main thread: our caller handles signals
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Monitor:
    """Stops a run whose images are corrupt or whose losses are not finite."""

    def __init__(self, config: Config):
        self._max_corrupt_fraction = config.data.max_corrupt_fraction
        self._max_skipped = config.train.max_skipped_in_a_row
        self._batch_size = config.train.batch_size
        # Of this start, without the newest step.
        self._num_images = self.corrupt_images = 0
        self._before: dict = {}  # the metrics of the step before, on the device

    def corrupt_since_start(self, record: dict) -> dict[str, int]:
        """For the log, the newest step's `record` included; {} if there are none."""
        count = self.corrupt_images + int(record.get("corrupt_images", 0))
        return {"corrupt_images_since_start": count} if count else {}

    def trouble_before(self, step: int, metrics: dict) -> str | None:
        """Why the run must stop, judged by the step before: this one still computes.

        So the host waits for the device one step late, and is at most one ahead. The
        metrics are of the whole batch, so all processes judge alike.
        """
        before, self._before = self._before, metrics
        if not before:
            return None
        names = ("skipped_in_a_row", "corrupt_images")  # captions alone: no images
        counts = jax.device_get({n: before[n] for n in names if n in before})
        corrupt = self._too_many_corrupt(int(counts.get("corrupt_images", 0)))
        return corrupt or self._skipped(step, int(counts["skipped_in_a_row"]))

    def _too_many_corrupt(self, count: int) -> str | None:
        self._num_images += self._batch_size
        self.corrupt_images += count
        # A few corrupt images in the first batches are no fraction yet.
        limit = max(self._max_corrupt_fraction * self._num_images, 10)
        if self.corrupt_images <= limit:
            return None
        return (
            f"{self.corrupt_images} of {self._num_images} images could not be read, "
            f"more than config.data.max_corrupt_fraction={self._max_corrupt_fraction}; "
            "`vilem data check` lists them"
        )

    def _skipped(self, step: int, in_a_row: int) -> str | None:
        if not in_a_row:
            return None
        if in_a_row < self._max_skipped:
            notify(f"step {step - 1} was skipped: its loss or gradient is not finite")
            return None
        return (
            f"{in_a_row} steps in a row up to step {step - 1} had a loss or gradient "
            "that is not finite, and were skipped; lower "
            "config.optimizer.learning_rate, or look at the data of these steps"
        )
