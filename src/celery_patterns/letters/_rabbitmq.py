"""Letters on RabbitMQ: taken a few at a time, and held unacknowledged until they are sent, which keeps others from them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._dead_letter import dead_letter
from .._plan import worn
from .._queues import queue_length
from .._x_death import is_nameless
from ..exceptions import ConfigurationError
from ._dispatch import Dispatch
from ._entry import Entry, Look, Told, entry_of
from ._link import Link
from ._undisturbed import pause

if TYPE_CHECKING:
    from celery import Celery

    from .._letter import Letter

__all__ = ["OnRabbitMQ"]

logger = logging.getLogger("celery_patterns")

#: Seconds that letters which were held may take to come back, after a connection was lost and after it was closed.
_RETURN, _MOMENT = 5.0, 0.5
#: How many letters are asked for at once, and seconds after which no more of them are waited for.
_BATCH, _SILENCE = 32, 0.2
#: The method by which a queue is asked for: a channel error that names it is the answer.
_DECLARE = (50, 10)


class OnRabbitMQ:
    """The shelf of a RabbitMQ broker.

    Args:
        app: The app on whose broker the queue is.
        queue: The dead-letter queue.
        look: Told of each message that is looked at.
    """

    def __init__(self, app: Celery, queue: str, look: Look) -> None:
        self._app = app
        self._queue = queue
        self._look = look
        self._channel: Any = None
        self._left = self._unsure = self._passes = 0
        self._warned = self._asking = False
        self._is_queue: dict[str, bool] = {}
        self._link = Link(app)
        self._dispatch = Dispatch(app, self._link, self.remove)

    def close(self) -> None:
        """Put back where it stood what was not taken out: RabbitMQ does so when the channel is closed."""
        if self._asking:  # more may be on its way, of which amqp would log each
            self._link.connection.collect()
            return
        with suppress(*self._link.passing):
            if self._channel is not None and self._channel.is_open:
                self._channel.close()
            self._await_return(_MOMENT)  # to a quorum queue they come back in their own time
        self._link.connection.release()

    def standing(self) -> int | None:
        return queue_length(self._link.connection, self._queue)

    def walk(self) -> Iterator[Entry]:
        """The letters, from the first again when the connection was lost.

        RabbitMQ closes a channel that holds a message for 30 minutes, as a slow replay does. What was held is back then.
        """
        standing = queue_length(self._link.connection, self._queue) or 0
        self._left, self._unsure = standing, 0
        looked = 0
        deadline, gap = 0.0, 0.1
        entries = self._pass()
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except self._link.passing as error:
                if not deadline:
                    if isinstance(error, self._link.connection.connection_errors):
                        self._link.say_gone()
                    deadline = time.monotonic() + self._link.PATIENCE.total_seconds()
                if time.monotonic() > deadline:
                    raise
                self._reopen(gap)
                gap = min(gap * 2, 2.0)
                entries = self._pass()
                continue
            looked, deadline, gap = looked + 1, 0.0, 0.1
            self._look(min(looked, standing), standing)  # whose error is the caller's, and no trouble of the broker's
            if entry is not None:
                yield entry

    def _pass(self) -> Iterator[Entry | None]:
        if not self._left:
            return
        self._channel = self._link.connection.channel()
        self._passes += 1
        for raw in self._messages():
            self._dispatch.tell()
            self._expect_hold()
            self._warn(raw)
            yield entry_of(self._channel.message_to_python(raw), raw.body, raw.delivery_tag, self._passes)
        self.settle()
        if self._link.lost is not None:
            raise self._link.lost
        self._channel.queue_declare(queue=self._queue, passive=True)  # answers, or raises when it has not heard of all
        self._channel.close()

    def _expect_hold(self) -> None:
        """Give no letter to be sent that stands in the queue again: it could not be taken out, and others see it."""
        self._link.hear()
        if self._link.lost is not None:
            raise self._link.lost

    def _warn(self, raw: Any) -> None:
        count = (raw.properties.get("application_headers") or {}).get("x-delivery-count")
        if self._warned or count is None:
            return
        self._warned = True
        if not any(_is_counted(task, self._queue) for task in self._app.tasks.values()):
            logger.warning(
                "%s is a quorum queue, which counts each look at a letter: if it has a delivery limit, RabbitMQ drops a "
                "letter that was looked at so often; look seldom, or export it",
                self._queue,
            )

    def _messages(self) -> Iterator[Any]:
        """Those that stand there now: a worker that still has the bug may write new ones as fast as we send."""
        left = self._left
        while left > 0:
            batch = self._batch(min(left, _BATCH))
            left -= len(batch)
            yield from batch
            if not batch:
                return

    def _batch(self, most: int) -> deque[Any]:
        """A few messages in one go, in the time that one takes which is asked for by itself."""
        batch: deque[Any] = deque()
        self._asking = True
        self._channel.basic_qos(0, most, False)
        self._unsure = 0  # it answers, so it has heard of every acknowledgement before
        # Of a consumer that is called off, what it was given stays with the channel.
        consumer = self._channel.basic_consume(self._queue, callback=batch.append)
        with suppress(TimeoutError):
            while len(batch) < most:
                self._link.connection.drain_events(timeout=_SILENCE)
        self._channel.basic_cancel(consumer)
        if not batch:  # the consumer that others have made the only one keeps it from this one, and from no get
            single = self._channel.basic_get(self._queue, no_ack=False)
            batch.extend([] if single is None else [single])
        self._asking = False
        self._link.answered()
        return batch

    def _reopen(self, gap: float) -> None:
        self._dispatch.ground()  # which takes letters out, as far as it can tell
        self._left, self._unsure = self._left + self._unsure, 0
        self._asking, self._link.lost = False, None
        self._link.connection.collect()
        pause(gap)
        with suppress(*self._link.passing):  # the next pass meets it again
            self._link.open()
            self._await_return(_RETURN)

    def _await_return(self, seconds: float) -> None:
        """What was held comes back a moment after its channel has gone; fewer come when somebody else took some."""
        deadline, gap = time.monotonic() + seconds, 0.001
        while (queue_length(self._link.connection, self._queue) or 0) < self._left and time.monotonic() < deadline:
            time.sleep(gap)
            gap = min(2 * gap, 0.1)

    def remove(self, entry: Entry) -> bool:
        try:
            self._channel.basic_ack(entry.place)
            if is_nameless(entry.letter):  # which would not be known again: this waits for an answer behind it
                self._channel.basic_qos(0, _BATCH, False)
        except self._link.passing as error:  # it comes back, and the walk begins again
            self._link.lost = error
            return False
        self._left, self._unsure = self._left - 1, self._unsure + 1
        entry.gone = True
        return True

    def resend(
        self, entry: Entry, message: dict[str, Any], target: tuple[str, str], told: Told, *, keyed: bool
    ) -> bool:
        return self._dispatch.send(entry, message, target, told, keyed=keyed)

    def settle(self) -> None:
        self._dispatch.settle()

    def target_of(self, letter: Letter) -> tuple[str, str]:
        # Its exchange may have several queues, and the others have had their copy.
        if not letter.exchange or self._exists(letter.queue):
            return "", letter.queue
        return letter.exchange, letter.routing_key

    def target_named(self, queue: str) -> tuple[str, str]:
        if not self._exists(queue):
            if self._link.lost is not None:
                raise self._link.lost
            raise ConfigurationError(f"there is no queue {queue!r} on the broker; expected the name of one")
        return "", queue

    def _exists(self, queue: str) -> bool:
        if queue not in self._is_queue:
            self.settle()  # an answer to what is on its way would be taken for the one to this
            if self._link.lost is not None:
                return False
            try:
                self._is_queue[queue] = queue_length(self._link.connection, queue) is not None
            except self._link.passing as error:
                # The end of the channel that holds the letters may be heard while an answer to this is waited for.
                about_it = isinstance(error, self._link.connection.channel_errors)
                if not about_it or getattr(error, "method_sig", None) != _DECLARE:
                    self._link.lost = error
                    return False
                self._is_queue[queue] = False  # somebody's own, whom nobody else may ask
        return self._is_queue[queue]

    def forget(self, letter_id: str) -> None:
        """RabbitMQ keeps no note of what was replayed."""


def _is_counted(task: Any, queue: str) -> bool:
    """Whether the app asked for this quorum queue itself: then its limit was switched off, or the worker warned."""
    pattern = worn(task, dead_letter)
    return pattern is not None and (pattern.queue, pattern.queue_type) == (queue, "quorum")
