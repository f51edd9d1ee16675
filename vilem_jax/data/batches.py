"""The Grain pipeline: a corpus -> host batches, each pure in (seed, step)."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np
from absl import flags

from vilem_jax.config.schema import DataConfig
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.edit_table import StoredEditTable
from vilem_jax.data.images import ImageError, random_crop
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.errors import UserError

HostBatch = dict[str, np.ndarray]
BROKEN = (ImageError, OSError, KeyError)  # what an image that cannot be had raises
NUM_NEIGHBOURS = 32  # tried in place of a corrupt image before giving up

_CAPTION, _CROP, _VARIANT = 1, 2, 3  # purposes of random numbers


def open_corpus(config: DataConfig) -> Corpus:
    """The training sources of `config`, mixed by their weights.

    Raises:
      UserError: a source cannot be opened, or there is none.
    """
    return Corpus(
        [open_source(source) for source in config.train],
        [source.weight for source in config.train],
        unit=config.captions,
    )


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """step -> host batch; nothing else decides what a batch holds.

    Each row has its place in the global batch, whichever host makes it: a queue that
    is no multiple of the batch would notice another order.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    text_length: int
    image_size: int
    crop_scale: tuple[float, float]
    seed: int
    batch_size: int  # global
    edits: StoredEditTable | None = None
    rows: tuple[int, ...] = ()  # of the global batch, made here; () makes all

    def __call__(self, step: int) -> HostBatch:
        """The batch of `step` (0, 1, ...); see `train_batches` for what it holds."""
        first = int(step) * self.batch_size
        rows = [self._row(first + row) for row in self.rows or range(self.batch_size)]
        captions = [row.pop("caption") for row in rows]
        visits = [row.pop("visit") for row in rows]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch["tokens"] = self.tokenizer.encode(captions, self.text_length)
        if self.edits is not None:
            ids = batch["sample_id"].tolist()
            batch |= self.edits.rows(ids, map(self._variant, ids, visits))
        return batch

    def _variant(self, sample_id: int, visit: int) -> int:
        """Which of its edits a pair gets: the next at each visit, all before any comes
        again, from one on that the seed draws."""
        count = self.edits.num_variants
        first = _rng(_VARIANT, self.seed, sample_id).integers(count)
        return (int(first) + visit) % count

    def _row(self, position: int) -> dict:
        corpus = self.corpus
        place = corpus.place(position, self.seed)
        identity = (self.seed, place.source, place.item, place.visit)
        draw = _rng(_CAPTION, *identity).random()
        image, caption = corpus.pair_of(place, draw)
        pixels, is_corrupt = np.zeros((0, 0, 3), np.uint8), False
        if self.image_size:
            image, is_corrupt, pixels = self._crop(place.source, image, identity)
            caption %= corpus.num_captions(place.source, image)
        return {
            "pixels": pixels,
            "visit": place.visit,
            "caption": corpus.sources[place.source].captions(image)[caption],
            "sample_id": np.int32(corpus.sample_id(place.source, image, caption)),
            "image_id": np.int32(corpus.image_id(place.source, image)),
            "is_corrupt": np.bool_(is_corrupt),
        }

    def _crop(
        self, source: int, image: int, identity: tuple[int, ...]
    ) -> tuple[int, bool, np.ndarray]:
        """A crop of the image, or of the next one of the source that is whole."""
        records = self.corpus.sources[source]
        error = None
        for distance in range(min(NUM_NEIGHBOURS, len(records))):
            neighbour = (image + distance) % len(records)
            try:
                rng = _rng(_CROP, *identity)
                content = records.read_image(neighbour)
                pixels = random_crop(content, self.image_size, self.crop_scale, rng)
                return neighbour, distance > 0, pixels
            except BROKEN as e:
                error = error or e
        raise UserError(
            f"source {records.name!r}: {records.image_name(image)} and the "
            f"{distance} images after it cannot be read ({error}); "
            "`vilem data check` lists them"
        )


class Batches(Iterator[HostBatch]):
    """Host batches in the order of their steps; `close` stops what reads ahead."""

    def __init__(self, maker: BatchMaker, start_step: int, config: DataConfig):
        # Grain reads absl flags, which are not parsed under pytest or in a notebook.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        steps = grain.MapDataset.range(start_step, 2**62)
        # A thread reads ahead here, or workers do: both would double the memory.
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
        # Also stops workers when the interpreter ends and nobody has closed this.
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
                'or the script that trains lacks `if __name__ == "__main__":`; '
                "config.data.num_workers=0 does without such processes"
            ) from error
        # What workers hand over lies in shared memory of theirs; a plain copy lives as
        # long as anybody likes.
        return {key: np.array(value) for key, value in batch.items()}

    def close(self) -> None:
        self._stop()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _stop(running: list) -> None:
    while running:
        running.pop().close()


def train_batches(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    image_size: int,
    edits: StoredEditTable | None = None,
    start_step: int = 0,
    rows: tuple[int, ...] = (),
) -> Batches:
    """The endless batches of a run, from `start_step` on.

    The batch of a step depends on `seed` and the step alone: not on where the run
    started, nor on workers or prefetching; each host makes its rows of it.

    Args:
      batch_size: pairs a step over all hosts.
      image_size: R, pixels a side; 0 reads no images, for training on captions.
      edits: of the pairs of `corpus`; None leaves captions to an editor.
      rows: of the global batch that this host makes; () makes all.

    Returns:
      an iterator, to be closed, of dicts of arrays; B is the number of rows made here:
      "pixels" uint8 [B, R, R, 3]; "tokens" int32 [B, L]; "sample_id" int32 [B], the
      pair's number in the corpus; "image_id" int32 [B], the image's; "is_corrupt" bool
      [B], where a corrupt image was replaced by the next whole one. With `edits` also
      what `StoredEditTable.rows` gives.

    Raises:
      UserError: too many corrupt images in a row (from the iterator).
    """
    maker = BatchMaker(
        corpus=corpus,
        tokenizer=tokenizer,
        text_length=config.text_length,
        image_size=image_size,
        crop_scale=config.crop_scale,
        seed=seed,
        batch_size=batch_size,
        edits=edits,
        rows=rows,
    )
    return Batches(maker, start_step, config)


def _rng(*key: int) -> np.random.Generator:
    """Random numbers that depend on `key` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _start_worker(worker_index: int, num_workers: int) -> None:
    """Runs once in each worker process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are parallel
    # The trainer decides when to stop: it saves first. It stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(
        target=_leave_with_parent, args=(os.getppid(),), daemon=True
    ).start()


def _leave_with_parent(parent: int) -> None:
    """Ends this process when its parent is gone: after kill -9 nobody else would."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
