"""Sending the messages of letters on RabbitMQ: several on their way where a key absorbs a second one, else one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from .._equipment import equipment_of
from .._publish import CONFIRM
from ..exceptions import PublishFailed
from ._entry import Entry, Told
from ._flight import Flight, Sent, refused
from ._link import Link
from ._undisturbed import between_letters

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Dispatch"]

#: How many messages with a key may be on their way before another one is sent.
_IN_FLIGHT = 32
#: For how long one message is tried.
_SENDING = timedelta(seconds=5)


class Dispatch:
    """Sends the messages of letters that are held on a line.

    Args:
        app: The app that sends.
        line: What the letters are held on. What flies goes there, too; other messages go by a connection of the app's.
        remove: Takes a letter out, once its message was confirmed.
    """

    def __init__(self, app: Celery, line: Link, remove: Callable[[Entry], object]) -> None:
        self._app = app
        self._link = line
        self._remove = remove
        self._flight: Flight | None = None
        self._flies = True
        #: Targets that did not take the last message.
        self._full: set[tuple[str, str]] = set()
        self._away = self._stalled = False

    def send(self, entry: Entry, message: dict[str, Any], target: tuple[str, str], told: Told, *, keyed: bool) -> bool:
        """As a shelf's ``resend()``."""

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
                self._remove(landing)
            told(landing, error is None, _unsure(error) if error is not None and _is_silence(error) else error)

        # An exchange that is not there would take the channel down, and with it what is on its way.
        flies = keyed and self._flies and not target[0] and message.get("correlation_id") == entry.letter.replay_id
        self._prepare(flies=flies)
        if not flies:
            self._link.hear()  # there may have been a pause since the letter was given
        if self._link.lost is not None:
            return False
        if self._stalled:
            told(entry, False, _not_tried())
        elif flies:
            self._fly(Sent(entry, message, target, flown))
        else:
            landed(entry, self._published(message, target))
        return True

    def tell(self) -> None:
        """Tell of what has come to its end by now."""
        if self._flight is not None:
            self._flight.tell()

    def settle(self) -> None:
        """Wait until all that was sent is confirmed, and take those letters out."""
        self._prepare(flies=False)

    def ground(self) -> None:
        """Send once more what was on its way when its channel was lost, each by itself; from now on nothing flies."""
        self._flies = False
        while self._flight is not None:
            sent = self._flight.lost()
            if sent is None:
                self._flight = None
            else:
                sent.told(sent.entry, PublishFailed("its channel was lost", transient=True))

    def _prepare(self, *, flies: bool) -> None:
        """Wait until the next message may go: among others that are on their way, or by itself."""
        if self._link.lost is not None:  # nothing is heard of them any more
            self.ground()
            return
        try:
            if flies and self._flight is None:
                self._flight = Flight(self._app, self._link.connection, _SENDING.total_seconds())
            if self._flight is not None:
                self._flight.settle(_IN_FLIGHT if flies else 0)
        except self._link.passing as error:
            self._link.lost = error
            self.ground()

    def _fly(self, sent: Sent) -> None:
        assert self._flight is not None
        try:
            self._flight.send(sent)
        except self._link.passing as error:
            self._link.lost = error
            self.ground()

    def _published(self, message: dict[str, Any], target: tuple[str, str]) -> PublishFailed | None:
        error = self._tried(message, target)
        if error is not None and not self._away and self._is_gone(error):
            self._link.say_gone()
            with suppress(OperationalError, *self._link.passing), self._app.connection_for_write() as again:
                again.ensure_connection(
                    errback=lambda *_: between_letters(),
                    timeout=self._link.PATIENCE.total_seconds(),
                    interval_start=0.1,
                    interval_step=0.2,
                    interval_max=2,
                )
                error = self._tried(message, target)
        return error

    def _tried(self, message: dict[str, Any], target: tuple[str, str]) -> PublishFailed | None:
        def send(producer: Any) -> None:
            producer.publish(exchange=target[0], routing_key=target[1], **message, **CONFIRM)

        try:
            patience = timedelta(0) if self._away or target in self._full else _SENDING
            equipment_of(self._app).publisher.publish(send, patience=patience)
        except PublishFailed as error:
            said = error.__cause__ is not None and error.transient and not isinstance(error.__cause__, self._link.gone)
            return refused() if said else error
        return None

    def _is_gone(self, error: PublishFailed) -> bool:
        """Whether the broker cannot be reached, as while it is restarted: it is waited for, as the walk does."""
        return error.transient and isinstance(error.__cause__, self._link.gone) and not _is_silence(error)


def _not_tried() -> PublishFailed:
    return PublishFailed("not tried, since the broker did not confirm the one before", transient=True)


def _unsure(error: PublishFailed) -> PublishFailed:
    return PublishFailed(f"{error}; it may have been sent all the same", transient=True)


def _is_silence(error: PublishFailed) -> bool:
    """Whether the broker is there and says nothing; one that refuses, or is gone, has not kept the message for later."""
    cause = error.__cause__
    return isinstance(cause, TimeoutError) or (cause is not None and isinstance(cause.__cause__, TimeoutError))
