"""The `vilem` command: one verb, one thin function.

What a user can cause ends as one line on stderr and exit code 2. JAX is imported by
the verbs that need it, so that `vilem --help` answers at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from vilem_jax import (
    __version__,
    cli_data,
    cli_evaluate,
    cli_plan,
    cli_use,
    cli_vectors,
    cli_weights,
)
from vilem_jax.cli_arguments import (
    add_config,
    add_distributed,
    find_my_place,
    hours,
)
from vilem_jax.config_files import Override, config_names, load_config
from vilem_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    # transformers, of which we use the tokenizer alone, would ask for PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        return _run(given)
    except UserError as error:
        print(f"vilem: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(_too_large(error), file=sys.stderr)
        return 2
    except RuntimeError as error:  # JAX's errors are of this kind
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(_too_large(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vilem: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vilem ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _too_large(error: Exception) -> str:
    told = (str(error) or "no room").splitlines()[0]
    return (
        f"vilem: out of memory ({told}): in training raise config.train."
        "num_microbatches or lower config.train.batch_size (`vilem plan` says what "
        "fits), elsewhere lower --batch-size or config.evaluation.batch_size"
    )


def _run(given: list[str]) -> int:
    rest, overrides = split_overrides(given)
    parser = make_parser()
    options, left = parser.parse_known_args(rest)
    # argparse takes the optional words for absent where an option stands before them.
    if "words" in options:
        while left and left[0][:1] != "-":
            options.words.append(left.pop(0))
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if overrides and "overrides" not in options:
        parser.error(f"--config.{overrides[0][0]} belongs to a verb with --config")
    if overrides:
        options.overrides = overrides
    if "distributed" not in options:
        options.verb(options)
    else:
        from vilem_jax.hosts import joined

        with joined(find_my_place(options)):
            options.verb(options)
    sys.stdout.flush()
    return 0


def split_overrides(given: Sequence[str]) -> tuple[list[str], list[Override]]:
    """The arguments without `--config.a.b=value`, and these as (key, text) pairs.

    As with `config_flags`, the value may follow as the next argument, and True and
    False may be said as `--config.a.b` and `--noconfig.a.b`.
    """
    rest, overrides, waiting = [], [], list(given)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*rest, argument, *waiting], overrides
        is_no = argument.startswith("--noconfig.")
        if not is_no and not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, text = argument.partition(".")[2].partition("=")
        if is_no:
            if equals:
                raise UserError(f"{argument}: say --config.{key}={text} instead")
            text = "False"
        elif not equals:
            has_value = waiting and not waiting[0].startswith("--")
            text = waiting.pop(0) if has_value else "True"
        overrides.append((key, text))
    return rest, overrides


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vilem",
        description="ViLEM: retrieval of pictures by words, and words by pictures, "
        "that looks at every word.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vilem {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_demo(verbs)
    _add_train(verbs)
    cli_evaluate.add_verbs(verbs)
    cli_use.add_verbs(verbs)
    cli_vectors.add_verbs(verbs)
    cli_data.add_verbs(verbs)
    cli_weights.add_verbs(verbs)
    cli_plan.add_verbs(verbs)
    return parser


def _add_demo(verbs) -> None:
    demo = verbs.add_parser(
        "demo",
        help="everything on the embedded data set, a report at the end",
        allow_abbrev=False,
    )
    demo.add_argument("--out", default="vilem-demo", help="folder for all of it")
    demo.add_argument("--seed", type=int, default=0, help="another draw of the data")
    demo.add_argument(
        "--quick", action="store_true", help="one minute: shows that all works, no more"
    )
    demo.set_defaults(verb=_demo)


def _demo(options: argparse.Namespace) -> None:
    from vilem_jax.report.demo import run_demo

    run_demo(options.out, seed=options.seed, quick=options.quick)


def _add_train(verbs) -> None:
    train = verbs.add_parser(
        "train",
        help="train, or resume, the run in a work directory",
        epilog=f"Packaged configs: {', '.join(config_names())}.",
        allow_abbrev=False,
    )
    add_config(train)
    train.add_argument(
        "--workdir", required=True, help="folder of the run; resumed if it holds one"
    )
    train.add_argument("--dry-run", action="store_true", help="one step, no file")
    train.add_argument(
        "--max-hours", type=hours, help="save and leave after so much wall time"
    )
    train.add_argument(
        "--stop-code",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code of a run that a signal or --max-hours stopped before its end, "
        "for schedulers that start again what failed; 0 by default",
    )
    add_distributed(train)
    train.set_defaults(verb=_train)


def _train(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    from vilem_jax.training.run import train

    train(
        config,
        options.workdir,
        max_hours=options.max_hours,
        dry_run=options.dry_run,
        stop_code=options.stop_code,
    )
    if not options.dry_run:
        _print_test(options.workdir)


def _print_test(workdir: str) -> None:
    """The scores of the test split, where the run has come so far."""
    from vilem_jax.report.tables import retrieval_table
    from vilem_jax.training.final_test import read_scores

    for name, figures in read_scores(workdir).items():
        print(f"{name}, the test split, scored once:")
        print(retrieval_table(figures))


if __name__ == "__main__":
    sys.exit(main())
