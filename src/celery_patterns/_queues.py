"""Queues: where a delivery came from, and the dead-letter queue, taken as it is found or made durable and classic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqp.exceptions import NotFound
from kombu.entity import Queue

if TYPE_CHECKING:
    from celery import Celery
    from kombu.connection import Connection

__all__ = ["ensure_queue", "queue_length", "queue_of", "topic_takes"]


def ensure_queue(app: Celery, connection: Connection, name: str) -> None:
    """Make sure the queue exists, without ever declaring a user's queue with arguments of ours."""
    if connection.transport.driver_type != "amqp":
        return  # a virtual transport's queue is there once something is in it
    if queue_length(connection, name) is not None:
        return
    # Classic, because a quorum queue with a delivery limit drops a letter that was looked at a few times.
    ours = Queue(name, durable=True, queue_arguments={"x-queue-type": "classic"})
    queue = app.amqp.queues.get(name, ours)
    channel: Any = connection.channel()
    try:
        queue(channel).declare()
    finally:
        channel.close()


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
