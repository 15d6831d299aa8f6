"""What the patterns decide, told to the logger ``celery_patterns``: importing us configures nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._call import Call

__all__ = ["Event", "emit", "speaks"]

logger = logging.getLogger("celery_patterns")


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
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.fields.items())])


#: Whether an event of this level would be written.
speaks = logger.isEnabledFor


def emit(
    level: int,
    name: str,
    call: Call,
    *,
    error: BaseException | None = None,
    shown: dict[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Log one event of a running call.

    Args:
        level: One of logging's levels.
        name: What happened, in the past tense.
        call: The running call, which gives the task, its id and the attempt.
        error: What went wrong: its type is logged, and never its text, which may quote an argument.
        shown: The arguments that the task's ``logged`` names.
        fields: More of it.
    """
    if not speaks(level):
        return
    known: dict[str, Any] = {
        "task": call.task,
        "messaging.message.id": call.id,
        "messaging.destination.name": call.queue,
        "attempt": call.attempt,
    }
    if call.attempts is not None:
        known["attempts"] = call.attempts
    if error is not None:
        kind = type(error)
        known["error.type"] = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
    known.update(fields)
    known.update(shown or {})
    # Made by hand: the line of code that decided says nothing to a reader, and to look for it costs as much as the rest.
    record = logging.getLogRecordFactory()(logger.name, level, "", 0, Event(name, known), None, None)
    logger.handle(record)
