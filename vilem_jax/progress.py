"""What a long command is doing, on stderr: no silence longer than ten seconds.

    with doing("loading BERT"):                # "loading BERT ...", if it takes long,
        ...                                    # then "still loading BERT, 16 s"
    for item in track(items, "encoding images"):   # a bar, or a line every 8 seconds
        ...

What is done in less than `SOON` seconds is not mentioned. Results go to stdout; nothing
here does. Of several processes only process 0 prints: the others call `silence`.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

SOON = 0.3  # seconds after which a step is named
PAUSE = 8.0  # between two lines: a busy machine delays a thread, and 10 is the promise

Item = TypeVar("Item")


class _Step:
    """A step that is being done, and since when."""

    def __init__(self, what: str | Callable[[], str], is_named: bool):
        self._what, self._start, self.is_named = what, time.monotonic(), is_named

    def starts(self) -> str:
        return self._what() if callable(self._what) else f"{self._what} ..."

    def still(self) -> str:
        if callable(self._what):  # its text says how far it is
            return self._what()
        return f"still {self._what}, {in_words(time.monotonic() - self._start)}"


class _Speaker:
    """State of this process: which steps are open, and when a line was last printed."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []  # the innermost last
        self.last_line = time.monotonic()
        self.is_silent = False


_SPEAKER = _Speaker()


def silence() -> None:
    """Prints nothing from now on: this is not process 0."""
    _SPEAKER.is_silent = True


def notify(message: str) -> None:
    """A sentence on stderr, above the progress bar where there is one."""
    write_line(f"vilem: {message}")


def write_line(line: str) -> None:
    from tqdm import tqdm

    if not _SPEAKER.is_silent:
        _SPEAKER.last_line = time.monotonic()
        tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def doing(what: str | Callable[[], str], *, is_named: bool = False) -> Iterator[None]:
    """Names a step while the block runs, and then says every 8 seconds that it lasts.

    Steps may be nested: the innermost is named. A bar on the terminal is refreshed
    instead.

    Args:
      what: the step, or a function of its current text, which says how far it is.
      is_named: its start was printed otherwise, or needs no line.
    """
    step = _Step(what, is_named)
    done = threading.Event()
    thread = threading.Thread(target=_speak, args=(step, done), daemon=True)
    _SPEAKER.steps.append(step)
    thread.start()
    try:
        yield
    finally:
        _SPEAKER.steps.remove(step)
        done.set()
        thread.join()  # no line may follow the result


def _speak(step: _Step, done: threading.Event) -> None:
    while not done.wait(SOON):
        if _SPEAKER.steps[-1:] != [step]:
            continue
        if not step.is_named:
            step.is_named = True
            notify(step.starts())
        elif time.monotonic() - _SPEAKER.last_line >= PAUSE and not _refresh_bars():
            notify(step.still())


def _refresh_bars() -> bool:
    """Whether there are bars on the terminal; then their clocks advance."""
    from tqdm import tqdm

    with tqdm.get_lock():  # no other thread adds a bar meanwhile
        bars = [bar for bar in getattr(tqdm, "_instances", ()) if not bar.disable]
        for bar in bars:
            bar.refresh()
    return bool(bars)


@contextlib.contextmanager
def counting(
    what: str, total: int, unit: str = "image"
) -> Iterator[Callable[[int], None]]:
    """Yields a function that counts further: a bar on a terminal, else lines."""
    from tqdm import tqdm

    start, done = time.monotonic(), 0

    def text() -> str:
        left = ""
        if done:
            rest = (time.monotonic() - start) / done * (total - done)
            left = f", {in_words(rest)} left"
        return f"{what}, {done:,} of {total:,}{left}"

    def advance(number: int = 1) -> None:
        nonlocal done
        done += number
        bar.update(number)

    hide = True if _SPEAKER.is_silent else None  # None: unless it is a terminal
    bar = tqdm(
        total=total,
        desc=what,
        unit=f" {unit}s",
        leave=False,
        disable=hide,
        file=sys.stderr,
        dynamic_ncols=True,
    )
    with doing(text), bar:
        yield advance


def track(items: Sequence[Item], what: str, unit: str = "image") -> Iterator[Item]:
    """`items`, counted as they are taken; see `counting`."""
    with counting(what, len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


def in_words(seconds: float) -> str:
    """3700 as "1 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
