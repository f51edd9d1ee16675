"""`vilem completion`: what the Tab key needs to know, by shtab."""

import argparse


def add_verbs(verbs) -> None:
    verb = verbs.add_parser(
        "completion",
        run=_completion,
        help="print a script that completes verbs and options in a shell",
        description="For bash: vilem completion bash > "
        "~/.local/share/bash-completion/completions/vilem",
    )
    verb.add_argument("shell", choices=("bash", "zsh"))


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from vilem_jax.cli.main import make_parser  # which imports this module

    print(shtab.complete(make_parser(), options.shell))
