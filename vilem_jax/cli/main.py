"""The `vilem` command: one verb, one thin function.

An error that a user can cause is one line on stderr and exit code 2. JAX is imported
by the verbs that need it, so that `vilem --help` answers at once.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from vilem_jax import __version__
from vilem_jax.cli import (
    completion,
    data,
    doctor,
    evaluate,
    plan,
    proofread,
    search,
    train,
    weights,
)
from vilem_jax.cli.options import VerbParser, expand_home
from vilem_jax.cli.signals import interrupting_signals
from vilem_jax.cli.streams import lasting_streams
from vilem_jax.config.files import Override
from vilem_jax.distributed.launcher import find_membership
from vilem_jax.errors import Interrupted, UserError
from vilem_jax.files import reason
from vilem_jax.progress import doing


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow warns of each odd tag of a file, without the file's name.
    warnings.filterwarnings("ignore", module="PIL")
    with lasting_streams() as stdout, interrupting_signals():
        code = _exit_code(given)
        stdout.flush()
        if not stdout.error or code:
            return code
        if isinstance(stdout.error, BrokenPipeError):  # `vilem ... | head` has enough
            return 141
        why = f"cannot print the result: {reason(stdout.error)}"
        print(f"vilem: {why}; what --out names is complete", file=sys.stderr)
        return 2


def _exit_code(given: list[str]) -> int:
    try:
        return _run(given)
    except UserError as error:
        print(f"vilem: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:  # JAX raises RuntimeError
        if type(error) is not MemoryError and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(_too_large(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("vilem: interrupted", file=sys.stderr)
        return error.code if isinstance(error, Interrupted) else 130


def _too_large(error: Exception) -> str:
    details = (str(error) or "no room").splitlines()[0]
    return (
        f"vilem: out of memory ({details}): in training raise config.train."
        "num_microbatches or lower config.train.batch_size (`vilem plan` shows what "
        "fits), elsewhere lower --batch-size or config.evaluation.batch_size"
    )


def _run(given: list[str]) -> int:
    rest, overrides = split_overrides(given)
    parser = make_parser()
    options = parser.parse_args(rest)
    expand_home(options)
    if overrides and "overrides" not in options:
        parser.error(f"--config.{overrides[0][0]} belongs to a verb with --config")
    if overrides:
        options.overrides = overrides
    if "distributed" not in options:
        return _run_verb(options)
    from vilem_jax.distributed.processes import distributed

    names = ("coordinator", "num_processes", "process_id")
    named = {name: getattr(options, name) for name in names}
    with distributed(find_membership(options.distributed, os.environ, **named)):
        return _run_verb(options)


def _run_verb(options: argparse.Namespace) -> int:
    with doing("working", is_named=True):  # where no other step is named
        return options.verb(options) or 0  # a verb may return an exit code


def split_overrides(given: Sequence[str]) -> tuple[list[str], list[Override]]:
    """The arguments without `--config.a.b=value`, and these as (key, text) pairs.

    argparse knows no options by prefix. As with `config_flags`, the value may follow as
    the next argument; `--config.a.b` means True and `--noconfig.a.b` False.
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
                raise UserError(f"{argument}: use --config.{key}={text} instead")
            text = "False"
        elif not equals:
            has_value = waiting and not waiting[0].startswith("--")
            text = waiting.pop(0) if has_value else "True"
        overrides.append((key, text))
    return rest, overrides


_QUESTIONS = """\
which GPU do I need?           vilem plan --config=CONFIG --device=NAME
is my data all right?          vilem data check --config=CONFIG
why did it stop?               vilem doctor --run=RUN
how good is it?                vilem evaluate retrieval --model=RUN
how do I use it elsewhere?     vilem weights export RUN --format=vilem --out=FOLDER
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vilem",
        description="ViLEM: retrieval of images by words, and words by images, "
        "that looks at every word.",
        epilog=_QUESTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vilem {__version__}")
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, parser_class=VerbParser
    )
    using = (train, evaluate, proofread, search)
    for module in (*using, data, weights, plan, doctor, completion):
        module.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
