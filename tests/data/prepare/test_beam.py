"""A pipeline that fails: a sentence if a user can fix it, else the error as it is.

Needs no Beam: a stand-in raises the errors of a runner.
"""

from pathlib import Path

import pytest

from vilem_jax.data.prepare.beam import _build
from vilem_jax.data.sources import tfds_files
from vilem_jax.errors import UserError

REMOTE = """Traceback (most recent call last):
  File "worker.py", line 3, in process
{last} [while running 'prepare train-ptransform-31']
"""


def build(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(tfds_files, "build_with_beam", fail)
    _build(Path("x.partial"), Path("x"), {}, "FlinkRunner", None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("the job was cancelled\nlong words"), "the job was cancelled"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (ConnectionRefusedError("no job server"), "no job server"),
        (
            RuntimeError(REMOTE.format(last="OSError: disk is gone")),
            "OSError: disk is gone",
        ),
    ],
)
def test_errors_that_a_user_can_fix_are_a_sentence(monkeypatch, error, reason):
    with pytest.raises(UserError) as raised:
        build(monkeypatch, error)
    expected = f"the pipeline of FlinkRunner failed ({reason}): nothing was written"
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    "error",
    [
        TypeError("as_example() takes 1 argument"),
        KeyError("image_id"),
        RuntimeError(REMOTE.format(last="AttributeError: no 'record'")),
        RuntimeError(REMOTE.format(last="KeyError: 'image_id'")),
    ],
)
def test_bugs_are_not_hidden(monkeypatch, error):
    with pytest.raises(type(error)) as raised:
        build(monkeypatch, error)
    assert raised.value is error
