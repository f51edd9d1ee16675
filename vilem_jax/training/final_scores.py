"""The test split, scored once when a run has ended: RUN/test.json.

Choices are made on validation, so nothing scores the test split during training, and a
run that is resumed after its end does not score it again.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax

from vilem_jax.config.schema import Config
from vilem_jax.distributed import processes
from vilem_jax.distributed.mesh import on_one_device
from vilem_jax.errors import UserError
from vilem_jax.files import write_json
from vilem_jax.progress import notify
from vilem_jax.runs.best import best_step
from vilem_jax.runs.checkpoint_contents import (
    CorruptError,
    finished_steps,
    verify_files,
)
from vilem_jax.runs.checkpoints import CHECKPOINTS_FOLDER, restore_fields
from vilem_jax.runs.metrics import METRICS_FILE, read_records
from vilem_jax.runs.workdir import EDITOR_FOLDER
from vilem_jax.typing import PyTree

SCORES_FILE = "test.json"


def score_test(
    config: Config, workdir: Path, task: Any, state: PyTree, step: int
) -> None:
    """Scores `config.data.test` with the best weights, or the last ones without best.

    Does nothing if the run has no test split, or has scored it. The file holds
    {"step", "chosen_by", "mean_recall" of validation or null, "test": {source: metrics
    of `evaluate_retrieval`}}, and is written whole.
    """
    file = workdir / SCORES_FILE
    if not config.data.test:
        return
    if processes.broadcast(file.exists()):
        notify(f"{file} holds the scores of the test split, which is scored once")
        return
    best = best_step(workdir) if config.checkpoint.keep_best else None
    if best:
        fields, _ = restore_fields(workdir, {"params": state.params}, step="best")
        params = jax.device_put(fields["params"])
    else:
        params = on_one_device(state.params)  # as in validation
    scores = {
        "step": best[0] if best else step,
        "chosen_by": "best mean recall of validation" if best else "last step",
        "mean_recall": best[1] if best else None,
        "test": task.test(params),
    }
    processes.on_process_0(lambda: write_json(file, scores))


def was_finished(config: Config, workdir: Path, num_steps: int) -> bool:
    """Whether nothing is left to do for this run, which is then reported.

    Its newest checkpoint is that of the last step or later, and intact; the test split
    is scored, and an editor is written.
    """
    folder = workdir / CHECKPOINTS_FOLDER
    steps = finished_steps(folder)
    written = [SCORES_FILE] if config.data.test else []
    written += [EDITOR_FOLDER] if config.task == "editor" else []
    if not steps or steps[-1] < num_steps:
        return False
    if not all((workdir / name).exists() for name in written):
        return False
    try:
        verify_files(folder / str(steps[-1]))
    except CorruptError:  # restoring will say so, and take the one before it
        return False
    of_test = ", and the test split is scored once" if config.data.test else ""
    notify(f"{workdir} is finished: all of its {num_steps} steps are done{of_test}")
    return True


def last_validation(workdir: Path) -> dict[str, dict]:
    """The last evaluation's metrics in a run's log, as `task.evaluate` returned them.

    Those of a step that a resumed run repeated are the same. {} if there are none.
    """
    found: dict[str, dict] = {}
    records = read_records(workdir / METRICS_FILE)
    prefix = "validation/"
    of_steps = [r for r in records if any(n.startswith(prefix) for n in r)]
    for name, value in (of_steps[-1] if of_steps else {}).items():
        *path, last = name.removeprefix(prefix).split("/")
        if name.startswith(prefix) and path:  # "mean_recall" is of all sources
            part = found
            for key in path:
                part = part.setdefault(key, {})
            part[last] = value
    return found


def read_scores(workdir: str | os.PathLike) -> dict[str, dict]:
    """{source: metrics} of the test split; {} if it was not scored.

    Raises:
      UserError: the file is not what `score_test` writes.
    """
    file = Path(workdir) / SCORES_FILE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))["test"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a run's scores: move it away and rerun the command, which "
            "scores the test split again"
        ) from error
