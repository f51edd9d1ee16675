"""Search: `vilem index`, `search`, `embed` and `vectors export`."""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from vilem_jax import files
from vilem_jax.cli import options as shared
from vilem_jax.config.sources import SOURCE_KINDS
from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import count
from vilem_jax.parsing import read_text
from vilem_jax.progress import doing

if TYPE_CHECKING:
    from vilem_jax.data.sources.source import Source
    from vilem_jax.search.folder import FolderImages


def add_verbs(verbs) -> None:
    _add_index(verbs)
    _add_search(verbs)
    _add_embed(verbs)
    vectors = verbs.add_parser(
        "vectors", help="embeddings of `vilem embed` for other programs"
    )
    _add_export(vectors.add_subparsers(metavar="WHAT", required=True))


# ---- vilem index, vilem search ----


def _add_index(verbs) -> None:
    index = verbs.add_parser(
        "index", run=_index, help="encode a folder of images, to search in"
    )
    shared.add_model(index)
    index.add_argument("folder")
    index.add_argument("--out", required=True, metavar="INDEX", help="file to write")


def _index(options: argparse.Namespace) -> None:
    with doing("loading JAX"):
        from vilem_jax.search.index import index

    folder, out = options.folder, options.out
    done = index(folder, shared.open_model(options), out, show_progress=True)
    for path, reason in done.corrupt:
        print(f"vilem: left out {path}: {reason}", file=sys.stderr)
    reasons = Counter(reason.partition(" (")[0] for _, reason in done.corrupt)
    for reason, number in reasons.most_common():
        print(f"vilem: {folder}: left out: {number} ({reason})", file=sys.stderr)
    for note in done.notes:
        print(f"vilem: {folder}: {note}", file=sys.stderr)
    print(
        f"{out}: {done.images} images, {done.encoded} of them encoded now; "
        f"{done.removed} removed, {len(done.corrupt)} could not be read"
    )


def _add_search(verbs) -> None:
    search = verbs.add_parser(
        "search", run=_search, help="images by words, or by an image", intermixed=True
    )
    shared.add_model(search)
    add = search.add_argument
    add("index", help="what `vilem index` or `embed` wrote")
    add("words", nargs="*", default=[], help="what to look for")
    add("--image", metavar="FILE", help="instead of words")
    add("--top", type=count, default=10, help="how many images")
    add("--out", metavar="FILE", help="also .json for programs, or .html: a page")


def _search(options: argparse.Namespace) -> None:
    if options.image:  # before the model is loaded
        files.check_image_file(options.image)
    with doing("loading JAX"):
        from vilem_jax.report.search_page import check_format, write_hits
        from vilem_jax.search.query import search

    if options.out:
        check_format(options.out)
        files.check_writable(options.out)
    words = " ".join(options.words) if options.words else None
    asked = {"words": words, "image": options.image}
    model = shared.open_model(options)
    with doing("searching"):
        hits = search(options.index, model, **asked, top_k=options.top)
    if options.out:
        write_hits(options.out, hits, index=options.index, **asked)
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.path}")


# ---- vilem embed ----


def _add_embed(verbs) -> None:
    embed = verbs.add_parser(
        "embed",
        run=_embed,
        help="encode a large set of images, by any number of workers",
        description="Encodes images into shards in a folder. Run the same command on "
        "any number of machines that share the folder; rerun it to resume.",
    )
    shared.add_model(embed)
    shared.add_source(embed, "SOURCE", ("folder", *SOURCE_KINDS))
    add = embed.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a folder of images, annotations (JSON), tars, a TFDS name or folder "
        f"(with --kind=tfds), or {shared.EMBEDDED!r}",
    )
    add("--out", required=True, metavar="FOLDER", help="of the shards")
    add(
        "--shard",
        type=_part,
        default=(0, 1),
        metavar="I/N",
        help="only every N-th shard, from the I-th, 0 to N-1; all by default",
    )
    add("--dtype", choices=("float32", "float16"), default="float32")
    add("--images-per-shard", type=count, default=16384, help="of a file; 16384")


