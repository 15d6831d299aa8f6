"""The connection to RabbitMQ that letters are held on while they are looked at and sent, and what became of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from kombu.exceptions import OperationalError

from ._undisturbed import say_gone

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Line"]

#: Seconds that one answer may take.
_ANSWER = 30.0


class Line:
    """One connection at a time.

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
        #: What took the channel, and with it the hold on the letters that were asked for.
        self.lost: Exception | None = None
        try:
            self.open()
        except self.connection.recoverable_connection_errors as error:
            raise OperationalError(str(error)) from error

    def open(self) -> None:
        """Connect, once to each of the brokers that are named."""
        self.connection: Any = self._app.connection_for_write()  # where the letters were written, and go back to
        for name in ("read_timeout", "write_timeout"):
            self.connection.transport_options.setdefault(name, _ANSWER)
        self.connection.transport_options["confirm_publish"] = False  # a flight counts the confirmations itself
        # As connect(), which would try two hosts of three; and as there, the trouble comes as itself.
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
        """Tell whoever watches that the broker is waited for, once until it answers."""
        if not self._said_gone:
            self._said_gone = True
            say_gone(self.PATIENCE.total_seconds())

    def answered(self) -> None:
        """The broker is there."""
        self._said_gone = False
