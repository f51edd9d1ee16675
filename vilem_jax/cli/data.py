"""`vilem data check`, `show`, `edit` and `prepare`: data before a long run."""

import argparse
from typing import Any

from vilem_jax.cli import data_prepare
from vilem_jax.cli.options import add_config, count
from vilem_jax.config.files import load_config
from vilem_jax.config.schema import Config


def add_verbs(verbs: Any) -> None:
    parts = verbs.add_parser(
        "data", help="check, show, edit or prepare data before a run"
    ).add_subparsers(metavar="WHAT", required=True)

    check = parts.add_parser(
        "check", run=_check, help="count what is missing, corrupt or double"
    )
    add_config(check)
    add = check.add_argument
    add("--max-images", type=count, default=0, help="decode only so many per source")
    add("--out", metavar="FILE.json", help="the counts as JSON")

    show = parts.add_parser("show", run=_show, help="a page of what the model will see")
    add_config(show)
    show.add_argument("--out", default="batch.html", metavar="FILE.html")
    show.add_argument("--num-pairs", type=count, default=24)

    edit = parts.add_parser(
        "edit", run=_edit, help="edit all captions, for config.editor.edit_table"
    )
    add_config(edit)
    add = edit.add_argument
    add("--out", required=True, metavar="FILE.safetensors")
    add("--variants", type=count, default=4, help="edits of each caption; 4 by default")
    data_prepare.add_verb(parts)


def _check(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    from vilem_jax.data.check import check, format_report
    from vilem_jax.data.sources.source import open_source
    from vilem_jax.data.tokenizer import Tokenizer
    from vilem_jax.files import write_json

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
    print(format_report(report))
    if options.out:
        write_json(options.out, report)


def _tokenizer_name(config: Config) -> str:
    if config.tokenizer_name or not config.model.start_from:
        return config.tokenizer_name
    from vilem_jax.runs.origin import origin_tokenizer

    return str(origin_tokenizer(config.model.start_from))


def _show(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    from vilem_jax.report.batch_page import write_batch_page

    write_batch_page(config, options.out, num_pairs=options.num_pairs)
    print(f"{options.out}: {options.num_pairs} pairs as the model will see them")


def _edit(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    from vilem_jax.training.edit_corpus import edit_corpus

    edits = edit_corpus(config, options.out, num_variants=options.variants)
    print(
        f"{options.out}: {edits.about['pairs']:,} pairs, {edits.num_variants} edits of "
        f"each; train with --config.editor.edit_table={options.out}"
    )
