"""Messages on their way to RabbitMQ: sent one after the other, and confirmed later, some at a time."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..exceptions import PublishFailed
from ._entry import Entry

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Flight", "Sent", "refused"]


@dataclass
class Sent:
    """A message on its way, and who hears of its end."""

    entry: Entry
    message: dict[str, Any]
    target: tuple[str, str]
    told: Callable[[Entry, PublishFailed | None], object]
    refused: PublishFailed | None = None


class Flight:
    """What was sent on one channel, and is not confirmed yet.

    Args:
        app: The app that sends.
        connection: An open connection without kombu's ``confirm_publish``, which would wait for each message.
        patience: Seconds without any confirmation after which none is expected any more.
    """

    def __init__(self, app: Celery, connection: Any, patience: float) -> None:
        self._connection = connection
        self._patience = patience
        self._channel: Any = connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._acknowledged)
        self._channel.events["basic_nack"].add(self._refused)
        self._channel.events["basic_return"].add(self._returned)
        self._producer = app.amqp.Producer(self._channel, auto_declare=False)
        self._numbers = 0
        self._flying: dict[int, Sent] = {}
        self._landed: deque[Sent] = deque()

    def send(self, sent: Sent) -> None:
        """Send a letter's message; of its end is told in a later call.

        Its ``correlation_id`` is the letter's ``replay_id``, by which a message that no queue takes is known again.
        """
        self._numbers += 1
        self._flying[self._numbers] = sent
        exchange, key = sent.target
        try:
            self._producer.publish(exchange=exchange, routing_key=key, mandatory=True, retry=False, **sent.message)
        except (struct.error, TypeError, ValueError) as error:  # nothing of it was written
            self._land(self._numbers, False, PublishFailed(f"the message cannot be published: {type(error).__name__}"))
            self._numbers -= 1
        self.tell()

    def settle(self, most: int = 0) -> None:
        """Wait until at most so many are on their way, and tell of the others."""
        deadline = time.monotonic() + self._patience
        while len(self._flying) > most:
            before = len(self._flying)
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=self._patience)
            if len(self._flying) < before:
                deadline = time.monotonic() + self._patience
            elif time.monotonic() > deadline:
                self._give_up()
        self.tell()

    def tell(self) -> None:
        """Tell of what has come to its end: not inside of the library that reads the socket."""
        while self._landed:
            sent = self._landed.popleft()
            sent.told(sent.entry, sent.refused)

    def lost(self) -> Sent | None:
        """One that was on its way when the channel was lost, after what has landed was told of; None when there is none."""
        self.tell()
        first = next(iter(self._flying), None)
        return None if first is None else self._flying.pop(first)

    def _give_up(self) -> None:
        error = PublishFailed(f"the broker did not confirm the message within {self._patience} s", transient=True)
        error.__cause__ = TimeoutError()
        self._land(self._numbers, True, error)

    def _acknowledged(self, number: int, multiple: bool) -> None:
        self._land(number, multiple, None)

    def _refused(self, number: int, multiple: bool) -> None:
        self._land(number, multiple, refused())

    def _returned(self, error: Exception, exchange: str, key: str, message: Any) -> None:
        """It comes before the message's confirmation."""
        for sent in self._flying.values():
            if message.properties.get("correlation_id") == sent.entry.letter.replay_id:
                sent.refused = PublishFailed(f"no queue takes it: {error} ({exchange!r}, {key!r})")

    def _land(self, number: int, multiple: bool, error: PublishFailed | None) -> None:
        for flying in [one for one in self._flying if one == number or (multiple and one < number)]:
            sent = self._flying.pop(flying)
            sent.refused = sent.refused or error
            self._landed.append(sent)


def refused() -> PublishFailed:
    """What is said of a message that the broker did not take, and may take later."""
    return PublishFailed("the broker refused the message, as a full queue does", transient=True)
