"""Image-text retrieval of a data set, by the metrics of `recall.py`."""

import itertools
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.sources.missing import check_captions, present_images
from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.errors import UserError
from vilem_jax.evaluation import benchmark
from vilem_jax.evaluation.encoding import Encoder, share_rows
from vilem_jax.evaluation.recall import (
    TOPS,
    check_folds,
    recall_table,
    retrieval_metrics,
)
from vilem_jax.evaluation.timing import Stopwatch, measured

COCO_TEST = 5000  # images of Karpathy's test split; their five folds are "1K"
WAYS = {"t2i": "text to image", "i2t": "image to text"}
SUMMARY_HEAD = (*(f"{way} R@{top}" for way in ("i→t", "t→i") for top in TOPS), "R@S")


@dataclass(frozen=True)
class EncodedSource:
    """The embeddings of a data set."""

    image_embedding: np.ndarray  # float32 [I, E]
    text_embedding: np.ndarray  # float32 [T, E]
    captions: tuple[str, ...]  # T
    image_of_text: np.ndarray  # int64 [T], rows of image_embedding
    has_word: np.ndarray  # bool [T], whether a word of it is in the vocabulary

    def metrics(self, *, folds: int = 1, clock: Stopwatch | None = None) -> dict:
        """`retrieval_metrics` of it."""
        rows = (self.image_embedding, self.text_embedding, self.image_of_text)
        return retrieval_metrics(*rows, folds=folds, clock=clock)


def encode_source(
    encoder: Encoder,
    source: Source,
    *,
    captions_per_image: int | Literal["all"] = "all",
) -> EncodedSource:
    """Encodes every image of `source` and its captions.

    Args:
      captions_per_image: takes the first ones of each image, or "all".

    Raises:
      UserError: an image that cannot be read, or one without a caption.
    """
    limit = None if captions_per_image == "all" else captions_per_image
    if limit is not None and limit < 1:
        raise UserError(f"captions_per_image is {limit}: use 'all', or 1 or more")
    images = range(len(source))
    check_captions(source)
    captions_of = [source.captions(index)[:limit] for index in images]
    captions = tuple(itertools.chain(*captions_of))
    tokens = encoder.tokenize(captions)
    return EncodedSource(
        image_embedding=share_rows(partial(encoder.encode_images, source), images),
        text_embedding=share_rows(
            lambda rows: encoder.encode_tokens(tokens[rows]), range(len(tokens))
        ),
        captions=captions,
        image_of_text=np.repeat(images, [len(each) for each in captions_of]),
        has_word=np.any(encoder.tokenizer.vocabulary.is_editable[tokens], axis=1),
    )


def evaluate_retrieval(
    encoder: Encoder,
    source: Source,
    *,
    captions_per_image: int | Literal["all"] = "all",
    folds: int = 1,
    allow_missing: bool = False,
) -> dict:
    """`retrieval_metrics` of a data set, the protocol, and the times.

    Args:
      folds: if 2 or more, also the mean over that number of parts, as "folds".
      allow_missing: leave out missing images, and count them.
      Others as in `encode_source`.

    Returns:
      `retrieval_metrics` | {"protocol", "measured" (see `timing.measured`)}.

    Raises:
      UserError: as `encode_source`, `present_images` and `folded_metrics`.
    """
    source, missing = present_images(source, allow_missing=allow_missing)
    check_folds(len(source), folds)  # encoding may take an hour
    encoder = encoder.timed()
    encoded = encode_source(encoder, source, captions_per_image=captions_per_image)
    protocol = {
        "data": source.name,
        **missing,
        "notes": list(getattr(source, "notes", ())),
        "captions_without_a_word": int((~encoded.has_word).sum()),
        "captions_per_image": captions_per_image,
        **encoder.protocol,
        "image_resize": "squashed to the square, bicubic, no crop",
        "i2t": "the best-ranked of the image's captions",
        "ties": "count against the model",
    }
    metrics = encoded.metrics(folds=folds, clock=encoder.clock)
    return metrics | {"protocol": protocol, "measured": measured(encoder)}


def retrieval_tables(
    metrics: dict, chance: dict | None = None
) -> list[benchmark.Table]:
    """Recalls both ways, and those of random order if `chance` is given."""
    counts = f"{metrics['images']} images, {metrics['captions']} captions"
    tables = [recall_table(metrics, WAYS, counts, chance)]
    if folds := metrics.get("folds"):
        counts = f"mean of {folds['folds']} folds of {folds['images']} images"
        tables.append(recall_table(folds, WAYS, counts))
    return tables


