"""Making a dead letter, of a running call or of a message that was never run, and publishing it."""

from __future__ import annotations

import json
import secrets
import time
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from kombu import serialization

from ._body import part_of_body
from ._envelope import fitted
from ._equipment import equipment_of
from ._frame import room_in
from ._header_values import all_of, as_count, as_mappings, as_moment, as_text
from ._history import error_name, errors_of, history_of
from ._keys import digest
from ._letter import (
    LETTER,
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    Letter,
    clipped,
    header_of,
    parent_of,
    properties_of,
    told_by_headers,
)
from ._lines import text_of
from ._message import HEADER, came_by, is_brokers_own
from ._publish import CONFIRM, PATIENCE
from ._queues import LONGEST_NAME, ensure_queue, fitting, queue_of
from ._received import ATOMS
from ._republish import carried_headers, message_serializer
from .exceptions import TooManyCrashes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery
    from kombu.message import Message

    from ._call import Call
    from ._publish import Publisher

__all__ = ["found", "found_message", "letter_message", "publish_letter", "written"]

# The headers of Celery's message protocol 2. A running request keeps them, beside much that is not the message's.
_PROTOCOL = (
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
)
# What RabbitMQ would carry out again, and send the letter to other queues, too.
_ORDERS = frozenset({"CC", "BCC"})
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")


def written(call: Call, error: BaseException) -> Letter:
    """The letter of a call that died of ``error``."""
    request = call.request
    info = request.delivery_info or {}
    crashed = isinstance(error, TooManyCrashes)
    replay = as_count(call.header.get("replay")) or 0
    return Letter(
        id=_named(call.run_id, call.attempt, replay, call.first_sent, _seen(call.received_args, call.received_kwargs)),
        task=as_text(call.task),
        task_id=as_text(call.id),
        root_id=as_text(request.root_id),
        parent_id=parent_of(as_text(call.id), request.parent_id),
        group_id=as_text(request.group),
        reason="crashed" if crashed else "failed",
        **_told_by(error, _traced(error)),
        attempt=call.attempt,
        history=history_of(call.header),
        errors=errors_of(call.header),
        **_origin(call.app, info),
        priority=as_count(info.get("priority")),
        properties=properties_of(request.properties),
        first_published=call.first_sent,
        # What crashed too often was not started this time, and nothing tells when it was.
        first_started=as_moment(call.header.get("started")) if crashed else call.first_started,
        died_at=time.time(),
        worker=as_text(request.hostname),
        replay=replay,
        corrected=as_mappings(call.header.get("corrected")),
    )


def _told_by(error: BaseException, trace: str) -> dict[str, Any]:
    return {
        "error": as_text(error_name(error)) or "",
        "message": clipped(text_of(error), MESSAGE_LIMIT),
        "traceback": clipped(trace, TRACEBACK_LIMIT),
    }


def _traced(error: BaseException) -> str:
    try:
        trace = part_of_body(error.__traceback__) or error.__traceback__
        return "".join(traceback.format_exception(type(error), error, trace))
    except SoftTimeLimitExceeded:
        raise
    except Exception as broken:  # noqa: BLE001 - the error is a user's, and so may its attributes be
        return f"the traceback cannot be shown: {error_name(broken)}"


def _named(run_id: str, attempt: int, replay: int, sent: float | None, seen: str) -> str:
    """The death's name. When it was sent, and with what, tell two tasks of one id apart: an id may be chosen, and again."""
    return digest(run_id, str(attempt), str(replay), str(sent), seen)


def _seen(args: Any, kwargs: Any) -> str:
    try:
        return json.dumps([args, kwargs], default=_stable)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has no word for, or too deep
        return ""


def _stable(value: Any) -> Any:
    # An object's text may hold its address, and a set's its order, which the next process to see it does not share.
    name = type(value).__name__
    if type(value) in ATOMS:
        return f"{name} {value}"
    if isinstance(value, set | frozenset):
        return [name, sorted(json.dumps(item, default=_stable) for item in value)]
    return [name, getattr(value, "__dict__", None)]


