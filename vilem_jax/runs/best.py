"""The best weights of a run by validation, kept apart from the newest ones.

RUN/best/STEP is a checkpoint of the parameters and their momentum copies, with the mean
recall that made it the best. It is written completely or not at all, replaced once a
better one is stored, and kept when the newest checkpoints are replaced.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from vilem_jax.runs.checkpoints import (
    BEST_FOLDER,
    MEAN_RECALL,
    Checkpoints,
    best_first,
    read_metrics,
)
from vilem_jax.typing import PyTree


def mean_recall(metrics: dict[str, dict]) -> float:
    """The mean of the six recalls over all sources, in per cent.

    Args:
      metrics: of an evaluation, {source: `retrieval_metrics`}, at least one.
    """
    # `rsum` is the sum of R@1, R@5 and R@10 in both directions.
    return sum(of_source["rsum"] for of_source in metrics.values()) / (6 * len(metrics))


def best_step(workdir: str | Path) -> tuple[int, float] | None:
    """Step and mean recall of the best weights on the disk; None if there are none.

    After a kill there may be two: returns the better one.
    """
    metrics = read_metrics(workdir, BEST_FOLDER)
    if not metrics:
        return None
    step = best_first(metrics)[0]
    return step, metrics[step][MEAN_RECALL]


class KeepBest(AbstractContextManager["KeepBest"]):
    """Stores the state of an evaluation that beats all before it; a context manager."""

    def __init__(self, workdir: str | Path):
        self._checkpoints = Checkpoints(workdir, keep=None, folder=BEST_FOLDER)
        intact = read_metrics(workdir, BEST_FOLDER)
        corrupt = [step for step in self._checkpoints.steps() if step not in intact]
        if corrupt:
            self._checkpoints.set_aside(corrupt)
        self._best = best_step(workdir)  # not None if the run is resumed
        if self._best:
            self._drop_others(self._best[0])

    def update(self, step: int, recall: float, state: PyTree) -> None:
        """Stores the weights of `state` if their mean `recall` is the best so far.

        Of equals the first is kept. A failed save is reported, and training continues.
        """
        # The same step again, after a kill: the same weights.
        if self._best and (recall <= self._best[1] or step == self._best[0]):
            return
        weights = {"params": state.params, "momentum_params": state.momentum_params}
        self._checkpoints.save(step, weights, {MEAN_RECALL: recall})
        # The old one is removed only when the new one is on the disk.
        self._checkpoints.wait()
        if step in self._checkpoints.steps():
            self._best = step, recall
            self._drop_others(step)

    def _drop_others(self, kept: int) -> None:
        for step in self._checkpoints.steps():
            if step != kept:
                self._checkpoints.drop(step)

    def __exit__(self, *_: object) -> None:
        # `update` has waited for every save and reported its failure.
        self._checkpoints.__exit__(Exception)