def summary_cells(metrics: dict | None) -> list[benchmark.Cell]:
    """The seven numbers of `SUMMARY_HEAD`, or dashes."""
    if metrics is None:
        return [None] * 7
    recalls = [metrics[way][f"r{top}"] for way in ("i2t", "t2i") for top in TOPS]
    return [*recalls, metrics["rsum"]]


def _summarize(title: str, metrics: dict) -> benchmark.Table:
    head = ("Data", "images", "captions", *SUMMARY_HEAD)
    counts = [metrics["images"], metrics["captions"]]
    rows = [[title, *map(str, counts), *summary_cells(metrics)]]
    if folds := metrics.get("folds"):
        counts = [f"{folds['folds']} x {folds['images']}", str(folds["captions"])]
        rows.append([f"{title}, mean of folds", *counts, *summary_cells(folds)])
    return benchmark.Table(head, rows, title="Retrieval, all that was measured")


def _warnings(metrics: dict) -> Iterator[str]:
    protocol = metrics["protocol"]
    if missing := protocol["missing_images"]:
        captions = f"with their {protocol['missing_captions']} captions"
        yield f"{missing} images were missing and left out, {captions}"
    if silent := protocol["captions_without_a_word"]:
        yield f"{silent} captions without a word were scored"


def _open(options: Namespace, read_config: benchmark.ReadConfig) -> benchmark.Opened:
    config = read_config()
    names = ("captions_per_image", "folds", "allow_missing")
    settings = {name: getattr(options, name) for name in names}
    protocol = {"split": benchmark.describe_split(config)}
    return benchmark.Opened((open_source(config),), settings, protocol)


def _open_data_set(
    data_set: benchmark.DataSet,
    files: tuple[Path, ...],
    images: Path,
    allow_missing: bool,
) -> benchmark.Opened:
    # Karpathy's files hold all splits; those of one split are named after it.
    split = "" if files[0].stem.endswith("_test") else "test"
    name, _, _ = data_set.title.partition(",")
    config = JsonConfig(name=name, path=str(files[0]), images=str(images), split=split)
    source = open_source(config)
    _, missing = present_images(source, allow_missing=allow_missing)
    is_whole = len(source) == COCO_TEST and not missing["missing_images"]
    folds = 5 if name == "COCO" and is_whole else 1
    settings = {"folds": folds, "allow_missing": allow_missing}
    return benchmark.Opened((source,), settings, {"split": "test"})


FOLDS = benchmark.option(
    "--folds",
    type=benchmark.count,
    default=1,
    metavar="N",
    help="also the mean over N equal parts: 5 gives COCO's 1K",
)
BENCHMARK = benchmark.Benchmark(
    options=(
        *("model", "data", "distributed", "out"),
        benchmark.option(
            "--captions-per-image",
            type=lambda text: text if text == "all" else benchmark.count(text),
            default="all",
            metavar="all|N",
            help="the first N of each image",
        ),
        FOLDS,
        benchmark.option(
            "--allow-missing",
            action="store_true",
            help="leave out images that are not there, with their captions, and count",
        ),
        "text_length",
    ),
    open=_open,
    evaluate=evaluate_retrieval,
    tabulate=retrieval_tables,
    warnings=_warnings,
    data_sets=(
        benchmark.DataSet(
            "coco",
            "COCO, Karpathy's test split",
            ("coco/dataset_coco.json", "coco/coco_karpathy_test.json"),
            ("coco/images", "coco"),  # the names in the file begin with val2014/
        ),
        benchmark.DataSet(
            "flickr30k",
            "Flickr30K, Karpathy's test split",
            ("flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k_test.json"),
            ("flickr30k/flickr30k-images", "flickr30k/images", "flickr30k"),
        ),
        benchmark.DataSet(
            "flickr8k",
            "Flickr8K, Karpathy's test split",
            ("flickr8k/dataset_flickr8k.json", "flickr8k/captions.json"),
            ("flickr8k/images", "flickr8k/Flicker8k_Dataset", "flickr8k"),
        ),
    ),
    open_data_set=_open_data_set,
    summarize=_summarize,
)
