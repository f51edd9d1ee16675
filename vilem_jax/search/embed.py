"""Embeds a large set of images, shard by shard, by any number of workers.

All workers run the same call on one folder. The first writes down what is to be done;
each takes a shard that is neither there nor in work, embeds its images and writes it
whole. A worker that is killed loses the shard in work and no other.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from vilem_jax.api import Model
from vilem_jax.data.images import ImageError, decode, resize_square
from vilem_jax.data.sources.packed_text import PackedTexts
from vilem_jax.data.sources.source import Source
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import read_ahead
from vilem_jax.files import check_writable, create_file, reason, write_bytes, write_json
from vilem_jax.search import vectors
from vilem_jax.search.claims import claimed
from vilem_jax.search.folder import FolderImages
from vilem_jax.search.vectors import Shard, is_whole, read_shard, shard_file
from vilem_jax.typing import JsonObject

IMAGES_PER_SHARD = 16384
CLAIMS = ".claims"


@dataclasses.dataclass(frozen=True)
class EmbedReport:
    """What one worker did, and what there is now."""

    shards: int  # of the whole
    written: int  # of them by this call
    missing: int  # not written yet: other workers' or another part
    replaced: tuple[str, ...]  # files that were corrupt, now rebuilt
    manifest: JsonObject | None  # None while shards are missing


def embed(
    source: Source | FolderImages,
    model: Model,
    out: str | Path,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    images_per_shard: int = IMAGES_PER_SHARD,
    part: tuple[int, int] = (0, 1),
    model_name: str = "",
    show_progress: bool = False,
) -> EmbedReport:
    """Makes the shards in folder `out` that are not there yet.

    Called again, or by others at the same time, it makes only what is missing.

    Args:
      source: the images, the same for all workers.
      dtype: of the embeddings on disk.
      part: (i, n) takes only the shards i, i + n, i + 2n, ...
      model_name: what the manifest calls the model.
      show_progress: a bar on stderr.

    Raises:
      UserError: `out` is begun with another model, other images or settings, holds
        something else or cannot be written; no image can be read; a part that is
        none; an embedding that is not finite.
    """
    if dtype not in ("float32", "float16"):
        raise UserError(f"dtype is float32 or float16, not {dtype!r}")
    if images_per_shard < 1:
        raise UserError(f"images_per_shard is {images_per_shard}: use 1 or more")
    if not 0 <= part[0] < part[1]:
        raise UserError(f"shard {part[0]}/{part[1]}: use 0/n to {{n-1}}/n of n parts")
    folder = Path(out).expanduser()
    plan = _begin(folder, _make_plan(source, model, dtype, images_per_shard))
    written, replaced = 0, []
    numbers = range(plan["shards"])[part[0] :: part[1]]
    for number in numbers:
        file = shard_file(folder, number)
        if is_whole(file, plan):
            continue
        title = f"{file.stem} of {plan['shards']}" if show_progress else ""
        try:
            with claimed(folder / CLAIMS / f"{number:05d}") as sign:
                if sign is None or is_whole(file, plan):
                    continue
                if file.exists():
                    replaced.append(file.name)
                _make_shard(file, number, plan, source, model, sign, title)
                written += 1
        except OSError as error:
            raise UserError(f"cannot write {folder}: {reason(error)}") from error
    missing = sum(
        not is_whole(shard_file(folder, n), plan) for n in range(plan["shards"])
    )
    manifest = None if missing else _finish(folder, plan, model_name)
    return EmbedReport(plan["shards"], written, missing, tuple(replaced), manifest)


def _make_plan(source, model: Model, dtype: str, per_shard: int) -> JsonObject:
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.image_name(index).encode("utf-8", "surrogatepass") + b"\0")
    is_folder = isinstance(source, FolderImages)
    if is_folder:  # files may change; what a source packs is taken to stay
        for entry in source.entries:
            digest.update(f"{entry.size} {entry.modified}\n".encode())
    return {
        "format_version": vectors.FORMAT_VERSION,
        "fingerprint": model.fingerprint,
        "image_size": model.encoder.image_size,
        "dimension": model.embedding_width,
        "dtype": dtype,
        "images": len(source),
        "images_digest": digest.hexdigest(),
        "images_per_shard": per_shard,
        "shards": -(-len(source) // per_shard),
        "root": str(source.root) if is_folder else "",
    }


def _begin(folder: Path, plan: JsonObject) -> JsonObject:
    """The plan of the folder: this one, unless it has one already, which must agree."""
    check_writable(folder / vectors.PLAN)
    if not (folder / vectors.PLAN).exists():
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if others and not (folder / vectors.PLAN).exists():
            raise UserError(
                f"{folder} holds something else ({others[0]}): name a new "
                "folder with --out"
            )
        text = json.dumps(plan, indent=2) + "\n"
        try:
            create_file(folder / vectors.PLAN, text.encode())
        except OSError as error:
            raise UserError(f"cannot write {folder}: {reason(error)}") from error
    stored = vectors.read_plan(folder)
    for key, what in (
        ("fingerprint", "another model, or its other weights"),
        ("images", f"{stored.get('images')} images, now {plan['images']}"),
        ("images_digest", "other images, or they have changed since"),
        ("dtype", f"--dtype={stored.get('dtype')}"),
        (
            "images_per_shard",
            f"--images-per-shard={stored.get('images_per_shard')}",
        ),
    ):
        if stored.get(key) != plan[key]:
            raise UserError(
                f"{folder} was started with {what}: use the same again, or name a new "
                "folder with --out"
            )
    return stored


def _make_shard(
    file: Path, number: int, plan, source, model: Model, sign, title: str
) -> None:
    first = number * plan["images_per_shard"]
    rows = range(first, min(first + plan["images_per_shard"], plan["images"]))
    names, corrupt = [], []
    shown = tqdm(
        rows,
        desc=title,
        unit="image",
        leave=False,
        file=sys.stderr,
        disable=not title,
    )
    read = zip(rows, _read(source, shown, model.encoder.image_size), strict=True)
    images = _good(source, read, names, corrupt, sign)
    embedding = np.zeros((0, plan["dimension"]), np.float32)
    head = next(images, None)
    if head is not None:
        embedding = model.encoder.encode_pixels(_with_first(head, images))
    is_finite = np.isfinite(embedding).all(axis=1)
    if not is_finite.all():
        name = names[int(np.argmin(is_finite))]
        raise UserError(f"the embedding of {name} is not finite: has the run diverged?")
    shard = Shard(embedding.astype(plan["dtype"]), PackedTexts(names), corrupt)
    vectors.write_shard(file, plan, shard)


def _read(source, rows, size: int) -> Iterator:
    """The images uint8 [R, R, 3], or what is wrong with them."""

    def read(index: int):
        try:
            return resize_square(decode(source.read_image(index)), size)
        except (OSError, ImageError) as error:
            return error

    return read_ahead(read, rows)


def _good(source, read, names: list, corrupt: list, sign) -> Iterator[np.ndarray]:
    """The images that could be read; fills `names` and `corrupt`."""
    for index, image in read:
        sign()
        if isinstance(image, Exception):
            corrupt.append((source.image_name(index), reason(image)))
        else:
            names.append(source.image_name(index))
            yield image


def _finish(folder: Path, plan, model_name: str) -> JsonObject:
    """Counts what the shards hold; the same, whoever does it."""
    shards = [read_shard(shard_file(folder, n), plan) for n in range(plan["shards"])]
    corrupt = [each for shard in shards for each in shard.corrupt]
    counts = [len(shard.names) for shard in shards]
    manifest = {
        "format_version": plan["format_version"],
        "model": model_name,
        "fingerprint": plan["fingerprint"],
        "images": plan["images"],
        "embedded": sum(counts),
        "corrupt": len(corrupt),
        "dimension": plan["dimension"],
        "dtype": plan["dtype"],
        "root": plan["root"],
        "shards": [
            {"file": shard_file(folder, number).name, "embedded": count}
            for number, count in enumerate(counts)
        ],
    }
    lines = (json.dumps({"image": name, "why": why}) for name, why in corrupt)
    write_bytes(folder / vectors.CORRUPT, "".join(f"{x}\n" for x in lines).encode())
    if not manifest["embedded"]:
        name, why = corrupt[0]
        raise UserError(
            f"none of the {plan['images']} images can be read; {name}: {why}"
        )
    write_json(folder / vectors.MANIFEST, manifest)
    with contextlib.suppress(OSError):  # somebody has a claim still, or it is gone
        (folder / CLAIMS).rmdir()
    return manifest


def _with_first(first, others) -> Iterator:
    yield first
    yield from others
