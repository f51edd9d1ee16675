"""stdout and stderr whose end does not end the work, and that only show text."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

# A file name or a caption may hold what a terminal obeys: \x1b]0;title\x07, \x9b2J.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class LastingStream(io.TextIOBase):
    """A stream that takes everything, also when what is behind it takes no more.

    Control characters other than those in `kept` are written as escapes.
    """

    def __init__(self, stream: TextIO, kept: str = "\n\t"):
        self._stream = stream
        self._escapes = CONTROLS | {ord(character): character for character in kept}
        self.error: OSError | None = None  # the first; what follows is lost

    def write(self, text: str) -> int:
        with self._lost():
            self._stream.write(text.translate(self._escapes))
        return len(text)

    def flush(self) -> None:
        if self._stream.closed:  # Python flushes a stream that it collects
            return
        with self._lost():
            self._stream.flush()

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            # Python would write what is left in the buffer again, when it ends.
            with contextlib.suppress(OSError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._stream.fileno())

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # is None
        return self._stream.encoding


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Replaces stdout and stderr for the block; yields the new stdout."""
    for number in (0, 1, 2):  # of one that is closed a file of ours would take over
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with open(os.devnull, "w") as null:
        # Python has None for one that was closed when it started.
        stdout = LastingStream(sys.stdout or null)
        # tqdm returns to the start of its line.
        stderr = LastingStream(sys.stderr or null, kept="\n\t\r")
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                yield stdout
            finally:
                stdout.flush()
                stderr.flush()
