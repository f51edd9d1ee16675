"""A run's config and its data: what follows from it, and what contradicts it."""

import os
from collections.abc import Sequence

import jax

from vilem_jax.config.fit import Machine, describe, fit, keep
from vilem_jax.config.freeze import freeze, to_dict
from vilem_jax.config.schema import Config
from vilem_jax.config.sources import SourceConfig
from vilem_jax.data.batches import open_corpus
from vilem_jax.data.corpus import Corpus
from vilem_jax.distributed import processes
from vilem_jax.errors import UserError
from vilem_jax.progress import notify


def fit_to_data(config: Config, stored: Config | None = None) -> Config:
    """`config` with its `fitted` keys chosen, and one line that says so.

    Args:
      stored: of the run that is resumed, which keeps what was chosen.

    Raises:
      UserError: as `fit`, or the data cannot be read.
    """
    if not config.fitted:
        return config
    if stored:
        return keep(config, stored)
    if not (config.data.train and getattr(config.data.train[0], "path", "")):
        raise UserError(
            "this config needs your data: --data=captions.json --images=FOLDER_OR_ZIP"
        )
    corpus = open_corpus(config.data)
    counts, machine = (corpus.num_pairs, corpus.num_images), this_machine()
    config = fit(config, corpus.num_pairs, machine)
    # Process 0's cores and memory count for all.
    config = freeze(processes.broadcast(to_dict(config)))
    notify(describe(config, *counts, machine))
    if config.task == "vilem":
        notify(_splits(config))
    return config


def this_machine() -> Machine:
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    return Machine(
        devices[0].platform,
        len(devices),
        _num_cores(),
        stats.get("bytes_limit", 0) / 1e9,
    )


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_against_data(config: Config, corpus: Corpus, num_steps: int) -> None:
    """Raises UserError for a warm-up, batch or queue that does not fit the data.

    With `loss.positives="image"` a queue longer than the data is reported alone: old
    keys of the same image are positives then.
    """
    warmup, batch = config.optimizer.warmup_steps, config.train.batch_size
    pairs, queue = corpus.num_pairs, config.loss.queue_length
    if warmup >= num_steps:
        raise UserError(
            f"config.optimizer.warmup_steps={warmup} is not below the run's {num_steps}"
            " steps: the learning rate would rise to the end and never fall; use "
            f"{num_steps // 10}, or more steps (config.train.num_steps)"
        )
    if batch > pairs:
        raise UserError(
            f"config.train.batch_size={batch} is more than the {pairs} pairs of the "
            f"training data: use {max(1 << max(pairs // 8, 1).bit_length() - 1, 1)}"
        )
    if config.task != "vilem" or queue <= pairs:
        return
    fitting = pairs // 4 // batch * batch
    problem = (
        f"config.loss.queue_length={queue} is more than the {pairs} pairs of the "
        "training data, so it holds old keys of each of them, and a small run "
        f"collapses: use {fitting}" + " (no queue)" * (not fitting)
    )
    if config.loss.positives == "own":
        raise UserError(problem)
    notify(problem)


def _splits(config: Config) -> str:
    """Which images train, validate and test, for a message."""
    data = config.data
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    parts = [f"{name}: {_origin(sources)}" for name, sources in named.items()]
    return "; ".join(parts)


def _origin(sources: Sequence[SourceConfig]) -> str:
    names = []
    for one in sources:
        name = f"split {one.split!r}" if one.split else "the data"
        if one.part:
            share = {"train": 80, "train+test": 90}.get(one.part, 10)
            name = f"{share} % of {name} by a hash of the images' names"
        names.append(name)
    return " and ".join(names) or "none"
