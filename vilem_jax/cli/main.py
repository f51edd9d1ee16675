"""The `vilem` command: one verb, one thin function.

What a user can cause ends as one line on stderr and exit code 2. JAX is imported by
the verbs that need it, so that `vilem --help` answers at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from vilem_jax import __version__
from vilem_jax.cli import data, evaluate, plan, proofread, search, train, weights
from vilem_jax.cli.options import membership_of
from vilem_jax.config.files import Override
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
        from vilem_jax.distributed.processes import joined

        with joined(membership_of(options)):
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
        description="ViLEM: retrieval of images by words, and words by images, "
        "that looks at every word.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vilem {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    train.add_verbs(verbs)
    evaluate.add_verbs(verbs)
    proofread.add_verbs(verbs)
    search.add_verbs(verbs)
    data.add_verbs(verbs)
    weights.add_verbs(verbs)
    plan.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
