"""`vilem data check`, `show`, `edit` and `prepare`: data before a long run."""

import argparse
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

from vilem_jax.cli.options import (
    EMBEDDED,
    add_columns,
    add_config,
    count,
    named_source,
    read_config_options,
)
from vilem_jax.config.schema import Config
from vilem_jax.config.sources import SOURCE_KINDS, SourceConfig
from vilem_jax.errors import UserError
from vilem_jax.progress import doing

_NAMED = re.compile(r"([a-z][a-z0-9_]*)=(.+)")  # SPLIT=PATH


def add_verbs(verbs: Any) -> None:
    parts = verbs.add_parser(
        "data", help="check, show, edit or prepare data before a run"
    ).add_subparsers(metavar="WHAT", required=True)

    check = parts.add_parser(
        "check",
        run=_check,
        help="count what is missing, corrupt or double",
        description="Exit code 1: images are missing, corrupt or in two splits, or "
        "captions are empty.",
    )
    add_config(check)
    check.add_argument(
        "--max-images", type=count, default=0, help="decode only so many per source"
    )
    check.add_argument("--out", metavar="FILE.json", help="the counts as JSON")

    show = parts.add_parser("show", run=_show, help="a page of what the model will see")
    add_config(show)
    show.add_argument("--out", default="batch.html", metavar="FILE.html")
    show.add_argument("--num-pairs", type=count, default=24)

    edit = parts.add_parser(
        "edit", run=_edit, help="edit all captions, for config.editor.edit_table"
    )
    add_config(edit)
    edit.add_argument("--out", required=True, metavar="FILE.safetensors")
    edit.add_argument(
        "--variants", type=count, default=4, help="edits of each caption; 4 by default"
    )
    _add_prepare(parts)


def _check(options: argparse.Namespace) -> int:
    config = read_config_options(options)
    from vilem_jax.data.check import check, format_report, num_faults
    from vilem_jax.data.sources.source import open_source
    from vilem_jax.data.tokenizer import Tokenizer
    from vilem_jax.files import check_writable, write_json

    if options.out:  # before long work
        check_writable(options.out)
    with doing("reading the data"):
        sources = {
            split: [open_source(source) for source in configs]
            for split in ("train", "validation", "test")
            if (configs := getattr(config.data, split))
        }
    cleaning, keeps_sep = config.data.cleaning, config.data.keeps_sep
    tokenizer = Tokenizer(
        _tokenizer_name(config), cleaning=cleaning, keeps_sep=keeps_sep
    )
    length = config.data.text_length
    report = check(sources, tokenizer, length, max_images=options.max_images)
    if options.out:
        write_json(options.out, report)
    print(format_report(report))
    return 1 if num_faults(report) else 0


def _tokenizer_name(config: Config) -> str:
    if config.tokenizer_name or not config.model.start_from:
        return config.tokenizer_name
    from vilem_jax.runs.origin import origin_tokenizer

    return str(origin_tokenizer(config.model.start_from))


def _show(options: argparse.Namespace) -> None:
    config = read_config_options(options)
    from vilem_jax.report.batch_page import write_batch_page

    write_batch_page(config, options.out, num_pairs=options.num_pairs)
    print(f"{options.out}: {options.num_pairs} pairs as the model will see them")


def _edit(options: argparse.Namespace) -> None:
    config = read_config_options(options)
    from vilem_jax.training.edit_corpus import edit_corpus

    edits = edit_corpus(config, options.out, num_variants=options.variants)
    print(
        f"{options.out}: {edits.about['pairs']:,} pairs, {edits.num_variants} edits of "
        f"each; train with --config.editor.edit_table={options.out}"
    )


# ---- vilem data prepare ----


