"""Letters on RabbitMQ: taken a few at a time, and held unacknowledged until they are sent, which keeps others from them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from .._dead_letter import dead_letter
from .._equipment import equipment_of
from .._plan import worn
from .._publish import CONFIRM
from .._queues import queue_length
from .._x_death import is_nameless
from ..exceptions import ConfigurationError, PublishFailed
from ._entry import Entry, Look, Told, entry_of
from ._flight import Flight, Sent, refused
from ._undisturbed import between_letters, pause, say_gone

if TYPE_CHECKING:
    from celery import Celery

    from .._letter import Letter

__all__ = ["OnRabbitMQ"]

logger = logging.getLogger("celery_patterns")

#: Seconds that one answer may take, and that a broker which has gone is waited for.
_ANSWER = 30.0
_PATIENCE = timedelta(seconds=30)
#: Seconds that letters which were held may take to come back, after a connection was lost and after it was closed.
_RETURN, _MOMENT = 5.0, 0.5
#: How many letters are asked for at once, and seconds after which no more of them are waited for.
_BATCH, _SILENCE = 32, 0.2
#: How many messages with a key may be on their way before another one is sent.
_IN_FLIGHT = 32
#: For how long one message is tried.
_SENDING = timedelta(seconds=5)
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
        self._flight: Flight | None = None
        self._flies = True
        #: Targets that did not take the last message.
        self._full: set[tuple[str, str]] = set()
        self._away = False
        self._left = self._unsure = self._passes = 0
        self._stalled = self._warned = self._asking = self._said_gone = False
        #: What took the channel, and with it the hold on the letters that were asked for.
        self._lost: Exception | None = None
        self._is_queue: dict[str, bool] = {}
        try:
            self._open()
        except self._connection.recoverable_connection_errors as error:
            raise OperationalError(str(error)) from error

    def close(self) -> None:
        """Put back where it stood what was not taken out: RabbitMQ does so when the channel is closed."""
        if self._asking:  # more may be on its way, of which amqp would log each
            self._connection.collect()
            return
        with suppress(*self._passing):
            if self._channel is not None and self._channel.is_open:
                self._channel.close()
            self._await_return(_MOMENT)  # to a quorum queue they come back in their own time
        self._connection.release()

    def _open(self) -> None:
        self._connection = self._app.connection_for_write()  # where the letters were written, and go back to
        for name in ("read_timeout", "write_timeout"):
            self._connection.transport_options.setdefault(name, _ANSWER)
        self._connection.transport_options["confirm_publish"] = False  # a flight counts the confirmations itself
        # As connect(), which would try two hosts of three; and as there, the trouble comes as itself.
        self._connection.ensure_connection(
            max_retries=max(1, len(self._connection.alt)),
            interval_start=0,
            interval_step=0,
            reraise_as_library_errors=False,
        )

    @property
    def _passing(self) -> Any:
        return (*self._connection.connection_errors, *self._connection.channel_errors)

    def standing(self) -> int | None:
        return queue_length(self._connection, self._queue)

    def walk(self) -> Iterator[Entry]:
        """The letters, from the first again when the connection was lost.

        RabbitMQ closes a channel that holds a message for 30 minutes, as a slow replay does. What was held is back then.
        """
        standing = queue_length(self._connection, self._queue) or 0
        self._left, self._unsure = standing, 0
        looked = 0
        deadline, gap = 0.0, 0.1
        entries = self._pass()
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except self._passing as error:
                if not deadline:
                    if isinstance(error, self._connection.connection_errors):
                        self._say_gone()
                    deadline = time.monotonic() + _PATIENCE.total_seconds()
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
        self._channel = self._connection.channel()
        self._passes += 1
        for raw in self._messages():
            if self._flight is not None:
                self._flight.tell()
            self._expect_hold()
            self._warn(raw)
            yield entry_of(self._channel.message_to_python(raw), raw.body, raw.delivery_tag, self._passes)
        self.settle()
        if self._lost is not None:
            raise self._lost
        self._channel.queue_declare(queue=self._queue, passive=True)  # answers, or raises when it has not heard of all
        self._channel.close()

    def _expect_hold(self) -> None:
        """Give no letter to be sent that stands in the queue again: it could not be taken out, and others see it."""
        self._hear()
        if self._lost is not None:
            raise self._lost

    def _hear(self) -> None:
        """Hear whether the connection was closed."""
        try:
            while self._lost is None:  # one call hears one thing, and the last of several may be the end
                self._connection.drain_events(timeout=0)
        except TimeoutError:
            return
        except self._passing as error:
            self._lost = error

    def _say_gone(self) -> None:
        if not self._said_gone:
            self._said_gone = True
            say_gone(_PATIENCE.total_seconds())

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
                self._connection.drain_events(timeout=_SILENCE)
        self._channel.basic_cancel(consumer)
        if not batch:  # the consumer that others have made the only one keeps it from this one, and from no get
            single = self._channel.basic_get(self._queue, no_ack=False)
            batch.extend([] if single is None else [single])
        self._asking = self._said_gone = False
        return batch

    def _reopen(self, gap: float) -> None:
        self._ground()  # which takes letters out, as far as it can tell
        self._left, self._unsure = self._left + self._unsure, 0
        self._asking, self._lost = False, None
        self._connection.collect()
        pause(gap)
        with suppress(*self._passing):  # the next pass meets it again
            self._open()
            self._await_return(_RETURN)

    def _await_return(self, seconds: float) -> None:
        """What was held comes back a moment after its channel has gone; fewer come when somebody else took some."""
        deadline, gap = time.monotonic() + seconds, 0.001
        while (queue_length(self._connection, self._queue) or 0) < self._left and time.monotonic() < deadline:
            time.sleep(gap)
            gap = min(2 * gap, 0.1)

    def remove(self, entry: Entry) -> bool:
        try:
            self._channel.basic_ack(entry.place)
            if is_nameless(entry.letter):  # which would not be known again: this waits for an answer behind it
                self._channel.basic_qos(0, _BATCH, False)
        except self._passing as error:  # it comes back, and the walk begins again
            self._lost = error
            return False
        self._left, self._unsure = self._left - 1, self._unsure + 1
        entry.gone = True
        return True

    def resend(
        self, entry: Entry, message: dict[str, Any], target: tuple[str, str], told: Told, *, keyed: bool
    ) -> bool:
        def flown(landing: Entry, error: PublishFailed | None) -> None:
            # Refused by a full queue, or lost with the channel: it is tried by itself.
            if error is not None and error.transient and not _is_silence(error):
                error = _unsure(error) if self._stalled else self._published(message, target)
            landed(landing, error)

        def landed(landing: Entry, error: PublishFailed | None) -> None:
            # A full queue is waited for once, and not once for each letter; so is a broker that has gone. Of one that says
            # nothing, as at a memory alarm, it is not known what it will do once it goes on: it is told of one message.
            self._away = error is not None and self._is_gone(error)
            is_full = error is not None and error.transient and not self._away
            (self._full.add if is_full else self._full.discard)(target)
            self._stalled = self._stalled or (error is not None and _is_silence(error))
            if error is None:
                self.remove(landing)
            told(landing, error is None, _unsure(error) if error is not None and _is_silence(error) else error)

        # An exchange that is not there would take the channel down, and with it what is on its way.
        flies = keyed and self._flies and not target[0] and message.get("correlation_id") == entry.letter.replay_id
        self._prepare(flies=flies)
        if not flies:
            self._hear()  # there may have been a pause since the letter was given
        if self._lost is not None:
            return False
        if self._stalled:
            told(entry, False, _not_tried())
        elif flies:
            self._fly(Sent(entry, message, target, flown))
        else:
            landed(entry, self._published(message, target))
        return True

    def _published(self, message: dict[str, Any], target: tuple[str, str]) -> PublishFailed | None:
        error = self._tried(message, target)
        if error is not None and not self._away and self._is_gone(error):
            self._say_gone()
            with suppress(OperationalError, *self._passing), self._app.connection_for_write() as again:
                again.ensure_connection(
                    errback=lambda *_: between_letters(),
                    timeout=_PATIENCE.total_seconds(),
                    interval_start=0.1,
                    interval_step=0.2,
                    interval_max=2,
                )
                error = self._tried(message, target)
        return error

    def _is_gone(self, error: PublishFailed) -> bool:
        """Whether the broker cannot be reached, as while it is restarted: it is waited for, as the walk does."""
        return error.transient and isinstance(error.__cause__, self._gone) and not _is_silence(error)

    @property
    def _gone(self) -> Any:
        return (OSError, OperationalError, *self._connection.connection_errors)

    def _tried(self, message: dict[str, Any], target: tuple[str, str]) -> PublishFailed | None:
        def send(producer: Any) -> None:
            producer.publish(exchange=target[0], routing_key=target[1], **message, **CONFIRM)

        try:
            patience = timedelta(0) if self._away or target in self._full else _SENDING
            equipment_of(self._app).publisher.publish(send, patience=patience)
        except PublishFailed as error:
            said = error.__cause__ is not None and error.transient and not isinstance(error.__cause__, self._gone)
            return refused() if said else error
        return None

    def _prepare(self, *, flies: bool) -> None:
        """Wait until the next message may go: among others that are on their way, or by itself."""
        if self._lost is not None:  # nothing is heard of them any more
            self._ground()
            return
        try:
            if flies and self._flight is None:
                self._flight = Flight(self._app, self._connection, _SENDING.total_seconds())
            if self._flight is not None:
                self._flight.settle(_IN_FLIGHT if flies else 0)
        except self._passing as error:
            self._lost = error
            self._ground()

    def _fly(self, sent: Sent) -> None:
        assert self._flight is not None
        try:
            self._flight.send(sent)
        except self._passing as error:
            self._lost = error
            self._ground()

    def settle(self) -> None:
        """Wait until all that was sent is confirmed, and take those letters out."""
        self._prepare(flies=False)

    def _ground(self) -> None:
        """Send what was on its way when its channel was lost once more, each with its own confirmation: a key absorbs it."""
        self._flies = False
        while self._flight is not None:
            sent = self._flight.lost()
            if sent is None:
                self._flight = None
            else:
                sent.told(sent.entry, PublishFailed("its channel was lost", transient=True))

    def target_of(self, letter: Letter) -> tuple[str, str]:
        # Its exchange may have several queues, and the others have had their copy.
        if not letter.exchange or self._exists(letter.queue):
            return "", letter.queue
        return letter.exchange, letter.routing_key

    def target_named(self, queue: str) -> tuple[str, str]:
        if not self._exists(queue):
            if self._lost is not None:
                raise self._lost
            raise ConfigurationError(f"there is no queue {queue!r} on the broker; expected the name of one")
        return "", queue

    def _exists(self, queue: str) -> bool:
        if queue not in self._is_queue:
            self.settle()  # an answer to what is on its way would be taken for the one to this
            if self._lost is not None:
                return False
            try:
                self._is_queue[queue] = queue_length(self._connection, queue) is not None
            except self._passing as error:
                # The end of the channel that holds the letters may be heard while an answer to this is waited for.
                about_it = isinstance(error, self._connection.channel_errors)
                if not about_it or getattr(error, "method_sig", None) != _DECLARE:
                    self._lost = error
                    return False
                self._is_queue[queue] = False  # somebody's own, whom nobody else may ask
        return self._is_queue[queue]

    def forget(self, letter_id: str) -> None:
        """RabbitMQ keeps no note of what was replayed."""


def _is_counted(task: Any, queue: str) -> bool:
    """Whether the app asked for this quorum queue itself: then its limit was switched off, or the worker warned."""
    pattern = worn(task, dead_letter)
    return pattern is not None and (pattern.queue, pattern.queue_type) == (queue, "quorum")


def _not_tried() -> PublishFailed:
    return PublishFailed("not tried, since the broker did not confirm the one before", transient=True)


def _unsure(error: PublishFailed) -> PublishFailed:
    return PublishFailed(f"{error}; it may have been sent all the same", transient=True)


def _is_silence(error: PublishFailed) -> bool:
    """Whether the broker is there and says nothing; one that refuses, or is gone, has not kept the message for later."""
    cause = error.__cause__
    return isinstance(cause, TimeoutError) or (cause is not None and isinstance(cause.__cause__, TimeoutError))
