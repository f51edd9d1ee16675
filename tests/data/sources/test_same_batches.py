"""One data set in four formats: the same batches, bit for bit."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.make_files import make_image, save_to_disk
from vilem_jax.config.schema import Config, DataConfig, TrainConfig
from vilem_jax.config.sources import (
    CsvConfig,
    HuggingFaceConfig,
    ImageFolderConfig,
    JsonConfig,
)
from vilem_jax.data.batches import Batches, BatchMaker, open_corpus
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary

NUM_ROWS, NUM_IMAGES = 10_000, 40


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images = [make_image(value) for value in range(NUM_IMAGES)]
    for number, content in enumerate(images):
        (folder / f"{number}.png").write_bytes(content)
    owners = rng.integers(0, NUM_IMAGES, NUM_ROWS).tolist()
    texts = [f'image {o}, "said"\nin way {i}' for i, o in enumerate(owners)]
    names = [f"{owner}.png" for owner in owners]
    rows = list(zip(names, texts, strict=True))
    listed = [{"image": name, "caption": text} for name, text in rows]
    (folder / "a.json").write_text(json.dumps(listed))
    with open(folder / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    with open(folder / "metadata.jsonl", "w") as file:
        for name, text in rows:
            print(json.dumps({"file_name": name, "text": text}), file=file)
    structs = [{"bytes": images[o], "path": f"{o}.png"} for o in owners]
    table = pa.table({"image": structs, "caption": texts})
    parquet.write_table(table, folder / "a.parquet", row_group_size=1000)
    save_to_disk(folder / "saved", table, 1000)
    return {
        "json": JsonConfig(path=str(folder / "a.json")),
        "csv": CsvConfig(path=str(folder / "a.csv")),
        "imagefolder": ImageFolderConfig(path=str(folder)),
        "parquet": HuggingFaceConfig(path=str(folder / "a.parquet")),
        "saved": HuggingFaceConfig(path=str(folder / "saved")),
    }


@pytest.mark.parametrize("unit", ["pairs", "one_at_random"])
def test_batches_of_every_format_are_the_same(sources, tmp_path, unit):
    train_vocabulary(["image said in way 0 1 2 3 4 5 6 7 8 9"], 120, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    found = {}
    for kind, source in sources.items():
        data = DataConfig(train=(source,), text_length=12, captions=unit)
        config = Config(seed=3, data=data, train=TrainConfig(batch_size=16))
        maker = BatchMaker(config, open_corpus(data), tokenizer, image_size=16)
        assert maker.corpus.num_pairs == NUM_ROWS
        assert maker.corpus.num_images == NUM_IMAGES
        with Batches(maker, 5) as batches:
            found[kind] = [
                maker(0),
                maker(NUM_ROWS // 16),
                *(next(batches) for _ in "ab"),
            ]
    expected = found.pop("json")
    assert len({batch["pixels"].tobytes() for batch in expected}) == 4
    for kind, batches in found.items():
        for ours, theirs in zip(batches, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for key in theirs:
                assert ours[key].tobytes() == theirs[key].tobytes(), (kind, key)
