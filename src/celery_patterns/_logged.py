"""The pattern ``logged``, and the formatter that makes every line one JSON object."""

from __future__ import annotations

import inspect
import logging
import logging.handlers
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any, ClassVar

import structlog
from celery.exceptions import Ignore, Reject, Retry

from ._codec import dumps_line
from ._events import Event, emit, speaks
from ._keys import argument_names
from ._plan import Layer, Pattern
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from ._call import Call

__all__ = ["configure_logging", "logged"]

#: The call whose body runs, and its arguments that may be shown.
_running: ContextVar[tuple[Call, dict[str, Any]] | None] = ContextVar("celery_patterns_running", default=None)

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
    waited in the queue, and that no argument is in it unless it is named here. While the body runs, the same fields are
    known to structlog, so that the body's own lines carry them after ``use_structlog(app)``.

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

    def around(self, call: Call, proceed: Callable[[], Any]) -> Any:
        shown = self._shown(call)
        running = _running.set((call, shown))
        begun = time.perf_counter()
        try:
            result = proceed()
        except Retry as retry:
            _close(call, shown, begun, logging.INFO, "task_retried", retry.__cause__ or retry.exc)
            raise
        except Ignore:
            _close(call, shown, begun, logging.INFO, "task_ignored")
            raise
        except Reject:
            _close(call, shown, begun, logging.WARNING, "task_rejected")
            raise
        except Exception as error:
            _close(call, shown, begun, logging.ERROR, "task_failed", error)
            raise
        else:
            _close(call, shown, begun, logging.INFO, "task_succeeded")
            return result
        finally:
            # Restored, not cleared: in eager mode the context around us belongs to the caller.
            _running.reset(running)

    def _shown(self, call: Call) -> dict[str, Any]:
        if not self.names:
            return {}
        return {name: _argument(call, name) for name in self.names}


def _argument(call: Call, name: str) -> Any:
    """One argument by name. A call with wrong arguments must fail in the body, and not in its log line."""
    parameters = call.terms.signature.parameters
    kind = parameters[name].kind
    if kind is not inspect.Parameter.POSITIONAL_ONLY and name in call.kwargs:
        return call.kwargs[name]
    if kind is not inspect.Parameter.KEYWORD_ONLY:
        position = list(parameters).index(name)
        if position < len(call.args):
            return call.args[position]
    default = parameters[name].default
    return None if default is inspect.Parameter.empty else default


def _close(
    call: Call,
    shown: dict[str, Any],
    begun: float,
    level: int,
    name: str,
    error: BaseException | None = None,
) -> None:
    if not speaks(level):
        return
    fields: dict[str, Any] = {"duration": round(time.perf_counter() - begun, 6)}
    waited = _queue_wait(call)
    if waited is not None:
        fields["queue_wait"] = waited
    emit(level, name, call, error=error, shown=shown, **fields)


def _queue_wait(call: Call) -> float | None:
    """Seconds between the moment the task could have started and the moment it did, by the two machines' clocks."""
    sent = call.header.get("sent")
    if sent is None:
        return None
    eta = call.request.eta
    due = max(sent, datetime.fromisoformat(eta).timestamp()) if eta else sent
    return float(round(max(0.0, call.started - due), 6))


def _fields_of_call(_logger: Any, _method: str, event_dict: dict[str, Any]) -> dict[str, Any]:
    """Say in every line of a running body which call it belongs to."""
    running = _running.get()
    if running is not None:
        call, shown = running
        known = {"task": call.task, "messaging.message.id": call.id, "attempt": call.attempt, **shown}
        return {**known, **event_dict}
    return event_dict


class _JSONLines(structlog.stdlib.ProcessorFormatter):
    """structlog's formatter, with a short way for our own events, which need none of its processors."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg
        if type(event) is not Event:
            return super().format(record)
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat().replace("+00:00", "Z")
        known = {"level": record.levelname.lower(), "logger": record.name, "timestamp": moment}
        return dumps_line(
            {"event": event.name, **structlog.contextvars.get_contextvars(), **event.fields, **known},
        )


def configure_logging(level: int, target: str | IO[str] | None = None) -> None:
    """One handler on the root logger that writes one JSON object a line, for structlog and stdlib loggers alike."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _fields_of_call,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = _JSONLines(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=dumps_line),
        ],
    )
    handler: logging.Handler
    if isinstance(target, str):
        handler = logging.handlers.WatchedFileHandler(target)  # a rotated file is opened anew
    else:
        handler = logging.StreamHandler(target or sys.stderr)
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
