"""R10: batches are a pure function of (seed, step), every pair once an epoch."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from tests.data.make_files import pair_folder
from vilem_jax.config.schema import Config, DataConfig, TrainConfig
from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.batches import Batches, BatchMaker, open_corpus
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.errors import UserError


class Numbers:
    """A source of grey images whose captions name them; keeps nothing."""

    def __init__(self, num_images: int, captions_each: int = 2, name: str = "numbers"):
        self.name, self._length, self._each = name, num_images, captions_each

    def __len__(self) -> int:
        return self._length

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(f"{index} {j}" for j in range(self._each))

    def caption_counts(self) -> np.ndarray:
        return np.full(self._length, self._each)

    def image_name(self, index: int) -> str:
        return f"{index}.png"

    def read_image(self, index: int) -> np.ndarray:
        return np.full((12, 10, 3), index % 256, np.uint8)


class Unreadable(Numbers):
    """One in which the images `missing` cannot be read."""

    def __init__(self, num_images: int, missing: set[int]):
        super().__init__(num_images)
        self._missing = missing

    def read_image(self, index: int):
        if index in self._missing:
            raise FileNotFoundError(self.image_name(index))
        return super().read_image(index)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([f"image said in way {i}" for i in range(50)], 120, folder)
    return Tokenizer(folder)


@pytest.fixture
def maker(tokenizer):
    def make(corpus, **settings):
        config = Config(
            seed=settings.pop("seed", 0),
            train=TrainConfig(batch_size=settings.pop("batch_size", 7)),
            data=DataConfig(text_length=6, crop_scale=(0.5, 1.0)),
        )
        return BatchMaker(config, corpus, tokenizer, **{"image_size": 8} | settings)

    return make


def sample_ids(make, steps) -> np.ndarray:
    return np.concatenate([make(step)["sample_id"] for step in steps])


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_batch_has_the_documented_arrays(maker, tokenizer):
    batch = maker(Corpus([Numbers(10)]))(0)
    kinds = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert kinds == {
        "pixels": ((7, 8, 8, 3), "uint8"),
        "tokens": ((7, 6), "int32"),
        "sample_id": ((7,), "int32"),
        "image_id": ((7,), "int32"),
        "is_corrupt": ((7,), "bool"),
    }
    for i in range(7):
        image, caption = divmod(int(batch["sample_id"][i]), 2)
        assert batch["image_id"][i] == image
        assert (batch["pixels"][i] == image).all()
        expected = tokenizer.encode([f"{image} {caption}"], 6)[0]
        np.testing.assert_array_equal(batch["tokens"][i], expected)


@pytest.mark.parametrize("num_images", [1, 5, 11, 64])
def test_every_pair_once_an_epoch_over_batch_borders(maker, num_images):
    make = maker(Corpus([Numbers(num_images), Numbers(3, 4)]))
    length = num_images * 2 + 12
    ids = sample_ids(make, range(-(-3 * length // 7)))
    for epoch in range(3):
        seen = ids[epoch * length : (epoch + 1) * length]
        assert sorted(seen) == list(range(length))
    if num_images > 5:
        assert (ids[:length] != ids[length : 2 * length]).any()


def test_one_caption_at_random_visits_every_image(maker):
    corpus = Corpus([Numbers(6, 5)], unit="one_at_random")
    assert corpus.epoch_length == 6 and corpus.num_pairs == 30
    make = maker(corpus, batch_size=6)
    chosen = set()
    for step in range(40):
        batch = make(step)
        assert sorted(batch["image_id"]) == list(range(6))
        np.testing.assert_array_equal(batch["sample_id"] // 5, batch["image_id"])
        chosen |= set(batch["sample_id"].tolist())
    assert len(chosen) == 30


def test_pure_in_seed_and_step(maker):
    corpus = Corpus([Numbers(40)])
    make, again, other = (maker(corpus, seed=seed) for seed in (3, 3, 4))
    assert_same(make(17), again(17))
    ids = sample_ids(make, range(5))
    assert (ids != sample_ids(other, range(5))).any()
    # One seed's second epoch is not the next seed's first.
    second = [corpus.item(80 + i, 3).index for i in range(80)]
    assert second != [corpus.item(i, 4).index for i in range(80)]


def test_crops_differ_between_visits(maker):
    source = Numbers(1, 1)
    source.read_image = lambda index: np.arange(30 * 30 * 3, dtype=np.uint8).reshape(
        30, 30, 3
    )
    batch = maker(Corpus([source]))(0)
    assert len({pixels.tobytes() for pixels in batch["pixels"]}) == 7


@pytest.mark.parametrize("rows", [range(2, 6), (0, 1, 4, 5), (7,)])
def test_a_host_makes_its_rows_of_the_batch(maker, rows):
    corpus = Corpus([Numbers(20)])
    whole = maker(corpus, batch_size=8)(5)
    here = maker(corpus, batch_size=8, rows=tuple(rows))(5)
    assert_same({key: value[list(rows)] for key, value in whole.items()}, here)


def test_weights_decide_the_shares():
    corpus = Corpus([Numbers(10), Numbers(30, name="more")], [3.0, 1.0])
    assert corpus.epoch_length == 80
    items = [corpus.item(i, 0) for i in range(3 * 80)]
    for epoch in range(3):
        shares = Counter(i.source for i in items[epoch * 80 : (epoch + 1) * 80])
        assert shares == {0: 60, 1: 20}
    # A source visits all its items before it repeats one.
    for source, size in ((0, 20), (1, 60)):
        visits = Counter((i.visit, i.index) for i in items if i.source == source)
        assert set(visits.values()) == {1}
        last = max(visit for visit, _ in visits)
        for visit in range(last):
            assert {i for v, i in visits if v == visit} == set(range(size))


@pytest.mark.parametrize("weights", [None, [0.0, 0.0, 0.0], [20.0, 6.0, 2.0]])
def test_default_weights_are_the_sizes(weights):
    corpus = Corpus([Numbers(10), Numbers(3), Numbers(1)], weights)
    assert corpus._quota == (20, 6, 2)


def test_rounded_shares_fill_an_epoch():
    corpus = Corpus([Numbers(3), Numbers(3), Numbers(4)], [1.0, 1.0, 1.0])
    assert sum(corpus._quota) == corpus.epoch_length == 20


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_invalid_weights_are_refused(weight):
    with pytest.raises(UserError, match=r"'numbers': weight="):
        Corpus([Numbers(3)], [weight])


def test_no_source_is_refused():
    with pytest.raises(UserError, match="names no source"):
        open_corpus(DataConfig())


def test_corrupt_images_are_replaced_by_the_next_and_marked(maker):
    make = maker(Corpus([Numbers(3), Unreadable(9, {2, 3, 8})]), batch_size=24)
    batch = make(0)
    assert batch["is_corrupt"].sum() == 6  # two captions of each
    assert set(batch["image_id"][batch["is_corrupt"]]) == {3 + 4, 3 + 0}
    for row in range(24):
        source_image = batch["image_id"][row] - (
            3 if batch["image_id"][row] >= 3 else 0
        )
        assert (batch["pixels"][row] == source_image).all()
    np.testing.assert_array_equal(batch["sample_id"] // 2, batch["image_id"])
    assert_same(batch, make(0))


def test_too_many_corrupt_images_are_one_sentence(maker):
    make = maker(Corpus([Unreadable(5, {0, 1, 2, 3, 4})]))
    with pytest.raises(UserError, match=r"'numbers': .*\.png and the 4 images after"):
        make(0)


def test_any_offset_of_a_large_corpus_reads_its_own_images_alone(maker):
    counts, asked = np.full(14_000_000, 1), []

    class Large(Numbers):
        def caption_counts(self):
            return counts

        def captions(self, index):
            asked.append(index)
            return super().captions(index)

    make = maker(Corpus([Large(14_000_000, 1)]), batch_size=32)
    ids = sample_ids(make, [14_000_000 // 32 - 7])
    assert len(set(ids)) == 32 == len(set(asked)) and len(asked) < 100


def folder_config(path, **settings) -> DataConfig:
    source = JsonConfig(name="pairs", path=str(path))
    return DataConfig(train=(source,), text_length=6, **settings)


def open_batches(data, tokenizer, batch_size=4, image_size=8, start_step=0):
    config = Config(seed=1, train=TrainConfig(batch_size=batch_size), data=data)
    make = BatchMaker(config, open_corpus(data), tokenizer, image_size)
    return Batches(make, start_step)


def read(config, tokenizer, num_batches, **settings):
    with open_batches(config, tokenizer, **settings) as batches:
        return [next(batches) for _ in range(num_batches)]


def test_workers_and_restarts_change_nothing(tmp_path, tokenizer):
    config = folder_config(pair_folder(tmp_path / "data", 9))
    (tmp_path / "data" / "4.png").write_bytes(b"no image")
    whole = read(config, tokenizer, 8)
    assert sum(batch["is_corrupt"].sum() for batch in whole) >= 2
    later = read(config, tokenizer, 4, start_step=4)
    workers = dataclasses.replace(config, num_workers=2)
    for batch, other in zip(whole[4:], later, strict=True):
        assert_same(batch, other)
    by_workers = read(workers, tokenizer, 5, start_step=3)
    for batch, other in zip(whole[3:], by_workers, strict=True):
        assert type(other["pixels"]) is np.ndarray
        assert_same(batch, other)


@pytest.mark.parametrize("prefetch", [0, 5])
def test_reading_ahead_changes_nothing(tmp_path, tokenizer, prefetch):
    config = folder_config(pair_folder(tmp_path, 5))
    other = dataclasses.replace(config, prefetch=prefetch)
    for batch, same in zip(
        read(config, tokenizer, 4), read(other, tokenizer, 4), strict=True
    ):
        assert_same(batch, same)


def test_a_script_without_a_guard_is_refused(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(KILLED.replace('if __name__ == "__main__":', "if True:"))
    path = pair_folder(tmp_path / "data", 3)
    done = run_script(script, path, tmp_path / "tokenizer", "leave")
    assert 'lacks `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_a_worker_hands_on_the_sentence(tmp_path, tokenizer):
    path = pair_folder(tmp_path, 3)
    config = folder_config(path, num_workers=1)
    for i in range(3):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read(config, tokenizer, 1)


def test_closed_is_closed(tmp_path, tokenizer):
    config = folder_config(pair_folder(tmp_path, 3))
    batches = open_batches(config, tokenizer)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


KILLED = """
import os, signal, sys
from vilem_jax.config.schema import Config, DataConfig, TrainConfig
from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.batches import Batches, BatchMaker, open_corpus
from vilem_jax.data.tokenizer import Tokenizer

