"""File handles that a source keeps open."""

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_opening = threading.Lock()  # the threads of a process share a handle


class PerProcess(Generic[T]):
    """A handle that each process opens for itself, on first use.

    A handle that processes share would share its file position. Pickling and forking
    are safe: the copy opens its own.

    Args:
      opener: opens the handle from `arguments`; a function that can be pickled.
    """

    def __init__(self, opener: Callable[..., T], *arguments: object):
        self._opener, self._arguments = opener, arguments
        self._opened: tuple[int, T] | None = None  # process id, handle

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def get(self) -> T:
        with _opening:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._opener(*self._arguments)
            return self._opened[1]
