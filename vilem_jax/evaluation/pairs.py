"""True against wrong caption of one image: does the model score the true one higher?

Such pairs come from the hard test of scenes, or from files (`pair_files.py`).
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vilem_jax.config.sources import ScenesConfig, SourceConfig
from vilem_jax.data.scenes.hard_pairs import HardPair, hard_pairs
from vilem_jax.data.scenes.source import open_scenes
from vilem_jax.errors import UserError
from vilem_jax.evaluation import benchmark
from vilem_jax.evaluation.encoding import Encoder, Images, share_rows
from vilem_jax.evaluation.pair_files import CaptionPair, PairImages, read_pairs
from vilem_jax.evaluation.timing import Stopwatch, measure, measured

# A hard pair of scenes has no group.
Pair = CaptionPair | HardPair


def pairs_metrics(
    score_true: np.ndarray,
    score_wrong: np.ndarray,
    kinds: Sequence[str],
    groups: Sequence[str] = (),
) -> dict:
    """How often the true caption scores strictly higher, in per cent.

    Args:
      score_true, score_wrong: [N], similarity of the image with either caption.
      kinds: [N], the type of each pair.
      groups: [N], a part of the type, "" if it has none; or empty.

    Returns:
      {"accuracy", "by_type": {kind: accuracy}, "pairs", "pairs_by_type"}; ties count
      against the model, and the accuracy is over pairs, not the mean over types. If
      pairs have groups, also "by_group": {kind: {group: {"accuracy", "pairs"}}} and
      "mean_over_groups": {kind: mean of the groups' accuracies}.
    """
    score_true, score_wrong = np.asarray(score_true), np.asarray(score_wrong)
    if score_true.shape != score_wrong.shape or len(kinds) != len(score_true):
        raise ValueError(
            f"scores {score_true.shape} and {score_wrong.shape}, {len(kinds)} kinds"
        )
    if len(kinds) == 0:
        raise UserError("there is no pair of captions to evaluate")
    if not (np.isfinite(score_true).all() and np.isfinite(score_wrong).all()):
        raise UserError("a score is not finite: has the run diverged?")
    is_right = (score_true > score_wrong).tolist()
    of_kind: dict[str, list[bool]] = {}
    of_group: dict[str, dict[str, list[bool]]] = {}
    groups = groups or [""] * len(kinds)
    for right, kind, group in zip(is_right, kinds, groups, strict=True):
        of_kind.setdefault(kind, []).append(right)
        if group:
            of_group.setdefault(kind, {}).setdefault(group, []).append(right)
    metrics = {
        "accuracy": _share(is_right),
        "by_type": {kind: _share(found) for kind, found in of_kind.items()},
        "pairs": len(kinds),
        "pairs_by_type": {kind: len(found) for kind, found in of_kind.items()},
    }
    for kind, found in of_group.items():
        parts = {
            group: {"accuracy": _share(found[group]), "pairs": len(found[group])}
            for group in sorted(found)
        }
        mean = float(np.mean([part["accuracy"] for part in parts.values()]))
        metrics.setdefault("by_group", {})[kind] = parts
        metrics.setdefault("mean_over_groups", {})[kind] = mean
    return metrics


def _share(is_right: list[bool]) -> float:
    return 100.0 * float(np.mean(is_right))


def pair_scores(
    pairs: Sequence[Pair],
    encode_images: Callable[[list], np.ndarray],
    encode_texts: Callable[[list[str]], np.ndarray],
    clock: Stopwatch | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the true and of the best of the wrong captions, float32 [N] each.

    An image of several pairs is encoded once.

    Args:
      encode_images: the pairs' `image`s, each once -> [M, E], unit rows.
      encode_texts: captions -> [M, E], unit rows.
    """
    images = list(dict.fromkeys(pair.image for pair in pairs))
    row_of = {image: row for row, image in enumerate(images)}
    image_embedding = encode_images(images)
    image_rows = np.array([row_of[pair.image] for pair in pairs])
    stated = (pair.wrong_caption for pair in pairs)
    wrongs = [(wrong,) if isinstance(wrong, str) else wrong for wrong in stated]
    owner = np.repeat(np.arange(len(pairs)), [len(each) for each in wrongs])
    true = encode_texts([pair.caption for pair in pairs])
    wrong = encode_texts([caption for each in wrongs for caption in each])

    def scores(rows, texts):
        cosine = np.einsum("ne,ne->n", image_embedding[rows], texts, dtype=np.float64)
        return cosine.astype(np.float32)

    with measure(clock, "similarity"):
        score_true = scores(image_rows, true)
        scores_wrong = scores(image_rows[owner], wrong)
    with measure(clock, "ranking"):
        score_wrong = np.full(len(pairs), -np.inf, np.float32)
        np.fmax.at(score_wrong, owner, scores_wrong)
        score_wrong[owner[np.isnan(scores_wrong)]] = np.nan
    return score_true, score_wrong


def evaluate_pairs(encoder: Encoder, pairs: Sequence[Pair], images: Images) -> dict:
    """`pairs_metrics` of a model, and what they took ("measured").

    Args:
      images: reads the pairs' `image`s.

    Raises:
      UserError: an image that is missing or corrupt, by name.
    """
    encoder = encoder.timed()
    score_true, score_wrong = pair_scores(
        pairs,
        encode_images=partial(share_rows, partial(encoder.encode_images, images)),
        encode_texts=partial(share_rows, encoder.encode_captions),
        clock=encoder.clock,
    )
    kinds = [pair.kind for pair in pairs]
    groups = [getattr(pair, "group", "") for pair in pairs]
    metrics = pairs_metrics(score_true, score_wrong, kinds, groups)
    metrics["images"] = len({pair.image for pair in pairs})
    return metrics | {"measured": measured(encoder)}


def pairs_tables(metrics: dict) -> list[benchmark.Table]:
    """Accuracy by type of pair."""
    counts, by_group = metrics["pairs_by_type"], metrics.get("by_group", {})
    means = metrics.get("mean_over_groups", {})
    rows: list[list[benchmark.Cell]] = []
    for kind, right in metrics["by_type"].items():
        rows.append([kind, right, str(counts[kind])])
    for kind, mean in means.items():
        rows.append([f"{kind}, mean of groups", mean, f"{len(by_group[kind])} groups"])
    rows.append(["all", metrics["accuracy"], str(metrics["pairs"])])
    return [benchmark.Table(("caption pairs", "accuracy, %", "pairs"), rows)]


def _summarize(title: str, metrics: dict) -> benchmark.Table:
    counts, means = metrics["pairs_by_type"], metrics.get("mean_over_groups", {})
    rows: list[list[benchmark.Cell]] = [
        [f"{title}: {kind}", str(counts[kind]), right, means.get(kind)]
        for kind, right in metrics["by_type"].items()
    ]
    rows.append([f"{title}: all", str(metrics["pairs"]), metrics["accuracy"], None])
    head = ("Pairs", "number", "accuracy", "mean over groups")
    return benchmark.Table(head, rows, title="True against wrong captions")


def _open(options: Namespace, read_config: benchmark.ReadConfig) -> benchmark.Opened:
    if options.data in (None, "scenes"):
        return _open_scenes(read_config())
    for name in ("split", "num_images", "kind"):
        if value := getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')}={value} has no meaning for pairs: all of "
                "--data are used"
            )
    if not options.images:
        read_pairs(options.data)  # a corrupt file is reported first
        raise UserError("give the folder or zip of the pairs' images with --images")
    return _open_files((options.data,), options.images)


