"""Recall at 1, 5 and 10 both ways from embeddings, and the sum R@S.

The protocol of the lineage: image to text, any caption of the image counts and the
best-ranked one decides; text to image, the one image. Ties count against the model.
"""

from collections.abc import Iterator, Mapping
from math import comb

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import Cell, Table
from vilem_jax.evaluation.timing import Stopwatch, measure

TOPS = (1, 5, 10)
BLOCK = 2048  # rows and columns of scores held at a time: 32 MB in float64


def retrieval_metrics(
    image_embedding: np.ndarray,
    text_embedding: np.ndarray,
    image_of_text: np.ndarray,
    *,
    image_ids: np.ndarray | None = None,
    folds: int = 1,
    clock: Stopwatch | None = None,
) -> dict:
    """Recall of every caption's image, and of every image's captions.

    Args:
      image_embedding: [I, E], unit rows.
      text_embedding: [T, E], unit rows.
      image_of_text: int [T], the id of each caption's image; at least one an image,
        in any order.
      image_ids: int [I], all different; None: 0 .. I - 1, the rows.
      folds: of 2 or more, `folded_metrics` too, as "folds".
      clock: measures similarity and ranking.

    Returns:
      {"i2t": {"r1", "r5", "r10", "median_rank"}, "t2i": {the same}, "rsum", "images",
      "captions"}: recalls in per cent, ranks from 1, rsum the sum of the six recalls.

    Raises:
      UserError: ids that are double or have no image, an image without a caption, NaN
        or infinity in an embedding, shapes that do not fit.
    """
    owner = _rows_of_images(len(image_embedding), image_of_text, image_ids)
    rows = (image_embedding, text_embedding, owner)
    i2t, t2i = map(_metrics, ranks(*rows, clock=clock))
    metrics = {
        "i2t": i2t,
        "t2i": t2i,
        "rsum": float(sum(way[f"r{top}"] for way in (i2t, t2i) for top in TOPS)),
        "images": len(image_embedding),
        "captions": len(text_embedding),
    }
    if folds > 1:
        metrics["folds"] = folded_metrics(*rows, folds=folds)
    return metrics


