"""Queues: where a delivery came from, and the dead-letter queue, taken as it is found or made durable."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from amqp.exceptions import NotFound
from kombu.entity import Queue

from ._events import announce
from ._keys import digest

if TYPE_CHECKING:
    from celery import Celery
    from kombu.connection import Connection

__all__ = ["LONGEST_NAME", "dead_queue", "ensure_queue", "fitting", "queue_length", "queue_of", "topic_takes"]

#: The longest name of a queue, in bytes, that AMQP carries.
LONGEST_NAME = 255

# Since then a quorum queue limits deliveries unless it is told not to; before, -1 would be taken for 0.
_LIMITS_DELIVERIES = 4


def dead_queue(queue: str) -> str:
    """The dead-letter queue beside a queue: its name with ``.dead`` behind it."""
    return fitting(f"{queue}.dead")


def fitting(name: str) -> str:
    """A queue's name that AMQP carries: of one over 255 bytes the beginning, and a digest of it all."""
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= LONGEST_NAME:
        return name
    end = f"~{digest(name)[:16]}.dead" if name.endswith(".dead") else f"~{digest(name)[:16]}"
    return data[: LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end


def ensure_queue(app: Celery, connection: Connection, name: str) -> None:
    """Make sure the queue exists, without ever declaring a user's queue with arguments of ours."""
    if connection.transport.driver_type != "amqp":
        return  # a virtual transport's queue is there once something is in it
    name = fitting(name)
    if queue_length(connection, name) is not None:
        return
    queue = app.amqp.queues.get(name) or Queue(name, durable=True, queue_arguments=_arguments(app, connection, name))
    channel: Any = connection.channel()
    try:
        queue(channel).declare()
    finally:
        channel.close()


def _arguments(app: Celery, connection: Connection, name: str) -> dict[str, Any]:
    """Classic, because a quorum queue with a delivery limit drops a letter that was looked at a few times; or as asked."""
    if not _is_to_be_quorum(app, name):
        return {"x-queue-type": "classic"}
    release = _release_of_rabbit(connection)
    told = {"queue": name, "queue_type": "quorum", "not_checked": "whether a policy sets a delivery-limit"}
    if release is None:
        told |= {"queue_type": "classic", "not_checked": "whether this broker limits deliveries"}
        announce(logging.WARNING, "dead_letter_queue_made", told)
        return {"x-queue-type": "classic"}
    announce(logging.WARNING, "dead_letter_queue_made", told)
    return {"x-queue-type": "quorum", **({"x-delivery-limit": -1} if release >= _LIMITS_DELIVERIES else {})}


def _is_to_be_quorum(app: Celery, name: str) -> bool:
    """Whether a task that buries there asks for it; those that name the queue are asked before those that name none."""
    patterns = [plan.buries for task in app.tasks.values() if (plan := getattr(task, "plan", None)) and plan.buries]
    asked = {one.queue_type for one in patterns if one.queue == name} or {
        one.queue_type for one in patterns if one.queue is None
    }
    return "quorum" in asked


def _release_of_rabbit(connection: Connection) -> int | None:
    """RabbitMQ's first number; None for another broker, or one that does not tell."""
    told: Any = getattr(connection.connection, "server_properties", None) or {}
    first = str(told.get("version")).split(".")[0]
    return int(first) if told.get("product") == "RabbitMQ" and first.isdecimal() else None


def queue_length(connection: Connection, name: str) -> int | None:
    """How many messages an AMQP queue holds; None when there is no such queue."""
    channel: Any = connection.channel()
    try:
        return int(channel.queue_declare(queue=name, passive=True).message_count)
    except NotFound:  # the broker has closed the channel by now
        return None
    finally:
        if channel.connection is not None:
            channel.close()


def queue_of(app: Celery, exchange: str | None, key: str) -> Queue | None:
    """The queue that a delivery came from, if it is known: all it tells is its exchange and routing key.

    Those that this worker consumes are looked at first.

    Args:
        app: The app whose queues are known.
        exchange: The exchange; None when it is not known.
        key: The routing key.

    Returns:
        None also after the default exchange, whose keys are names of queues.
    """
    if exchange == "":
        return None
    queues = app.amqp.queues
    known = (*queues.consume_from.values(), *queues.values())
    for takes in (_by_its_key, _by_a_pattern):
        for queue in known:
            bindings = (
                (queue.exchange, queue.routing_key),
                *((b.exchange, b.routing_key) for b in queue.bindings or ()),
            )
            if any(one and exchange in (one.name, None) and takes(one.type, bound, key) for one, bound in bindings):
                return queue
    return None


def _by_its_key(_kind: str, bound: str | None, key: str) -> bool:
    return (bound or "") == key


def _by_a_pattern(kind: str, bound: str | None, key: str) -> bool:
    if kind == "topic":
        return topic_takes((bound or "").split("."), key.split("."))
    return kind in ("fanout", "headers")


def topic_takes(topic: list[str], words: list[str]) -> bool:
    """AMQP's topics: ``*`` is one word, ``#`` any number of them."""
    if not topic:
        return not words
    if topic[0] == "#":
        return any(topic_takes(topic[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and topic[0] in ("*", words[0]) and topic_takes(topic[1:], words[1:])
