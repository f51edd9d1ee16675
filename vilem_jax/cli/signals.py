"""SIGTERM and SIGHUP end a verb as Ctrl-C does: what is half-written is removed."""

import contextlib
import signal
from collections.abc import Iterator

from vilem_jax.errors import Interrupted


@contextlib.contextmanager
def interrupting_signals() -> Iterator[None]:
    """Raises `Interrupted`, with a shell's exit code, in the block.

    A signal that is ignored (`nohup`) or that the caller handles stays as it is. The
    loop of training takes the signals over, and saves.
    """

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(128 + number)

    taken = []
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, interrupt)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
