"""What a message carries beside its arguments: the header of ours, when it was sent, and how it came."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE

from ._header_values import FAR, as_moment

__all__ = [
    "HEADER",
    "KEPT",
    "OWNER",
    "came_by",
    "first_sent",
    "is_brokers_own",
    "moment",
    "new_owner",
    "remembered",
    "run_name",
    "undelayed",
]

#: The one message header that carries what the patterns must remember from attempt to attempt.
HEADER = "celery_patterns"

#: Where a worker's main process writes, into the delivery's own notes, the owner that its run is to claim as. No message
#: carries it: the next delivery is another run.
OWNER = "celery_patterns_owner"

#: Where a run writes, into the same notes, that its letter or its next attempt stands; and where that run's name is written
#: on what the main process is given.
KEPT = "celery_patterns_kept"

# A delayed delivery puts its 28 bits before the routing key.
_DELAY = re.compile(r"^(?:[01]\.){28}")

#: A task id that is shown as it is: a store keeps it short, and tells names apart by the spaces between them.
_SHOWN = re.compile(r"[!-~]{1,40}")

# CC and BCC are orders to RabbitMQ, which has carried them out: each queue they name has a copy of its own.
_BROKERS_OWN = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "redelivered", "CC", "BCC"})


def new_owner(task_id: str) -> str:
    """Who a delivery claims a key as: its task id, for people, and what no other delivery of it has.

    An id that is long or odd is left out: ``?``, and random digits, stand for it.
    """
    shown = task_id if _SHOWN.fullmatch(task_id) else f"?{secrets.token_hex(4)}"
    return f"{shown}.{secrets.token_hex(4)}"


def run_name(request: Mapping[str, Any]) -> str:
    """Of one attempt: a redelivery of it has the same, the next attempt another."""
    return f"{request.get('id')}/{request.get('retries') or 0}"


def moment(eta: datetime) -> float:
    """An eta in seconds since the epoch. Celery takes one without a zone for UTC, whatever the app's time zone."""
    return (eta if eta.tzinfo is not None else eta.replace(tzinfo=timezone.utc)).timestamp()


def came_by(delivery_info: Mapping[str, Any]) -> tuple[str | None, str]:
    """Exchange and routing key; no exchange after one of RabbitMQ's delayed deliveries, which puts its own there."""
    exchange, key = str(delivery_info.get("exchange") or ""), str(delivery_info.get("routing_key") or "")
    return None if exchange.endswith(CELERY_DELAYED_DELIVERY_EXCHANGE) else exchange, undelayed(key)


def undelayed(routing_key: str) -> str:
    """A routing key without the bits that a delayed delivery puts before it."""
    return _DELAY.sub("", routing_key) if routing_key[1:2] == "." else routing_key


def remembered(header: Any) -> dict[str, Any]:
    """What is remembered, without what cannot be ours: a header may be written by hand, or by a later release."""
    if not isinstance(header, dict):
        return {}
    return {name: value for name, value in header.items() if _REMEMBERED.get(name, _anything)(value)}


def _anything(_: Any) -> bool:
    return True


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and -FAR < value < FAR


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and -FAR < value < FAR


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _list(value: Any) -> bool:
    return isinstance(value, list)


_REMEMBERED: dict[str, Callable[[Any], bool]] = {
    "sent": _number,
    "first_sent": _number_or_none,
    "started": _number,
    "waited": _number,
    "waiting": _number,
    "looks": _count,
    "history": _list,
    "replay": _count,
    "replayed": _number,
    "corrected": _list,
    "asked_by": _list,
    "anew": _text,
    "failure": _text,
}


def first_sent(header: Mapping[str, Any], attempt: int) -> float | None:
    """When the task was first published; None where its messages do not say: a later attempt's own time is another one."""
    if "first_sent" in header:
        return as_moment(header["first_sent"])
    return as_moment(header.get("sent")) if attempt == 1 else None


def is_brokers_own(header: str) -> bool:
    """Whether it is between the broker and one delivery: Celery's retry would copy it into a message that is another one."""
    # A name that is no text comes as bytes.
    return header in _BROKERS_OWN or str(header).startswith(("x-first-death-", "x-last-death-"))
