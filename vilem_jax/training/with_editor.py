"""`vilem train`: first the editor's run, if the config asks for one, then its own."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vilem_jax.config.freeze import freeze, to_dict
from vilem_jax.config.schema import Config
from vilem_jax.distributed import processes
from vilem_jax.editing.loading import needs_edits
from vilem_jax.progress import notify
from vilem_jax.runs.workdir import CONFIG_FILE, EDITOR_FOLDER, read_config
from vilem_jax.training.fitting import fit_to_data
from vilem_jax.training.run import train

EDITOR_RUN = "editor"  # in the work directory: the work directory of the editor's run
EDITOR_BATCH, EDITOR_RATE = 48, 2e-4  # as `configs/editor.py`


def train_with_editor(
    config: Config,
    workdir: str | Path,
    *,
    max_hours: float | None = None,
    dry_run: bool = False,
    stop_code: int = 0,
    at_end: Callable[[], object] = lambda: None,
) -> bool:
    """`train`, after the run of an editor if `config.editor.train_steps` is not 0.

    Returns:
      whether the run itself was reached: a signal or `max_hours` may end the editor's.
    """
    folder, started = Path(workdir), time.monotonic()
    stored = read_config(folder) if (folder / CONFIG_FILE).exists() else None
    config = fit_to_data(config, stored)
    run = partial(train, max_hours=max_hours, stop_code=stop_code)
    trains_editor = needs_edits(config) and config.editor.train_steps
    if not trains_editor or config.editor.path or config.editor.edit_table:
        run(config, folder, dry_run=dry_run, at_end=at_end)
        return True
    if dry_run:
        with tempfile.TemporaryDirectory() as home:
            one = dataclasses.replace(config.editor, train_steps=1)
            first = editor_config(dataclasses.replace(config, editor=one))
            run(first, home)
            run(_edited_by(config, Path(home)), folder, dry_run=True)
        return True
    home = folder / EDITOR_RUN
    if not processes.broadcast((home / EDITOR_FOLDER).is_dir()):
        is_begun = (home / CONFIG_FILE).exists()
        first = read_config(home) if is_begun else editor_config(config)
        notify(f"first the editor, {first.train.num_steps} steps in {home}")
        run(first, home)
        if not processes.broadcast((home / EDITOR_FOLDER).is_dir()):
            return False
    if max_hours:  # together
        max_hours = max(max_hours - (time.monotonic() - started) / 3600, 1e-3)
    run(_edited_by(config, home), folder, max_hours=max_hours, at_end=at_end)
    return True


def editor_config(config: Config) -> Config:
    """The config of the run that trains the editor of `config`, on its captions."""
    steps, data = config.editor.train_steps, config.data
    settings = to_dict(Config()) | {
        "task": "editor",
        "seed": config.seed,
        "data": to_dict(dataclasses.replace(data, test=(), num_workers=0)),
        "model": to_dict(Config().model) | {"text": to_dict(config.model.text)},
        "compute": to_dict(Config().compute) | {"dtype": config.compute.dtype},
        "log": to_dict(config.log),
    }
    settings["model"] |= {"num_proofread_layers": 1}
    settings["model"] |= {"allow_pickle": config.model.allow_pickle}
    settings["optimizer"] |= {"learning_rate": EDITOR_RATE, "warmup_steps": steps // 10}
    settings["train"] |= {"num_steps": steps, "batch_size": EDITOR_BATCH}
    settings["evaluation"] |= {"text_length": data.text_length}
    settings["checkpoint"] |= {"every_steps": max(steps // 3, 1), "keep": 1}
    return freeze(settings)


def _edited_by(config: Config, home: Path) -> Config:
    path = str(home / EDITOR_FOLDER)
    return dataclasses.replace(
        config, editor=dataclasses.replace(config.editor, path=path)
    )
