"""What `vilem train` prints at the end: how good the run is, and what comes next."""

import shlex
from pathlib import Path

from vilem_jax.config.schema import Config
from vilem_jax.evaluation.encoding import BRANCHES
from vilem_jax.evaluation.retrieval import retrieval_tables
from vilem_jax.report.tables import render
from vilem_jax.runs.best import best_step
from vilem_jax.runs.workdir import EDITOR_FOLDER, program, read_config
from vilem_jax.training.final_scores import last_validation, read_scores


def end_of_run(workdir: str | Path) -> str:
    """The metrics of a finished run, its folder, and the next two commands.

    Raises:
      UserError: the folder holds no run, or its scores are corrupt.
    """
    config, validation = read_config(workdir), last_validation(Path(workdir))
    if config.task == "editor":
        return _end_of_editor(Path(workdir) / EDITOR_FOLDER, validation)
    parts = [
        f"{name}, validation:\n{render(retrieval_tables(metrics))}"
        f"{_proofreading(metrics.get('proofread', {}))}"
        for name, metrics in validation.items()
    ]
    parts += [
        f"{name}, the test split, scored once:\n{render(retrieval_tables(metrics))}"
        for name, metrics in read_scores(workdir).items()
    ]
    return "\n\n".join([*parts, _next(config, workdir)])


def _proofreading(metrics: dict) -> str:
    lines = []
    for branch in BRANCHES:
        if "detect" not in metrics.get(branch, {}):
            continue
        line = f"wrong words, {branch} branch: F1 {_f1(metrics[branch])} with its image"
        if shuffled := metrics.get("shuffled"):
            line += f", {_f1(shuffled[branch])} with another image"
        lines.append(f"\n{line}")
    return "".join(lines)


def _f1(metrics: dict) -> str:
    return f"{metrics['detect']['f1']:.3f}"


def _end_of_editor(folder: Path, validation: dict) -> str:
    lines = [
        f"{name}, validation: {100 * metrics['masked_top1']:.1f} % of the masked "
        "tokens are named right"
        for name, metrics in validation.items()
    ]
    use = f"editor: {folder}; train with it by --config.editor.path={folder}"
    return "\n".join([*lines, use])


def _next(config: Config, workdir: str | Path) -> str:
    lines, step = [f"model: {workdir}"], ""
    if config.checkpoint.keep_best and (best := best_step(workdir)):
        lines[0] += f" (best at step {best[0]}: mean recall {best[1]:.1f})"
        step = " --step=best"
    model = shlex.quote(f"--model={workdir}")
    images = str(getattr(config.data.train[0], "images", ""))
    folder = shlex.quote(images) if images and Path(images).is_dir() else "IMAGES"
    vilem = shlex.quote(program())
    return "\n".join(
        [
            *lines,
            "next, with a folder of images and one of them:",
            f"  {vilem} index {folder} {model}{step} --out=images.index",
            f'  {vilem} proofread PHOTO "a caption" {model}{step}',
        ]
    )
