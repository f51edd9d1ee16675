"""An editor trained for a few steps, which the tests of whole runs start from."""

import pytest

from tests.training.tiny_runs import run_settings, write_vocabulary
from vilem_jax.config.freeze import freeze
from vilem_jax.training.run import train


@pytest.fixture(scope="session")
def editor_run(tmp_path_factory):
    """(work directory, figures) of a run with task="editor"."""
    folder = tmp_path_factory.mktemp("editor")
    settings = run_settings("editor", write_vocabulary(folder / "vocabulary"))
    return folder / "run", train(freeze(settings), folder / "run", num_devices=1)


@pytest.fixture(scope="session")
def editor_folder(editor_run):
    return editor_run[0] / "editor"
