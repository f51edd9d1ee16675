"""Measuring in turns, so that every ratio compares measurements close in time.

Each system needs the machine's threads or memory for itself, so each is a process:
`Child` sends requests, `serve` answers them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping


def in_turns(
    children: Mapping[str, "Child"], rounds: int, pause: float = 0.0
) -> list[dict]:
    """Per round {name: what the child measured}; the others wait meanwhile.

    Args:
      pause: seconds before each, in which the threads of the previous one stop.
    """
    found = []
    for _ in range(rounds):
        found.append({})
        for name, child in children.items():
            time.sleep(pause)
            found[-1][name] = child.ask("time")
        print(rounded(found[-1]), flush=True)
    return found


def rounded(one_round: dict[str, dict]) -> str:
    """One round as a line of JSON."""
    return json.dumps(
        {n: {k: round(v, 4) for k, v in each.items()} for n, each in one_round.items()}
    )


class Child:
    """This program again, with --serve=NAME: a process that measures on request."""

    def __init__(self, name: str, **environment: str):
        pipe = subprocess.PIPE
        # Two processes share a GPU: neither may reserve its memory.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        process = subprocess.Popen(
            [sys.executable, *sys.argv, f"--serve={name}"],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=shared | os.environ | environment,
        )
        assert process.stdin and process.stdout
        self._requests, self._answers = process.stdin, process.stdout
        self.about = self.ask("about")  # after it has compiled

    def ask(self, what: str) -> dict:
        print(what, file=self._requests, flush=True)
        for line in self._answers:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"a process ended before it answered {what!r}")


def serve(about: dict, measure: Callable[[], dict]) -> None:
    """Answers the `Child` of the parent process until that ends."""
    for line in sys.stdin:
        answer = about if line.strip() == "about" else measure()
        print(json.dumps(answer), flush=True)
