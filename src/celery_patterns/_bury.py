"""Making a dead letter, of a running call or of a message that was never run, and publishing it."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kombu import serialization

from ._call import ATOMS, HEADER, came_by
from ._codec import text_of
from ._equipment import equipment_of
from ._keys import digest
from ._letter import LETTER, MESSAGE_LIMIT, TRACEBACK_LIMIT, Letter, clipped, header_of
from ._publish import CONFIRM, PATIENCE
from ._queues import ensure_queue, queue_of
from ._republish import carried_headers, message_serializer
from .exceptions import TooManyCrashes

if TYPE_CHECKING:
    from celery import Celery
    from kombu.message import Message

    from ._call import Call

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
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")


def written(call: Call, error: BaseException) -> Letter:
    """The letter of a call that died of ``error``."""
    kind = type(error)
    info = call.request.delivery_info or {}
    replay = int(call.header.get("replay", 0))
    return Letter(
        id=digest(call.run_id, str(call.attempt), str(replay), _seen(call.received_args, call.received_kwargs)),
        task=call.task,
        task_id=call.id,
        root_id=call.request.root_id,
        reason="crashed" if isinstance(error, TooManyCrashes) else "failed",
        error=f"{kind.__module__}.{kind.__qualname__}",
        message=clipped(text_of(error), MESSAGE_LIMIT),
        traceback=clipped("".join(traceback.format_exception(kind, error, error.__traceback__)), TRACEBACK_LIMIT),
        attempt=call.attempt,
        history=list(call.header.get("history", ())),
        **_origin(call.app, info),
        priority=info.get("priority"),
        first_started=call.first_started,
        died_at=time.time(),
        worker=call.request.hostname,
        replay=replay,
        corrected=list(call.header.get("corrected", ())),
    )


def _seen(args: Any, kwargs: Any) -> str:
    """What tells two messages of one task id apart: an id may be chosen, and used again for other work."""
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
    kind = type(error)
    now = time.time()
    attempt, replay = _number(headers.get("retries")) + 1, _number(ours.get("replay"))
    return Letter(
        id=_identity(message, headers, attempt, replay),
        task=_text(headers.get("task")),
        task_id=_text(headers.get("id")),
        root_id=_text(headers.get("root_id")),
        reason=reason,
        error=f"{kind.__module__}.{kind.__qualname__}",
        message=clipped(text_of(error), MESSAGE_LIMIT),
        traceback=clipped(trace, TRACEBACK_LIMIT),
        attempt=attempt,
        history=_dicts(ours.get("history")),
        **_origin(app, message.delivery_info or {}),
        priority=_number(properties.get("priority")) or None,
        first_started=_moment(ours.get("started"), now),
        died_at=now,
        worker=worker,
        replay=replay,
        corrected=_dicts(ours.get("corrected")),
    )


def _identity(message: Message, headers: Mapping[str, Any], attempt: int, replay: int) -> str:
    task_id = headers.get("id")
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "surrogatepass")
    if isinstance(task_id, str) and task_id:
        run_id = f"{task_id}/{_number(headers.get('replaced_task_nesting'))}"
        try:
            args, kwargs, _ = message.payload
            seen = _seen(args, kwargs)
        except Exception:  # noqa: BLE001 - nobody can read them
            seen = body.hex()
        return digest(run_id, str(attempt), str(replay), seen)
    # Nobody's: the same bytes are the same death.
    return digest(
        "nameless",
        body.hex(),
        json.dumps(headers, default=str, sort_keys=False),
        text_of((message.properties or {}).get("correlation_id")),
    )


def _origin(app: Celery, delivery_info: Mapping[str, Any]) -> dict[str, str]:
    exchange, key = came_by(delivery_info)
    queue: Any = queue_of(app, exchange, key)
    return {
        "queue": key if queue is None else str(queue.name),
        "exchange": exchange if exchange is not None else "" if queue is None else str(queue.exchange.name),
        "routing_key": key,
    }


def _number(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _moment(value: Any, otherwise: float) -> float:
    return float(value) if type(value) in (int, float) else otherwise


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
    headers[LETTER] = header_of(letter, headers)
    return {
        "body": body,
        "headers": headers,
        "content_type": content_type,
        "content_encoding": encoding,
        "correlation_id": call.id,
        "reply_to": known.get("reply_to") or "",
        "delivery_mode": 2,
    }


def found_message(message: Message, letter: Letter) -> dict[str, Any]:
    """The message itself, byte for byte, as arguments to ``Producer.publish``, with the letter's header."""
    headers = dict(message.headers) if isinstance(message.headers, dict) else {}
    properties = message.properties if isinstance(message.properties, dict) else {}
    headers[LETTER] = header_of(letter, headers)
    return {
        "body": message.body,
        "headers": headers,
        # Without a type kombu would encode the bytes once more.
        "content_type": _text(message.content_type) or "application/octet-stream",
        "content_encoding": _text(message.content_encoding) or "binary",
        "correlation_id": _text(properties.get("correlation_id")) or letter.task_id or letter.id,
        "reply_to": _text(properties.get("reply_to")) or "",
        "delivery_mode": 2,
    }


def publish_letter(app: Celery, queue: str, message: dict[str, Any], *, patience: timedelta = PATIENCE) -> None:
    """Publish a letter's message, confirmed, to a queue that is made when there is none.

    Args:
        app: The app on whose broker the queue is.
        queue: The dead-letter queue.
        message: The arguments of ``Producer.publish``.
        patience: For how long a passing trouble is tried again; 30 seconds by default.

    Raises:
        PublishFailed: When it was not confirmed.
    """

    def send(producer: Any) -> None:
        ensure_queue(app, producer.connection, queue)
        producer.publish(exchange="", routing_key=queue, **message, **CONFIRM)

    equipment_of(app).publisher.publish(send, patience=patience)
