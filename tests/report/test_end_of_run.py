"""What `vilem train` prints at the end, read from the folder of the run."""

import json
import shlex

import numpy as np

from vilem_jax.config.schema import Config, DataConfig
from vilem_jax.config.sources import ScenesConfig
from vilem_jax.evaluation.recall import retrieval_metrics
from vilem_jax.report.end_of_run import end_of_run
from vilem_jax.runs.metrics import MetricsLog
from vilem_jax.runs.workdir import claim_workdir


def log(workdir, task: str, *evaluations: dict) -> None:
    """A run of this task with these evaluations, one a step."""
    train = (ScenesConfig(name="scenes", split="train"),)
    claim_workdir(workdir, Config(task=task, data=DataConfig(train=train)))
    with MetricsLog(workdir, tensorboard=False) as records:
        for step, metrics in enumerate(evaluations, start=1):
            records.write(step, {"validation": {"held_out": metrics}})
        records.write(len(evaluations), {"loss": 1.0})


def recalls() -> dict:
    rows = np.eye(4, 6, dtype=np.float32)
    return retrieval_metrics(rows, rows[[0, 1, 2, 0]], np.arange(4))


def test_end_of_a_run(tmp_path):
    detect = {"detect": {"precision": 0.5, "recall": 0.5, "f1": 0.9}}
    other = {"local": {"detect": {"f1": 0.3}}}
    proofread = {"local": detect, "global": {"correct": {}}, "shuffled": other}
    run = tmp_path / "a run"
    log(run, "vilem", {"old": 1}, recalls() | {"proofread": proofread})
    (run / "test.json").write_text(json.dumps({"test": {"mine": recalls()}}))
    printed = end_of_run(run)
    of_validation, _, of_test = printed.partition("mine, the test split, scored once:")
    assert of_validation.startswith("held_out, validation:") and "75.0" in of_test
    assert "local branch: F1 0.900 with its image, 0.300 with another" in of_validation
    assert "global branch" not in printed and f"model: {run}" in of_test
    commands = [shlex.split(line) for line in printed.splitlines()[-2:]]
    assert [words[1] for words in commands] == ["index", "proofread"]
    assert all(f"--model={run}" in words for words in commands)


def test_end_of_an_editor(tmp_path):
    log(tmp_path, "editor", {"masked_top1": 0.25})
    assert end_of_run(tmp_path).splitlines() == [
        "held_out, validation: 25.0 % of the masked tokens are named right",
        f"editor: {tmp_path / 'editor'}; train with it by "
        f"--config.editor.path={tmp_path / 'editor'}",
    ]
