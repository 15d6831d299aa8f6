"""The connection to RabbitMQ that letters are held on while they are looked at and sent, and what became of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from kombu.exceptions import OperationalError

from ._undisturbed import say_gone

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Link"]

#: Seconds that one answer may take.
_ANSWER = 30.0


class Link:
    """One connection at a time.

    Attributes:
        connection: The present one; each ``open()`` makes another, so nobody keeps it.
        lost: What took it or its channel, and with that the hold on the letters. Set by whoever meets it, and cleared by
            whoever opens anew.

    Args:
        app: The app whose broker it is.

    Raises:
        kombu.exceptions.OperationalError: When the broker cannot be reached.
    """

    #: For how long a broker that has gone is waited for.
    PATIENCE: ClassVar[timedelta] = timedelta(seconds=30)

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._said_gone = False
        self.lost: Exception | None = None
        try:
            self.open()
        except self.connection.recoverable_connection_errors as error:
            raise OperationalError(str(error)) from error

    def open(self) -> None:
        """Connect, to the first that answers of the brokers that are named; the trouble comes as itself."""
        self.connection: Any = self._app.connection_for_write()  # where the letters were written, and go back to
        for name in ("read_timeout", "write_timeout"):
            self.connection.transport_options.setdefault(name, _ANSWER)
        self.connection.transport_options["confirm_publish"] = False  # a flight counts the confirmations itself
        # Not connect(), which would try two hosts of three.
        self.connection.ensure_connection(
            max_retries=max(1, len(self.connection.alt)),
            interval_start=0,
            interval_step=0,
            reraise_as_library_errors=False,
        )

    @property
    def passing(self) -> Any:
        """What is raised when the connection or a channel is lost."""
        return (*self.connection.connection_errors, *self.connection.channel_errors)

    @property
    def gone(self) -> Any:
        """What is raised when the broker cannot be reached."""
        return (OSError, OperationalError, *self.connection.connection_errors)

    def hear(self) -> None:
        """Hear whether the connection was closed."""
        try:
            while self.lost is None:  # one call hears one thing, and the last of several may be the end
                self.connection.drain_events(timeout=0)
        except TimeoutError:
            return
        except self.passing as error:
            self.lost = error

    def say_gone(self) -> None:
        """Say that the broker is waited for, once until it answers."""
        if not self._said_gone:
            self._said_gone = True
            say_gone(self.PATIENCE.total_seconds())

    def answered(self) -> None:
        """Hear that the broker is there: if it goes again, that is said again."""
        self._said_gone = False
