"""The pattern ``logged``, and the logging that makes every line one JSON object."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

import structlog
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import maybe_iso8601

from ._events import FileLines, StreamLines, speaks, tell
from ._keys import argument_names
from ._lines import dumps_line
from ._message import moment
from ._plan import Layer, Pattern
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from ._call import Call, Proceed

__all__ = ["configure_logging", "logged"]

#: The call whose body runs. A context variable, so that it is known in what the body runs by ``asyncio.to_thread``, too.
_running: ContextVar[Call | None] = ContextVar("celery_patterns_running", default=None)

#: The fields that an event has of itself, and those that structlog gives a line.
RESERVED = frozenset(
    {
        "task",
        "attempt",
        "attempts",
        "duration",
        "queue_wait",
        "event",
        "level",
        "logger",
        "timestamp",
        "exc_info",
        "stack_info",
    },
)


@dataclass(frozen=True, init=False)
class logged(Pattern):  # noqa: N801 - used as a call, like every pattern
    """One closing event for every attempt.

    It promises one event when an attempt is over, ``task_succeeded``, ``task_retried``, ``task_ignored``,
    ``task_rejected`` or ``task_failed``, with the task, its id and queue, the attempt, how long it ran and how long it
    waited in the queue, and that no argument is in an event of the call unless it is named here. While the body runs, the
    same fields are known to structlog, so that the body's own lines carry them after ``use_structlog(app)``.

    It does not promise a line for an attempt whose worker was killed.

    Args:
        names: The arguments to show, by name; none by default.

    Raises:
        ConfigurationError: When a name is no string, is one of the event's own fields, or the task has no such argument.
    """

    layer: ClassVar[Layer] = Layer.LOG

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        for name in names:
            if not isinstance(name, str):
                raise ConfigurationError(f"expected logged() to take names of arguments, got {name!r}")
        object.__setattr__(self, "names", names)

    def check(self, task: str, signature: inspect.Signature) -> None:
        known = argument_names(signature)
        for name in self.names:
            if name in RESERVED:
                raise ConfigurationError(
                    f"logged() names {name!r}, an argument of {task}(), but every event has a field of that name; "
                    "expected another name for the argument",
                )
            if name not in known:
                raise ConfigurationError(f"logged() names {name!r}, but {task}() takes ({', '.join(known)})")

    def around(self, proceed: Proceed, call: Call) -> Any:
        call.shown = self.names
        running = _running.set(call)
        begun = time.perf_counter()
        try:
            result = proceed(call)
        except Retry as retry:
            _close(call, begun, logging.INFO, "task_retried", retry.__cause__ or retry.exc)
            raise
        except Ignore:
            _close(call, begun, logging.INFO, "task_ignored")
            raise
        except Reject:
            _close(call, begun, logging.WARNING, "task_rejected")
            raise
        except Exception as error:
            _close(call, begun, logging.ERROR, "task_failed", error)
            raise
        else:
            _close(call, begun, logging.INFO, "task_succeeded")
            return result
        finally:
            # Restored, not cleared: in eager mode the context around us belongs to the caller.
            _running.reset(running)


def _close(
    call: Call,
    begun: float,
    level: int,
    name: str,
    error: BaseException | None = None,
) -> None:
    if not speaks(level):
        return
    try:
        _tell(call, begun, level, name, error)
    except SoftTimeLimitExceeded:
        # The attempt is over, and a limit that strikes while its line is written must not change how it ended.
        if call.eager:
            raise  # it is that of the body around


def _tell(call: Call, begun: float, level: int, name: str, error: BaseException | None) -> None:
    # In whole microseconds by hand: round() writes the number down and reads it again.
    fields = {"duration": int((time.perf_counter() - begun) * 1e6) / 1e6}
    sent = call.header.get("sent")
    if sent is not None:
        waited = call.started - _due(call, sent)
        fields["queue_wait"] = int(waited * 1e6) / 1e6 if waited > 0 else 0.0
    tell(level, name, call, fields, error)


def _due(call: Call, sent: float) -> float:
    """When the task could have started, by its sender's clock: when it was sent, or later when it had to wait."""
    eta = call.request.eta
    try:
        return max(sent, moment(maybe_iso8601(eta))) if eta else sent
    except (TypeError, ValueError):  # somebody else's text, which the worker could not read either
        return sent


def _fields_of_call(_logger: Any, _method: str, event_dict: dict[str, Any]) -> dict[str, Any]:
    """Say in every line of a running body which call it belongs to."""
    call = _running.get()
    return event_dict if call is None else {**call.facts(), **event_dict}


def configure_logging(level: int, target: str | IO[str] | None = None) -> None:
    """One handler on the root logger that writes one JSON object a line, for structlog and stdlib loggers alike."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _fields_of_call,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: dumps_line(event)),
        ],
    )
    handler: logging.Handler = FileLines(target) if isinstance(target, str) else StreamLines(target or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
