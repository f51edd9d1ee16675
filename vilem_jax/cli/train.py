"""`vilem train`, and `vilem demo`, which trains on the embedded data."""

import argparse
import contextlib
from pathlib import Path

from vilem_jax.cli.options import (
    add_config,
    add_distributed,
    hours,
    read_config_options,
)
from vilem_jax.config.files import config_names
from vilem_jax.errors import Interrupted
from vilem_jax.locks import check_free
from vilem_jax.progress import doing


def add_verbs(verbs) -> None:
    demo = verbs.add_parser(
        "demo", run=_demo, help="everything on the embedded data set, with a report"
    )
    add = demo.add_argument
    add("--out", default="runs/demo", help="folder for all files")
    add("--seed", type=int, default=0, help="seed of the data")
    add("--quick", action="store_true", help="one minute, to see that it works")

    train = verbs.add_parser(
        "train",
        run=_train,
        help="train, or resume, the run in a work directory",
        epilog=f"Packaged configs: {', '.join(config_names())}.",
    )
    add_config(train)
    add = train.add_argument
    add("--workdir", required=True, help="folder of the run; resumed if it holds one")
    add("--dry-run", action="store_true", help="one step, no file")
    add("--max-hours", type=hours, help="save and stop after this wall time")
    add(
        "--stop-code",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code of a run that a signal or --max-hours stopped before its end, "
        "for schedulers that restart failed jobs; 0 by default",
    )
    add_distributed(train)


def _demo(options: argparse.Namespace) -> None:
    with doing("loading JAX"):
        from vilem_jax.report.demo import run_demo

    run_demo(options.out, seed=options.seed, quick=options.quick)


def _train(options: argparse.Namespace) -> None:
    try:
        _run(options)
    except KeyboardInterrupt:  # before the first step: there is nothing to save
        if options.stop_code:
            raise Interrupted(options.stop_code) from None
        raise


def _run(options: argparse.Namespace) -> None:
    config = read_config_options(options)
    from vilem_jax.runs.workdir import LOCK_FILE, noting_errors

    if not options.dry_run:
        check_free(Path(options.workdir) / LOCK_FILE, options.workdir)
    with doing("loading JAX"):
        from vilem_jax.report.end_of_run import end_of_run
        from vilem_jax.training.with_editor import train_with_editor

    no_note = contextlib.nullcontext()
    with no_note if options.dry_run else noting_errors(options.workdir):
        train_with_editor(
            config,
            options.workdir,
            max_hours=options.max_hours,
            dry_run=options.dry_run,
            stop_code=options.stop_code,
            at_end=lambda: print(end_of_run(options.workdir)),
        )
