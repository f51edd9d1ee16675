"""Thousands of calls on one loaded model: memory must not grow (R33).

    python -m tests.many_calls MODEL NUMBER

Searches, embeds, evaluates and proofreads in turn with the model in the work directory
MODEL of a run on scenes. Prints JSON: the resident size in MiB after each tenth.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import vilem_jax
from vilem_jax.config.sources import ScenesConfig
from vilem_jax.data.images import decode
from vilem_jax.data.sources.source import open_source
from vilem_jax.evaluation.retrieval import evaluate_retrieval
from vilem_jax.search.embed import embed
from vilem_jax.search.folder import FolderImages
from vilem_jax.search.index import index
from vilem_jax.search.query import Searcher

NUM_IMAGES = 6


def main(name: str, number: str) -> None:
    model = vilem_jax.load(name)
    scenes = ScenesConfig(name="scenes", split="validation", num_images=NUM_IMAGES)
    source = open_source(scenes)
    captions = [source.captions(row)[0] for row in range(NUM_IMAGES)]
    every = max(1, int(number) // 10)
    resident = []
    with tempfile.TemporaryDirectory(prefix="calls") as parent:
        images, shards = Path(parent) / "images", Path(parent) / "shards"
        images.mkdir()
        for row in range(NUM_IMAGES):
            pixels = decode(source.read_image(row))
            Image.fromarray(pixels).save(images / f"{row}.png")
        index(images, model, Path(parent) / "images.index")
        searcher = Searcher(Path(parent) / "images.index", model)
        for call in range(int(number)):
            row = call % NUM_IMAGES
            match call % 4:
                case 0:
                    searcher.by_words(captions[row])
                case 1:
                    embed(FolderImages(images), model, shards, images_per_shard=4)
                    shutil.rmtree(shards)
                case 2:
                    evaluate_retrieval(model.encoder, source)
                case 3:
                    model.proofread(images / f"{row}.png", captions[row])
            if (call + 1) % every == 0:
                resident.append(_resident_mib())
    print(json.dumps(resident))


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main(*sys.argv[1:])
