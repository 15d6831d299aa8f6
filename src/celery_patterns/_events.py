"""What the patterns decide, told to the logger ``celery_patterns``: importing us configures nothing."""

from __future__ import annotations

import functools
import logging
import logging.handlers
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from structlog.contextvars import get_contextvars

from ._lines import dumps_line, text_of

if TYPE_CHECKING:
    from ._call import Call

    _StreamHandler = logging.StreamHandler[Any]
else:
    _StreamHandler = logging.StreamHandler  # Python 3.10 takes no [Any] here

__all__ = ["Event", "FileLines", "StreamLines", "announce", "emit", "speaks", "tell", "type_name"]

logger = logging.getLogger("celery_patterns")
_root = logging.getLogger()


class Event:
    """A log record's message that keeps its fields apart, so that a formatter can turn them into JSON.

    Attributes:
        name: What happened, in the past tense.
        fields: What is known of it. Never an argument of the task, unless ``logged`` named it.
    """

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={text_of(value)}" for name, value in self.fields.items())])


#: Whether an event of this level would be written.
speaks = logger.isEnabledFor


def emit(level: int, name: str, call: Call, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log one event of a running call.

    Args:
        level: One of logging's levels.
        name: What happened, in the past tense.
        call: The running call, which gives the task, its id and the attempt.
        error: What went wrong: its type is logged, and never its text, which may quote an argument.
        fields: More of it.
    """
    if speaks(level):
        tell(level, name, call, fields, error)


def announce(level: int, name: str, fields: dict[str, Any]) -> None:
    """Log one event that belongs to no running call."""
    if speaks(level):
        _record(level, name, fields)


def tell(level: int, name: str, call: Call, fields: dict[str, Any], error: BaseException | None = None) -> None:
    """Log one event, when it is known that the level speaks."""
    ours = _only_handler() if level < logging.WARNING else None  # what is worse takes the way that all tools watch
    told = call.facts({} if ours is None else _opening(name))
    if error is not None:
        told["error.type"] = type_name(error)
    told.update(fields)
    if ours is not None:
        if level >= ours.level:
            ours.write(_line(told, level, datetime.now(timezone.utc)))
        return
    _record(level, name, told)


def _record(level: int, name: str, told: dict[str, Any]) -> None:
    # Made by hand: the line of code that decided says nothing to a reader, and to look for it costs as much as the rest.
    record = logging.getLogRecordFactory()(logger.name, level, "", 0, Event(name, told), None, None)
    logger.handle(record)


def type_name(error: BaseException) -> str:
    """The error's type, with its module unless it is one of Python's own."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class _Lines(_StreamHandler):
    """A handler that writes an event as one JSON object, and all else by its formatter."""

    def write(self, line: str) -> None:
        """Write a finished line, as ``handle`` writes a record."""
        with self.lock:  # type: ignore[union-attr] # logging gives every handler one
            try:
                self.ready()
                self.stream.write(line + self.terminator)
                self.stream.flush()
            except (OSError, ValueError):  # a full disk or a closed stream must not fail a task
                self.handleError(logging.makeLogRecord({"msg": "an event of celery_patterns"}))

    def ready(self) -> None:
        """See to it that there is a stream."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg
        if type(event) is Event:
            moment = datetime.fromtimestamp(record.created, timezone.utc)
            told = _opening(event.name)
            told.update(event.fields)
            return _line(told, record.levelno, moment)
        return super().format(record)


class StreamLines(_Lines):
    """Lines to a stream."""


class FileLines(_Lines, logging.handlers.WatchedFileHandler):
    """Lines to a file."""

    def ready(self) -> None:
        """Open the file anew when it was rotated, and when that did not succeed the last time."""
        self.reopenIfNeeded()
        if self.stream is None:
            self.stream = self._open()
            self._statstream()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # logging opens the file outside of its own guard
            self.handleError(record)


def _only_handler() -> _Lines | None:
    """Our own handler, when nobody else would see the record: to make one and to hand it on costs twice the line."""
    handlers = _root.handlers
    if len(handlers) != 1 or not isinstance(handlers[0], _Lines) or handlers[0].filters:
        return None
    if logger.handlers or logger.filters or not logger.propagate or logger.disabled:
        return None
    return handlers[0] if logging.getLogRecordFactory() is logging.LogRecord else None


def _opening(name: str) -> dict[str, Any]:
    return {"event": name, **get_contextvars()}


def _line(told: dict[str, Any], level: int, moment: datetime) -> str:
    told["level"] = _level_name(level)
    told["logger"] = logger.name
    told["timestamp"] = moment
    return dumps_line(told)


@functools.cache
def _level_name(level: int) -> str:
    return logging.getLevelName(level).lower()