def _open_scenes(config: SourceConfig) -> benchmark.Opened:
    if not isinstance(config, ScenesConfig):
        raise UserError(
            "name the pairs with --data: a JSON file of SugarCrepe, ARO or VALSE, a "
            "folder of them, or 'scenes'"
        )
    source = open_scenes(config)
    protocol = {
        "data": config.name,
        "split": benchmark.describe_split(config),
        "ties": "count against the model",
    }
    return benchmark.Opened((hard_pairs(source), source), protocol=protocol)


def _open_files(paths: Sequence[str | Path], images: str | Path) -> benchmark.Opened:
    pairs, protocol = read_pairs(*paths)
    return benchmark.Opened((pairs, PairImages(images, pairs)), protocol=protocol)


def _evaluate(encoder: Encoder, pairs: Sequence[Pair], images: Images) -> dict:
    metrics = evaluate_pairs(encoder, pairs, images)
    return metrics | {"protocol": {"text_length": encoder.text_length}}


BENCHMARK = benchmark.Benchmark(
    options=("model", "data", "distributed", "out", "text_length"),
    open=_open,
    evaluate=_evaluate,
    tabulate=pairs_tables,
    data_sets=(
        benchmark.DataSet(
            "sugarcrepe",
            "SugarCrepe",
            ("sugarcrepe/*.json",),
            ("sugarcrepe/images", "sugarcrepe/val2017", "coco/val2017", "sugarcrepe"),
        ),
        benchmark.DataSet(
            "aro",
            "ARO, Visual Genome relation and attribution",
            ("aro/visual_genome_relation.json", "aro/visual_genome_attribution.json"),
            ("aro/images", "aro"),
            all_files=True,
        ),
        benchmark.DataSet(
            "aro_coco_order",
            "ARO, order of COCO's captions",
            ("aro/coco_order.json",),
            ("coco/images", "coco"),
        ),
        benchmark.DataSet(
            "aro_flickr30k_order",
            "ARO, order of Flickr30K's captions",
            ("aro/flickr30k_order.json",),
            ("flickr30k/flickr30k-images", "flickr30k/images", "flickr30k"),
        ),
        benchmark.DataSet(
            "valse",
            "VALSE",
            ("valse/*.json", "valse/data/*.json"),
            ("valse/images", "valse"),
        ),
    ),
    open_data_set=lambda _, files, images, *__: _open_files(files, images),
    summarize=_summarize,
)