def found(
    app: Celery, message: Message, reason: str, error: BaseException, *, trace: str = "", worker: str | None = None
) -> Letter:
    """The letter of a message that came to its end outside of a call. Nothing in the message is trusted to be well made.

    Args:
        app: The worker's app.
        message: The message as it was delivered.
        reason: Why it ended.
        error: What says so.
        trace: The traceback as text, where there is one.
        worker: The worker's name.
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    properties = message.properties if isinstance(message.properties, dict) else {}
    ours = headers.get(HEADER)
    ours = ours if isinstance(ours, dict) else {}
    headers = headers if "task" in headers else _told_by_body(message) or headers
    told = told_by_headers(headers, ours)
    return Letter(
        id=_identity(message, headers, told["attempt"], told["replay"], told["first_published"]),
        **told,
        reason=reason,
        **_told_by(error, trace),
        **_origin(app, message.delivery_info or {}),
        priority=as_count(properties.get("priority")),
        properties=properties_of(properties),
        died_at=time.time(),
        worker=worker,
    )


def _identity(message: Message, headers: Mapping[str, Any], attempt: int, replay: int, sent: float | None) -> str:
    task_id = headers.get("id")
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "surrogatepass")
    if isinstance(task_id, str) and task_id:
        run_id = f"{task_id}/{as_count(headers.get('replaced_task_nesting')) or 0}"
        try:
            payload = message.payload
            args, kwargs = (payload["args"], payload["kwargs"]) if isinstance(payload, dict) else payload[:2]
            seen = _seen(args, kwargs)
        except Exception:  # noqa: BLE001 - nobody can read them
            seen = body.hex()
        return _named(run_id, attempt, replay, sent, seen)
    return digest("nameless", body.hex(), *_traits(message, headers))


def _traits(message: Message, headers: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a message that names no task from another one of the same bytes.

    A message that came again must be known again, but where that cannot be told it is better listed twice than lost.
    """
    properties = message.properties if isinstance(message.properties, dict) else {}
    tag = properties.get("delivery_tag")
    if tag is not None:  # a Redis broker's, which stays with the message
        return (text_of(tag),)
    named = [properties.get(name) for name in ("message_id", "correlation_id")]
    if not any(named):
        return (secrets.token_hex(16),)
    own = {name: value for name, value in headers.items() if not is_brokers_own(name)}
    return (all_of(own), *map(text_of, named), text_of(properties.get("timestamp")))


def _told_by_body(message: Message) -> dict[str, Any] | None:
    """The body of a message of Celery's first protocol, which says there what later ones say in headers."""
    try:
        payload = message.payload
    except Exception:  # noqa: BLE001 - nobody can read it
        return None
    return payload if isinstance(payload, dict) and "task" in payload else None


def _origin(app: Celery, delivery_info: Mapping[str, Any]) -> dict[str, Any]:
    exchange, key = came_by(delivery_info)
    queue: Any = queue_of(app, exchange, key)
    return {
        "queue": key if queue is None else str(queue.name),
        "exchange": exchange if exchange is not None else "" if queue is None else str(queue.exchange.name),
        "routing_key": key,
    }


def _shortstr(value: Any, otherwise: str) -> str:
    """What AMQP carries in a property; a hostile id may be longer."""
    fits = isinstance(value, str) and 0 < len(value.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
    return value if fits else otherwise


def letter_message(call: Call, letter: Letter) -> dict[str, Any]:
    """An equal message, as arguments to ``Producer.publish``: body as received, its headers, and the letter's."""
    known = call.request.__dict__
    headers = {name: known.get(name) for name in _PROTOCOL}
    headers.update(carried_headers(call))
    embed = {name: known.get(name) for name in _EMBEDDED}
    content_type, encoding, body = serialization.dumps(
        [list(call.received_args), call.received_kwargs, embed],
        message_serializer(call),
    )
    headers[LETTER] = header_of(letter)
    return {
        "body": body,
        "headers": headers,
        "content_type": content_type,
        "content_encoding": encoding,
        "correlation_id": _shortstr(call.id, letter.id),
        "reply_to": _shortstr(known.get("reply_to"), ""),
        "delivery_mode": 2,
    }


def found_message(message: Message, letter: Letter) -> dict[str, Any]:
    """The message itself, byte for byte, as arguments to ``Producer.publish``, with the letter's header."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    properties = message.properties if isinstance(message.properties, dict) else {}
    without = _ORDERS if message.errors else {*_ORDERS, "compression"}  # the body was unpacked, where that was possible
    return {
        "body": message.body,
        "headers": {
            **{name: value for name, value in headers.items() if name not in without},
            LETTER: header_of(letter),
        },
        # Without a type kombu would encode the bytes once more.
        "content_type": _shortstr(message.content_type, "application/octet-stream"),
        "content_encoding": _shortstr(message.content_encoding, "binary"),
        "correlation_id": _shortstr(properties.get("correlation_id"), _shortstr(letter.task_id, letter.id)),
        "reply_to": _shortstr(properties.get("reply_to"), ""),
        "delivery_mode": 2,
    }


def publish_letter(
    app: Celery,
    queue: str,
    message: dict[str, Any],
    *,
    patience: timedelta = PATIENCE,
    publisher: Publisher | None = None,
) -> None:
    """Publish a letter's message, confirmed, to a queue that is made when there is none.

    Args:
        app: The app on whose broker the queue is.
        queue: The dead-letter queue.
        message: The arguments of ``Producer.publish``, whose headers are fitted into the room that the connection has.
        patience: For how long a passing trouble is tried again; 30 seconds by default.
        publisher: Whose connection it takes; the app's by default.

    Raises:
        PublishFailed: When it was not confirmed.
    """

    def send(producer: Any) -> None:
        connection = producer.connection
        ensure_queue(app, connection, queue)
        producer.publish(exchange="", routing_key=fitting(queue), **fitted(message, room_in(connection)), **CONFIRM)

    (publisher or equipment_of(app).publisher).publish(send, patience=patience)