def _embed(options: argparse.Namespace) -> None:
    with doing("loading JAX"):
        from vilem_jax.search.embed import embed
        from vilem_jax.search.vectors import PLAN

    source = _open(options)
    files.check_writable(Path(options.out) / PLAN)
    done = embed(
        source,
        shared.open_model(options),
        options.out,
        dtype=options.dtype,
        images_per_shard=options.images_per_shard,
        part=options.shard,
        model_name=options.model,
        show_progress=True,
    )
    for note in getattr(source, "notes", ()):
        print(f"vilem: {options.source}: {note}", file=sys.stderr)
    for file in done.replaced:
        print(f"vilem: {file} was corrupt and has been rebuilt", file=sys.stderr)
    summary = f"{options.out}: {done.written} of {done.shards} shards written now"
    if done.manifest is None:
        print(f"{summary}, {done.missing} missing: other workers write them")
        return
    embedded, corrupt = done.manifest["embedded"], done.manifest["corrupt"]
    print(f"{summary}, all complete: {embedded:,} images, {corrupt:,} not readable")
    if corrupt:
        print(
            f"vilem: {corrupt:,} images left out: see {options.out}/corrupt.jsonl",
            file=sys.stderr,
        )


def _open(options: argparse.Namespace) -> "Source | FolderImages":
    from vilem_jax.data.sources.source import open_source
    from vilem_jax.search.folder import FolderImages

    path = options.source
    kind = options.kind or ("folder" if Path(path).is_dir() else "")
    if not kind and not Path(path).suffix and path != shared.EMBEDDED:
        raise UserError(f"there is no folder {path}")
    if kind == "folder":
        names = ("images", "split", "num_images")
        shared.refuse_options(options, names, "has no meaning for a folder")
        return FolderImages(path)
    return open_source(shared.named_source(path, options))


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not part[0] < part[1]:
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N-1")
    return part


# ---- vilem vectors export ----


def _add_export(parts) -> None:
    export = parts.add_parser(
        "export",
        run=_export,
        help="for faiss or LanceDB, with its recall against exact search",
    )
    add = export.add_argument
    add("vectors", help="what `vilem embed` or `index` wrote", metavar="VECTORS")
    add("--to", choices=("faiss", "lancedb"), required=True)
    add("--out", required=True, metavar="FOLDER", help="a new one")
    add(
        "--index",
        choices=("flat", "ivf", "hnsw"),
        default="flat",
        help="flat compares all images; ivf and hnsw a part of them",
    )
    add("--top", type=count, default=10, help="of the recall; 10")
    add(
        "--queries",
        metavar="FILE.txt",
        help="texts to measure the recall with, one a line, by --model; 1,000 of the "
        "images by default",
    )
    shared.add_model(export, required=False)


def _export(options: argparse.Namespace) -> None:
    from vilem_jax.search.handover import RECALL, check_installed, hand_over
    from vilem_jax.search.vectors import open_vectors

    check_installed(options.to)
    vectors, queries = open_vectors(options.vectors), None
    if options.queries:
        texts = _read_texts(options)
        model = shared.open_model(options)
        vectors.check_model(model.fingerprint)
        queries = model.encode_text(texts)
    metrics = hand_over(
        vectors,
        options.out,
        to=options.to,
        kind=options.index,
        queries=queries,
        top_k=options.top,
    )
    print(
        f"{options.out}: {metrics['images']:,} images for {options.to}, "
        f"{options.index}; it finds {100 * metrics['recall']:.2f} % of the exact top "
        f"{metrics['top_k']} for {metrics['queries']}, at worst "
        f"{100 * metrics['worst']:.0f} % ({options.out}/{RECALL})"
    )


def _read_texts(options: argparse.Namespace) -> list[str]:
    """The lines of --queries."""
    if not options.model:
        raise UserError("--queries are texts: give the --model of the vectors")
    text = read_text(options.queries, "file of texts")
    return [line for line in text.splitlines() if line.strip()]
