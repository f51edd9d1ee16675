"""Embeds a large set of images, shard by shard, by any number of workers.

All workers run the same call on one folder. The first writes the plan. Each claims a
shard that no one has written or claimed, embeds its images and writes it as one change.
A killed worker loses only the shard that it was working on.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from vilem_jax import files, locks
from vilem_jax.api import Model
from vilem_jax.data.sources.packed_text import PackedTexts
from vilem_jax.data.sources.source import Source
from vilem_jax.errors import UserError
from vilem_jax.progress import track
from vilem_jax.search import vectors
from vilem_jax.search.folder import FolderImages
from vilem_jax.search.readable import encode_readable
from vilem_jax.typing import JsonObject

IMAGES_PER_SHARD = 16384
CLAIMS = ".claims"


@dataclasses.dataclass(frozen=True)
class EmbedReport:
    """Counts of one worker's call."""

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
    """Writes the shards that folder `out` lacks.

    Several calls, one after another or at the same time, share the work.

    Args:
      source: the images, the same for all workers.
      dtype: of the embeddings on disk.
      part: (i, n) takes only the shards i, i + n, i + 2n, ...
      model_name: the model's name in the manifest.
      show_progress: a bar on stderr, or lines.

    Raises:
      UserError: `out` was started with another model, other images or settings, holds
        other files or cannot be written; no image can be read; `part` is none; an
        embedding is not finite.
    """
    if dtype not in ("float32", "float16"):
        raise UserError(f"dtype is float32 or float16, not {dtype!r}")
    if images_per_shard < 1:
        raise UserError(f"images_per_shard is {images_per_shard}: use 1 or more")
    if not 0 <= part[0] < part[1]:
        raise UserError(f"shard {part[0]}/{part[1]}: use 0/n to {{n-1}}/n of n parts")
    folder = Path(out).expanduser()
    plan = _start(folder, _make_plan(source, model, dtype, images_per_shard))
    paths, written, replaced = plan.files(folder), 0, []
    # Other workers' new shards are not read: that would be the whole set, by each.
    unread = {file for file in paths if file.exists()}

    def is_done(file: Path) -> bool:
        return vectors.is_whole(file, plan, compare=file in unread)

    for number in range(plan.shards)[part[0] :: part[1]]:
        file, claim = paths[number], folder / CLAIMS / f"{number:05d}"
        if is_done(file):
            unread.discard(file)
            continue
        claim.parent.mkdir(exist_ok=True)
        with files.write_errors(folder), locks.locked(claim) as holder:
            if holder or is_done(file):
                continue
            if file.exists():
                replaced.append(file.name)
            rows = plan.rows(number)
            if show_progress:
                rows = track(rows, f"{file.stem} of {plan.shards}")
            vectors.write_shard(file, plan, _embed_rows(rows, plan, source, model))
            unread.discard(file)
            written += 1
    missing = sum(not is_done(file) for file in paths)
    manifest = None if missing else _finish(folder, plan, model_name)
    return EmbedReport(plan.shards, written, missing, tuple(replaced), manifest)


def _make_plan(
    source: Source | FolderImages, model: Model, dtype: str, per_shard: int
) -> vectors.Plan:
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.image_name(index).encode("utf-8", "surrogatepass") + b"\0")
    root = ""
    if isinstance(source, FolderImages):  # other sources are taken as unchanging
        root = str(source.root)
        for entry in source.entries:
            digest.update(f"{entry.size} {entry.modified}\n".encode())
    return vectors.Plan(
        format_version=vectors.FORMAT_VERSION,
        fingerprint=model.fingerprint,
        image_size=model.encoder.image_size,
        dimension=model.embedding_width,
        dtype=dtype,
        images=len(source),
        images_digest=digest.hexdigest(),
        images_per_shard=per_shard,
        shards=-(-len(source) // per_shard),
        root=root,
    )


def _start(folder: Path, plan: vectors.Plan) -> vectors.Plan:
    """The plan of the folder: `plan`, or an earlier one that must agree with it."""
    files.check_writable(folder / vectors.PLAN)
    if not (folder / vectors.PLAN).exists():
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        # Another worker may have written the plan in the meantime.
        if others and not (folder / vectors.PLAN).exists():
            raise UserError(
                f"{folder} holds something else ({others[0]}): name a new "
                "folder with --out"
            )
        text = json.dumps(dataclasses.asdict(plan), indent=2) + "\n"
        with files.write_errors(folder):
            files.create_file(folder / vectors.PLAN, text.encode())
    stored = vectors.read_plan(folder)
    for key, what in (
        ("fingerprint", "another model, or its other weights"),
        ("images", f"{stored.images} images, now {plan.images}"),
        ("images_digest", "other images, or they have changed since"),
        ("dtype", f"--dtype={stored.dtype}"),
        ("images_per_shard", f"--images-per-shard={stored.images_per_shard}"),
    ):
        if getattr(stored, key) != getattr(plan, key):
            raise UserError(
                f"{folder} was started with {what}: use the same again, or name a new "
                "folder with --out"
            )
    return stored


def _embed_rows(
    rows: Iterable[int], plan: vectors.Plan, source: Source | FolderImages, model: Model
) -> vectors.Shard:
    """The embeddings of one shard."""
    encoded = encode_readable(source, rows, model)
    is_finite = np.isfinite(encoded.embedding).all(axis=1)
    if not is_finite.all():
        name = source.image_name(encoded.rows[int(np.argmin(is_finite))])
        raise UserError(f"the embedding of {name} is not finite: has the run diverged?")
    names = PackedTexts([source.image_name(row) for row in encoded.rows])
    corrupt = [(source.image_name(row), why) for row, why in encoded.corrupt]
    return vectors.Shard(encoded.embedding.astype(plan.dtype), names, corrupt)


def _finish(folder: Path, plan: vectors.Plan, model_name: str) -> JsonObject:
    """Writes the manifest; any worker would write the same."""
    paths = plan.files(folder)
    shards = [vectors.read_shard(file, plan) for file in paths]
    corrupt = [each for shard in shards for each in shard.corrupt]
    counts = [len(shard.names) for shard in shards]
    embedded = zip(paths, counts, strict=True)
    lines = (json.dumps({"image": name, "why": why}) + "\n" for name, why in corrupt)
    files.write_bytes(folder / vectors.CORRUPT, "".join(lines).encode())
    if not sum(counts):
        name, why = corrupt[0]
        raise UserError(f"none of the {plan.images} images can be read; {name}: {why}")
    manifest = {
        "format_version": plan.format_version,
        "model": model_name,
        "fingerprint": plan.fingerprint,
        "images": plan.images,
        "embedded": sum(counts),
        "corrupt": len(corrupt),
        "dimension": plan.dimension,
        "dtype": plan.dtype,
        "root": plan.root,
        "shards": [{"file": file.name, "embedded": count} for file, count in embedded],
    }
    files.write_json(folder / vectors.MANIFEST, manifest)
    with contextlib.suppress(OSError):  # another worker holds a claim, or removed it
        (folder / CLAIMS).rmdir()
    return manifest
