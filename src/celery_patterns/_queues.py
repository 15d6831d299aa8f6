"""The dead-letter queue: the user's own is taken as it is found, ours is durable and classic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqp.exceptions import NotFound
from kombu.entity import Queue

if TYPE_CHECKING:
    from celery import Celery
    from kombu.connection import Connection

__all__ = ["ensure_queue"]


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
