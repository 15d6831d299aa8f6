"""A failure that is remembered: which ones are, and what the store keeps of one in the place of a result."""

from __future__ import annotations

import json

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import TaskPredicate

from .._history import error_name
from .._lines import text_of
from ..exceptions import ConfigurationError, PatternsError
from ..stores._record import REMEMBERED

__all__ = ["Kinds", "beginning", "encoded", "failure_in", "is_named", "kinds_of"]

Kinds = type[Exception] | tuple[type[Exception], ...]

#: Characters of an error's text.
_LONGEST = 2_000

#: These say nothing about the work itself, unless they are named themselves.
_OUTER = (SoftTimeLimitExceeded, MemoryError)


def kinds_of(remember: Kinds) -> tuple[type[Exception], ...]:
    """The types as a tuple.

    Raises:
        ConfigurationError: When something else is named, or what is not the body's own failure.
    """
    kinds = remember if isinstance(remember, tuple) else (remember,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise ConfigurationError(
                "expected remember to be an exception type, a subclass of Exception, or a tuple of such types, "
                f"got {remember!r}"
            )
        if issubclass(kind, TaskPredicate | PatternsError):
            raise ConfigurationError(
                "expected remember to name failures of the body's own, and not what Celery or this library ends a run "
                f"with, got {kind!r}"
            )
    return kinds


def is_named(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether this failure is to be remembered."""
    if not isinstance(error, kinds) or isinstance(error, PatternsError):
        return False
    outer = next((kind for kind in _OUTER if isinstance(error, kind)), None)
    return outer is None or any(issubclass(kind, outer) for kind in kinds)


def beginning(name: str) -> bytes:
    """What a record of the failure of this name begins with."""
    return REMEMBERED + name.encode("utf-8", "replace")


def encoded(name: str, error: Exception) -> bytes:
    """What the store keeps of it: two texts, of which nothing is ever imported or rebuilt.

    Args:
        name: A digest: whose failure it is.
        error: What the body failed with.
    """
    return beginning(name) + json.dumps([error_name(error), text_of(error)[:_LONGEST]]).encode()


def failure_in(result: bytes) -> tuple[str, str] | None:
    """The remembered error's type and text; None where it is a result."""
    if not result.startswith(REMEMBERED):
        return None
    error, message = json.loads(result[result.index(b"[") :])
    return error, message
