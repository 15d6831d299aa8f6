"""Confirmed publication: next attempts, waiting copies and letters, on a connection of our own.

Only a confirmed and mandatory publish tells that a message reached a queue, so these never go through the app's pool,
whose connections are the user's to configure.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from .exceptions import PublishFailed, UnsafeValue

if TYPE_CHECKING:
    from celery import Celery
    from kombu.connection import Connection
    from kombu.messaging import Producer

__all__ = ["CONFIRM", "PATIENCE", "Publisher"]

#: For how long a message is tried in place before it is given up.
PATIENCE = timedelta(seconds=30)

#: How long one confirmation, and one answer of a Redis broker, may take.
CONFIRM_SECONDS = 5.0

#: What every publish of ours is told: no hidden retry of kombu's, a confirmation, and an error when no queue takes it.
CONFIRM: dict[str, Any] = {"retry": False, "mandatory": True, "confirm_timeout": CONFIRM_SECONDS}

# A connection inherited over a fork must neither be used nor closed: closing it would shut the parent's socket.
_inherited: list[object] = []
_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


class Publisher:
    """One lazily opened connection per process, used by one thread at a time.

    Args:
        app: Whose broker it publishes to.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        # A signal's handler may publish on top of what its thread is publishing, as Celery's of a cold shutdown does.
        self._lock = threading.RLock()
        self._busy = False
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._confirmed = 0.0
        _publishers.add(self)

    def publish(
        self,
        send: Callable[[Producer], object],
        *,
        patience: timedelta = PATIENCE,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Call ``send`` with a producer until the broker has confirmed, or patience is over.

        Args:
            send: Publishes exactly one message with the producer it is given, and may be called again.
            patience: For how long a passing trouble is tried again; 30 seconds by default.
            sleep: Lets so many seconds pass between two tries.

        Raises:
            PublishFailed: ``transient`` when patience ran out, final when the message can never be published.
        """
        began = time.monotonic()
        deadline = began + patience.total_seconds()
        try:
            with self._lock:
                if self._busy:
                    raise PublishFailed("this thread is in the middle of publishing another message", True)
                if time.monotonic() > deadline > began > self._confirmed:
                    # Those who had their turn before this thread have tried all the while, and in vain.
                    raise PublishFailed(f"the broker did not confirm other threads' messages within {patience}", True)
                self._busy = True
                try:
                    self._insist(send, patience, deadline, sleep)
                finally:
                    self._busy = False
                self._confirmed = time.monotonic()
        except SoftTimeLimitExceeded as error:  # while it was sent, in a pause, or while another thread was publishing
            raise PublishFailed("the soft time limit came before the broker's confirmation", True) from error

    def _insist(
        self,
        send: Callable[[Producer], object],
        patience: timedelta,
        deadline: float,
        sleep: Callable[[float], object],
    ) -> None:
        pause = 0.1
        while True:
            try:
                send(self._ready())
                return
            except UnsafeValue:
                raise
            except Exception as error:
                passing = self._passing(error)
                self._drop()
                if isinstance(error, SoftTimeLimitExceeded):
                    raise
                if not passing:
                    raise PublishFailed(f"the message cannot be published: {_said(error)}") from error
                if time.monotonic() + pause > deadline:
                    raise PublishFailed(
                        f"the broker did not confirm the message within {patience}: {_said(error)}",
                        True,
                    ) from error
            except BaseException:
                # A pool's time limit between message and confirmation, which must not confirm the next message.
                self._drop()
                raise
            sleep(pause)
            pause = min(pause * 2, 2.0)

    def close(self) -> None:
        """Close the connection, if one was opened."""
        with self._lock:
            if not self._busy:
                self._drop()

    def begin_anew(self) -> None:
        """Let go of what a fork inherited; the lock may be held by a thread that this process does not have."""
        _inherited.append((self._connection, self._producer))
        self._lock, self._busy = threading.RLock(), False
        self._connection = self._producer = None

    def _ready(self) -> Any:
        if self._producer is None:
            connection = self._app.connection_for_write()
            options = connection.transport_options
            if connection.transport.driver_type == "amqp":
                options.update(confirm_publish=True)
                # A broker that is frozen, and not gone, would hold us for ever.
                options.setdefault("read_timeout", 2 * CONFIRM_SECONDS)
                options.setdefault("write_timeout", 2 * CONFIRM_SECONDS)
            elif connection.transport.driver_type == "redis":
                options.setdefault("socket_timeout", CONFIRM_SECONDS)
                options.setdefault("socket_connect_timeout", CONFIRM_SECONDS)
            self._connection = connection
            # As connect(), which would sleep for two seconds before its second try, and try two hosts of three.
            connection.ensure_connection(max_retries=max(1, len(connection.alt)), interval_start=0, interval_step=0)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def _passing(self, error: Exception) -> bool:
        """Whether the same message may get through later."""
        if isinstance(error, OperationalError | OSError):
            # kombu hands the broker's own refusal on as the cause.
            return not _refused(error.__cause__)
        if _refused(error) or self._connection is None:
            return False
        # Recoverable is also a broker's "not now", as from a queue that is full.
        return isinstance(error, self._connection.connection_errors + self._connection.recoverable_connection_errors)

    def _drop(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            # It sets this for the whole process while it works, and other threads open sockets meanwhile.
            connection.collect(socket_timeout=socket.getdefaulttimeout())


def _begin_anew() -> None:
    for publisher in _publishers:
        publisher.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)


def _refused(error: BaseException | None) -> bool:
    """The broker knows the message's destination is wrong: 312 no route, 403 access, 404 not found, 406 precondition."""
    return getattr(error, "reply_code", None) in (312, 313, 403, 404, 406)


def _said(error: BaseException) -> str:
    # A broker's own words name queues and exchanges; an encoder's may quote an argument, so only their type is told.
    if getattr(error, "reply_code", None) or isinstance(error, OSError | OperationalError):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__