if __name__ == "__main__":
    source = JsonConfig(path=sys.argv[1])
    data = DataConfig(train=(source,), num_workers=1)
    config = Config(train=TrainConfig(batch_size=2), data=data)
    tokenizer = Tokenizer(sys.argv[2])
    batches = Batches(BatchMaker(config, open_corpus(data), tokenizer, 8))
    next(batches)
    import multiprocessing
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_script(script, *arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with open(script.parent / "stderr", "w+") as errors:  # a pipe would wait for all
        done = subprocess.run(
            [sys.executable, script, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )
        errors.seek(0)
        done.stderr = errors.read()
    return done


@pytest.mark.parametrize("way", ["kill", "leave"])
def test_workers_go_when_their_parent_does(tmp_path, tokenizer, way):
    tokenizer.save(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    path = pair_folder(tmp_path / "data", 3)
    done = run_script(script, path, tmp_path / "tokenizer", way)
    assert done.returncode == (-signal.SIGKILL if way == "kill" else 0)
    workers = [int(pid) for pid in done.stdout.split()]
    assert workers
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
    if way == "leave":
        assert done.stderr == ""  # where workers and the interpreter's end complain


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.realdata
def test_flickr8k(shared_folder, tokenizer):
    path = shared_folder / "data" / "flickr8k-128.zip" / "captions.json"
    source = JsonConfig(name="flickr8k", path=str(path), split="train")
    config = DataConfig(train=(source,), num_workers=2)
    corpus = open_corpus(config)
    assert corpus.epoch_length == 30_000 and corpus.num_images == 6000
    settings = {"batch_size": 16, "image_size": 64, "start_step": 1874}
    with open_batches(config, tokenizer, **settings) as batches:
        first = [next(batches) for _ in range(3)]
    assert not any(batch["is_corrupt"].any() for batch in first)
