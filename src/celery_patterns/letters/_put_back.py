"""Putting a letter back that was kept in a file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .._equipment import equipment_of
from .._publish import CONFIRM, PATIENCE
from .._queues import ensure_queue
from ._file import Kept
from ._undisturbed import pause

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["put_back"]

logger = logging.getLogger("celery_patterns")


def put_back(app: Celery, queue: str, kept: Kept) -> None:
    """Publish a letter once more, as it was, confirmed.

    Args:
        app: The app on whose broker the queue is.
        queue: The dead-letter queue.
        kept: The letter.

    Raises:
        PublishFailed: When it was not confirmed.
    """

    def send(producer: Any) -> None:
        ensure_queue(app, producer.connection, queue)
        properties, channel = dict(kept.properties), producer.channel
        priority = properties.pop("priority", None)
        if producer.connection.transport.driver_type == "redis":
            priority = None  # which would choose another list
        # Not by the producer, which would encode once more what has no content type.
        message = channel.prepare_message(
            kept.body,
            priority,
            kept.content_type,
            kept.content_encoding,
            # Those two tell RabbitMQ to send it to other queues, too.
            {name: value for name, value in kept.headers.items() if name not in ("CC", "BCC")},
            properties,
        )
        channel.basic_publish(
            message, exchange="", routing_key=queue, mandatory=True, confirm_timeout=CONFIRM["confirm_timeout"]
        )

    said = False

    def wait(seconds: float) -> None:
        nonlocal said
        if not said:
            logger.warning(
                "the broker does not take a letter; it is tried for up to %d seconds", PATIENCE.total_seconds()
            )
            said = True
        pause(seconds)

    equipment_of(app).publisher.publish(send, sleep=wait)
