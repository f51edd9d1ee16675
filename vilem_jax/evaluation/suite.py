"""All benchmarks, and those whose data lie below one folder.

Data sets are looked for by the benchmarks' `data_sets`:

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

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import Benchmark, DataSet

if TYPE_CHECKING:
    from vilem_jax.evaluation.encoding import Encoder

# Name of the file and of the verb: its line in `vilem evaluate --help`.
BENCHMARKS = {
    "retrieval": "recall at 1, 5, 10, both ways",
    "winoground": "which caption to which image?",
    "pairs": "is a true caption preferred to a wrong one? by type",
    "proofread": "are wrong words found and corrected, and seen?",
    "video": "recall of clips by captions and back, from a few frames",
    "embeddings": "recall from someone else's features; needs no model",
}


def load_benchmark(name: str) -> Benchmark:
    """The declaration of a benchmark; imports NumPy and JAX, so it is called late."""
    return importlib.import_module(f"vilem_jax.evaluation.{name}").BENCHMARK


@dataclass(frozen=True)
class Found:
    """A data set that exists."""

    data_set: DataSet
    benchmark: Benchmark
    files: tuple[Path, ...]
    images: Path


@dataclass(frozen=True)
class Suite:
    """The data sets below a folder, and what was measured on them, by their names."""

    found: dict[str, Found]
    absent: tuple[DataSet, ...]
    metrics: dict[str, dict] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # the reason


def find_suite(folder: str | Path) -> Suite:
    """The data sets of all benchmarks that exist below `folder`.

    Raises:
      UserError: no such folder, or none of them in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one that holds coco/ etc.")
    found: dict[str, Found] = {}
    absent: list[DataSet] = []
    for benchmark in map(load_benchmark, BENCHMARKS):
        for data_set in benchmark.data_sets:
            if paths := data_set.find(folder):
                found[data_set.name] = Found(data_set, benchmark, *paths)
            else:
                absent.append(data_set)
    if not found:
        wanted = ", ".join(data_set.files[0] for data_set in absent)
        raise UserError(f"{folder} holds no benchmark; looked for: {wanted}")
    return Suite(found, tuple(absent))


def run_suite(encoder: "Encoder", suite: Suite, *, allow_missing: bool) -> None:
    """Fills `suite.metrics`; a benchmark that refuses does not stop the others.

    Args:
      allow_missing: as of `evaluate_retrieval`.
    """
    for name, found in suite.found.items():
        benchmark = found.benchmark
        assert benchmark.open_data_set, f"{name} has no open_data_set"
        try:
            opened = benchmark.open_data_set(
                found.data_set, found.files, found.images, allow_missing
            )
            metrics = benchmark.evaluate(encoder, *opened.data, **opened.settings)
        except UserError as error:
            suite.refused[name] = str(error)
        else:
            protocol = {**opened.protocol, **metrics.get("protocol", {})}
            suite.metrics[name] = metrics | {"protocol": protocol}
