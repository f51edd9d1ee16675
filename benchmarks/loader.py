"""The loader against torch's DataLoader with Pillow, and against webdataset (C3).

    python benchmarks/loader.py [--images=256 --batch=64 --rounds=5] [--out=FOLDER]

Images and captions become batches of 256 x 256 uint8 crops (RandomResizedCrop, 0.2 to
1 of the area, antialiased bicubic) and 30 tokens. All systems run on one core, with one
worker process, and take turns; each turn has a fresh iterator, whose first batches are
not timed. The images are synthetic: coloured noise with the spectrum of photographs, as
JPEG of quality 90, 500 x 375 and with a shorter side of 288, the size that `vilem data
prepare` writes. The files stay in the page cache.

The rows "to float" also do what most recipes do in the worker: pixels to float32,
channels first, normalised. Here the accelerator does that.

Not measured: disks and networks; and more than one core only with --workers.
"""

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import reporting
from images import PRE_RESIZED, jpeg, photo, write_pairs
from PIL import Image

from vilem_jax.config.schema import Config, DataConfig, TrainConfig
from vilem_jax.config.sources import JsonConfig, WebDatasetConfig
from vilem_jax.data.batches import Batches, BatchMaker, open_corpus
from vilem_jax.data.images import crop_box, decode, random_crop
from vilem_jax.data.tokenizer import Tokenizer

SIZE, LENGTH, SCALE = 256, 30, (0.2, 1.0)
SIDES = {"500 x 375": (500, 375), "pre-resized to 288": PRE_RESIZED}
OURS = ("ours, files", "ours, tars")
PEERS = ("torch + Pillow", "webdataset")
FLOAT = {name: f"{name}, to float" for name in PEERS}


def main() -> None:
    options = parse()
    all_cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, all_cores[:1])
    metrics: dict = {"shapes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, side in SIDES.items():
            data = write_pairs(Path(folder) / name.split()[0], side, options.images)
            systems = make_systems(data, options, workers=1)
            metrics["shapes"][name] = compare(systems, options)
        os.sched_setaffinity(0, all_cores)
        systems = make_systems(data, options, workers=options.workers)
        chosen = {OURS[0]: systems[OURS[0]]}
        metrics["all_cores"] = {"workers": options.workers} | compare(chosen, options)
        metrics["pixels"] = pixel_error(options.photos, options.images)
    packages = ("jax", "grain", "simplejpeg", "pillow", "torch", "webdataset")
    reporting.write("loader", options.out, metrics, table(metrics), packages)


def parse():
    parser = reporting.arguments(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=6, help="timed per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--photos", help="folder of JPEGs for the pixel error")
    return parser.parse_args()


def make_systems(data: Path, options, *, workers: int) -> dict[str, Callable]:
    """name -> function that opens a fresh endless iterator of batches."""
    import loader_peers

    tokenizer = Tokenizer(data / "words")
    peers = loader_peers.Peers(data, tokenizer, options.batch, workers, crop)
    sources = {
        OURS[0]: JsonConfig(
            path=str(data / "captions.json"), images=str(data / "images")
        ),
        OURS[1]: WebDatasetConfig(path=str(data / "*.tar")),
    }
    systems = {}
    for name, source in sources.items():
        systems[name] = lambda source=source: open_ours(
            source, tokenizer, options, workers
        )
    for name, opened in zip(PEERS, (peers.torch, peers.webdataset), strict=True):
        systems[name] = lambda opened=opened: opened(to_float=False)
        systems[FLOAT[name]] = lambda opened=opened: opened(to_float=True)
    return systems


def open_ours(source, tokenizer, options, workers: int):
    data = DataConfig(
        train=(source,),
        text_length=LENGTH,
        crop_scale=SCALE,
        num_workers=workers,
        prefetch=2 * workers,
    )
    config = Config(train=TrainConfig(batch_size=options.batch), data=data)
    return Batches(BatchMaker(config, open_corpus(data), tokenizer, SIZE))


def crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """torchvision's RandomResizedCrop by Pillow, for the peers."""
    box = crop_box(*image.size, SCALE, rng)
    part = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(part)


def compare(systems: dict[str, Callable], options) -> dict:
    rounds = []
    for _ in range(options.rounds):
        rounds.append({n: images_per_second(s, options) for n, s in systems.items()})
        print({name: round(value) for name, value in rounds[-1].items()}, flush=True)
    rates = {n: reporting.spread([each[n] for each in rounds]) for n in systems}
    ratios = {}
    for name in systems:
        if name not in OURS:
            best = [max(each[o] for o in OURS) / each[name] for each in rounds]
            ratios[name] = reporting.spread(best)
    return {"images_per_second": rates, "ours_over": ratios, "rounds": rounds}


def images_per_second(system: Callable, options) -> float:
    batches = system()
    try:
        take(batches, 3)  # read ahead, so not timed
        start = time.perf_counter()
        take(batches, options.batches)
        return options.batches * options.batch / (time.perf_counter() - start)
    finally:
        batches.close()


def take(batches: Iterator, count: int) -> None:
    for _ in range(count):
        next(batches)


def pixel_error(photos: str | None, count: int) -> dict:
    """Errors of our crops against Pillow's bicubic of the image at its full size."""
    rng = np.random.default_rng(1)
    contents = [jpeg(photo(rng, 1600, 1200)) for _ in range(min(8, count))]
    if photos:
        contents += [path.read_bytes() for path in sorted(Path(photos).glob("*.jpg"))]
    errors = []
    for i, content in enumerate(contents):
        for size in (64, 128, SIZE):
            found = random_crop(content, size, SCALE, np.random.default_rng(i))
            rng = np.random.default_rng(i)
            height, width = decode(content).shape[:2]
            box = crop_box(width, height, SCALE, rng)
            with Image.open(io.BytesIO(content)) as image:
                part = image.convert("RGB").crop(box)
            expected = part.resize((size, size), Image.Resampling.BICUBIC)
            difference = found.astype(int) - np.asarray(expected)
            errors.append(float(np.abs(difference).mean()))
    return {
        "images": len(contents),
        "mean_of_255": float(np.mean(errors)),
        "worst_of_255": max(errors),
        "shrunk": sum(error > 0 for error in errors),
        "crops": len(errors),
    }


def table(metrics: dict) -> str:
    parts = []
    for name, found in metrics["shapes"].items():
        rows = []
        for system, rate in found["images_per_second"].items():
            ratio = found["ours_over"].get(system)
            over = reporting.cell(ratio, 2) if ratio else ""
            rows.append([system, reporting.cell(rate, 0), over])
        head = [name, "images/s on one core", "the better of ours over it"]
        parts.append(reporting.markdown(head, rows))
    cores = metrics["all_cores"]
    rate = reporting.cell(cores["images_per_second"][OURS[0]], 0)
    parts.append(
        f"Pre-resized, {cores['workers']} workers on all cores, {OURS[0]}: "
        f"{rate} images/s."
    )
    error = metrics["pixels"]
    parts.append(
        f"Pixels of {error['crops']} crops of {error['images']} images against "
        f"Pillow's of the whole image: {error['mean_of_255']:.2f} of 255 apart on "
        f"average, {error['worst_of_255']:.2f} in the worst crop; {error['shrunk']} "
        "were decoded at a fraction of their size."
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    try:
        import torch  # noqa: F401
        import webdataset  # noqa: F401
    except ImportError as error:
        sys.exit(f"{error.name} is not installed: pip install torch webdataset")
    main()