def folded_metrics(
    image_embedding: np.ndarray,
    text_embedding: np.ndarray,
    image_of_text: np.ndarray,
    *,
    folds: int,
) -> dict:
    """`retrieval_metrics` of equal parts of the images, and their mean.

    COCO's "1K" is the mean of five parts of 1,000. The images are cut in the order
    given; a part has their captions and no others.

    Args:
      image_of_text: int [T], row of each caption's image.
      folds: number of parts; it must divide the number of images.
      Others as in `retrieval_metrics`.

    Returns:
      {"i2t": {"r1", "r5", "r10", "median_rank"}, "t2i", "rsum": means over the parts,
      "folds", "images": images of one part, "captions": of all, "each": [the metrics
      of each part]}.

    Raises:
      UserError: parts of unequal size, and as `retrieval_metrics`.
    """
    num_images = len(image_embedding)
    check_folds(num_images, folds)
    size = num_images // folds
    each = []
    for start in range(0, num_images, size):
        texts = np.flatnonzero(image_of_text // size == start // size)
        images = image_embedding[start : start + size]
        owner = image_of_text[texts] - start
        each.append(retrieval_metrics(images, text_embedding[texts], owner))
    ways = {
        way: {
            name: float(np.mean([part[way][name] for part in each]))
            for name in each[0][way]
        }
        for way in ("i2t", "t2i")
    }
    return ways | {
        "rsum": float(np.mean([part["rsum"] for part in each])),
        "folds": folds,
        "images": size,
        "captions": sum(part["captions"] for part in each),
        "each": each,
    }


def ranks(
    image_embedding: np.ndarray,
    text_embedding: np.ndarray,
    image_of_text: np.ndarray,
    *,
    clock: Stopwatch | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank 1 + the number of other candidates that score at least as high.

    An image's own captions do not count against each other. Scores are taken block by
    block, so that memory does not grow with I times T. They are summed in float64 and
    compared in float32: equal embeddings then tie for any order of summation.

    Args:
      image_of_text: int [T], row of each caption's image in image_embedding.

    Returns:
      ranks of the images' best captions int64 [I], of the captions' images int64 [T].
    """
    _check_embeddings(image_embedding, text_embedding)
    own = np.empty(len(text_embedding), np.float32)
    for texts in _blocks(len(own)):
        with measure(clock, "similarity"):
            images = image_embedding[image_of_text[texts]].astype(np.float64)
            own[texts] = np.einsum(
                "te,te->t", images, text_embedding[texts].astype(np.float64)
            )
    best = np.full(len(image_embedding), -np.inf, np.float32)
    np.maximum.at(best, image_of_text, own)

    image_ranks = np.ones(len(best), np.int64)
    text_ranks = np.ones(len(own), np.int64)
    for images in _blocks(len(best)):
        image_rows = image_embedding[images].astype(np.float64)
        numbers = np.arange(images.start, images.stop)
        for texts in _blocks(len(own)):
            with measure(clock, "similarity"):
                scores = image_rows @ text_embedding[texts].astype(np.float64).T
                scores = scores.astype(np.float32)
            with measure(clock, "ranking"):
                is_other = image_of_text[texts][None, :] != numbers[:, None]
                is_above_text = (scores >= best[images, None]) & is_other
                is_above_image = (scores >= own[None, texts]) & is_other
                image_ranks[images] += is_above_text.sum(axis=1)
                text_ranks[texts] += is_above_image.sum(axis=0)
    return image_ranks, text_ranks


def chance_metrics(image_of_text: np.ndarray) -> dict:
    """The recalls of random order, in the form of `retrieval_metrics`.

    Args:
      image_of_text: int [T], row of each caption's image.
    """
    captions_of = np.bincount(image_of_text)
    captions_of = captions_of[captions_of > 0]
    num_images, num_texts = len(captions_of), len(image_of_text)
    counts, images_with = np.unique(captions_of, return_counts=True)
    i2t, t2i = {}, {}
    for top in TOPS:
        missed = sum(
            images * comb(num_texts - count, top) / comb(num_texts, top)
            for count, images in zip(counts.tolist(), images_with.tolist(), strict=True)
            if top <= num_texts
        )
        i2t[f"r{top}"] = 100.0 * (1.0 - missed / num_images)
        t2i[f"r{top}"] = 100.0 * min(1.0, top / num_images)
    rsum = sum(i2t.values()) + sum(t2i.values())
    return {"i2t": i2t, "t2i": t2i, "rsum": rsum}


def recall_table(
    metrics: dict, ways: Mapping[str, str], counts: str, chance: dict | None = None
) -> Table:
    """The recalls of both ways, and those of random order if `chance` is given.

    Args:
      ways: keys of `metrics`, and what the table calls them.
      counts: what was measured, for the line below.
    """
    named = [(name, metrics[way]) for way, name in ways.items()]
    if chance:
        named += [(f"  by chance, {name}", chance[way]) for way, name in ways.items()]
    rows: list[list[Cell]] = []
    for name, found in named:
        median = f"{found['median_rank']:g}" if "median_rank" in found else ""
        rows.append([name, *(found[f"r{top}"] for top in TOPS), median])
    head = ("retrieval, %", "R@1", "R@5", "R@10", "median rank")
    return Table(head, rows, f"rsum {metrics['rsum']:.1f}  ({counts})")


def check_folds(num_images: int, folds: int) -> None:
    if folds < 1 or num_images % folds:
        raise UserError(
            f"{num_images} images cannot be cut into {folds} equal folds: COCO's 1K "
            "is 5 folds of its 5,000 test images"
        )


def _metrics(found_at: np.ndarray) -> dict[str, float]:
    metrics = {f"r{top}": 100.0 * float(np.mean(found_at <= top)) for top in TOPS}
    return metrics | {"median_rank": float(np.median(found_at))}


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def _rows_of_images(
    num_images: int, image_of_text: np.ndarray, image_ids: np.ndarray | None
) -> np.ndarray:
    """Rows of the images that `image_of_text` names by id, after all checks."""
    image_of_text = np.asarray(image_of_text)
    ids = np.arange(num_images) if image_ids is None else np.asarray(image_ids)
    if len(ids) != num_images:
        raise UserError(f"{len(ids)} image ids for {num_images} image embeddings")
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    is_double = ordered[1:] == ordered[:-1]
    if is_double.any():
        double = ordered[1:][is_double][0]
        raise UserError(f"image id {double} stands for several images: make ids unique")
    is_known = np.isin(image_of_text, ids)
    if not is_known.all():
        text = int(np.argmin(is_known))
        raise UserError(
            f"caption {text} belongs to image {image_of_text[text]}, "
            "which is not among the images"
        )
    has_caption = np.isin(ids, image_of_text)
    if not has_caption.all():
        lonely = ids[int(np.argmin(has_caption))]
        raise UserError(f"image {lonely} has no caption: leave it out, or caption it")
    return order[np.searchsorted(ordered, image_of_text)]


def _check_embeddings(image_embedding: np.ndarray, text_embedding: np.ndarray):
    if image_embedding.ndim != 2 or text_embedding.ndim != 2:
        raise UserError(
            f"embeddings must be [N, E], not {image_embedding.shape} (images) and "
            f"{text_embedding.shape} (captions)"
        )
    if image_embedding.shape[1] != text_embedding.shape[1]:
        raise UserError(
            f"image embeddings of width {image_embedding.shape[1]} cannot be compared "
            f"with text embeddings of width {text_embedding.shape[1]}"
        )
    for name, rows in (("image", image_embedding), ("caption", text_embedding)):
        if len(rows) == 0:
            raise UserError(f"there is no {name} to evaluate")
        is_finite = np.isfinite(rows).all(axis=1)
        if not is_finite.all():
            raise UserError(
                f"the embedding of {name} {int(np.argmin(is_finite))} is not finite: "
                "has the run diverged?"
            )
