"""Ctrl-C between two letters, and not within one; and waiting, in which it is heard."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["between_letters", "pause", "say_gone", "undisturbed"]

logger = logging.getLogger("celery_patterns")

#: Seconds after which a pause looks whether a Ctrl-C was heard.
_LOOK = 0.1


class _Deferred:
    """A handler that remembers a first Ctrl-C, and obeys a second one at once.

    Python's own raises wherever the program is: in the middle of a message that is read from a socket, or where Python
    swallows what is raised, as in a destructor.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self._before = before
        self._heard: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._heard is not None:
            self._before(number, frame)
        self._heard = (number, frame)

    def obey(self) -> None:
        if self._heard is not None:
            heard, self._heard = self._heard, None
            self._before(*heard)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a Ctrl-C wait for the next :func:`between_letters` in the block, or for its end; a second one does not wait.

    In a thread that hears no signals, and where somebody has put a handler of another kind, it changes nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    inner = isinstance(before, _Deferred) or threading.current_thread() is not threading.main_thread()
    if inner or not callable(before):
        yield
        return
    handler = _Deferred(before)
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    handler.obey()


def between_letters() -> None:
    """Obey a Ctrl-C that was heard meanwhile."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
        if isinstance(handler, _Deferred):
            handler.obey()


def say_gone(seconds: float) -> None:
    """Say that the broker is waited for."""
    logger.warning("the broker has gone; it is waited for, up to %d seconds", seconds)


def pause(seconds: float) -> None:
    """Sleep, unless a Ctrl-C is heard."""
    end = time.monotonic() + seconds
    while True:
        between_letters()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _LOOK))