def _add_prepare(parts: Any) -> None:
    prepare = parts.add_parser(
        "prepare",
        run=_prepare,
        help="images resized and packed once, for kind='tfds'",
        description="Packs sources as a TFDS data set in ArrayRecord, with images "
        "no larger than needed. Rerun the same command to resume.",
    )
    add = prepare.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="annotations (JSON, CSV, or FILE.zip/FILE.json), tars, a TFDS name, or "
        f"{EMBEDDED!r}; SPLIT=SOURCE puts it into that split",
    )
    add("--out", required=True, metavar="FOLDER", help="a new one")
    add(
        "--images",
        action="append",
        default=[],
        metavar="FOLDER_OR_ZIP",
        help="of the images, or TFDS's folder; once for all, or once a source",
    )
    kinds = tuple(SOURCE_KINDS)
    add("--kind", choices=kinds, help="of the sources, if their names do not show it")
    add(
        "--split",
        action="append",
        default=[],
        help="of the sources, to be prepared under its name; may be given again; "
        "without it everything goes into 'train'",
    )
    add("--num-images", type=count, default=0, help="of each source")
    add("--seed", type=int, default=0, help=f"of {EMBEDDED!r}")
    add("--short-side", type=int, default=288, help="pixels; 288")
    add("--quality", type=int, default=95, help="of JPEG; 95")
    add("--images-per-shard", type=count, default=4096, help="of a file; 4096")
    cores = os.cpu_count() or 1
    add("--workers", type=count, default=cores, help="processes; one a core by default")
    add(
        "--beam-runner",
        metavar="RUNNER",
        help="prepare on many machines: a runner of Apache Beam, such as "
        "DataflowRunner; DirectRunner is this machine",
    )
    add("--beam-options", default="", metavar="OPTIONS", help="of Beam, in quotes")
    add_columns(prepare)


def _prepare(options: argparse.Namespace) -> None:
    from vilem_jax.data.prepare.records import Settings
    from vilem_jax.data.sources.source import open_source

    out = options.out
    settings = Settings(options.short_side, options.quality, options.images_per_shard)
    if options.beam_options and not options.beam_runner:
        raise UserError("--beam-options belongs to --beam-runner: give both")
    splits = source_configs(options)
    if options.beam_runner:
        from vilem_jax.data.prepare.beam import prepare_with_beam

        beam = {"runner": options.beam_runner, "options": options.beam_options}
        report = prepare_with_beam(splits, out, settings, **beam)
    else:
        from vilem_jax.data.prepare.local import prepare

        # Opened here: parsing annotations again in every process would take longer.
        opened = {name: list(map(open_source, parts)) for name, parts in splits.items()}
        report = prepare(opened, out, settings, num_workers=options.workers)
    _print_report(out, report)


def source_configs(options: argparse.Namespace) -> dict[str, list[SourceConfig]]:
    """The sources of each split of the result.

    Raises:
      UserError: the number of --images is not 0, 1 or that of the sources; --split and
        SPLIT=SOURCE are both given; a name does not show the kind of its source.
    """
    images, num_sources = options.images, len(options.sources)
    if len(images) not in (0, 1, num_sources):
        raise UserError(
            f"{len(images)} --images for {num_sources} sources: give one for all, or "
            "one for each in their order"
        )
    images = images if len(images) > 1 else (images or [""]) * num_sources
    configs: dict[str, list[SourceConfig]] = {}
    for text, folder in zip(options.sources, images, strict=True):
        named = None if Path(text).exists() else _NAMED.fullmatch(text)
        if named and options.split:
            raise UserError(f"give {text} without {named[1]}=, or leave out --split")
        split, data = named.groups() if named else ("train", text)
        config = named_source(data, options, images=folder, split="")
        if not options.split:
            configs.setdefault(split, []).append(config)
        for split in dict.fromkeys(options.split):
            part = dataclasses.replace(config, split=split)
            configs.setdefault(split, []).append(part)
    return configs


def _print_report(out: str, report: dict) -> None:
    for split, counts in report["splits"].items():
        print(
            f"{out}: {split}: {counts['images']:,} images ({counts['resized']:,} "
            f"resized, {counts['kept']:,} kept unchanged), "
            f"{counts['captions']:,} captions, {counts['image_bytes'] / 1e6:,.1f} MB"
        )
        for note in counts["notes"]:
            print(f"vilem: {split}: {note}", file=sys.stderr)
        if counts["left_out"]:
            first = counts["left_out_examples"][0]
            print(
                f"vilem: {split}: {counts['left_out']:,} images left out, such as "
                f"{first['image']} ({first['why']}); see {out}/prepared.json",
                file=sys.stderr,
            )
