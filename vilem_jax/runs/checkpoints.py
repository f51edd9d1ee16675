"""Saves and restores the state of a run with Orbax; finds corrupt checkpoints.

A checkpoint RUN/checkpoints/STEP has two items: `state`, a flat mapping from dotted
names ("params.text.layers.0...") to arrays, and `tensors`, their dtypes and shapes.
Orbax writes under another name and renames at the end, so a killed save is never taken
for a checkpoint. Checksums of its files, written before the renaming, find bytes that
changed on the disk later.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from vilem_jax import integrity
from vilem_jax.distributed import processes
from vilem_jax.errors import UserError
from vilem_jax.files import reason
from vilem_jax.progress import notify
from vilem_jax.runs import checkpoint_contents as contents
from vilem_jax.runs.checkpoint_contents import CorruptError, finished_steps
from vilem_jax.runs.workdir import read_config
from vilem_jax.typing import PyTree

CHECKPOINTS_FOLDER = "checkpoints"
BEST_FOLDER, MEAN_RECALL = "best", "mean_recall"  # see best.py
CORRUPT_FOLDER = "corrupt-checkpoints"
MAX_FAILED_SAVES = 3  # in a row, then the run stops

_OLD = ".old-"  # prefix of a checkpoint that is being removed
_FOLDER = {"last": CHECKPOINTS_FOLDER, "best": BEST_FOLDER}


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run; used as a context manager by the trainer."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int | None = 2,
        folder: str = CHECKPOINTS_FOLDER,
        notify: Callable[[str], None] = notify,
    ):
        """
        Args:
          keep: how many of the newest to keep; an older one is removed once a new one
            is stored. None keeps all.
          folder: the name of their folder in the work directory.
          notify: prints a sentence for the user.
        """
        self._quiet = contents.quiet_threads()  # `_fail` reports in a sentence
        self._folder = Path(workdir).absolute() / folder
        self._keep, self._notify = keep, notify
        self._saving: int | None = None  # the step that Orbax is writing
        self._failed = 0  # saves in a row
        # A killed `drop` leaves these.
        left = self._folder.glob(f"{_OLD}*")
        processes.on_process_0(
            lambda: [shutil.rmtree(p, ignore_errors=True) for p in left]
        )
        self._manager = self._open()

    def steps(self) -> list[int]:
        """The finished checkpoints that process 0 sees, oldest first."""
        return processes.broadcast(finished_steps(self._folder))

    def save(self, step: int, state: PyTree, metrics: dict | None = None) -> None:
        """Starts to store `state`; returns once the arrays may be overwritten.

        A failed save is reported, and training continues. All processes must call this.
        With several processes, only a full disk is survived: it is found on all.

        Args:
          metrics: the metrics of this state, for `read_metrics`.

        Raises:
          UserError: at the third failure in a row, or if one process of several failed.
        """
        self.wait()
        if step in self.steps():
            return
        flat = contents.flatten(state)
        tensors = {"tensors": contents.describe_shapes(flat), "metrics": metrics or {}}
        items = ocp.args.Composite(
            # Orbax refuses arrays without elements (a queue of length 0).
            state=ocp.args.StandardSave({k: v for k, v in flat.items() if v.size}),
            tensors=ocp.args.JsonSave(tensors),
        )
        self._saving = step
        try:
            contents.check_room(self._folder, flat)
            self._manager.save(step, args=items, force=True)
        # Orbax and TensorStore raise many types; no full disk may stop a run of days.
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Returns when the save that was started is on the disk, or has failed."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
            # Orbax only logs some failures of its thread.
            if self._saving not in self.steps():
                raise OSError("the checkpoint was not finished")
        except Exception as error:
            self._fail(error)
        else:
            self._saving, self._failed = None, 0

    def _list_files(self) -> None:
        """Called from Orbax's thread when all is written, before the renaming."""
        if jax.process_index() == 0:
            for unfinished in self._folder.glob(f"{self._saving}.*"):
                integrity.list_files(unfinished, ("state", "tensors"))

    def _fail(self, error: Exception) -> None:
        """Reports a failed save and prepares the next one, or ends the run."""
        if processes.may_have_lost_process(error):
            raise error
        step, self._saving = self._saving, None
        self._failed += 1
        kept = finished_steps(self._folder)
        last = f"step {kept[-1]} is safe" if kept else "none is stored yet"
        why = contents.failure(error)
        failed = f"saving step {step} to {self._folder} failed: {why}"
        # The others may have succeeded, and then wait for this one at the next step.
        if processes.is_multi_process() and not isinstance(error, contents.NoRoomError):
            raise UserError(
                f"{failed}; with several processes the run must stop ({last}): fix it "
                "and rerun the command on all processes to resume"
            ) from error
        # After a failure Orbax's manager refuses further saves, so a new one is opened.
        with contextlib.suppress(Exception):
            self._manager.close()
        with contextlib.suppress(UserError):
            self._manager = self._open()  # also removes what the failed save wrote
        if self._failed >= MAX_FAILED_SAVES:
            raise UserError(
                f"{failed}; that was failure {self._failed} in a row, so the run stops "
                f"({last}): make room or choose another --workdir, then resume"
            ) from error
        self._notify(
            f"{failed} ({self._failed} of {MAX_FAILED_SAVES} in a row); training "
            f"continues, {last}"
        )

    def restore_latest(self, abstract_state: PyTree) -> tuple[PyTree, int] | None:
        """The newest intact checkpoint and its step; None if there is no checkpoint.

        Newer ones that are corrupt are reported, and moved to RUN/corrupt-checkpoints.

        Args:
          abstract_state: the state's tree with shapes, dtypes and shardings, for the
            devices of this run, which may be others than those of the save.

        Raises:
          UserError: if the model has another shape (the first tensor that differs is
            named), or if every checkpoint is corrupt.
        """
        self.wait()
        corrupt = []
        for step in reversed(self.steps()):
            try:
                state = self._restore(self._folder / str(step), abstract_state)
            except CorruptError as error:
                self._notify(_corrupt(self._folder / str(step), error))
                corrupt.append(step)
                continue
            if corrupt:
                self.set_aside(corrupt)
                self._notify(f"resuming from the checkpoint of step {step} instead")
            return state, step
        # Never start at step 0 here: the user may have a copy of the checkpoints.
        if corrupt:
            raise UserError(
                f"every checkpoint in {self._folder} is corrupt; delete the folder to "
                "start again, or choose another --workdir"
            )
        return None

    def _restore(self, checkpoint: Path, abstract_state: PyTree) -> PyTree:
        wanted = contents.flatten(abstract_state)
        # On all processes: one that reads on alone would wait for the others forever.
        processes.raise_on_all(lambda: contents.verify_files(checkpoint), CorruptError)
        saved = contents.read_description(checkpoint)
        contents.check_same(saved, wanted, checkpoint)
        targets = {n: contents.with_sharding(leaf) for n, leaf in wanted.items()}
        stored = {n: target for n, target in targets.items() if target.size}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
        with contents.reading():
            items = self._manager.restore(int(checkpoint.name), args=args)
        flat = dict(items["state"])
        # Arrays without elements, which `save` leaves out.
        for name in targets.keys() - stored.keys():
            shape, dtype = targets[name].shape, targets[name].dtype
            flat[name] = jax.device_put(np.zeros(shape, dtype), targets[name].sharding)
        return jax.tree.unflatten(
            jax.tree.structure(abstract_state), [flat[name] for name in wanted]
        )

    def drop(self, step: int) -> None:
        """Removes a finished checkpoint."""
        old = self._folder / f"{_OLD}{step}"

        def remove() -> None:
            # Renamed first: a kill would leave a part of it, which looks corrupt.
            (self._folder / str(step)).rename(old)
            shutil.rmtree(old, ignore_errors=True)

        processes.on_process_0(remove)
        self._manager.reload()

    def set_aside(self, steps: list[int]) -> None:
        """Moves corrupt checkpoints away, so that their steps can be saved again.

        Raises:
          UserError: if they cannot be moved.
        """
        target = self._folder.parent / CORRUPT_FOLDER

        def move() -> None:
            try:
                target.mkdir(exist_ok=True)
                for step in steps:
                    free, number = target / str(step), 1
                    while free.exists():  # the step was corrupt before
                        free, number = target / f"{step}-{number}", number + 1
                    (self._folder / str(step)).rename(free)
            except OSError as error:
                raise UserError(
                    f"cannot move a corrupt checkpoint to {target}: {reason(error)}"
                ) from error

        processes.on_process_0(move)
        self._manager.reload()

    def _open(self) -> ocp.CheckpointManager:
        before_renaming = ocp.AsyncOptions(post_finalization_callback=self._list_files)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # or a corrupt one raises here
            save_root_metadata=False,
            async_options=before_renaming,
        )
        try:
            return ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise UserError(
                f"cannot keep checkpoints in {self._folder}: {reason(error)}"
            ) from error

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: if it failed, so that the end of the run is not stored.
        """
        had_failed = self._failed
        self.wait()
        with self._quiet, contextlib.suppress(Exception):
            self._manager.close()
        if self._failed > had_failed:
            raise UserError(
                f"the last checkpoint could not be written to {self._folder}; make "
                "room and rerun the same command to resume"
            )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The error of the block matters more than a failed last save.
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.close()


def _corrupt(checkpoint: Path, error: CorruptError) -> str:
    return f"checkpoint {checkpoint} is corrupt: {error}"


def read_metrics(workdir: str | os.PathLike, folder: str) -> dict[int, dict]:
    """The metrics of each intact checkpoint in RUN/`folder`: {step: metrics}."""
    found, checkpoints = {}, Path(workdir).absolute() / folder
    for step in processes.broadcast(finished_steps(checkpoints)):
        try:
            contents.verify_files(checkpoints / str(step))
            found[step] = contents.read_description(checkpoints / str(step), "metrics")
        except CorruptError as error:
            notify(_corrupt(checkpoints / str(step), error))
    return found


def best_first(metrics: dict[int, dict]) -> list[int]:
    """The steps, highest mean recall first."""
    return sorted(metrics, key=lambda step: -metrics[step][MEAN_RECALL])


def restore_fields(
    workdir: str | os.PathLike, fields: Mapping[str, PyTree], *, step: str = "last"
) -> tuple[dict[str, PyTree], int]:
    """Some fields of the state in an intact checkpoint of a run, and its step.

    Args:
      fields: names in `TrainState` -> the tree each must have, or None for any.
      step: "last", the newest checkpoint, or "best", that of the best validation, if
        the run kept it (`config.checkpoint.keep_best`), with only the parameters and
        the momentum parameters.

    Returns:
      NumPy arrays, in nested dicts with int keys for layers if a field is a tree.

    Raises:
      UserError: if there is no intact checkpoint or no such field in it, or if a field
        has another shape.
    """
    if step not in _FOLDER:
        raise UserError(f"step must be one of {tuple(_FOLDER)}, not {step!r}")
    folder = Path(workdir).absolute() / _FOLDER[step]
    steps = in_order = finished_steps(folder)[::-1]
    if step == "best":  # after a kill there may be two
        in_order = best_first(read_metrics(workdir, BEST_FOLDER))
    for number in in_order:
        checkpoint = folder / str(number)
        try:
            flat = contents.read_fields(checkpoint, fields)
        except CorruptError as error:
            notify(_corrupt(checkpoint, error))
            continue
        for field, abstract in fields.items():
            for name, array in flat[field].items():
                whole = f"{field}.{name}" if name else field
                integrity.check_finite(whole, array, checkpoint)
            if abstract is not None:
                saved = contents.describe_shapes(flat[field])
                contents.check_same(saved, contents.flatten(abstract), checkpoint)
        if number != in_order[0]:
            notify(f"the checkpoint of step {number} is used instead")
        found = {
            # A field that is one array has no names below its own.
            field: part[""] if "" in part else contents.nest(part)
            for field, part in flat.items()
        }
        return found, number
    if steps:
        raise UserError(f"every checkpoint in {folder} is corrupt")
    if step == "best":
        kept = read_config(workdir).checkpoint.keep_best
        raise UserError(
            f"{workdir} holds no best checkpoint: its run has config.checkpoint."
            f"keep_best={kept}" + (" but no evaluation yet" if kept else "")
        )
    raise UserError(
        f"{workdir} holds no finished checkpoint; its run must reach the first save "
        "(config.checkpoint.every_steps, or its end)"
    )
