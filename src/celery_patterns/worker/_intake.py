"""What happens to a message before a task is found for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.exceptions import InvalidTaskError
from kombu.exceptions import ContentDisallowed

from .._dead_letter import dead_letter
from .._equipment import equipment_of
from .._events import announce, type_name
from .._plan import worn
from .._queues import dead_queue, ensure_queue
from ._recorder import Recorder
from ._request import BEGUN

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.message import Message

__all__ = ["Intake"]

logger = logging.getLogger("celery_patterns")


class Intake(bootsteps.StartStopStep):  # type: ignore[misc]
    """Keep what the consumer would drop, and keep the consumer from what would end it; a plain task's message is Celery's.

    The consumer's own four handlers are called as ever, once the letter stands: what they log, store and signal stays.
    """

    # Stopped before the connection is closed, by which the broker gives what is left here to another worker.
    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._app = consumer.app
        equipment_of(self._app).recorder = self._recorder = Recorder(consumer)
        worn_here = [pattern for task in self._app.tasks.values() if (pattern := worn(task, dead_letter)) is not None]
        self._keeps = bool(worn_here)
        self._named = {pattern.queue for pattern in worn_here if pattern.queue}
        #: What Celery knows how to go on after; and a lack of memory, after which the message comes again.
        self._own_troubles = (*consumer.connection_errors, *consumer.channel_errors, MemoryError)
        self._handles = consumer.create_task_handler
        self._decode_error, self._unknown_message = consumer.on_decode_error, consumer.on_unknown_message
        self._unknown_task, self._invalid_task = consumer.on_unknown_task, consumer.on_invalid_task
        consumer.on_decode_error = self._on_decode_error
        consumer.on_unknown_message = self._on_unknown_message
        consumer.on_unknown_task = self._on_unknown_task
        consumer.on_invalid_task = self._on_invalid_task
        consumer.create_task_handler = self._create_task_handler

    def start(self, _consumer: Consumer) -> None:
        """The consumer has a connection, or has one again."""
        self._recorder.connected()
        if self._keeps:
            consumed = map(dead_queue, self._app.amqp.queues.consume_from)
            for queue in sorted({*self._named, *consumed}):
                self._make(queue)

    def stop(self, _consumer: Consumer) -> None:
        """The consumer loses its connection, or ends."""
        self._recorder.disconnected()

    def shutdown(self, _consumer: Consumer) -> None:
        """The worker ends, and its pool has ended."""
        self._recorder.close()

    def _make(self, queue: str) -> None:
        # Early, since RabbitMQ writes a new queue to its disk up to two seconds later, and killed before that it forgets
        # the queue, and letters that it has confirmed.
        connection = self._consumer.connection
        try:
            ensure_queue(self._app, connection, queue)
        except connection.channel_errors as error:  # the letter's own try tells more, and sends its message back
            announce(logging.WARNING, "dead_letter_queue_not_made", {"queue": queue, "error.type": type_name(error)})

    def _create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], object]:
        handle = self._handles(*args, **kwargs)

        def on_task_received(message: Message) -> object:
            flaw = _flaw_of(message)
            if flaw is not None:
                self._on_invalid_task(None, message, InvalidTaskError(flaw))
                return None
            try:
                return handle(message)
            except self._own_troubles:
                raise
            except Exception as error:
                if type(error) is RuntimeError or hasattr(message, BEGUN) or not self._is_kept(message):
                    raise  # it says nothing of the message: no thread can be started, or its end cannot be stored
                self._on_invalid_task(None, message, error)  # whatever it did to the consumer, it does it once
                return None

        return on_task_received

    def _on_decode_error(self, message: Message, exc: Exception) -> None:
        reason = "content_type_refused" if isinstance(exc, ContentDisallowed) else "unreadable"
        self._keep(message, reason, exc, lambda it: self._decode_error(it, exc))

    def _on_unknown_message(self, body: Any, message: Message) -> None:
        flaw = InvalidTaskError("the message names no task")
        self._keep(message, "malformed", flaw, lambda it: self._unknown_message(body, it))

    def _on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        self._keep(message, "unknown_task", exc, lambda it: self._unknown_task(body, it, exc))

    def _on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        reason = "content_type_refused" if isinstance(exc, ContentDisallowed) else "malformed"
        self._keep(message, reason, exc, lambda it: self._invalid_task(body, it, exc))

    def _keep(self, message: Message, reason: str, error: Exception, then: Callable[[Any], object]) -> None:
        if not self._is_kept(message):
            self._end(message, message, then)  # what Celery does with it stands
            return
        self._recorder.record(
            message,
            reason,
            error,
            task=self._task_of(message),
            done=lambda: self._end(message, _Kept(message), then),
            back=lambda: message.reject_log_error(logger, self._consumer.connection_errors, requeue=True),
        )

    def _is_kept(self, message: Message) -> bool:
        """Whether somebody asked for a letter of it: its task, or where none is found for it any."""
        task = self._task_of(message)
        return self._keeps and (task is None or worn(task, dead_letter) is not None)

    def _task_of(self, message: Message) -> Any:
        name = message.headers.get("task") if isinstance(message.headers, dict) else None
        return self._app.tasks.get(name) if isinstance(name, str) else None

    def _end(self, message: Message, shown: Any, then: Callable[[Any], object]) -> None:
        try:
            then(shown)
        except self._consumer.connection_errors:
            raise
        except Exception:
            logger.exception("Celery could not say what was wrong with a message")
        if not message.acknowledged:
            message.ack_log_error(logger, self._consumer.connection_errors)


class _Kept:
    """A message whose letter stands: rejected, it is acknowledged, or the broker would bury it once more."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def reject_log_error(self, *args: Any, **_: Any) -> None:
        self._message.ack_log_error(*args)


