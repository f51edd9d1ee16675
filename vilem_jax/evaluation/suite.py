"""All benchmarks that lie under one folder, measured one after the other.

What is looked for, below the folder (images in the first place that is there):

  coco/        dataset_coco.json or coco_karpathy_test.json; images/, or itself
  flickr30k/   dataset_flickr30k.json or flickr30k_test.json; flickr30k-images/, images/
  flickr8k/    dataset_flickr8k.json or captions.json; images/, Flicker8k_Dataset/
  winoground/  examples.jsonl, images/ or images.zip; or these in data/
  sugarcrepe/  *.json; images/ or val2017/ there, or coco/val2017/
  aro/         visual_genome_relation.json, visual_genome_attribution.json; images/
  aro/         coco_order.json (images of coco/), flickr30k_order.json (of flickr30k/)
  valse/       *.json, or data/*.json; images/
  msrvtt/      MSRVTT_JSFUSION_test.csv or msrvtt_test.jsonl; videos/, videos/all/
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.sources.missing import present_images
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.video.clips import MSRVTT_1KA, VideoClips
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import Encoder
from vilem_jax.evaluation.pair_files import open_pairs
from vilem_jax.evaluation.pairs import evaluate_pairs
from vilem_jax.evaluation.retrieval import evaluate_retrieval
from vilem_jax.evaluation.video import evaluate_video
from vilem_jax.evaluation.winoground import EXAMPLES, evaluate_winoground

COCO_TEST = 5000  # images of Karpathy's test split; their five folds are "1K"


@dataclass(frozen=True)
class Setting:
    """What every benchmark is measured with."""

    encoder: Encoder
    allow_missing: bool = False
    show_progress: bool = False


@dataclass(frozen=True)
class Place:
    """Where a benchmark lies: its files, and its images."""

    files: tuple[Path, ...]
    images: Path


@dataclass(frozen=True)
class Benchmark:
    name: str  # of its JSON file
    title: str
    looks_for: str  # below the folder
    find: Callable[[Path], Place | None]
    run: Callable[[Setting, Place], dict]  # metrics with "protocol" and "measured"


@dataclass(frozen=True)
class Found:
    """Which benchmarks lie under a folder."""

    folder: Path
    present: dict[str, tuple[Benchmark, Place]]
    absent: tuple[Benchmark, ...]


@dataclass(frozen=True)
class SuiteResult:
    """Figures by the benchmarks' names, and what could not be measured, and why."""

    found: Found
    metrics: dict[str, dict] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def find_benchmarks(folder: str | Path) -> Found:
    """Those of `BENCHMARKS` whose files are there.

    Raises:
      UserError: no such folder, or none of them in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: give the one that holds coco/ and so on"
        )
    places = {one.name: (one, one.find(folder)) for one in BENCHMARKS}
    present = {name: pair for name, pair in places.items() if pair[1] is not None}
    if not present:
        wanted = ", ".join(one.looks_for for one in BENCHMARKS)
        raise UserError(f"{folder} holds no benchmark; looked for: {wanted}")
    absent = tuple(one for one, place in places.values() if place is None)
    return Found(folder, present, absent)


def run_suite(
    encoder: Encoder,
    found: Found,
    *,
    allow_missing: bool = False,
    show_progress: bool = False,
) -> SuiteResult:
    """Measures all that was found; one that refuses does not stop the others.

    Args:
      allow_missing: as of `evaluate_retrieval`.
    """
    setting = Setting(encoder, allow_missing, show_progress)
    done = SuiteResult(found)
    for name, (benchmark, place) in found.present.items():
        try:
            done.metrics[name] = benchmark.run(setting, place)
        except UserError as error:
            done.refused[name] = str(error)
    return done


def _retrieval(title: str) -> Callable[[Setting, Place], dict]:
    def run(setting: Setting, place: Place) -> dict:
        file = place.files[0]
        # Karpathy's files hold all splits; those of one split are named after it.
        split = "" if file.stem.endswith("_test") else "test"
        source = open_source(
            JsonConfig(
                name=title,
                path=str(file),
                images=str(place.images),
                split=split,
            )
        )
        _, missing = present_images(source, allow_missing=setting.allow_missing)
        is_whole = len(source) == COCO_TEST and not missing["missing_images"]
        metrics = evaluate_retrieval(
            setting.encoder,
            source,
            folds=5 if title == "COCO" and is_whole else 1,
            allow_missing=setting.allow_missing,
            show_progress=setting.show_progress,
        )
        metrics["protocol"]["split"] = "test"
        return metrics

    return run


def _winoground(setting: Setting, place: Place) -> dict:
    return evaluate_winoground(
        setting.encoder,
        place.files[0].parent,
        show_progress=setting.show_progress,
    )


def _pairs(setting: Setting, place: Place) -> dict:
    protocol, pairs, images = open_pairs(place.images, *place.files)
    metrics = evaluate_pairs(
        setting.encoder,
        pairs,
        images,
        show_progress=setting.show_progress,
    )
    return metrics | {
        "protocol": protocol | {"text_length": setting.encoder.text_length}
    }


def _video(setting: Setting, place: Place) -> dict:
    return evaluate_video(
        setting.encoder,
        VideoClips(place.files[0], place.images),
        protocol=MSRVTT_1KA,
        allow_missing=setting.allow_missing,
        show_progress=setting.show_progress,
    )


def _look(
    files: tuple[str, ...], images: tuple[str, ...], *, all_files: bool = False
) -> Callable[[Path], Place | None]:
    """Finds the first of `files` (or all that are there) and of `images`.

    A name may be a pattern, which stands for all the files that fit it.
    """

    def find(folder: Path) -> Place | None:
        hits = [sorted(folder.glob(pattern)) for pattern in files]
        hits = [each for each in hits if each]
        if not hits:
            return None
        taken = tuple(file for each in hits for file in each) if all_files else None
        folders = [folder / name for name in images]
        there = next((one for one in folders if one.is_dir()), folders[-1])
        return Place(taken or tuple(hits[0]), there)

    return find


BENCHMARKS = (
    Benchmark(
        "coco",
        "COCO, Karpathy's test split",
        "coco/dataset_coco.json",
        # The names in the file begin with val2014/.
        _look(
            ("coco/dataset_coco.json", "coco/coco_karpathy_test.json"),
            ("coco/images", "coco"),
        ),
        _retrieval("COCO"),
    ),
    Benchmark(
        "flickr30k",
        "Flickr30K, Karpathy's test split",
        "flickr30k/dataset_flickr30k.json",
        _look(
            ("flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k_test.json"),
            ("flickr30k/flickr30k-images", "flickr30k/images", "flickr30k"),
        ),
        _retrieval("Flickr30K"),
    ),
    Benchmark(
        "flickr8k",
        "Flickr8K, Karpathy's test split",
        "flickr8k/dataset_flickr8k.json",
        _look(
            ("flickr8k/dataset_flickr8k.json", "flickr8k/captions.json"),
            ("flickr8k/images", "flickr8k/Flicker8k_Dataset", "flickr8k"),
        ),
        _retrieval("Flickr8K"),
    ),
    Benchmark(
        "winoground",
        "Winoground",
        f"winoground/{EXAMPLES}",
        _look(
            (f"winoground/{EXAMPLES}", f"winoground/data/{EXAMPLES}"), ("winoground",)
        ),
        _winoground,
    ),
    Benchmark(
        "sugarcrepe",
        "SugarCrepe",
        "sugarcrepe/*.json",
        _look(
            ("sugarcrepe/*.json",),
            ("sugarcrepe/images", "sugarcrepe/val2017", "coco/val2017", "sugarcrepe"),
        ),
        _pairs,
    ),
    Benchmark(
        "aro",
        "ARO, Visual Genome relation and attribution",
        "aro/visual_genome_relation.json",
        _look(
            ("aro/visual_genome_relation.json", "aro/visual_genome_attribution.json"),
            ("aro/images", "aro"),
            all_files=True,
        ),
        _pairs,
    ),
    Benchmark(
        "aro_coco_order",
        "ARO, order of COCO's captions",
        "aro/coco_order.json",
        _look(("aro/coco_order.json",), ("coco/images", "coco")),
        _pairs,
    ),
    Benchmark(
        "aro_flickr30k_order",
        "ARO, order of Flickr30K's captions",
        "aro/flickr30k_order.json",
        _look(
            ("aro/flickr30k_order.json",),
            ("flickr30k/flickr30k-images", "flickr30k/images", "flickr30k"),
        ),
        _pairs,
    ),
    Benchmark(
        "valse",
        "VALSE",
        "valse/*.json",
        _look(("valse/*.json", "valse/data/*.json"), ("valse/images", "valse")),
        _pairs,
    ),
    Benchmark(
        "msrvtt",
        "MSR-VTT 1k-A, text and video",
        "msrvtt/MSRVTT_JSFUSION_test.csv",
        _look(
            ("msrvtt/MSRVTT_JSFUSION_test.csv", "msrvtt/msrvtt_test.jsonl"),
            ("msrvtt/videos/all", "msrvtt/videos", "msrvtt"),
        ),
        _video,
    ),
)
