"""The Grain pipeline: a corpus -> host batches, each pure in (seed, step)."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from vilem_jax.config.schema import Config, DataConfig
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.edit_table import StoredEditTable
from vilem_jax.data.images import ImageError, random_crop
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.errors import UserError

HostBatch = dict[str, np.ndarray]
NUM_NEIGHBOURS = 32  # images tried in place of a corrupt one

_UNREADABLE = (ImageError, OSError, KeyError)
_CAPTION, _CROP, _VARIANT = 1, 2, 3  # what random numbers are for


def open_corpus(config: DataConfig) -> Corpus:
    """The training sources of `config`, mixed by their weights.

    Raises:
      UserError: a source cannot be opened, or `config` names none.
    """
    return Corpus(
        [open_source(source) for source in config.train],
        [source.weight for source in config.train],
        unit=config.captions,
    )


@dataclass(frozen=True)
class BatchMaker:
    """step -> host batch, a pure function of the fields.

    A batch depends on the seed and its step alone: not on the step that the run started
    from, on workers, or on prefetching. A row has the same index in the global batch on
    any number of processes: with a queue that is no multiple of the batch, another
    order would change the run.
    """

    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    image_size: int  # R, pixels a side; 0 reads no images, for training on captions
    edits: StoredEditTable | None = None  # None: an editor edits during training
    rows: tuple[int, ...] = ()  # of the global batch, made here; () makes all

    def __call__(self, step: int) -> HostBatch:
        """The batch of `step` (0, 1, ...).

        Returns:
          a dict of arrays; B is the number of rows made here: "pixels" uint8
          [B, R, R, 3]; "tokens" int32 [B, L]; "sample_id" int32 [B], the index of the
          pair in the corpus; "image_id" int32 [B], that of the image; "is_corrupt" bool
          [B], True if the next intact image replaces a corrupt one. With `edits` also
          the arrays of `StoredEditTable.rows`.

        Raises:
          UserError: too many corrupt images in a row.
        """
        batch_size, seed = self.config.train.batch_size, self.config.seed
        first = int(step) * batch_size
        rows = [self._row(first + row) for row in self.rows or range(batch_size)]
        captions = [row.pop("caption") for row in rows]
        visits = [row.pop("visit") for row in rows]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch["tokens"] = self.tokenizer.encode(captions, self.config.data.text_length)
        if self.edits is not None:
            ids = batch["sample_id"].tolist()
            # Each visit of a pair takes its next variant, from a random one on.
            count = self.edits.num_variants
            first = [_rng(_VARIANT, seed, i).integers(count) for i in ids]
            batch |= self.edits.rows(ids, (np.add(first, visits) % count).tolist())
        return batch

    def _row(self, position: int) -> dict[str, Any]:
        corpus, seed = self.corpus, self.config.seed
        item = corpus.item(position, seed)
        identity = (seed, item.source, item.index, item.visit)
        image, caption = corpus.pair_of(item, _rng(_CAPTION, *identity).random())
        pixels, is_corrupt = np.zeros((0, 0, 3), np.uint8), False
        if self.image_size:
            image, is_corrupt, pixels = self._crop(item.source, image, identity)
            caption %= corpus.num_captions(item.source, image)
        return {
            "pixels": pixels,
            "visit": item.visit,
            "caption": corpus.sources[item.source].captions(image)[caption],
            "sample_id": np.int32(corpus.sample_id(item.source, image, caption)),
            "image_id": np.int32(corpus.image_id(item.source, image)),
            "is_corrupt": np.bool_(is_corrupt),
        }

    def _crop(
        self, source: int, image: int, identity: tuple[int, ...]
    ) -> tuple[int, bool, np.ndarray]:
        """A crop of the image, or of the next intact one of the source."""
        records = self.corpus.sources[source]
        num_tried = min(NUM_NEIGHBOURS, len(records))
        errors = []
        for distance in range(num_tried):
            neighbour = (image + distance) % len(records)
            rng = _rng(_CROP, *identity)
            try:
                content = records.read_image(neighbour)
                scale = self.config.data.crop_scale
                pixels = random_crop(content, self.image_size, scale, rng)
            except _UNREADABLE as error:
                errors.append(error)
            else:
                return neighbour, distance > 0, pixels
        raise UserError(
            f"source {records.name!r}: {records.image_name(image)} and the "
            f"{num_tried - 1} images after it cannot be read ({errors[0]}); "
            "`vilem data check` lists them"
        )


class Batches(Iterator[HostBatch], AbstractContextManager["Batches"]):
    """The endless batches from `start_step` on; `close` stops reading ahead."""

    def __init__(self, maker: BatchMaker, start_step: int = 0):
        config = maker.config.data
        # Grain reads absl flags, which are not parsed under pytest or in a notebook.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        steps = grain.MapDataset.range(start_step, 2**62)
        # Either a thread reads ahead or the workers do: both would double the memory.
        ahead = 0 if config.num_workers else config.prefetch
        batches = steps.map(maker).to_iter_dataset(
            grain.ReadOptions(num_threads=min(1, ahead), prefetch_buffer_size=ahead)
        )
        if config.num_workers:
            options = grain.MultiprocessingOptions(
                num_workers=config.num_workers,
                per_worker_buffer_size=max(1, config.prefetch // config.num_workers),
            )
            batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
        self._running = [iter(batches)]
        # Stops the workers at interpreter exit if `close` was never called.
        self._stop = weakref.finalize(self, _stop, self._running)

    def __next__(self) -> HostBatch:
        if not self._running:
            raise ValueError("these batches are closed")
        try:
            batch = next(self._running[0])
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "a process that reads data died: it ran out of memory or of /dev/shm, "
                'or the training script lacks `if __name__ == "__main__":`; '
                "config.data.num_workers=0 uses no such processes"
            ) from error
        # Workers return arrays in their shared memory, which they reuse: copy them.
        return {key: np.array(value) for key, value in batch.items()}

    def close(self) -> None:
        self._stop()

    def __exit__(self, *_: object) -> None:
        self.close()


def _stop(running: list) -> None:
    while running:
        running.pop().close()


def _rng(*key: int) -> np.random.Generator:
    """Random numbers that depend on `key` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _start_worker(worker_index: int, num_workers: int) -> None:
    """Runs once in each worker process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are parallel
    # The trainer decides when to stop: it saves first, then stops its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(
        target=_leave_with_parent, args=(os.getppid(),), daemon=True
    ).start()


def _leave_with_parent(parent: int) -> None:
    """Ends this process when its parent dies: after kill -9 nothing else does."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
