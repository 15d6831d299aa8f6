"""Letters that RabbitMQ wrote: messages that a queue of the user's buried, by a policy or by its arguments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ._header_values import all_of, as_count, as_moment
from ._keys import digest
from ._letter import Letter, properties_of, read_letter, told_by_headers
from ._message import HEADER, came_by, moment

if TYPE_CHECKING:
    from kombu.message import Message

__all__ = ["is_nameless", "letter_of"]

#: RabbitMQ's words for why a queue buried a message, and ours.
_REASONS = {
    "rejected": "rejected",
    "expired": "expired",
    "maxlen": "queue_full",
    "delivery_limit": "delivery_limit",
}
#: Properties that tell a message from others.
_NAMES = {"message_id", "correlation_id"}
#: What differs from one look to the next, and what a letter that was kept in a file may come back without.
_HEADERS_LOST = {"x-delivery-count", "x-acquired-count", "redelivered", "CC", "BCC"}
_PROPERTIES_LOST = {"user_id", "priority"}
_UNKNOWN = "buried_by_broker"


def letter_of(message: Message) -> Letter | None:
    """The letter that a message is, ours or RabbitMQ's; None when it is none."""
    return read_letter(message.headers) or _brokers(message)


def is_nameless(letter: Letter) -> bool:
    """Whether nothing in what RabbitMQ buried tells it from an equal one: a second one is no copy of the first."""
    return bool(letter.broker_count) and letter.task_id is None and not _NAMES & letter.properties.keys()


def _brokers(message: Message) -> Letter | None:
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    properties = message.properties if isinstance(message.properties, Mapping) else {}
    death = _last_death(headers)
    queue, died_at = death.get("queue"), _time(death.get("time"))
    if not isinstance(queue, str) or not isinstance(death.get("reason"), str) or died_at is None:
        return None
    ours = headers.get(HEADER)
    ours = ours if isinstance(ours, Mapping) else {}
    fields = told_by_headers(headers, ours)
    told_apart = str(fields["attempt"]), str(fields["replay"])
    count = as_count(death.get("count")) or 1
    # RabbitMQ takes a message's own time to live from it, and keeps it here.
    told = {**properties, "expiration": death.get("original-expiration")}
    return Letter(
        id=_identity(message, headers, (queue, death["reason"], str(count), *told_apart)),
        **fields,
        reason=_REASONS.get(death["reason"], _UNKNOWN),
        error="",
        message="",
        traceback="",
        queue=queue,
        **_origin(death, queue),
        priority=as_count(properties.get("priority")),
        properties=properties_of(told),
        died_at=died_at,
        worker=None,
        broker_count=count,
    )


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """RabbitMQ puts the last one first."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list | tuple) and deaths else None
    return last if isinstance(last, Mapping) else {}


def _time(value: Any) -> float | None:
    return as_moment(moment(value) if isinstance(value, datetime) else value)


def _origin(death: Mapping[str, Any], queue: str) -> dict[str, Any]:
    """Exchange and routing key; of several keys the first, for the others are copies of their own."""
    keys = death.get("routing-keys")
    key = keys[0] if isinstance(keys, list | tuple) and keys else None
    exchange, key = came_by({"exchange": _string(death.get("exchange")), "routing_key": _string(key)})
    # After a delayed delivery, and where no key is told, the queue itself is all that is known.
    return {"exchange": exchange, "routing_key": key} if exchange and key else {"exchange": "", "routing_key": queue}


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _without(told: Mapping[str, Any], names: Collection[str]) -> str:
    return all_of({name: value for name, value in told.items() if name not in names})


def _identity(message: Message, headers: Mapping[str, Any], death: tuple[str, ...]) -> str:
    """The same for each reader; without the time, which differs when RabbitMQ has to write its letter a second time."""
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "surrogatepass")
    task_id = _string(headers.get("id"))
    named = (
        (task_id, str(headers.get("replaced_task_nesting")))
        if task_id
        else (_without(headers, _HEADERS_LOST), _without(properties_of(message.properties), _PROPERTIES_LOST))
    )
    return digest("by the broker", *named, *death, body.hex())
