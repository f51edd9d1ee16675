"""The best weights of a run by validation, kept apart from the newest ones.

RUN/best/STEP is a checkpoint of the parameters and their momentum copies, with the mean
recall that made it the best. It is written whole or not at all, replaced when a better
one is safe, and never goes with the newest checkpoints.
"""

from pathlib import Path
from typing import Any

from vilem_jax.runs.checkpoints import (
    BEST_FOLDER,
    MEAN_RECALL,
    Checkpoints,
    best_first,
    read_metrics,
)


def mean_recall(metrics: dict[str, dict]) -> float:
    """The mean of the six recalls over all sources, in per cent.

    Args:
      metrics: of an evaluation, {source: `retrieval_metrics`}, at least one.
    """
    return sum(of_source["rsum"] for of_source in metrics.values()) / (6 * len(metrics))


def best_step(workdir: str | Path) -> tuple[int, float] | None:
    """Step and mean recall of the best weights on the disk; None where there are none.

    After a kill two may be there: the better one counts.
    """
    measured = read_metrics(workdir, BEST_FOLDER)
    if not measured:
        return None
    step = best_first(measured)[0]
    return step, measured[step][MEAN_RECALL]


class KeepBest:
    """Stores the state of an evaluation that beats all before it; a context manager."""

    def __init__(self, workdir: str | Path):
        self._checkpoints = Checkpoints(workdir, keep=None, folder=BEST_FOLDER)
        whole = read_metrics(workdir, BEST_FOLDER)
        corrupt = [step for step in self._checkpoints.steps() if step not in whole]
        if corrupt:
            self._checkpoints.set_aside(corrupt)
        self._best = best_step(workdir)  # of this run before it was stopped
        if self._best:
            self._drop_others(self._best[0])

    def update(self, step: int, recall: float, state: Any) -> None:
        """Keeps the weights of `state`, whose `mean_recall` this is, if it is the best.

        The first of equals stays. A save that fails is reported and training continues.
        """
        if self._best and (recall <= self._best[1] or step == self._best[0]):
            return  # at the same step: the same weights again, after a kill
        weights = {"params": state.params, "momentum_params": state.momentum_params}
        self._checkpoints.save(step, weights, {MEAN_RECALL: recall})
        self._checkpoints.wait()
        if step in self._checkpoints.steps():
            self._best = step, recall
            self._drop_others(step)

    def _drop_others(self, kept: int) -> None:
        for step in self._checkpoints.steps():
            if step != kept:
                self._checkpoints.drop(step)

    def __enter__(self) -> "KeepBest":
        return self

    def __exit__(self, *_) -> None:
        # Every save was waited for, and its failure said.
        self._checkpoints.__exit__(Exception)
