"""Measuring in turns, so that every ratio compares neighbours in time.

Each system needs the machine's threads or its memory alone, so each is a process:
`Child` asks, `serve` answers.
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
    """Per round {name: the child's result}; the others sleep meanwhile.

    Args:
      pause: seconds before each, so that the threads of the last stop spinning.
    """
    found = []
    for _ in range(rounds):
        found.append({})
        for name, child in children.items():
            time.sleep(pause)
            found[-1][name] = child.ask("time")
        print(told(found[-1]), flush=True)
    return found


def told(one_round: dict[str, dict]) -> str:
    return json.dumps(
        {n: {k: round(v, 4) for k, v in each.items()} for n, each in one_round.items()}
    )


class Child:
    """This program with --serve=NAME: a process that measures on request."""

    def __init__(self, name: str, **environment: str):
        pipe = subprocess.PIPE
        # Two processes share a GPU: neither may reserve its memory.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, f"--serve={name}"],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=shared | os.environ | environment,
        )
        self.about = self.ask("about")  # ready: compiled and warm

    def ask(self, what: str) -> dict:
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"the process for {what} ended")


def serve(about: dict, measure: Callable[[], dict]) -> None:
    """Answers the parent's `Child` until the parent exits."""
    for line in sys.stdin:
        answer = about if line.strip() == "about" else measure()
        print(json.dumps(answer), flush=True)
