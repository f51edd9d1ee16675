"""The program that trains; reads top to bottom.

config -> mesh -> data -> task -> restore or begin -> loop -> finish. Several processes
run this same code (hosts.py): each reads its rows of a batch, the first one writes,
and what ends the loop ends it at the same step for all.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from vilem_jax.config.schema import Config
from vilem_jax.data.batches import open_corpus, train_batches
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
from vilem_jax.runs.best import KeepBest, mean_recall
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.metrics import Clock, MetricsLog, Progress, say
from vilem_jax.runs.origin import TOKENIZER_FOLDER
from vilem_jax.runs.trained_model import has_tokenizer, open_tokenizer
from vilem_jax.runs.workdir import check_workdir, claim_workdir, note_command
from vilem_jax.training import starting
from vilem_jax.training.final_scores import score_test
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.tasks import Task, make_task


def train(
    config: Config,
    workdir: str,
    *,
    max_hours: float | None = None,
    dry_run: bool = False,
    stop_code: int = 0,
    num_devices: int | None = None,
    hooks: Sequence[Callable] = (),
) -> dict:
    """Trains until the config's last step, or resumes the run in `workdir`.

    Args:
      max_hours: after this wall time the run saves and leaves, to be resumed.
      stop_code: where not 0, SystemExit with it ends a run that was stopped before its
        last step, so that a scheduler starts it again.
      dry_run: compile, take one step on the first batch, write nothing.
      num_devices: use so many of the devices; None uses all.
      hooks: called with (step, record) for each record, see `MetricsLog`.

    Returns:
      the last evaluation's evaluation, {} where none was due.

    Raises:
      UserError: settings, data, weights or a work directory that do not fit.
    """
    folder = Path(workdir)
    began = time.monotonic()

    # ---- settings and mesh ----
    config = starting.complete(config, folder)
    layout = make_layout(config.compute, num_devices)
    mesh = layout.mesh
    check_batch(config.train.batch_size, config.train.num_microbatches, mesh)

    # ---- data ----
    tokenizer = open_tokenizer(config, folder)
    corpus = open_corpus(config.data)
    edits = open_edits(config, corpus, tokenizer)
    steps_per_epoch = max(corpus.epoch_length // config.train.batch_size, 1)
    num_steps = config.train.num_steps or max(
        round(config.train.num_epochs * steps_per_epoch), 1
    )

    if config.optimizer.warmup_steps >= num_steps:
        say(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} is not "
            f"below the run's {num_steps} steps: the learning rate rises to the end "
            "and never falls"
        )

    # ---- task ----
    processes.check_same(starting.must_agree(config, corpus, tokenizer))
    if not dry_run:
        processes.on_process_0(lambda: check_workdir(folder, config))
    schedule = make_schedule(config.optimizer, num_steps, steps_per_epoch)
    task = make_task(config, layout, tokenizer, schedule, folder)

    # ---- work directory: once all is there that the run needs ----
    if not dry_run:
        processes.on_process_0(lambda: _claim(folder, config, tokenizer))
        processes.check_shared(folder)
    key = put_replicated(jax.random.key(config.seed), mesh)

    def batches(start_step: int):
        return train_batches(
            corpus,
            tokenizer,
            config.data,
            seed=config.seed,
            batch_size=config.train.batch_size,
            image_size=task.image_size,
            edits=edits,
            start_step=start_step,
            rows=processes.rows_here(over_batch(mesh), config.train.batch_size),
        )

    if dry_run:
        return _dry_run(task, batches, mesh, key, num_steps)

    # ---- restore or begin ----
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_signal())
        checkpoints = stack.enter_context(
            Checkpoints(folder, keep=config.checkpoint.keep)
        )
        keeps_best = config.checkpoint.keep_best
        best = stack.enter_context(KeepBest(folder)) if keeps_best else None
        state, first_step = _restore_or_begin(checkpoints, task, key)
        log = stack.enter_context(
            MetricsLog(
                folder,
                start_step=first_step,
                tensorboard=config.log.tensorboard,
                hooks=hooks,
            )
        )
        reader = stack.enter_context(batches(first_step))
        progress = stack.enter_context(Progress(num_steps, start_step=first_step))

        # ---- loop ----
        clock = Clock()
        watch = _Watch(config)
        votes = processes.DelayedSums(over_batch(mesh), replicated(mesh))
        last_logged, saved_step, evaluation = first_step, first_step, {}
        step, trouble, (stopped, late) = first_step, None, votes.sums(stop(), False)
        while step < num_steps and not (stopped or late or trouble):
            with clock.waiting():
                batch = next(reader)
            state, metrics = task.step(state, put_batch(batch, mesh), key)
            step += 1
            trouble = watch.trouble_before(step, metrics)
            progress.advance()

            if step % config.log.every_steps == 0 or step == num_steps:
                record = jax.device_get(metrics)
                lap = clock.lap((step - last_logged) * config.train.batch_size)
                last_logged = step
                if bad := watch.corrupt_images + int(record.get("corrupt_images", 0)):
                    lap["corrupt_images_since_start"] = bad
                log.write(step, record, lap)
                progress.show(record | lap)
            if _is_due(step, num_steps, config.evaluation.every_steps):
                with clock.apart():
                    evaluation = task.evaluate(state)
                    record = {"validation": evaluation}
                    if best:
                        record["validation/mean_recall"] = mean_recall(evaluation)
                    log.write(step, record)
                    if best:
                        best.update(
                            step, processes.broadcast(mean_recall(evaluation)), state
                        )
            if _is_due(step, num_steps, config.checkpoint.every_steps):
                with clock.apart():
                    checkpoints.save(step, state)
                    saved_step = step
            is_late = max_hours and time.monotonic() - began > 3600 * max_hours
            stopped, late = votes.sums(stop(), bool(is_late))

        # ---- finish ----
        if late:
            say(f"{max_hours} hours are over")
        trouble = trouble or watch.trouble_before(step + 1, {})
        if step > saved_step:
            checkpoints.save(step, state)
        checkpoints.wait()
        if trouble:
            raise processes.AllProcessesError(trouble)
        if step < num_steps:
            say(
                f"stopped at step {step} of {num_steps}; the same command goes on there"
            )
            if stop_code:
                raise SystemExit(stop_code)
        else:
            task.finish(state)
            score_test(config, folder, task, state, step)
    return evaluation


def _claim(folder: Path, config: Config, tokenizer: Tokenizer) -> None:
    claim_workdir(folder, config)
    note_command(folder)
    if not has_tokenizer(folder):  # another program may be reading it
        tokenizer.save(folder / TOKENIZER_FOLDER)


def _is_due(step: int, num_steps: int, every: int) -> bool:
    """Every so many steps, and at the end."""
    return step == num_steps or (every > 0 and step % every == 0)


def _restore_or_begin(checkpoints: Checkpoints, task: Task, key):
    """The newest state in the work directory, or that of step 0."""
    restored = checkpoints.restore_latest(task.abstract_state)
    if restored is None:
        return task.begin(key), 0
    state, step = restored
    say(f"resuming at step {step}")
    # What Orbax hands over may share memory with its reader; the state is donated.
    shardings = jax.tree.map(lambda x: x.sharding, task.abstract_state)
    return device_put(state, shardings), step


def _dry_run(task: Task, batches, mesh, key, num_steps: int) -> dict:
    with batches(0) as reader:
        batch = put_batch(next(reader), mesh)
    _, metrics = task.step(task.begin(key), batch, key)
    metrics = {name: float(value) for name, value in metrics.items()}
    say(f"a dry run: one of {num_steps} steps taken, loss {metrics['loss']:.3f}")
    return metrics


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM or Ctrl-C came; the loop then saves."""
    seen = []
    wanted = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {
            number: signal.signal(number, lambda n, _: seen.append(n))
            for number in wanted
        }
    except ValueError:  # not in the main thread: whoever started us handles signals
        before = {}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """Stops a run whose images are corrupt or whose losses are not finite."""

    def __init__(self, config: Config):
        self._max_corrupt_fraction = config.data.max_corrupt_fraction
        self._max_skipped = config.train.max_skipped_in_a_row
        self._batch_size = config.train.batch_size
        self._seen = self.corrupt_images = (
            0  # since this start, without the newest step
        )
        self._before: dict = {}  # the metrics of the step before, on the device

    def trouble_before(self, step: int, metrics: dict) -> str | None:
        """Why the run must stop, judged by the step before: this one still computes.

        So the host waits for the device one step late, and is at most one ahead. The
        metrics are of the whole batch, so all processes judge alike.
        """
        before, self._before = self._before, metrics
        if not before:
            return None
        names = ("skipped_in_a_row", "corrupt_images")  # captions alone have no images
        counts = jax.device_get({n: before[n] for n in names if n in before})
        bad = self._too_many_corrupt(int(counts.get("corrupt_images", 0)))
        return bad or self._skipped(step, int(counts["skipped_in_a_row"]))

    def _too_many_corrupt(self, count: int) -> str | None:
        self._seen += self._batch_size
        self.corrupt_images += count
        # A few corrupt images in the first batches are no fraction yet.
        if self.corrupt_images <= max(self._max_corrupt_fraction * self._seen, 10):
            return None
        return (
            f"{self.corrupt_images} of {self._seen} images could not be read, more "
            f"than config.data.max_corrupt_fraction={self._max_corrupt_fraction}; "
            "`vilem data check` lists them"
        )

    def _skipped(self, step: int, in_a_row: int) -> str | None:
        if not in_a_row:
            return None
        if in_a_row < self._max_skipped:
            say(f"step {step - 1} was skipped: its loss or gradient is not finite")
            return None
        return (
            f"{in_a_row} steps in a row up to step {step - 1} had a loss or gradient "
            "that is not finite, and were skipped; lower "
            "config.optimizer.learning_rate, or look at the data of these steps"
        )
