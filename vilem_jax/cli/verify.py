"""`vilem weights verify`: whether what was written is still what was written."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vilem_jax.errors import UserError
from vilem_jax.files import read_errors
from vilem_jax.integrity import LISTING, find_problems


def run_verify(options: argparse.Namespace) -> int:
    """Prints one line per problem; returns the exit code, 1 if there are any."""
    problems = list(_problems(Path(options.folder)))
    for problem in problems:
        print(problem)
    if not problems:
        print(f"vilem: {options.folder} is intact", file=sys.stderr)
    return int(bool(problems))


def _problems(path: Path) -> Iterator[str]:
    """Of a run, an exported or imported model, embeddings or an index.

    Raises:
      UserError: `path` is nothing of these.
    """
    from vilem_jax.runs import checkpoints, workdir
    from vilem_jax.search import index, vectors
    from vilem_jax.weights import folders, model_folder

    if path.is_file():
        yield from _sentence(index.load_index, path)
    elif (path / vectors.PLAN).exists():
        yield from _vectors_problems(path)
    elif (path / LISTING).exists():
        found = list(_listed_problems(path))
        yield from found
        if not found and model_folder.is_model_folder(path):
            yield from _sentence(model_folder.read_model_folder, path)
    elif (path / folders.WEIGHTS).exists():
        yield f"{path} has no {LISTING} with checksums: export or import it again"
    elif (path / workdir.CONFIG_FILE).exists():
        yield from _sentence(workdir.read_config, path)
        saved = [
            path / below / str(step)
            for below in (checkpoints.CHECKPOINTS_FOLDER, checkpoints.BEST_FOLDER)
            for step in checkpoints.finished_steps(path / below)
        ]
        for checkpoint in saved:
            yield from _listed_problems(checkpoint)
        if not saved:
            yield f"{path} holds no finished checkpoint"
    else:
        raise UserError(f"{path} holds no run, exported model, embeddings or index")


def _vectors_problems(folder: Path) -> Iterator[str]:
    from vilem_jax.search import vectors

    try:
        plan = vectors.read_plan(folder)
    except UserError as error:
        yield str(error)
        return
    for file in plan.files(folder):
        yield from _sentence(vectors.read_shard, file, plan)
    yield from _sentence(vectors.check_manifest, folder, plan)


def _listed_problems(folder: Path) -> Iterator[str]:
    try:
        with read_errors(folder):
            for problem in find_problems(folder):
                yield f"{folder}: {problem}"
    except UserError as error:
        yield str(error)


def _sentence(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)