def _flaw_of(message: Message) -> str | None:
    """What in a message would break the worker later, where nothing can be done about it any more.

    Nearly every message is as Celery makes it, which is seen in one look: a call more here is a percent of what a worker can
    do. Any other one is looked at in turn.
    """
    headers = message.headers
    try:
        task, task_id, retries, limits, names, stamps = _counted_with(headers)
        hash(_single(headers))  # a list or a dict has none
        args, kwargs, embedded = message.payload  # decoded once, for the strategy as well
        if (
            type(task) is str is type(task_id)
            and task
            and task_id
            and type(retries) is int
            and retries >= 0
            and (limits == _NO_LIMITS or limits is None)
            and not names
            and not stamps
            and type(headers) is dict
            and type(args) is list
            and type(kwargs) is dict
            and embedded == _NOTHING_EMBEDDED
        ):
            return None
    except Exception:  # noqa: BLE001 - whatever it is, it is found again
        return _flaw_found(message)
    return _flaw_found(message)


def _flaw_found(message: Message) -> str | None:
    headers = message.headers
    if not isinstance(headers, dict):
        return "its headers are no mapping"
    flaw = _flaw_of_headers(headers) if "task" in headers else None
    if flaw is not None:
        return flaw
    try:
        payload = message.payload
    except Exception:  # noqa: BLE001 - the handler reads it again, and says so
        return None
    if "task" in headers:
        return _flaw_of_body(payload)
    if not isinstance(payload, dict) or "task" not in payload:
        return None  # nothing that Celery knows
    return _flaw_of_headers(payload) or _flaw_of_embedded(payload)  # the first protocol, whose body says all


def _flaw_of_headers(headers: Mapping[Any, Any]) -> str | None:
    found = headers.get
    for name in _SINGLE:
        if isinstance(found(name), _CONTAINERS):
            return f"its header {name!r} is not a single value"
    for name, fits, expected in _OTHERS:
        if not fits(found(name)):
            return f"its header {name!r} is not {expected}"
    return None


def _flaw_of_body(payload: Any) -> str | None:
    if isinstance(payload, dict):
        return None if "args" in payload else "its body is a mapping without args"
    if not isinstance(payload, _LISTS) or len(payload) != len(("args", "kwargs", "embedded")):
        return "its body is not [args, kwargs, embedded]"
    args, kwargs, embedded = payload
    embedded = embedded or {}
    if not isinstance(args, _LISTS) or not isinstance(kwargs, dict) or not isinstance(embedded, dict):
        return "its body is not [args, kwargs, embedded]"
    return _flaw_of_embedded(embedded)


def _flaw_of_embedded(embedded: Mapping[Any, Any]) -> str | None:
    if embedded == _NOTHING_EMBEDDED:
        return None
    # Read after the task was done, where Celery has no answer to them: the threads pool would lose the message's slot.
    for name in ("callbacks", "errbacks", "chain"):
        signatures = embedded.get(name)
        if signatures and not (isinstance(signatures, list | tuple) and all(map(_signature, signatures))):
            return f"its {name} are no signatures"
    chord = embedded.get("chord")
    return None if not chord or _signature(chord) else "its chord is no signature"


def _signature(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("task"), str)
        and isinstance(value.get("args") or (), list | tuple)
        and isinstance(value.get("kwargs") or {}, dict)
        and isinstance(value.get("options") or {}, dict)
    )


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value >= 0)


def _limits(value: Any) -> bool:
    if value is None or value == _NO_LIMITS:
        return True
    pair = isinstance(value, list | tuple) and len(value) == len(_NO_LIMITS)
    return pair and all(one is None or (isinstance(one, int | float) and one is not True) for one in value)


def _names(value: Any) -> bool:
    return not value or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))


def _mapping(value: Any) -> bool:
    return not value or isinstance(value, dict)


_NOTHING_EMBEDDED = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
_LISTS = (list, tuple)
_CONTAINERS = (*_LISTS, dict)
_NO_LIMITS = [None, None]

#: The headers that Celery compares, counts with or looks up, and what it takes them for.
_SINGLE = ("lang", "shadow", "root_id", "parent_id", "group", "group_index", "origin", "replaced_task_nesting")
_OTHERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("task", _name, "a name"),
    ("id", _name, "a text"),
    ("retries", _count, "a number"),
    ("timelimit", _limits, "a pair of seconds"),
    ("stamped_headers", _names, "a list of names"),
    ("stamps", _mapping, "a mapping"),
)
_single = itemgetter(*_SINGLE)
_counted_with = itemgetter(*(name for name, _, _ in _OTHERS))
