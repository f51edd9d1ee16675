"""Saving and restoring a run's state with Orbax, so that nothing is lost in silence.

A checkpoint RUN/checkpoints/STEP has two items: `state`, a flat mapping from dotted
names ("params.text.layers.0...") to arrays, and `tensors`, their dtypes, shapes and
checksums. Orbax writes under another name and renames at the end, so a killed save is
never taken for a checkpoint; the checksums find what a disk did to it afterwards.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vilem_jax.config.schema import Config
from vilem_jax.distributed import processes
from vilem_jax.errors import UserError
from vilem_jax.files import reason
from vilem_jax.runs.checkpoint_contents import (
    FIELDS,
    ORBAX_LOGGER,
    SILENT,
    CorruptError,
    Flat,
    check_same,
    corrupt_if_unreadable,
    describe,
    failure,
    finished_steps,
    flatten,
    list_files,
    nest,
    no_elements,
    placed,
    read_description,
    read_fields,
    shapes,
    verify,
    verify_files,
)
from vilem_jax.runs.metrics import notify
from vilem_jax.runs.workdir import read_config

CHECKPOINTS_FOLDER = "checkpoints"
BEST_FOLDER, MEAN_RECALL = "best", "mean_recall"  # see best.py
CORRUPT_FOLDER = "corrupt-checkpoints"
MAX_FAILED_SAVES = 3  # in a row, then the run stops

_OLD = ".old-"  # begins the name of a checkpoint on its way out
_FOLDER = {"last": CHECKPOINTS_FOLDER, "best": BEST_FOLDER}


class _NoRoomError(OSError):
    """Found by all processes alike, before Orbax begins."""


class Checkpoints:
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
          keep: the newest so many stay; an older one goes when a new one is safe. None:
            all stay.
          folder: their name in the work directory.
        """
        # Orbax logs every failure with its traceback; what a person needs, we say.
        ORBAX_LOGGER.setLevel(SILENT)
        self._folder = Path(workdir).absolute() / folder
        self._keep, self._notify = keep, notify
        self._saving: int | None = None  # the step that is on its way to the disk
        self._failed = 0  # saves in a row
        left = self._folder.glob(f"{_OLD}*")
        processes.on_process_0(
            lambda: [shutil.rmtree(p, ignore_errors=True) for p in left]
        )
        self._manager = self._open()

    def steps(self) -> list[int]:
        """The finished checkpoints, oldest first, as process 0 sees the disk."""
        return processes.broadcast(finished_steps(self._folder))

    def save(self, step: int, state: Any, metrics: dict | None = None) -> None:
        """Starts to store `state`; returns once the arrays may be overwritten.

        A save that fails is reported and training continues. Of several processes all
        must call this; an error that not all of them see ends the run.

        Args:
          metrics: what was measured of it, for `read_metrics`.

        Raises:
          UserError: the third failure in a row, or one among several processes.
        """
        self.wait()
        if step in self.steps():
            return
        flat = flatten(state)
        items = ocp.args.Composite(
            # Orbax refuses arrays without elements (a queue of length 0).
            state=ocp.args.StandardSave({k: v for k, v in flat.items() if v.size}),
            tensors=ocp.args.JsonSave(describe(flat) | {"metrics": metrics or {}}),
        )
        self._saving = step
        try:
            self._check_room(flat)
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Returns when the save that is under way is on the disk, or has failed."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
            if self._saving not in self.steps():
                raise OSError("the checkpoint was not finished")
        except Exception as error:
            self._fail(error)
        else:
            self._saving, self._failed = None, 0

    def _check_room(self, flat: Flat) -> None:
        """Fails at once where the disk is sure to fill up: Orbax would fail later and
        with many words. Compression takes about 7 % off a state."""
        free = processes.broadcast(shutil.disk_usage(self._folder).free)
        needed = 0.9 * sum(leaf.nbytes for leaf in flat.values())
        if free < needed:
            raise _NoRoomError(
                f"no space: {free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} needed"
            )

    def _list_files(self) -> None:
        """Called from Orbax's thread when all is written, before the renaming."""
        if jax.process_index() == 0:
            for path in self._folder.glob(f"{self._saving}.*"):
                list_files(path)

    def _fail(self, error: Exception) -> None:
        if processes.is_lost(error):
            raise error
        step, self._saving = self._saving, None
        self._failed += 1
        kept = finished_steps(self._folder)
        last = f"step {kept[-1]} is safe" if kept else "none is stored yet"
        trouble = f"saving step {step} to {self._folder} failed: {failure(error)}"
        if processes.is_multi_process() and not isinstance(error, _NoRoomError):
            raise UserError(
                f"{trouble}, so the processes no longer agree ({last}); fix the cause "
                "and rerun the same command on all of them to resume"
            ) from error
        with contextlib.suppress(Exception):
            self._manager.close()
        with contextlib.suppress(UserError):
            self._manager = self._open()  # which removes what the failure left
        if self._failed >= MAX_FAILED_SAVES:
            raise UserError(
                f"{trouble}; that was failure {self._failed} in a row, so the run "
                f"stops ({last}); make room or choose another --workdir, then resume"
            ) from error
        self._notify(
            f"{trouble} ({self._failed} of {MAX_FAILED_SAVES} in a row); training "
            f"continues, {last}"
        )

    def restore_latest(self, abstract_state: Any) -> tuple[Any, int] | None:
        """The newest checkpoint that is whole, and its step; None where there is none.

        Corrupt ones newer than it are said, and moved to RUN/corrupt-checkpoints.

        Args:
          abstract_state: the state's tree with shapes, dtypes and shardings, for
            the devices of this run.

        Raises:
          UserError: the model has another shape (the first tensor that differs is
            named), or every checkpoint is corrupt.
        """
        self.wait()
        corrupt = []
        for step in reversed(self.steps()):
            try:
                state = self._restore(step, abstract_state)
            except CorruptError as error:
                self._notify(
                    f"checkpoint {self._folder / str(step)} is corrupt: {error}"
                )
                corrupt.append(step)
                continue
            if corrupt:
                self.set_aside(corrupt)
                self._notify(f"going on from the checkpoint of step {step} instead")
            return state, step
        if corrupt:
            raise UserError(
                f"every checkpoint in {self._folder} is corrupt; delete the folder to "
                "begin again, or choose another --workdir"
            )
        return None

    def _restore(self, step: int, abstract_state: Any) -> Any:
        where = self._folder / str(step)
        wanted = flatten(abstract_state)
        processes.raise_on_all(lambda: verify_files(where), CorruptError)
        saved = read_description(where)
        check_same(saved, wanted, where)
        target = {name: placed(leaf) for name, leaf in wanted.items() if leaf.size}
        with corrupt_if_unreadable():
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target)),
            )
        flat = dict(items["state"])
        processes.raise_on_all(lambda: verify(flat, saved), CorruptError)
        for name, leaf in wanted.items():
            if not leaf.size:
                flat[name] = no_elements(leaf)
        return jax.tree.unflatten(
            jax.tree.structure(abstract_state), [flat[name] for name in wanted]
        )

    def drop(self, step: int) -> None:
        """Removes a finished checkpoint, renamed first, for half of one is corrupt."""
        old = self._folder / f"{_OLD}{step}"

        def remove() -> None:
            (self._folder / str(step)).rename(old)
            shutil.rmtree(old, ignore_errors=True)

        processes.on_process_0(remove)
        self._manager.reload()

    def set_aside(self, steps: list[int]) -> None:
        """Out of the way of the save that will come to the same step again."""
        processes.on_process_0(lambda: self._move_away(steps))
        self._manager.reload()

    def _move_away(self, steps: list[int]) -> None:
        folder = self._folder.parent / CORRUPT_FOLDER
        try:
            folder.mkdir(exist_ok=True)
            for step in steps:
                path, count = folder / str(step), 1
                while path.exists():
                    path, count = folder / f"{step}-{count}", count + 1
                (self._folder / str(step)).rename(path)
        except OSError as error:
            raise UserError(
                f"cannot move a corrupt checkpoint to {folder}: {reason(error)}"
            ) from error

    def _open(self) -> ocp.CheckpointManager:
        try:
            return ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep,
                    cleanup_tmp_directories=True,
                    lightweight_initialize=True,  # a corrupt one must not stop us here
                    save_root_metadata=False,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._list_files
                    ),
                ),
            )
        except OSError as error:
            raise UserError(
                f"cannot keep checkpoints in {self._folder}: {reason(error)}"
            ) from error

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: it failed, so the run's end is not stored.
        """
        had_failed = self._failed
        self.wait()
        with contextlib.suppress(Exception):
            self._manager.close()
        if self._failed > had_failed:
            raise UserError(
                f"the last checkpoint could not be written to {self._folder}; make "
                "room and run the same command again to resume"
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.close()


def restore_params(
    workdir: str | os.PathLike,
    weights: str = "online",
    abstract_params: Any = None,
    *,
    step: str = "last",
) -> tuple[dict[str, Any], Config]:
    """The parameters in a whole checkpoint of a run, and the run's settings.

    Args:
      weights: "online", those that were trained, or "momentum", their moving average.
      abstract_params: where given, the tree they must have.
      step: "last", the newest checkpoint, or "best", that of the best validation, where
        the run kept it (`config.checkpoint.keep_best`).

    Returns:
      A nested dict of NumPy arrays with int keys for layers, and the `Config`.

    Raises:
      UserError: no run, no whole checkpoint, no such weights, or another shape.
    """
    if weights not in FIELDS:
        raise UserError(f"weights must be one of {tuple(FIELDS)}, not {weights!r}")
    config = read_config(workdir)
    found, _ = restore_fields(workdir, {FIELDS[weights]: abstract_params}, step=step)
    return found[FIELDS[weights]], config


def read_metrics(workdir: str | os.PathLike, folder: str) -> dict[int, dict]:
    """What was measured of each whole checkpoint in RUN/`folder`: {step: metrics}."""
    found, path = {}, Path(workdir).absolute() / folder
    for step in processes.broadcast(finished_steps(path)):
        try:
            verify_files(path / str(step))
            found[step] = read_description(path / str(step), "metrics")
        except CorruptError as error:
            notify(f"checkpoint {path / str(step)} is corrupt: {error}")
    return found


def best_first(metrics: dict[int, dict]) -> list[int]:
    """Steps in the order of their mean recall."""
    return sorted(metrics, key=lambda step: -metrics[step][MEAN_RECALL])


def restore_fields(
    workdir: str | os.PathLike, fields: Mapping[str, Any], *, step: str = "last"
) -> tuple[dict[str, Any], int]:
    """Some fields of the state in a whole checkpoint of a run, and its step.

    Args:
      fields: names in `TrainState` -> the tree each must have, or None for any.
      step: "last" or "best", as of `restore_params`; the best has the parameters and
        their momentum copies alone.

    Returns:
      NumPy arrays, in nested dicts with int keys for layers where a field is a tree.

    Raises:
      UserError: no whole checkpoint, no such field in it, or another shape.
    """
    if step not in _FOLDER:
        raise UserError(f"step must be one of {tuple(_FOLDER)}, not {step!r}")
    folder = Path(workdir).absolute() / _FOLDER[step]
    steps = in_order = finished_steps(folder)[::-1]
    if step == "best":
        in_order = best_first(read_metrics(workdir, BEST_FOLDER))
    for number in in_order:
        where = folder / str(number)
        try:
            flat = read_fields(where, fields)
        except CorruptError as error:
            notify(f"checkpoint {where} is corrupt: {error}")
            continue
        for field, abstract in fields.items():
            if abstract is not None:
                check_same(shapes(flat[field]), flatten(abstract), where)
        if number != in_order[0]:
            notify(f"the checkpoint of step {number} is used instead")
        # A field that is one array has no names below its own.
        found = {f: part[""] if "" in part else nest(part) for f, part in flat.items()}
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
